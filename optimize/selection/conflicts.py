"""Why no choice satisfies a problem: a few demands that cannot hold together, in words.

Demands are left out one by one; those without which the rest can be satisfied stay (the deletion
filter, Chinneck and Dravnieks 1991). What stays is irreducible: relaxing any of it is enough for
the others in the list to hold together.
"""

from collections.abc import Collection

import numpy as np

from attribution.streams import Purpose, stream
from optimize.problem import (
    DUPLICATES,
    EXCLUDE,
    INCLUDE,
    SIZE,
    Budget,
    Partition,
    Selection,
)
from optimize.selection import thresholds
from optimize.selection.certificate import demands
from optimize.selection.integer import round_off
from optimize.selection.programme import Demand, Programme
from optimize.selection.relaxation import relax
from schemas.errors import InfeasibleProblem

_SECONDS, _NODES = 20.0, 2_000
# Prices of constraints that take part in a conflict are penalties; all others are utilities.
_STRAINED = 1e-2


def refuse_conflicts(problem: Selection) -> None:
    """Nothing, if some choice satisfies a problem.

    Raises:
        InfeasibleProblem: None does; the message names an irreducible conflict.
    """
    if not _satisfiable(problem):
        raise InfeasibleProblem(conflict(problem))


def conflict(problem: Selection) -> str:
    """A conflict of a problem that no choice satisfies, as one line."""
    return _in_words(problem, irreducible(problem))


def _satisfiable(problem: Selection, without: Collection[Demand] = ()) -> bool:
    programme = _any_objective(problem, without)
    if programme.clash or problem.sizes[1] < 1:
        return False
    if thresholds.suffices(problem, programme):
        return thresholds.choose(programme) is not None
    relaxed = relax(programme)
    if relaxed.slack:
        return False
    found = round_off(programme, relaxed, gap=np.inf, seconds=_SECONDS, nodes=_NODES)
    return found.on is not None


def _any_objective(problem: Selection, without: Collection[Demand]) -> Programme:
    """Feasibility alone, with utilities without ties, which large programmes are quicker for."""
    noise = stream(0, Purpose.SOLVER, 1).random(problem.n_pool)
    return Programme.of(problem, (noise[None], np.zeros(1)), without)


def irreducible(problem: Selection) -> list[Demand]:
    """Demands that cannot hold together, though they can without any one of them."""
    every = demands(problem)
    needed = _suspects(problem, every)
    if _satisfiable(problem, set(every) - set(needed)):
        needed = every
    # What is easiest to say stays longest: sizes and quotas before costs, costs before duplicates.
    for demand in reversed(tuple(needed)):
        rest = [each for each in needed if each != demand]
        if not _satisfiable(problem, set(every) - set(rest)):
            needed = rest
    return needed


def _suspects(problem: Selection, every: list[Demand]) -> list[Demand]:
    """Demands that the elastic relaxation pays penalties for, and those it cannot pay for."""
    programme = _any_objective(problem, ())
    if programme.clash or thresholds.suffices(problem, programme):
        return every
    relaxed = relax(programme)
    size = np.abs(relaxed.prices) * programme.per
    strained = dict(zip(programme.names, size > _STRAINED * size.max(), strict=True))
    if not relaxed.slack:
        return every
    return [each for each in every if strained.get(each.name, True)]


def _in_words(problem: Selection, found: list[Demand]) -> str:
    if (short := _short(problem, found)) is not None:
        return short
    clauses = [_clause(problem, demand, found) for demand in found]
    if len(clauses) == 1:
        return f"{clauses[0]}; relax it"
    listed = ", ".join(clauses[:-1])
    return f"these cannot all hold: {listed} and {clauses[-1]}; relax one of them"


def _short(problem: Selection, found: list[Demand]) -> str | None:
    """The commonest conflicts in fewer words."""
    least, most = problem.sizes
    if most < 1:
        return "size is 0; choose at least 1 row"
    if found == [Demand(SIZE, "least")]:
        return f"size {least} is larger than the pool of {problem.n_pool}; ask for fewer rows"
    if {each.name for each in found} == {SIZE} and len(found) == 2:
        return f"size is at least {least} and at most {most}; lower the one or raise the other"
    quotas = [_quota(problem, demand) for demand in found if demand.name != SIZE]
    known = [each for each in quotas if each is not None]
    if not known or len(known) < len(quotas):
        return None
    partition, group = known[0]
    name = partition.name(group)
    if len(found) == 1 and found[0].side == "least":
        rows = int((partition.labels == group).sum())
        return (
            f"{name} has {rows} rows, quota asks for at least {partition.minimum[group]}; "
            "lower its minimum"
        )
    if len(found) == len(known) == 2 and known[1][0] is partition and known[1][1] == group:
        return (
            f"{name} has a minimum of {partition.minimum[group]} and a maximum of "
            f"{partition.maximum[group]}; lower the one or raise the other"
        )
    return _totals(problem, found, [group for _, group in known], partition, known)


