"""What a projection is called, how wide it is, and the name of its matrix."""

import math
from dataclasses import dataclass
from enum import StrEnum

from attribution.projection.reference import WIDEST
from attribution.streams import checked_seed
from schemas.errors import ShapeError

# Exact features cost n * p numbers; above this a sketch is as good (methods: k = 2048 of 17k).
EXACT_LIMIT = 200_000


class ProjectionKind(StrEnum):
    """How gradients become features."""

    SPARSE = "sparse"
    RADEMACHER = "rademacher"
    GAUSSIAN = "gaussian"
    HADAMARD = "hadamard"
    FACTORED = "factored"
    AUTO = "auto"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """What the sketch looks like.

    Every random kind keeps inner products on average, with an error of about |a| |b| / sqrt(dim).

    Args:
        kind: "sparse" costs `nonzeros` additions a gradient entry, "hadamard" about 12 + dim /
            4096, "rademacher" and "gaussian" (dense) a product for each of the dim columns;
            "factored" projects both sides of a weight and forms no gradient; "auto" is sparse or
            factored, by cost; "none" is the gradients themselves (small models and tests).
        dim: Width k of the sketch; not used by "none".
        nonzeros: Entries for each parameter of "sparse"; 1 is the fastest and as good for scores.

    Raises:
        ShapeError: A size is out of range, there are more entries than columns, or `nonzeros` is
            given to another kind.
    """

    kind: str = ProjectionKind.SPARSE
    dim: int = 2048
    nonzeros: int = 1

    def __post_init__(self) -> None:
        if self.kind not in set(ProjectionKind):
            raise ShapeError(
                f"unknown projection kind {self.kind!r}; say {' or '.join(ProjectionKind)}"
            )
        widest = WIDEST.get(self.kind, 2**31 - 1)
        if not 1 <= self.dim <= widest:
            raise ShapeError(
                f"projection dim is {self.dim}; give a width of 1 to {widest} to {self.kind!r}"
            )
        if self.kind != ProjectionKind.SPARSE and self.nonzeros != 1:
            raise ShapeError(
                f"projection nonzeros is {self.nonzeros}, and kind {self.kind!r} has none to "
                "choose; leave it out, or use kind='sparse'"
            )
        if not 1 <= self.nonzeros <= min(self.dim, 1024):
            raise ShapeError(
                f"projection nonzeros is {self.nonzeros}; give 1 to {min(self.dim, 1024)} "
                f"(dim is {self.dim})"
            )

    def width(self, n_parameters: int) -> int:
        """Columns of the features of a model with that many parameters.

        Raises:
            ShapeError: Exact gradients of a model that is too large.
        """
        if self.kind != ProjectionKind.NONE:
            return self.dim
        if n_parameters > EXACT_LIMIT:
            raise ShapeError(
                f"projection 'none' keeps all {n_parameters} gradient entries of each row, more "
                f"than {EXACT_LIMIT}; use kind='sparse'"
            )
        return n_parameters

    @property
    def scale(self) -> float:
        """Size of an entry that the sums leave out; with it E[P P^T] = I."""
        if self.kind == ProjectionKind.NONE:
            return 1.0
        count = self.nonzeros if self.kind == ProjectionKind.SPARSE else self.dim
        return 1.0 / math.sqrt(count)


def fingerprint(projection: Projection, *, seed: int, checkpoint: int, p: int) -> str:
    """Names the matrix; features with different fingerprints must not meet."""
    if projection.kind == ProjectionKind.NONE:
        return f"none/1:checkpoint={checkpoint},p={p}"
    nonzeros = (
        f"nonzeros={projection.nonzeros}," if projection.kind == ProjectionKind.SPARSE else ""
    )
    return (
        f"{projection.kind}/1:dim={projection.dim},{nonzeros}"
        f"seed={checked_seed(seed)},checkpoint={checkpoint},p={p}"
    )
