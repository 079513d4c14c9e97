"""What is asked of the scores: the tables ``[[problem]]`` and ``[verdict]``.

A problem says what is decided, the verdict how the decision is checked by retraining.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from schemas.frozen import Frozen, Name, distinct, refusal, refuse

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