def _totals(
    problem: Selection,
    found: list[Demand],
    groups: list[int],
    partition: Partition,
    known: list[tuple[Partition, int]],
) -> str | None:
    """Quotas of one partition against the size."""
    if any(each is not partition for each, _ in known):
        return None
    sides = {(demand.name == SIZE, demand.side) for demand in found}
    if sides == {(True, "most"), (False, "least")}:
        wanted = sum(partition.minimum[group] for group in groups)
        return (
            f"{_plural(partition.noun)} ask for at least {wanted} rows, size is "
            f"{problem.sizes[1]}; lower the minimums or raise the size"
        )
    if sides == {(True, "least"), (False, "most")}:
        inside = np.isin(partition.labels, groups)
        allowed = int((~inside).sum()) + sum(
            min(partition.maximum[group], int((partition.labels == group).sum()))
            for group in groups
        )
        return (
            f"{_plural(partition.noun)} allow at most {allowed} rows, size is "
            f"{problem.sizes[0]}; raise the maximums or lower the size"
        )
    return None


def _clause(problem: Selection, demand: Demand, found: list[Demand]) -> str:
    name, side = demand
    least, most = problem.sizes
    if name == SIZE:
        exactly = " exactly" if least == most else f" at {side}"
        return f"size asks for{exactly} {least if side == 'least' else most:,} rows"
    if name == INCLUDE and problem.include is not None:
        return f"{int(problem.include.sum()):,} rows must be chosen"
    if name == EXCLUDE and problem.exclude is not None:
        return f"{int(problem.exclude.sum()):,} rows must not be chosen"
    if name == DUPLICATES:
        return "only one row of each duplicate group may be chosen"
    budget = next((each for each in problem.budgets if each.name == name), None)
    if budget is not None:
        return _budget_clause(problem, budget, found)
    quota = _quota(problem, demand)
    assert quota is not None  # noqa: S101 - every other demand is a quota
    partition, group = quota
    inside = partition.labels == group
    rows, limits = int(inside.sum()), partition.minimum if side == "least" else partition.maximum
    asks = "needs at least" if side == "least" else "allows at most"
    clause = f"{name} {asks} {limits[group]:,} of its {rows:,} rows"
    notes = [note for each in found if (note := _overlap(problem, inside, each, demand))]
    return clause + (f" ({', '.join(notes)})" if notes else "")


def _overlap(problem: Selection, inside: "np.ndarray", other: Demand, demand: Demand) -> str | None:
    """What a group has to do with another demand of the conflict."""
    if other == demand:
        return None
    if other.name == EXCLUDE and problem.exclude is not None:
        return f"{int((inside & problem.exclude).sum()):,} of them excluded"
    if other.name == INCLUDE and problem.include is not None:
        return f"{int((inside & problem.include).sum()):,} of them must be chosen"
    if other.name == DUPLICATES and problem.duplicates is not None:
        return f"in {len(np.unique(problem.duplicates[inside])):,} duplicate groups"
    quota = _quota(problem, other)
    if quota is None or other.side != "most" or demand.side != "least":
        return None
    rows = int((inside & (quota[0].labels == quota[1])).sum())
    return f"{rows:,} of them in {other.name}" if rows else None


def _budget_clause(problem: Selection, budget: Budget, found: list[Demand]) -> str:
    """A budget beside the least that the other demands cost."""
    others = set(demands(problem)) - set(found) | {Demand(budget.name, "most")}
    cheapest = relax(Programme.of(problem, (-budget.costs[None], np.zeros(1)), others))
    costs = "" if cheapest.slack else f", the other demands cost at least {-cheapest.bound:,.6g}"
    return f"{budget.name} may be at most {budget.limit:,.6g}{costs}"


def _quota(problem: Selection, demand: Demand) -> tuple[Partition, int] | None:
    for partition in problem.partitions:
        for group in partition.limited:
            if partition.name(group) == demand.name:
                return partition, group
    return None


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")
