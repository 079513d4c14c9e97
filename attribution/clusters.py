"""Training rows or queries grouped by what they do, and what the members of a group have in common.

Points are rows of `attribution.explore.Components`; groups are named by columns that were known
before: the metadata, the labels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import stats

from attribution.streams import Purpose, stream
from schemas.errors import ShapeError

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clusters:
    """Points grouped by where they point.

    Attributes:
        labels: Int [n], 0..k-1, the largest cluster first; -1 for points at the origin.
        centres: Float64 [k, d], the unit direction of each cluster.
        agreement: Float64 [n], cosine of each point with its centre; 0 at the origin.
        cohesion: Mean cosine, each point weighed by its length: 1 where all lie on their centres.
    """

    labels: IndexArray = field(repr=False)
    centres: FloatArray = field(repr=False)
    agreement: FloatArray = field(repr=False)
    cohesion: float
    lengths: FloatArray = field(repr=False)

    @property
    def sizes(self) -> IndexArray:
        """Points of each cluster, [k]."""
        return np.bincount(self.labels[self.labels >= 0], minlength=len(self.centres))

    def exemplars(self, cluster: int, count: int = 5) -> IndexArray:
        """The points of a cluster that reach furthest along its centre."""
        members = np.flatnonzero(self.labels == cluster)
        reach = self.agreement[members] * self.lengths[members]
        return members[np.argsort(-reach, kind="stable")[:count]]


def cluster(points: npt.ArrayLike, count: int, *, restarts: int = 8, seed: int = 0) -> Clusters:
    """Spherical k-means (Dhillon and Modha 2001), each point weighed by its length.

    Training rows whose effects differ in size but not in kind belong together, and rows that do
    nearly nothing should not decide where clusters are. Starts are drawn as k-means++ draws them
    (Arthur and Vassilvitskii 2007); the best of some is kept.

    Args:
        points: Float [n, d]: `Components.of_rows`, or loadings of queries.
        count: Clusters.
        restarts: Starts tried.
        seed: Key of the starts.

    Raises:
        ShapeError: No matrix of finite numbers, or fewer points off the origin than clusters.
    """
    given = np.asarray(points, dtype=np.float64)
    if given.ndim != 2 or not np.isfinite(given).all():
        raise ShapeError(f"points have shape {given.shape}; give finite numbers [n, d]")
    lengths = np.sqrt((given**2).sum(axis=1))
    there = np.flatnonzero(lengths > 0)
    if not 1 <= count <= len(there):
        raise ShapeError(
            f"{count} clusters of {len(there)} points off the origin; ask for 1 to {len(there)}"
        )
    rays, weights = given[there] / lengths[there, None], lengths[there]
    tries = (
        _settle(rays, weights, _starts(rays, weights, count, seed, number))
        for number in range(restarts)
    )
    labels, centres, reached = max(tries, key=lambda found: found[2])
    order = np.argsort(-np.bincount(labels, minlength=count), kind="stable")
    place = np.argsort(order)
    every = np.full(len(given), -1, dtype=np.intp)
    every[there] = place[labels]
    agreement = np.zeros(len(given))
    agreement[there] = (rays * centres[labels]).sum(axis=1)
    return Clusters(
        labels=every,
        centres=centres[order],
        agreement=agreement,
        cohesion=reached / float(weights.sum()),
        lengths=lengths,
    )


def _starts(
    rays: FloatArray, weights: FloatArray, count: int, seed: int, number: int
) -> FloatArray:
    rng = stream(seed, Purpose.SOLVER, 1, number)
    chosen = [int(rng.choice(len(rays), p=weights / weights.sum()))]
    nearest = rays @ rays[chosen[0]]
    for _ in range(count - 1):
        distance = weights * np.maximum(1 - nearest, 0.0)
        total = distance.sum()
        # Fewer directions than clusters: the rest start anywhere and end up empty or shared.
        share = distance / total if total > 0 else weights / weights.sum()
        chosen.append(int(rng.choice(len(rays), p=share)))
        nearest = np.maximum(nearest, rays @ rays[chosen[-1]])
    return rays[chosen]


def _settle(
    rays: FloatArray, weights: FloatArray, centres: FloatArray, *, rounds: int = 100
) -> tuple[IndexArray, FloatArray, float]:
    labels = (rays @ centres.T).argmax(axis=1)
    for _ in range(rounds):
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, rays * weights[:, None])
        lengths = np.sqrt((sums**2).sum(axis=1, keepdims=True))
        centres = np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1.0), centres)
        moved = (rays @ centres.T).argmax(axis=1)
        if (moved == labels).all():
            break
        labels = moved
    reached = float(weights @ (rays * centres[labels]).sum(axis=1))
    return labels, centres, reached


# --- names ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    """A value of a column that a group has more often than the rest.

    Attributes:
        column: Of the metadata, or the label.
        value: What its members have in common.
        inside: Members that have it.
        members: All members.
        lift: Their share over the share among all rows.
        p_value: Chance of as many under random membership, corrected for all groups and values
            that were looked at (Holm 1979).
    """

    column: str
    value: str
    inside: int
    members: int
    lift: float
    p_value: float


def traits(
    labels: npt.ArrayLike, columns: Mapping[str, Sequence[str]], *, level: float = 0.05
) -> dict[int, tuple[Trait, ...]]:
    """What each group has more of than chance gives, by exact hypergeometric tests.

    Args:
        labels: Int [n], the group of each row; -1 is none.
        columns: Values of each column [n], as text; every pair of group and value is a test.
        level: The most that `Trait.p_value` may be: the chance that any of all traits is none.

    Returns:
        For each group the traits that it surely has, the surest first; none for some.

    Raises:
        ShapeError: A column is not as long as the labels.
    """
    of_rows = np.asarray(labels)
    found: list[tuple[int, Trait]] = []
    for name, texts in columns.items():
        if len(texts) != len(of_rows):
            raise ShapeError(f"column '{name}' has {len(texts)} values for {len(of_rows)} rows")
        values, codes = np.unique(np.asarray(texts, dtype=str), return_inverse=True)
        totals = np.bincount(codes)
        for group in np.unique(of_rows[of_rows >= 0]):
            inside = np.bincount(codes[of_rows == group], minlength=len(values))
            members = int(inside.sum())
            chance = stats.hypergeom.sf(inside - 1, len(of_rows), totals, members)
            lift = inside / members / (totals / len(of_rows))
            rows = zip(values.tolist(), inside.tolist(), lift.tolist(), chance, strict=True)
            found += [
                (
                    int(group),
                    Trait(
                        column=name,
                        value=value,
                        inside=count,
                        members=members,
                        lift=more,
                        p_value=float(p),
                    ),
                )
                for value, count, more, p in rows
            ]
    return _holm(found, level)


def _holm(found: list[tuple[int, Trait]], level: float) -> dict[int, tuple[Trait, ...]]:
    kept: dict[int, tuple[Trait, ...]] = {group: () for group, _ in found}
    adjusted = 0.0
    for place, (group, trait) in enumerate(sorted(found, key=lambda each: each[1].p_value)):
        adjusted = max(adjusted, min(1.0, trait.p_value * (len(found) - place)))
        if adjusted > level:
            break
        sure = dataclasses.replace(trait, p_value=adjusted)
        kept[group] = (*kept[group], sure)
    return kept
