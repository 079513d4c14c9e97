"""The evidence about a query, the hypothesis that it suggests, and both in words."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.methods import FALLING
from schemas.spec import DebugSpec
from tasks.blueprint import Blueprint
from tasks.problems.look import SHOWN, Look
from tasks.score import calibrating_bank, load_scores
from tasks.slices import Slice

if TYPE_CHECKING:
    from optimize.averaged import MeanDatamodel

# Mean loss below which models give a row its label with a probability of 0.9: little is wrong.
RIGHT = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What was found about a query.

    Attributes:
        output: The output that effects are in units of.
        utility: Float64 [n_train], what having each row does to it, > 0 is better.
        surrogate: Of the mean output over the query's rows.
        cause: The slice that is proposed, or None.
        predicted: Predicted change of the output without it: mean, low, high.
        sentence: The finding in words.
        report: All of it, as JSON has it; `tasks.reporting.diagnosis` lays it out.
    """

    output: str
    utility: NDArray[np.float64]
    surrogate: "MeanDatamodel"
    cause: Slice | None
    predicted: list[float | None]
    sentence: str
    report: dict[str, Any]


def gather(plan: Blueprint, problem: DebugSpec) -> Evidence:
    """Look at a query from all sides, and propose a cause where one stands out."""
    output = plan.output(plan.spec.attribution_named(problem.uses))
    sign = -1.0 if output in FALLING else 1.0
    surrogate = _surrogate(plan, problem)
    utility = sign * surrogate.weights[0]
    look = Look(plan, problem, surrogate, sign)
    place = look.cause()
    hypothesis = None if place is None else look.hypothesis(place)
    order = np.argsort(utility, kind="stable")
    report = {
        "output": output,
        "query": look.query(),
        "helpful": look.rows(order[::-1][:SHOWN]),
        "harmful": look.rows(order[:SHOWN]),
        "slices": look.slice_rows(),
        "copies": look.copies(),
        "component": look.component(),
        "clusters": look.clusters(),
        "doubts": look.doubts(),
        "looked_at": len(look.slices),
        "hypothesis": hypothesis,
    }
    return Evidence(
        output=output,
        utility=utility,
        surrogate=surrogate,
        cause=None if place is None else look.slices[place],
        predicted=hypothesis["change"] if hypothesis else [None, None, None],
        sentence=_sentence(report, problem),
        report=report,
    )


def _surrogate(plan: Blueprint, problem: DebugSpec) -> "MeanDatamodel":
    """The surrogate of the query's mean output; the noise ratio is that of the tuning set.

    A ratio of the query's own would over-fit (`optimize.surrogate`).
    """
    from optimize.surrogate import calibrate

    attribution = plan.spec.attribution_named(problem.uses)
    scores, sets = load_scores(plan, attribution), plan.sets

    def parts(name: str) -> tuple[Any, Any]:
        return scores[sets.places(name)], calibrating_bank(plan, attribution, sets.ids(name))

    rho = calibrate(*parts(sets.tuning)).rho
    return calibrate(*parts(problem.targets), rho=rho).averaged()


def _sentence(report: dict[str, Any], problem: DebugSpec) -> str:
    query, cause, output = report["query"], report["hypothesis"], report["output"]
    one = query["rows"] == 1
    whose = f"row {query['ids'][0]}" if one else f"the {query['rows']:,} rows asked about"
    if not report["slices"]:
        return (
            f"Nothing names a slice of {problem.smallest} rows or more that could be the cause; "
            "list columns under data.metadata."
        )
    if cause is None:
        lowest = report["slices"][0]
        return (
            f"No clear cause for the {output} of {whose}: of {report['looked_at']} slices the most "
            f"harmful is {lowest['name']}, and the most harmful of random slices is as harmful "
            f"in {lowest['chance']:.0%} of draws.{_proportion(query)}"
        )
    mean, low, high = cause["beyond"]
    # How large the effect is may be open where it is not open that the slice stands out.
    is_sure = low is not None and (low > 0 or high < 0)
    held = f"{'is' if is_sure else 'may be'} {'raised' if output in FALLING else 'held down'}"
    interval = "" if low is None else f" [{low:+.2f}, {high:+.2f}]"
    return (
        f"The {output} of {whose} {held} by {cause['rows']:,} rows with {cause['name']}: "
        f"without them it is predicted to move by {mean:+.2f}{interval} more than without as many "
        f"random rows of their classes. Of {report['looked_at']} slices it is the most harmful; "
        f"the most harmful of random slices is as harmful in {cause['chance']:.2%} of draws."
        f"{_proportion(query)}"
    )


def _proportion(query: dict[str, Any]) -> str:
    """A sentence where models are right already, however an output stands to that of others."""
    if "predictions" not in query or query["loss"] >= RIGHT:
        return ""
    what = "it its label" if query["rows"] == 1 else "them their labels"
    return f" Models give {what} already: the mean loss is {query['loss']:.2f}, little to mend."
