"""What comes in: ``[[problem]]`` of kind "screen", and the batches that it is asked of.

A spec declares the screens, and of each the share of good rows that it may hold up. Batches arrive
later, one by one or in an inbox; nothing is trained for them.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from schemas.frozen import IDENTIFIER, Frozen, Name, refuse
from schemas.methods import AttributionSpec, TrakSpec
from schemas.recipe import TABLE_SCHEMES, DataSpec, Task

ScreenName = Literal["loss", "neighbours", "harm", "self_influence", "group"]
SCREENS: tuple[ScreenName, ...] = get_args(ScreenName)
SCREENS_OF_TASK: dict[Task, tuple[ScreenName, ...]] = {
    "classification": SCREENS,
    "regression": tuple(name for name in SCREENS if name != "neighbours"),
    "language": tuple(name for name in SCREENS if name != "neighbours"),
}
"""The screens of each task: neighbours agree or disagree on a class."""
# Those that read sketches, which only models of subsets give of rows that they did not train on.
SKETCHED: tuple[ScreenName, ...] = ("harm", "self_influence", "group")

Rate = Annotated[float, Field(gt=0, le=0.5)]


class QuarantineSpec(Frozen):
    """``problem.quarantine``: the share of good rows that each screen may hold up."""

    harm: Rate | None = None
    """By what having the row is predicted to do to the targets."""
    loss: Rate | None = None
    """By the loss of models that did not train on it."""
    neighbours: Rate | None = None
    """By the labels of the trusted rows nearest to it."""
    self_influence: Rate | None = None
    """By how far it would move its own output: an unlearned label, a lone outlier."""
    group: Rate | None = None
    """By how far other rows of the batch would lower its loss: a planted group."""

    @property
    def rates(self) -> dict[ScreenName, float]:
        """The screens that are used, with their rates."""
        found = ((name, getattr(self, name)) for name in SCREENS)
        return {name: rate for name, rate in found if rate is not None}

    @model_validator(mode="after")
    def _uses_one(self) -> Self:
        if not self.rates:
            refuse([((), "no screen; write some as in { loss = 0.01, neighbours = 0.01 }")])
        return self


class ScreenSpec(Frozen):
    """``[[problem]]`` with ``kind = "screen"``: which rows of a new batch to let in."""

    kind: Annotated[Literal["screen"], Field(examples=["screen"])]
    """The kind of question."""
    name: Name = "screen"
    """What the answers are called in tables and reports."""
    uses: Annotated[str, Field(examples=["trak"])]
    """Name of the attribution, a "trak" with checkpoints = "bank", that says what rows would do."""
    targets: Annotated[str, Field(pattern=IDENTIFIER, max_length=80)] = "queries"
    """Set of examples whose outputs new rows must not hurt."""
    quarantine: Annotated[QuarantineSpec, Field(examples=["{ loss = 0.01 }"])]
    """What is held up, as in { harm = 0.01, loss = 0.01 }: of each screen, the share of good rows
    that it may hold up. It is made a threshold on the trusted training rows' own values."""
    nearest: Annotated[int, Field(gt=0)] = 10
    """Trusted rows whose labels 'neighbours' compares."""
    copies: Literal["quarantine", "accept"] = "quarantine"
    """What becomes of a row whose input is that of a training row or of an earlier row of the
    batch. A copy of a test row, and a copy with another label, is held up whatever is said here."""
    inbox: Annotated[str, Field(min_length=1, examples=["incoming/*.csv"])] | None = None
    """Files that the flow `screen` answers, each once: a pattern relative to the spec."""
    verify: bool = False
    """Whether every answer is checked by retraining, with and without what was held up."""

    @property
    def decides(self) -> dict[str, object]:
        """All that an answer depends on: not where batches come from, nor what is done after."""
        return self.model_dump(mode="json", exclude={"inbox", "verify"})


Conflicts = Iterator[tuple[tuple[str | int, ...], str]]


def screen_conflicts(
    problem: ScreenSpec,
    data: DataSpec | None,
    attributions: tuple[AttributionSpec, ...] | None,
) -> Conflicts:
    """What of a screen does not fit the rest of its spec, each with its place in the problem."""
    if data is not None and data.scheme not in TABLE_SCHEMES:
        advice = "give the data as csv:, parquet: or jsonl:"
        yield ("kind",), f"batches are tables, as the data must be; {data.source} is none: {advice}"
    task = data.known_task if data is not None else None
    for name in problem.quarantine.rates:
        if task and name not in SCREENS_OF_TASK[task]:
            yield ("quarantine", name), f"a {task} has no classes to compare; leave it out"
    used = next((each for each in attributions or () if each.name == problem.uses), None)
    sketched = [name for name in SKETCHED if name in problem.quarantine.rates]
    if used is None or not sketched:
        return
    names = " and ".join(f"'{name}'" for name in sketched)
    if not isinstance(used, TrakSpec) or used.curvature == "ggn":
        advice = "name one of method 'trak' with curvature 'logistic'"
        yield ("uses",), f"{names} read sketches, and '{used.name}' keeps none; {advice}"
    elif used.checkpoints != "bank":
        advice = f"give attribution '{used.name}' checkpoints = 'bank'"
        yield ("uses",), f"{names} need models that did not train on the rows; {advice}"
