"""What is asked: the tables ``[[attribution]]``, ``[[problem]]`` and ``[verdict]``.

An attribution says how scores are computed, a problem what is decided from them, and the verdict
how the decision is checked by retraining. `method` and `kind` choose the class, so that options
of one method cannot be written for another.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from schemas.frozen import Frozen, Name, distinct, refusal, refuse
from schemas.recipe import Task

Output = Literal["margin", "loss", "logprob", "logit", "prediction", "squared_error"]

OUTPUTS_OF_TASK: dict[Task, tuple[Output, ...]] = {
    "classification": ("margin", "loss", "logprob", "logit"),
    "regression": ("prediction", "loss", "squared_error"),
}


# As in attribution.projection.reference, which schemas may not import; a test compares them.
WIDEST_SKETCH = {
    "sparse": 2**31 - 1,
    "rademacher": 2**23,
    "gaussian": 2**18,
    "hadamard": 2**22,
}


# --- [[attribution]] ------------------------------------------------------------------------------


class ProjectionSpec(Frozen):
    """``attribution.projection``: how gradients are compressed."""

    kind: Literal["sparse", "rademacher", "gaussian", "hadamard"] = "sparse"
    """Add each entry to a few random places; or mix all, by dense matrices or fast transforms."""
    dim: Annotated[int, Field(gt=0)] = 2048
    """Numbers kept of each gradient."""
    nonzeros: Annotated[int, Field(gt=0)] = 1
    """Places that each gradient entry is added to; for kind 'sparse' alone."""

    @model_validator(mode="after")
    def _places_fit(self) -> Self:
        if self.kind != "sparse" and self.nonzeros != 1:
            refuse([(("nonzeros",), f"kind {self.kind!r} has none to choose; leave it out")])
        widest = WIDEST_SKETCH[self.kind]
        if self.dim > widest:
            refuse([(("dim",), f"{self.dim} for kind {self.kind!r}; write at most {widest}")])
        if self.nonzeros > self.dim:
            refuse([(("nonzeros",), f"{self.nonzeros} places of {self.dim}; write at most dim")])
        return self


class TrakSpec(Frozen):
    """``[[attribution]]`` with ``method = "trak"`` (Park et al. 2023)."""

    method: Annotated[Literal["trak"], Field(examples=["trak"])]
    """The estimator."""
    name: Name = "trak"
    """What the scores are called in tables and reports."""
    output: Literal["auto"] | Output = "auto"
    """Whose change is predicted; 'auto' is the margin of a class, the prediction of a number."""
    projection: ProjectionSpec = ProjectionSpec()
    """How gradients are compressed."""
    curvature: Literal["after-kernel", "logistic"] = "logistic"
    """As published, or weighted by the second derivative of the loss: then in output units."""
    damping: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    """Ridge relative to the mean eigenvalue; 'auto' chooses it on the bank's calibration part."""
    leverage: bool = False
    """Divide by one minus the leverage: the Newton step for leaving a row out."""
    average: Literal["scores", "features"] = "scores"
    """Mean over checkpoints of whole scores, or of kernel and residual apart (as published)."""
    checkpoints: Literal["full", "bank", "early"] = "full"
    """Models trained on all rows, on subsets (the bank's), or on all rows for a few epochs."""

    def output_for(self, task: Task) -> Output:
        """The output that is attributed, with 'auto' decided by the task."""
        return OUTPUTS_OF_TASK[task][0] if self.output == "auto" else self.output


# A second method makes this `Annotated[TrakSpec | OtherSpec, Field(discriminator="method")]`;
# pydantic refuses a discriminator on a single class.
AttributionSpec = TrakSpec


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
        Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, lt=1)],
        Field(examples=[1000, 0.9]),
    ]
    """Training rows to keep: a number of rows, or a fraction of them."""
    quotas: dict[str, Quota] = Field(default_factory=dict)
    """Bounds for each class, as in { "3" = { min = 100 } }."""

    def rows(self, n_pool: int) -> int:
        """Rows to keep out of `n_pool`."""
        return self.size if isinstance(self.size, int) else round(self.size * n_pool)

    @model_validator(mode="after")
    def _quotas_leave_room(self) -> Self:
        least = sum(quota.min or 0 for quota in self.quotas.values())
        if isinstance(self.size, int) and least > self.size:
            refuse([(("quotas",), f"they ask for {least} rows, size is {self.size}; lower them")])
        return self


# As for `AttributionSpec`: a union discriminated on `kind` as soon as there are two.
ProblemSpec = SelectSpec


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
