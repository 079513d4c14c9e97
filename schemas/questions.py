"""What is asked of the scores: the tables ``[[problem]]`` and ``[verdict]``.

A problem says what is decided, traced or valued, the verdict how an answer is checked by
retraining. Values are made of retrainings already, so no verdict judges them; a screen is asked
of batches that come later.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from schemas.frozen import IDENTIFIER, Frozen, Name, distinct, refusal, refuse
from schemas.poisoning import PoisonSpec
from schemas.recipe import Task
from schemas.screening import ScreenSpec
from schemas.unlearning import UnlearnSpec

LIMITS = ("min", "max")

# --- [[problem]] ----------------------------------------------------------------------------------


SetName = Annotated[str, Field(pattern=IDENTIFIER, max_length=80)]

DEFAULT_SETS = {
    # Halves of the test rows by the first digit of the hash of their content: new rows move no
    # old one, and two copies of an input never stand on both sides.
    "queries": "SELECT example_id FROM examples WHERE split = 'test' AND content_hash < '8' "
    "ORDER BY example_id",
    "holdout": "SELECT example_id FROM examples WHERE split = 'test' AND content_hash >= '8' "
    "ORDER BY example_id",
}


class Quota(Frozen):
    """``problem.quotas.COLUMN.VALUE``: how many rows may be chosen; both the same for exactly."""

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


class BudgetSpec(Frozen):
    """``problem.budget``: what the chosen rows may cost together."""

    column: Annotated[str, Field(min_length=1, examples=["tokens"])]
    """Metadata column with the cost of each row; 'rows' costs each 1."""
    most: Annotated[float, Field(ge=0, examples=[100_000])]
    """The most that may be spent."""


def _by_column(quotas: Any) -> Any:
    if isinstance(quotas, dict):
        refuse(
            ((name,), f"quotas are by column; write {{ class = {{ {name} = {{ ... }} }} }}")
            for name, given in quotas.items()
            if isinstance(given, dict) and any(isinstance(given.get(k), int) for k in LIMITS)
        )
    return quotas


class SelectSpec(Frozen):
    """``[[problem]]`` with ``kind = "select"``: which rows to train on."""

    kind: Annotated[Literal["select"], Field(examples=["select"])]
    """The kind of question."""
    name: Name = "select"
    """What the answer is called in tables and reports."""
    uses: Annotated[str, Field(examples=["trak"])]
    """Name of the attribution that it reads."""
    targets: str | Annotated[dict[SetName, Annotated[float, Field(gt=0)]], Field(min_length=1)] = (
        "queries"
    )
    """Set of examples whose outputs are to become better; or several, with their weights."""
    combine: Literal["mean", "worst"] = "mean"
    """What counts of several sets: the weighted mean of their outputs, or the worst of them."""
    caution: Annotated[float, Field(ge=0)] = 0.0
    """How many standard deviations are taken off what is predicted; 0 trusts the mean."""
    size: Annotated[
        Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, lt=1)] | Literal["best"] | Quota,
        Field(examples=[1000, 0.9, "best"]),
    ]
    """Training rows to keep: a number of rows, a fraction of them, { min = ..., max = ... }, or
    'best', the predicted best number."""
    aimed: Annotated[int, Field(ge=0)] = 36
    """Models retrained near the choice before it is predicted; 0 for a prediction from random
    subsets alone, which effects that do not add up put far off. 'best' needs 24 or more."""
    quotas: Annotated[dict[str, dict[str, Quota]], BeforeValidator(_by_column)] = Field(
        default_factory=dict
    )
    """Bounds by 'class' or a metadata column, as in { class = { 3 = { min = 100 } } }."""
    budget: BudgetSpec | tuple[BudgetSpec, ...] = ()
    """What the rows may cost, as in { column = "tokens", most = 100000 }; or several of these."""
    include: SetName | tuple[SetName, ...] = ()
    """Sets of training rows that must be chosen."""
    exclude: SetName | tuple[SetName, ...] = ()
    """Sets of training rows that must not be chosen."""
    duplicates: Literal["keep", "content"] | Annotated[float, Field(gt=0, le=1)] = "keep"
    """At most one row of each group of equal inputs ('content'), or of inputs whose cosine reaches
    a number; 'keep' looks for none."""

    @property
    def weights(self) -> dict[str, float]:
        """The sets of targets with their weights."""
        return {self.targets: 1.0} if isinstance(self.targets, str) else self.targets

    @property
    def budgets(self) -> tuple[BudgetSpec, ...]:
        """The budgets, however they are written."""
        return (self.budget,) if isinstance(self.budget, BudgetSpec) else self.budget

    @property
    def included(self) -> tuple[str, ...]:
        """The sets that must be chosen."""
        return (self.include,) if isinstance(self.include, str) else self.include

    @property
    def excluded(self) -> tuple[str, ...]:
        """The sets that must not be chosen."""
        return (self.exclude,) if isinstance(self.exclude, str) else self.exclude

    def rows(self, n_pool: int) -> int | tuple[int, int]:
        """Rows to keep out of `n_pool`: a number, or the least and the most."""
        match self.size:
            case "best":
                return 1, n_pool
            case Quota():
                most = n_pool if self.size.max is None else self.size.max
                return max(self.size.min or 0, 1), most
            case int():
                return self.size
            case float():
                return round(self.size * n_pool)

    @model_validator(mode="after")
    def _constraints_make_sense(self) -> Self:
        refuse(self._refusals())
        return self

    def _refusals(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        most = self.size.max if isinstance(self.size, Quota) else self.size
        for column, quotas in self.quotas.items():
            least = sum(quota.min or 0 for quota in quotas.values())
            if isinstance(most, int) and least > most:
                yield (
                    ("quotas", column),
                    f"they ask for {least} rows, size is {most}; lower them",
                )
        columns = [budget.column for budget in self.budgets]
        for column in sorted({each for each in columns if columns.count(each) > 1}):
            yield ("budget",), f"'{column}' is given twice; leave one out"
        least = LEAST_CROSSED if self.size == "best" else LEAST_AIMED
        if self.aimed < least and (self.aimed or self.size == "best"):
            told = "size = 'best' needs" if self.size == "best" else "a surrogate bends to"
            yield ("aimed",), f"{told} {least} or more, not {self.aimed}"
        if self.size == "best" and len(self.weights) > 1:
            yield ("size",), "'best' is known for one set of targets; name one, or a number of rows"
        if self.combine == "worst" and len(self.weights) == 1:
            yield ("combine",), "'worst' is of several sets; name two or more in targets"
        if both := set(self.included) & set(self.excluded):
            yield ("exclude",), f"'{min(both)}' must be chosen as well; leave one out"


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
DecisionSpec = ChoiceSpec | TraceSpec | PoisonSpec
ProblemSpec = Annotated[DecisionSpec | ValueSpec | ScreenSpec, Field(discriminator="kind")]


def attributions_of(problem: DecisionSpec | ScreenSpec) -> tuple[str, ...]:
    """Names of the attributions that a problem reads."""
    return problem.uses if isinstance(problem, TraceSpec) else (problem.uses,)


def target_sets(problem: ProblemSpec) -> tuple[str, ...]:
    """The sets that a problem is about, one or several."""
    return (problem.targets,) if isinstance(problem.targets, str) else tuple(problem.targets)


# --- [verdict] ------------------------------------------------------------------------------------


ArmName = Literal["all", "random", "balanced", "highest_loss", "lowest_loss", "similar", "clean"]


def _has_all(arms: tuple[str, ...]) -> tuple[str, ...]:
    if "all" not in arms:
        raise refusal("changes are measured against all rows; add 'all'")
    return arms


class VerdictSpec(Frozen):
    """``[verdict]``: the retraining that checks an answer."""

    seeds: Annotated[int, Field(ge=2)] = 5
    """Retrainings of each arm; an interval needs two."""
    arms: Annotated[tuple[ArmName, ...], AfterValidator(distinct), AfterValidator(_has_all)] = (
        "all",
        "random",
    )
    """What the choice is compared with: all rows; as many at random, or in equal classes, or of the
    highest or lowest loss, or most like the targets ('similar'); all rows with a true label."""
    judge_on: str = "holdout"
    """Set of examples that judges; the solver never sees it."""
