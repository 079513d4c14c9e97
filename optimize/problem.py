"""What is asked of a solver and what it answers: problems, and solutions with a certificate.

A problem is stated over the rows of one pool, in the units of the surrogate; it knows nothing of
models or tables. Every kind of problem is a frozen dataclass with a class variable `kind`, refuses
arrays that do not fit when it is made, and is answered by one `Solution`.
"""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from schemas.errors import ShapeError

if TYPE_CHECKING:
    from optimize.spread import Spread

Float64 = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

SIZE, INCLUDE, EXCLUDE, DUPLICATES = "size", "must include", "must exclude", "duplicates"


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
    choice: BoolArray
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


@dataclass(frozen=True, slots=True)
class Partition:
    """Rows by class, source or licence, with how many of each group may be chosen.

    Attributes:
        noun: What messages call a group: "class".
        labels: Int [n_pool], the group of each row.
        minimum: Rows that must at least be chosen, by group.
        maximum: Rows that may at most be chosen, by group; the same number as minimum for exactly.
        names: What messages call each group; its number where it is not named.

    Raises:
        ShapeError: The labels are no integers, or a quota is no number of rows.
    """

    noun: str
    labels: IntArray
    minimum: Mapping[int, int] = field(default_factory=dict)
    maximum: Mapping[int, int] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ShapeError(
                f"labels of {self.noun} are {labels.dtype} of shape {labels.shape}; give one "
                "integer for each row"
            )
        object.__setattr__(self, "labels", labels.astype(np.int64))
        for bound in ("minimum", "maximum"):
            quotas = {
                operator.index(group): _checked_count(f"{bound} of {self.name(group)}", rows)
                for group, rows in getattr(self, bound).items()
            }
            object.__setattr__(self, bound, quotas)

    @property
    def limited(self) -> list[int]:
        """The groups with a quota, in order."""
        return sorted({*self.minimum, *self.maximum})

    def name(self, group: int) -> str:
        """A group in words."""
        return f"{self.noun} {self.names.get(group, group)}"


