"""What is asked of the scores: the tables ``[[problem]]`` and ``[verdict]``.

A problem says what is decided, traced or valued, the verdict how an answer is checked by
retraining. Values are made of retrainings already, so no verdict judges them.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from schemas.frozen import Frozen, Name, distinct, refusal, refuse
from schemas.recipe import Task
from schemas.unlearning import UnlearnSpec

# --- [[problem]] ----------------------------------------------------------------------------------


class Quota(Frozen):
    """``problem.quotas.CLASS``: how many rows of one class may be chosen."""

    min: Annotated[int, Field(ge=0)] | None = None
    """At least so many."""
    max: Annotated[int, Field(ge=0)] | None = None
    """At most so many."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min is None and self.max is None:
            refuse([((), "an empty quota; write { min = ... }, { max = ... } or both")])
        if self.min is not None and self.max is not None and self.min > self.max:
            refuse([(("min",), f"{self.min} is above max = {self.max}; swap them")])
        return self


# What bends a surrogate, and what bends one for each half of the targets.
LEAST_AIMED, LEAST_CROSSED = 12, 24


class SelectSpec(Frozen):
    """``[[problem]]`` with ``kind = "select"``: which rows to train on."""

    kind: Annotated[Literal["select"], Field(examples=["select"])]
    """The kind of question."""
    name: Name = "select"
    """What the answer is called in tables and reports."""
    uses: Annotated[str, Field(examples=["trak"])]
    """Name of the attribution that it reads."""
    targets: str = "queries"
    """Set of examples whose outputs are to become better."""
    size: Annotated[
        Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, lt=1)] | Literal["best"],
        Field(examples=[1000, 0.9, "best"]),
    ]
    """Training rows to keep: a number of rows, a fraction of them, or 'best', the predicted best
    number."""
    aimed: Annotated[int, Field(ge=0)] = 36
    """Models retrained near the choice before it is predicted; 0 for a prediction from random
    subsets alone, which effects that do not add up put far off. 'best' needs 24 or more."""
    quotas: dict[str, Quota] = Field(default_factory=dict)
    """Bounds for each class, as in { "3" = { min = 100 } }."""

    def rows(self, n_pool: int) -> int:
        """Rows to keep out of `n_pool`; of the best number, the most."""
        if self.size == "best":
            return n_pool
        return self.size if isinstance(self.size, int) else round(self.size * n_pool)

    @model_validator(mode="after")
    def _quotas_leave_room(self) -> Self:
        least = sum(quota.min or 0 for quota in self.quotas.values())
        if isinstance(self.size, int) and least > self.size:
            refuse([(("quotas",), f"they ask for {least} rows, size is {self.size}; lower them")])
        return self

    @model_validator(mode="after")
    def _aimed_suffice(self) -> Self:
        least = LEAST_CROSSED if self.size == "best" else LEAST_AIMED
        if self.aimed < least and (self.aimed or self.size == "best"):
            told = "size = 'best' needs" if self.size == "best" else "a surrogate bends to"
            refuse([(("aimed",), f"{told} {least} or more, not {self.aimed}")])
        return self


class TraceSpec(Frozen):
    """``[[problem]]`` with ``kind = "trace"``: which rows made the model say this."""

    kind: Annotated[Literal["trace"], Field(examples=["trace"])]
    """The kind of question."""
    name: Name = "trace"
    """What the answer is called in tables and reports."""
    uses: Annotated[
        tuple[str, ...],
        AfterValidator(distinct),
        Field(min_length=1, examples=[["bm25", "trak"]]),
    ]
    """Names of the attributions that are compared."""
    targets: str = "queries"
    """Set of examples whose outputs are traced."""
    top: Annotated[int, Field(gt=0)] = 10
    """Rows that each method names for each query, and that retraining leaves out."""
    truth: Annotated[str, Field(min_length=1)] | None = None
    """Metadata column that a query shares with the rows that state what it asks for."""
    judged: Annotated[int, Field(gt=0)] = 50
    """Most queries that retraining judges; of more, so many are drawn."""


Worth = Literal["margin", "accuracy", "logprob", "loss", "squared_error"]

# What a better model has more of, or less (`schemas.methods.FALLING`), the default first.
WORTHS_OF_TASK: dict[Task, tuple[Worth, ...]] = {
    "classification": ("margin", "accuracy", "logprob", "loss"),
    "regression": ("squared_error", "loss"),
    "language": ("logprob", "loss", "margin"),
}


