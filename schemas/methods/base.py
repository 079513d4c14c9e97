"""What the specs of all methods share."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from schemas.frozen import Frozen
from schemas.recipe import Task

Output = Literal["margin", "loss", "logprob", "logit", "prediction", "squared_error"]
Damping = Literal["auto"] | Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]

OUTPUTS_OF_TASK: dict[Task, tuple[Output, ...]] = {
    "classification": ("margin", "loss", "logprob", "logit"),
    "regression": ("prediction", "loss", "squared_error"),
    "language": ("logprob", "loss", "margin"),
}

# Outputs that a better model has less of.
FALLING: frozenset[str] = frozenset({"loss", "squared_error"})


class MethodSpec(Frozen):
    """What every attribution says."""

    # Fields that are not options of the estimator itself.
    general: ClassVar[frozenset[str]] = frozenset({"method", "name", "output", "checkpoints"})

    # Fitted to the outputs of the bank's models: reads no checkpoint.
    bank_only: ClassVar[bool] = False
    # Compares rows as they were written: asks no model.
    rows_only: ClassVar[bool] = False

    output: Literal["auto"] | Output = "auto"
    """Whose change is predicted; 'auto' is the margin of a class, the prediction of a number, the
    log-probability of a text."""
    checkpoints: Literal["full", "bank"] = "full"
    """Models trained on all rows, or on subsets (the bank's): those never saw most rows."""

    def output_for(self, task: Task) -> Output:
        """The output that is attributed, with 'auto' decided by the task."""
        return OUTPUTS_OF_TASK[task][0] if self.output == "auto" else self.output

    def options(self) -> dict[str, Any]:
        """Options as the estimator takes them, those left to it left out."""
        return self.model_dump(exclude=set(self.general), exclude_none=True)