@dataclass(frozen=True, slots=True)
class Budget:
    """What the chosen rows may cost together.

    Attributes:
        name: What is spent: "tokens".
        costs: Float [n_pool], non-negative.
        limit: The most that may be spent.

    Raises:
        ShapeError: A cost is negative or not finite, or the limit is negative or NaN.
    """

    name: str
    costs: Float64
    limit: float

    def __post_init__(self) -> None:
        costs = np.asarray(self.costs, dtype=np.float64)
        if costs.ndim != 1:
            raise ShapeError(f"costs in {self.name} have shape {costs.shape}; give one a row")
        wrong = np.flatnonzero(~(np.isfinite(costs) & (costs >= 0)))
        if len(wrong):
            raise ShapeError(
                f"row {wrong[0]} costs {costs[wrong[0]]} {self.name}; give finite costs, 0 or more"
            )
        if not self.limit >= 0:
            raise ShapeError(f"the budget of {self.name} is {self.limit}; give 0 or more")
        object.__setattr__(self, "costs", costs)
        object.__setattr__(self, "limit", float(self.limit))


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Choose the rows of the largest total utility, within all constraints.

    With several targets, f_j(x) = base_j + utility_j x - caution sd_j(x) for the rows x; what is
    maximised is their weighted mean, or the least of them.

    Attributes:
        utility: Float [n_pool] or [n_target, n_pool], finite. For an output that should fall
            (`loss`), give its negative.
        size: Rows to choose: a number, exactly; a pair (least, most); None for any number, at
            least one.
        size_priced: Whether the answer says what one more row is worth; not where the size was
            sought too, and nothing but the search limits it.
        partitions: Quotas by class, source, licence.
        budgets: Costs and what may be spent.
        duplicates: Int [n_pool], groups of which at most one row each is chosen.
        include: Bool [n_pool], rows that must be chosen.
        exclude: Bool [n_pool], rows that must not.
        combine: What is maximised of several targets: their mean, or the worst of them.
        weights: Float [n_target], of the mean; brought to sum 1. None: all alike.
        base: Float [n_target], the outputs without any row; 0 unless given.
        caution: kappa, how many standard deviations are taken off.
        spreads: sd of the outputs: one of the mean, or one for each target of the worst.

    Raises:
        ShapeError: The arrays do not fit, or hold what is not finite.
    """

    kind: ClassVar[str] = "select"

    utility: Float64
    size: int | tuple[int, int] | None = None
    size_priced: bool = True
    partitions: tuple[Partition, ...] = ()
    budgets: tuple[Budget, ...] = ()
    duplicates: IntArray | None = None
    include: BoolArray | None = None
    exclude: BoolArray | None = None
    combine: Literal["mean", "worst"] = "mean"
    weights: Float64 | None = None
    base: Float64 | None = None
    caution: float = 0.0
    spreads: tuple["Spread", ...] = ()

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "utility", _checked_utility(self.utility))
        put(self, "size", _checked_size(self.size))
        put(self, "partitions", tuple(self.partitions))
        put(self, "budgets", tuple(self.budgets))
        put(self, "spreads", tuple(self.spreads))
        put(self, "weights", _checked_weights(self.weights, len(self.utility)))
        put(self, "base", _checked_base(self.base, len(self.utility)))
        for name, kinds in (("duplicates", "iu"), ("include", "b"), ("exclude", "b")):
            if getattr(self, name) is not None:
                put(self, name, _checked_rows(name, getattr(self, name), kinds, self.n_pool))
        for partition in self.partitions:
            _checked_rows(f"labels of {partition.noun}", partition.labels, "iu", self.n_pool)
        for budget in self.budgets:
            _checked_rows(f"costs in {budget.name}", budget.costs, "f", self.n_pool)
        self._check_names()
        self._check_objective()

    @property
    def n_pool(self) -> int:
        """Rows to choose from."""
        return int(self.utility.shape[1])

    @property
    def sizes(self) -> tuple[int, int]:
        """Least and most rows that may be chosen."""
        if self.size is None:
            return 1, self.n_pool
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @property
    def pieces(self) -> tuple[Float64, Float64]:
        """Linear parts of what is maximised, the least of them counting: [J, n_pool] and [J]."""
        assert self.weights is not None  # noqa: S101
        assert self.base is not None  # noqa: S101
        if self.combine == "worst":
            return self.utility, self.base
        return (self.weights @ self.utility)[None], (self.weights @ self.base)[None]

    def value(self, choice: npt.NDArray[Any]) -> float:
        """What rows score, fractions of rows allowed: the function that is maximised."""
        gains, offsets = self.pieces
        values = gains @ choice.astype(np.float64) + offsets
        if self.caution:
            values -= self.caution * np.array([each.sd(choice) for each in self.spreads])
        return float(values.min())

    def _check_names(self) -> None:
        names = [SIZE, INCLUDE, EXCLUDE, DUPLICATES, *(budget.name for budget in self.budgets)]
        names += [each.name(group) for each in self.partitions for group in each.limited]
        twice = {name for name in names if names.count(name) > 1} if len(names) < 10_000 else ()
        if twice:
            raise ShapeError(f"two constraints are called {min(twice)!r}; name them apart")

    def _check_objective(self) -> None:
        if self.combine not in ("mean", "worst"):
            raise ShapeError(f"combine is {self.combine!r}; choose 'mean' or 'worst'")
        if not 0 <= self.caution < np.inf:
            raise ShapeError(f"caution is {self.caution}; give a finite number, 0 or more")
        wanted = len(self.pieces[0])
        if self.caution and len(self.spreads) != wanted:
            raise ShapeError(
                f"caution needs {wanted} spread(s), one for each output that counts; got "
                f"{len(self.spreads)}"
            )
        for spread in self.spreads:
            if spread.n_pool != self.n_pool:
                raise ShapeError(
                    f"a spread is over {spread.n_pool} rows and the pool has {self.n_pool}"
                )


def _checked_utility(utility: npt.ArrayLike) -> Float64:
    values = np.asarray(utility, dtype=np.float64)
    if values.ndim not in (1, 2) or values.size == 0:
        raise ShapeError(
            f"utility has shape {values.shape}; give one number for each row, or one row of them "
            "for each target"
        )
    values = np.atleast_2d(values)
    if not np.isfinite(values).all():
        target, row = (int(place[0]) for place in np.nonzero(~np.isfinite(values)))
        raise ShapeError(
            f"the utility of row {row} is {values[target, row]}; utilities must be finite"
        )
    return values


def _checked_size(size: Any) -> int | tuple[int, int] | None:
    if size is None:
        return None
    if not isinstance(size, Iterable):
        return _checked_count("size", size)
    pair = tuple(_checked_count("size", each) for each in size)
    if len(pair) != 2:
        raise ShapeError(f"size is {size}; give a number, or the least and the most")
    return pair


def _checked_count(name: str, value: Any) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise ShapeError(f"{name} is {value!r}; give a whole number of rows") from None
    if count < 0:
        raise ShapeError(f"{name} is {count}; give a number of rows, 0 or more")
    return count


def _checked_weights(weights: npt.ArrayLike | None, n_target: int) -> Float64:
    if weights is None:
        return np.full(n_target, 1 / n_target)
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (n_target,) or not (given >= 0).all() or not 0 < given.sum() < np.inf:
        raise ShapeError(
            f"weights have shape {given.shape}; give a non-negative number for each of the "
            f"{n_target} targets, one of them positive"
        )
    return given / given.sum()


def _checked_base(base: npt.ArrayLike | None, n_target: int) -> Float64:
    given = np.zeros(n_target) if base is None else np.asarray(base, dtype=np.float64)
    if given.shape != (n_target,) or not np.isfinite(given).all():
        raise ShapeError(f"base has shape {given.shape}; give one number for each target")
    return given


def _checked_rows(name: str, values: npt.ArrayLike, kinds: str, n_pool: int) -> npt.NDArray[Any]:
    given = np.asarray(values)
    if given.shape != (n_pool,) or given.dtype.kind not in kinds:
        wanted = {"b": "true or false", "f": "number"}.get(kinds, "integer")
        raise ShapeError(
            f"{name}: {given.dtype} of shape {given.shape}, and the pool has {n_pool} rows; give "
            f"one {wanted} for each row"
        )
    return given