class ValueSpec(Frozen):
    """``[[problem]]`` with ``kind = "value"``: what sources, or rows, are worth."""

    kind: Annotated[Literal["value"], Field(examples=["value"])]
    """The kind of question."""
    name: Name = "value"
    """What the answer is called in tables and reports."""
    by: Annotated[str, Field(min_length=1)] | None = None
    """Metadata column that names each row's source; without one every row is valued by itself."""
    method: Literal["shapley", "beta", "banzhaf", "leave_one_out"] = "shapley"
    """How gains in coalitions of different sizes are weighed."""
    shape: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    """(a, b) of 'beta', by default (16, 1); a > b favours small coalitions."""
    targets: str = "queries"
    """Set of examples whose mean output is the worth of a model."""
    output: Literal["auto"] | Worth = "auto"
    """Of which output; 'auto' is the margin of a class, the squared error of a number, the
    log-probability of a text. Of an error, less is worth more."""
    seeds: Annotated[int, Field(gt=0)] = 1
    """Models trained on each coalition; with two or more, errors know the noise of training."""
    draws: Annotated[int, Field(ge=20)] = 200
    """Most permutations that are sampled ('banzhaf': coalitions); up to 12 players are exact."""
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Sampling stops at standard errors of this share of the values; 0 never stops early."""
    max_retrainings: Annotated[int, Field(gt=0)] = 20_000
    """A question that could take more is refused before anything is trained."""

    def worth_for(self, task: Task) -> Worth:
        """The output that is valued, with 'auto' decided by the task."""
        return WORTHS_OF_TASK[task][0] if self.output == "auto" else self.output

    @model_validator(mode="after")
    def _shape_is_of_beta(self) -> Self:
        if self.shape is not None and self.method != "beta":
            refuse([(("shape",), f"'{self.method}' has none; leave it out, or value by 'beta'")])
        return self


class DebugSpec(Frozen):
    """``[[problem]]`` with ``kind = "debug"``: which rows hold an output down, and is that so."""

    kind: Annotated[Literal["debug"], Field(examples=["debug"])]
    """The kind of question."""
    name: Name = "debug"
    """What the answer is called in tables and reports."""
    uses: Annotated[str, Field(examples=["trak"])]
    """Name of the attribution that it reads."""
    query: Annotated[
        Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)],
        Field(examples=[17, "queries"]),
    ]
    """Whose output is asked about: the id of a test row, a set, or SQL that finds test rows."""
    smallest: Annotated[int, Field(ge=2)] = 5
    """Fewest training rows of a slice that may be the cause."""
    alike: Annotated[float, Field(gt=0, le=1)] = 0.98
    """Cosine of two inputs from which they are near-duplicates."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """How often the best of all slices may be named where none is the cause."""
    permutations: Annotated[int, Field(ge=100)] = 2_000
    """Draws of random slices that the best one must beat."""
    seeds: Annotated[int, Field(ge=2)] = 10
    """Retrainings of each arm of the counterfactual."""

    @property
    def targets(self) -> str:
        """The query as a set: its name, an id, or SQL."""
        return str(self.query)


# What is decided over the surrogate of one attribution.
ChoiceSpec = SelectSpec | UnlearnSpec | DebugSpec
# What is asked of scores; a verdict judges it.
DecisionSpec = ChoiceSpec | TraceSpec
ProblemSpec = Annotated[DecisionSpec | ValueSpec, Field(discriminator="kind")]


def attributions_of(problem: DecisionSpec) -> tuple[str, ...]:
    """Names of the attributions that a problem reads."""
    return problem.uses if isinstance(problem, TraceSpec) else (problem.uses,)


# --- [verdict] ------------------------------------------------------------------------------------


def _has_all(arms: tuple[str, ...]) -> tuple[str, ...]:
    if "all" not in arms:
        raise refusal("changes are measured against all rows; add 'all'")
    return arms


class VerdictSpec(Frozen):
    """``[verdict]``: the retraining that checks an answer."""

    seeds: Annotated[int, Field(ge=2)] = 5
    """Retrainings of each arm; an interval needs two."""
    arms: Annotated[
        tuple[Literal["all", "random", "balanced"], ...],
        AfterValidator(distinct),
        AfterValidator(_has_all),
    ] = ("all", "random")
    """What the choice is compared with: all rows, as many at random, as many in equal classes."""
    judge_on: str = "holdout"
    """Set of examples that judges; the solver never sees it."""
