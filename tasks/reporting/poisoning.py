"""What attacks of one run came to, as frozen records.

Damage is to the mean loss of the targets, output damage to their mean output; both are positive
where it is worse.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.reporting.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The attack of one budget, predicted and retrained.

    Where inputs move there is nothing linear: no bound and no gap. `taken` is the share of targets
    that are taken for the wanted class, if there is one.
    """

    budget: int
    moves: int
    round: int
    linear: Interval | None
    bound: float | None
    gap: float | None
    predicted: Interval
    observed: Interval
    observed_output: Interval
    inside_linear: bool | None
    random_p95: float
    inside_p95: float
    exceeds: bool
    inside_interval: bool
    predicted_elsewhere: Interval
    observed_elsewhere: Interval
    stealth_held: bool | None
    accuracy: Interval
    accuracy_elsewhere: Interval
    taken: Interval | None


@dataclass(frozen=True, kw_only=True)
class Screened:
    """What one screen found of the poisoned rows of a budget."""

    budget: int
    screen: str
    auroc: float
    average_precision: float
    recall: float
    looked_at: int
    chance: float


@dataclass(frozen=True, kw_only=True)
class WeakSpot:
    """What the largest budget could do inside one value of a column."""

    column_name: str
    value: str
    n_rows: int
    moves: int
    damage: Interval


@dataclass(frozen=True, kw_only=True)
class Poisoning:
    """A problem of kind poison; budgets ascending, screens best first, weak spots worst first."""

    poisoning_id: str
    problem: str
    move: str
    radius: float | None
    taken_for: str | None
    targets: str
    n_targets: int
    n_elsewhere: int
    n_movable: int
    stealth: float | None
    output: str
    value: float
    loss: float
    value_elsewhere: float
    accuracy: float
    accuracy_elsewhere: float
    taken: float | None
    scale: float | None
    power: float | None
    scale_error: float | None
    practice_sets: int | None
    sentence: str
    notice: str
    budgets: tuple[Budget, ...]
    screens: tuple[Screened, ...]
    weak_spots: tuple[WeakSpot, ...]


def poisonings_of(
    rows: Iterable[Mapping[str, Any]],
    budgets: Iterable[Mapping[str, Any]],
    screens: Iterable[Mapping[str, Any]],
    spots: Iterable[Mapping[str, Any]],
) -> tuple[Poisoning, ...]:
    """Records from rows of `poisonings` and of the statements that go with it, in their order."""
    own_budgets, own_screens, own_spots = (_by_poisoning(own) for own in (budgets, screens, spots))
    return tuple(
        Poisoning(
            **row,
            budgets=tuple(_budget(each) for each in own_budgets.get(row["poisoning_id"], ())),
            screens=tuple(
                Screened(**_without_id(each)) for each in own_screens.get(row["poisoning_id"], ())
            ),
            weak_spots=tuple(_spot(each) for each in own_spots.get(row["poisoning_id"], ())),
        )
        for row in rows
    )


def _by_poisoning(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["poisoning_id"], []).append(row)
    return found


def _without_id(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "poisoning_id"}


# Intervals that every budget has, and those that some have.
_TRIPLES = (
    "predicted",
    "observed",
    "observed_output",
    "predicted_elsewhere",
    "observed_elsewhere",
    "accuracy",
    "accuracy_elsewhere",
)
_SOME = ("linear", "taken")


def _budget(row: Mapping[str, Any]) -> Budget:
    names = (*_TRIPLES, *_SOME)
    ends = {f"{name}_{end}" for name in names for end in ("low", "high")}
    plain = {name: value for name, value in _without_id(row).items() if name not in ends}
    known = [name for name in names if name in _TRIPLES or row[name] is not None]
    return Budget(**plain | {name: _triple(row, name) for name in known})


def _spot(row: Mapping[str, Any]) -> WeakSpot:
    names = ("column_name", "value", "n_rows", "moves")
    return WeakSpot(**{name: row[name] for name in names}, damage=_triple(row, "damage"))


def _triple(row: Mapping[str, Any], name: str) -> Interval:
    bounds = (row[f"{name}_low"], row[f"{name}_high"])
    low, high = (math.nan if bound is None else bound for bound in bounds)
    return Interval(mean=row[name], low=low, high=high)
