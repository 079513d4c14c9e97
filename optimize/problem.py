"""What is asked of a solver and what it answers: problems, and solutions with a certificate.

A problem is stated over the rows of one pool, in the units of the surrogate; it knows nothing of
models or tables. Every kind of problem is a frozen dataclass with a class variable `kind`, refuses
what cannot be solved when it is made, and is answered by one `Solution`.
"""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from schemas.errors import InfeasibleProblem, ShapeError


class Status(StrEnum):
    """How far the solver got."""

    OPTIMAL = "optimal"  # no feasible choice is better, up to rounding
    FEASIBLE = "feasible"  # the constraints hold; `Solution.gap` bounds what may be lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A choice of rows and the proof of how good it is.

    Attributes:
        status: How far the solver got.
        choice: Bool [n_pool], the rows chosen.
        value: What the choice scores, in the units of the problem's utility.
        bound: A value that no feasible choice can exceed.
        prices: What one more unit of each constraint is worth, by name.
        sentence: The answer in plain words.
    """

    status: Status
    choice: npt.NDArray[np.bool_]
    value: float
    bound: float
    prices: Mapping[str, float] = field(default_factory=dict)
    sentence: str = ""

    @property
    def gap(self) -> float:
        """How far the bound lies above the value, relative to the bound where that exceeds 1."""
        return abs(self.bound - self.value) / max(1.0, abs(self.bound))

    @property
    def size(self) -> int:
        """Rows chosen."""
        return int(np.count_nonzero(self.choice))


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Choose exactly `size` rows of the largest total utility, within quotas per group.

    Attributes:
        utility: Float [n_pool], finite; the total over the chosen rows is maximised. For an output
            that should fall (`loss`), give its negative.
        size: Rows to choose, 1 <= size <= n_pool.
        groups: Int [n_pool], the group (class, source) of each row; None if there are no quotas.
        minimum: Rows that must at least be chosen, by group.
        maximum: Rows that may at most be chosen, by group.
        noun: What messages call a group.
        names: What messages call each group; its number where it is not named.

    Raises:
        ShapeError: The arrays do not fit, or the utility is not finite.
        InfeasibleProblem: No choice satisfies the constraints; the message names the conflict.
    """

    kind: ClassVar[str] = "select"

    utility: npt.NDArray[np.float64]
    size: int
    groups: npt.NDArray[np.int64] | None = None
    minimum: Mapping[int, int] = field(default_factory=dict)
    maximum: Mapping[int, int] = field(default_factory=dict)
    noun: str = "class"
    names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "utility", _checked_utility(self.utility))
        object.__setattr__(self, "size", _checked_count("size", self.size))
        for bound in ("minimum", "maximum"):
            quotas = {
                operator.index(group): _checked_count(f"{bound} of {self.name(group)}", rows)
                for group, rows in getattr(self, bound).items()
            }
            object.__setattr__(self, bound, quotas)
        if self.groups is not None:
            groups = np.asarray(self.groups)
            if groups.shape != self.utility.shape or groups.dtype.kind not in "iu":
                raise ShapeError(
                    f"groups are {groups.dtype} of shape {groups.shape} and utility has shape "
                    f"{self.utility.shape}; give one integer for each row"
                )
            object.__setattr__(self, "groups", groups.astype(np.int64))
        elif self.minimum or self.maximum:
            raise ShapeError("quotas are given but no groups; give the group of each row")
        self._refuse_conflicts()

    @property
    def n_pool(self) -> int:
        """Rows to choose from."""
        return len(self.utility)

    def name(self, group: int) -> str:
        """A group in words."""
        return f"{self.noun} {self.names.get(group, group)}"

    def counts(self) -> dict[int, int]:
        """Rows of each group in the pool; one group 0 where there are no groups."""
        if self.groups is None:
            return {0: self.n_pool}
        values, rows = np.unique(self.groups, return_counts=True)
        return dict(zip(values.tolist(), rows.tolist(), strict=True))

    def limits(self) -> dict[int, tuple[int, int]]:
        """Least and most rows of each group of the pool, where no quota is given 0 and all."""
        return {
            group: (self.minimum.get(group, 0), min(self.maximum.get(group, rows), rows))
            for group, rows in self.counts().items()
        }

    def _refuse_conflicts(self) -> None:
        if self.size < 1:
            raise InfeasibleProblem("size is 0; choose at least 1 row")
        if self.size > self.n_pool:
            raise InfeasibleProblem(
                f"size {self.size} is larger than the pool of {self.n_pool}; ask for fewer rows"
            )
        counts = self.counts()
        for group, least in self.minimum.items():
            if least > counts.get(group, 0):
                raise InfeasibleProblem(
                    f"{self.name(group)} has {counts.get(group, 0)} rows, quota asks for at least "
                    f"{least}; lower its minimum"
                )
            if least > self.maximum.get(group, least):
                raise InfeasibleProblem(
                    f"{self.name(group)} has a minimum of {least} and a maximum of "
                    f"{self.maximum[group]}; lower the one or raise the other"
                )
        wanted, allowed = sum(self.minimum.values()), _total(self.limits().values())
        if wanted > self.size:
            raise InfeasibleProblem(
                f"{_plural(self.noun)} ask for at least {wanted} rows, size is {self.size}; "
                "lower the minimums or raise the size"
            )
        if allowed < self.size:
            raise InfeasibleProblem(
                f"{_plural(self.noun)} allow at most {allowed} rows, size is {self.size}; "
                "raise the maximums or lower the size"
            )


def _total(limits: Iterable[tuple[int, int]]) -> int:
    return sum(most for _, most in limits)


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def _checked_utility(utility: npt.ArrayLike) -> npt.NDArray[np.float64]:
    values = np.asarray(utility, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ShapeError(f"utility has shape {values.shape}; give one number for each row")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ShapeError(f"the utility of row {row} is {values[row]}; utilities must be finite")
    return values


def _checked_count(name: str, value: int) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise ShapeError(f"{name} is {value!r}; give a whole number of rows") from None
    if count < 0:
        raise ShapeError(f"{name} is {count}; give a number of rows, 0 or more")
    return count
