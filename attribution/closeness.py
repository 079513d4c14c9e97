"""How close unlearned models are to retrained ones, point by point.

Both sides are margins [models, points]: N models from which rows were unlearned, and oracles that
never saw those rows. KLoM (Georgiev et al. 2024) compares the two histograms of each point; it has
a large floor, for histograms of few models differ by chance (0.33 on average, 0.65 at the 95th
percentile for 100 models a side). So the same number between two halves of the oracles, the null,
always stands beside it. U-LiRA (Hayes et al. 2024) asks how often a likelihood ratio tells an
unlearned model from an oracle.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import stats

from attribution.statistics import ratio
from attribution.streams import Purpose, stream
from schemas.errors import ShapeError

FloatArray = npt.NDArray[np.float64]

BINS = 20
# Margins beyond this are alike: p/(1-p) of e^100 is certainty on either side.
CLIP = 100.0
# What an empty bin of the oracles counts as; one point can reach log(1/FLOOR) = 11.5 at most.
FLOOR = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Closeness:
    """KLoM of one group of points, beside its null.

    Attributes:
        mean: Mean over the group's points, in nats, averaged over the splits.
        p95: 95th percentile over the group's points, averaged over the splits.
        null_mean: The same mean between two halves of the oracles: what no method falls below.
        null_p95: Likewise.
        models: Models on each side of every comparison.
        points: Points of the group.
    """

    mean: float
    p95: float
    null_mean: float
    null_p95: float
    models: int
    points: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """How often unlearned models are told from oracles; 0.5 is ideal, 1 is no unlearning.

    Attributes:
        accuracy: Mean over target models and points.
        sd: Spread of the target models' accuracies.
        per_model: Float64 [targets], the accuracy on each target: an unlearned model and an oracle.
    """

    accuracy: float
    sd: float
    per_model: FloatArray = field(repr=False)


def klom(unlearned: npt.ArrayLike, oracle: npt.ArrayLike) -> FloatArray:
    """KL(histogram of unlearned margins || histogram of oracle margins) of each point.

    20 equal bins on the points' joint range, after clipping at +-100; a bin that only unlearned
    models fall into counts 1e-5 of the oracles. The direction matters: unlearned models that
    spread beyond the oracles cost more than such as huddle among them.

    Args:
        unlearned: Margins [N, points].
        oracle: Margins [N', points] of models that never saw the rows.

    Returns:
        Float64 [points], in nats.

    Raises:
        ShapeError: The points differ in number, a side has no model, or a margin is NaN.
    """
    ours, theirs = _checked_sides(unlearned, oracle)
    return np.array([_divergence(a, b) for a, b in zip(ours.T, theirs.T, strict=True)])


def klom_null(oracle: npt.ArrayLike, *, splits: int = 10, seed: int = 0) -> FloatArray:
    """KLoM between two halves of the oracles, for several random splits: float64 [splits, points].

    A statistic over points (a percentile above all) is taken of each split and then averaged; of
    the splits' mean it would be too small. Its floor is that of N' / 2 models a side.

    Raises:
        ShapeError: There are fewer than four oracles, or no split.
    """
    margins, _ = _checked_sides(oracle, oracle)
    return np.stack([klom(margins[a], margins[b]) for a, b in _halves(len(margins), splits, seed)])


def closeness(
    unlearned: npt.ArrayLike,
    oracle: npt.ArrayLike,
    *,
    groups: Mapping[str, npt.ArrayLike],
    splits: int = 10,
    seed: int = 0,
) -> dict[str, Closeness]:
    """KLoM of groups of points beside its null, both with equally many models a side.

    Each split halves the oracles; one half is compared with the other (the null) and with as many
    unlearned models. So N unlearned models and 2 N oracles are compared N to N.

    Args:
        unlearned: Margins [N, points].
        oracle: Margins [N', points].
        groups: Points of each group, as indices or bool [points]: forget, retain, validation.
        splits: Random splits that are averaged over.
        seed: Key of the splits.

    Raises:
        ShapeError: As `klom`; or a group is empty or outside the points.
    """
    ours, theirs = _checked_sides(unlearned, oracle)
    members = {name: _members(name, rows, ours.shape[1]) for name, rows in groups.items()}
    found, null = [], []
    for number, (a, b) in enumerate(_halves(len(theirs), splits, seed)):
        size = min(len(a), len(ours))
        order = stream(seed, Purpose.FORGET, 1, number).permutation(len(ours))[:size]
        found.append(klom(ours[order], theirs[a[:size]]))
        null.append(klom(theirs[b[:size]], theirs[a[:size]]))
    return {
        name: Closeness(
            mean=float(np.mean([one[rows].mean() for one in found])),
            p95=float(np.mean([np.quantile(one[rows], 0.95) for one in found])),
            null_mean=float(np.mean([one[rows].mean() for one in null])),
            null_p95=float(np.mean([np.quantile(one[rows], 0.95) for one in null])),
            models=size,
            points=len(rows),
        )
        for name, rows in members.items()
    }


def u_lira(
    unlearned: npt.ArrayLike, oracle: npt.ArrayLike, *, folds: int = 5, seed: int = 0
) -> Membership:
    """Accuracy of a likelihood-ratio attack on the forgotten points (Hayes et al. 2024).

    Of each point two normal distributions are fitted, to the margins of shadow models that
    unlearned it and of shadow models that never saw it. A target's margin is taken for an
    unlearned model's where N_u / (N_u + N_o) > 1/2. Every model is a target once, its shadows
    being the models of the other folds; unlearned models and oracles count alike.

    Args:
        unlearned: Margins [N, points] of the forgotten points.
        oracle: Margins [N', points].
        folds: Into which both sides are cut.
        seed: Key of the folds.

    Raises:
        ShapeError: As `klom`; or a fold would leave fewer than two shadows.
    """
    sides = _checked_sides(unlearned, oracle)
    fewest = min(len(side) for side in sides)
    if not 2 <= folds <= fewest or fewest - -(-fewest // folds) < 2:
        raise ShapeError(
            f"{folds} folds of {len(sides[0])} unlearned models and {len(sides[1])} oracles leave "
            "fewer than two shadows; give more models or other folds"
        )
    places = [
        np.array_split(stream(seed, Purpose.FOLDS, number).permutation(len(side)), folds)
        for number, side in enumerate(sides)
    ]
    right: list[FloatArray] = []
    for fold in range(folds):
        held = [own[fold] for own in places]
        shadows = [np.delete(side, rows, axis=0) for side, rows in zip(sides, held, strict=True)]
        said = [
            _says_unlearned(side[rows], shadows) for side, rows in zip(sides, held, strict=True)
        ]
        count = min(len(rows) for rows in held)
        right.append((said[0][:count].mean(axis=1) + (1 - said[1][:count]).mean(axis=1)) / 2)
    per_model = np.concatenate(right)
    return Membership(
        accuracy=float(per_model.mean()), sd=float(per_model.std(ddof=1)), per_model=per_model
    )


def _says_unlearned(targets: FloatArray, shadows: list[FloatArray]) -> FloatArray:
    """1 where the unlearned shadows' density is the higher, 0.5 where both are equal: [t, points].

    Compared in logarithms: far from both sides the densities themselves are 0.
    """
    logs = []
    for side in shadows:
        # A point on which all shadows agree still has a density.
        sd = np.maximum(side.std(axis=0, ddof=1), 1e-6 * np.maximum(1.0, np.abs(side).max(axis=0)))
        logs.append(stats.norm.logpdf(targets, side.mean(axis=0), sd))
    return (np.sign(logs[0] - logs[1]) + 1) / 2


def _divergence(ours: FloatArray, theirs: FloatArray) -> float:
    low, high = min(ours.min(), theirs.min()), max(ours.max(), theirs.max())
    # np.histogram closes its last bin on the right, so the largest margin is counted.
    p, q = (np.histogram(side, bins=BINS, range=(low, high))[0] for side in (ours, theirs))
    p, q = ratio(p, np.full(BINS, p.sum())), ratio(q, np.full(BINS, q.sum()))
    used = p > 0
    return float((p[used] * np.log(p[used] / np.maximum(q[used], FLOOR))).sum())


def _halves(
    n_models: int, splits: int, seed: int
) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    if n_models < 4 or splits < 1:
        raise ShapeError(
            f"{n_models} oracles and {splits} splits; the null needs four oracles and one split "
            "at least"
        )
    half, found = n_models // 2, []
    for number in range(splits):
        order = stream(seed, Purpose.FORGET, 0, number).permutation(n_models)
        found.append((order[:half], order[half : 2 * half]))
    return found


def _checked_sides(
    unlearned: npt.ArrayLike, oracle: npt.ArrayLike
) -> tuple[FloatArray, FloatArray]:
    ours, theirs = (np.asarray(side, dtype=np.float64) for side in (unlearned, oracle))
    if ours.ndim != 2 or theirs.ndim != 2 or ours.shape[1] != theirs.shape[1]:
        raise ShapeError(
            f"unlearned margins have shape {ours.shape} and oracle margins {theirs.shape}; give "
            "[models, points] of the same points"
        )
    if not len(ours) or not len(theirs) or not ours.shape[1]:
        raise ShapeError("there is no model, or no point, to compare; give one of each at least")
    if np.isnan(ours).any() or np.isnan(theirs).any():
        raise ShapeError("a margin is NaN; that model diverged: leave it out or unlearn again")
    return np.clip(ours, -CLIP, CLIP), np.clip(theirs, -CLIP, CLIP)


def _members(name: str, rows: npt.ArrayLike, n_points: int) -> npt.NDArray[np.intp]:
    chosen: npt.NDArray[np.generic] = np.asarray(rows)
    if chosen.dtype == np.bool_ and chosen.shape == (n_points,):
        chosen = np.flatnonzero(chosen)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or not len(chosen):
        raise ShapeError(f"group {name!r} names no points; give indices, or bool [{n_points}]")
    if chosen.min() < 0 or chosen.max() >= n_points:
        raise ShapeError(f"group {name!r} asks for a point outside 0..{n_points - 1}")
    return chosen.astype(np.intp)
