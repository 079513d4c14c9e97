"""The methods that ``[[attribution]]`` may name, and the options of each.

`method` chooses the class, so options of one method cannot be written for another. Options that
are not of the method's paper say what else they are.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from schemas.frozen import Frozen, Name, distinct, refuse
from schemas.projections import ProjectionSpec
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

    output: Literal["auto"] | Output = "auto"
    """Whose change is predicted; 'auto' is the margin of a class, the prediction of a number, the
    log-probability of a text."""
    checkpoints: Literal["full", "bank"] = "full"
    """Models trained on all rows, or on subsets (the bank's): those never saw most rows."""

    @property
    def bank_only(self) -> bool:
        """Whether it is fitted to the outputs of the bank's models, and reads no checkpoint."""
        return isinstance(self, DatamodelSpec | EmpiricalInfluenceSpec)

    def output_for(self, task: Task) -> Output:
        """The output that is attributed, with 'auto' decided by the task."""
        return OUTPUTS_OF_TASK[task][0] if self.output == "auto" else self.output

    def options(self) -> dict[str, Any]:
        """Options as the estimator takes them, those left to it left out."""
        return self.model_dump(exclude=set(self.general), exclude_none=True)


class TrakSpec(MethodSpec):
    """``method = "trak"`` (Park et al. 2023)."""

    method: Annotated[Literal["trak"], Field(examples=["trak"])]
    """The estimator."""
    name: Name = "trak"
    """What the scores are called in tables and reports."""
    projection: ProjectionSpec = ProjectionSpec()
    """How gradients are compressed."""
    curvature: Literal["after-kernel", "logistic", "ggn"] = "logistic"
    """As published; weighted by the loss's second derivative; or the multi-class Gauss-Newton."""
    ggn_classes: Count | None = None
    """Most probable classes that curvature 'ggn' keeps of each row."""
    damping: Damping = "auto"
    """Ridge relative to the mean eigenvalue; 'auto' chooses it on the bank's calibration part."""
    leverage: bool = False
    """Divide by one minus the leverage: the Newton step for leaving a row out."""
    average: Literal["scores", "features"] = "scores"
    """Mean over checkpoints of whole scores, or of kernel and residual apart (as published)."""

    @model_validator(mode="after")
    def _classes_belong_to_ggn(self) -> Self:
        if self.ggn_classes is not None and self.curvature != "ggn":
            refuse([(("ggn_classes",), f"curvature '{self.curvature}' has none; leave it out")])
        return self


class InfluenceSpec(MethodSpec):
    """``method = "influence"`` (Koh and Liang 2017)."""

    method: Literal["influence"]
    """The estimator."""
    name: Name = "influence"
    """What the scores are called in tables and reports."""
    hessian: Literal["gauss-newton", "hessian"] = "gauss-newton"
    """The curvature: never negative, or the loss's own."""
    solver: Literal["lanczos", "nystrom", "arnoldi", "cg", "lissa", "exact"] = "lanczos"
    """How its inverse is applied."""
    damping: Damping = "auto"
    """Ridge relative to the mean eigenvalue; 'auto' chooses it on the bank's calibration part."""
    rank: Count | None = None
    """Eigenpairs of arnoldi, lanczos and nystrom."""
    ridge: Annotated[float, Field(ge=0)] | None = None
    """n * weight decay, where the recipe's penalty is to be part of the curvature."""
    iterations: Count | None = None
    """Most products with the curvature, of cg and lissa."""


class EkfacSpec(MethodSpec):
    """``method = "ekfac"`` (George et al. 2018; Grosse et al. 2023)."""

    method: Literal["ekfac"]
    """The estimator."""
    name: Name = "ekfac"
    """What the scores are called in tables and reports."""
    damping: Damping = "auto"
    """Ridge relative to the mean eigenvalue; 'auto' chooses it on the bank's calibration part."""


class KfacSpec(MethodSpec):
    """``method = "kfac"`` (Martens and Grosse 2015)."""

    method: Literal["kfac"]
    """The estimator."""
    name: Name = "kfac"
    """What the scores are called in tables and reports."""
    damping: Damping = "auto"
    """Ridge relative to the mean eigenvalue; 'auto' chooses it on the bank's calibration part."""


class GradDotSpec(MethodSpec):
    """``method = "graddot"``: inner products of gradients."""

    method: Literal["graddot"]
    """The estimator."""
    name: Name = "graddot"
    """What the scores are called in tables and reports."""
    projection: ProjectionSpec | None = None
    """How gradients are compressed; exact without it."""


class GradCosSpec(MethodSpec):
    """``method = "gradcos"``: cosines of gradients; by layer: GAS (Hammoudeh and Lowd 2022)."""

    method: Literal["gradcos"]
    """The estimator."""
    name: Name = "gradcos"
    """What the scores are called in tables and reports."""
    normalise: Literal["whole", "layer"] = "whole"
    """One cosine for the model, or a sum of one for each layer."""
    projection: ProjectionSpec | None = None
    """How gradients are compressed; exact without it."""


class TracInSpec(MethodSpec):
    """``method = "tracin"`` (Pruthi et al. 2020): inner products along one training run."""

    method: Literal["tracin"]
    """The estimator."""
    name: Name = "tracin"
    """What the scores are called in tables and reports."""
    checkpoints: Literal["run"] = "run"  # type: ignore[assignment]
    """Snapshots of one run, with the learning rate of the epochs that each stands for."""
    epochs: Annotated[tuple[Count, ...], AfterValidator(distinct)] = ()
    """Epochs after which snapshots are taken; by default five, evenly."""
    normalise: Literal["none", "whole", "layer"] = "none"
    """As published, or unit gradients (GAS, Hammoudeh and Lowd 2022)."""
    projection: ProjectionSpec | None = None
    """How gradients are compressed; exact without it."""

    general: ClassVar[frozenset[str]] = MethodSpec.general | {"epochs"}

    def snapshots(self, last: int) -> tuple[int, ...]:
        """Epochs of the snapshots of a run of `last` epochs, ascending."""
        evenly = {max(1, round(last * part / 5)) for part in range(1, 6)}
        return tuple(sorted(self.epochs or evenly))


class DatamodelSpec(MethodSpec):
    """``method = "datamodel"`` (Ilyas et al. 2022): the bank's outputs regressed on its subsets."""

    method: Literal["datamodel"]
    """The estimator."""
    name: Name = "datamodel"
    """What the scores are called in tables and reports."""
    checkpoints: Literal["none"] = "none"  # type: ignore[assignment]
    """It reads the bank's calibration part, and no checkpoint."""
    penalty: Literal["lasso", "ridge"] = "lasso"
    """What keeps weights small: few rows with a weight, or small weights of all rows."""
    strength: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    """As a share of that at which all weights are 0 (lasso), or in mean eigenvalues (ridge)."""

    @model_validator(mode="after")
    def _share_is_at_most_one(self) -> Self:
        if self.penalty == "lasso" and self.strength != "auto" and self.strength > 1:
            found = f"{self.strength:g} of the strength at which all weights are 0"
            refuse([(("strength",), f"{found}; write at most 1")])
        return self


class EmpiricalInfluenceSpec(MethodSpec):
    """``method = "empirical_influence"`` (Feldman and Zhang 2020): differences of two means."""

    method: Literal["empirical_influence"]
    """The estimator."""
    name: Name = "empirical_influence"
    """What the scores are called in tables and reports."""
    checkpoints: Literal["none"] = "none"  # type: ignore[assignment]
    """It reads the bank's calibration part, and no checkpoint."""


AttributionSpec = Annotated[
    TrakSpec
    | InfluenceSpec
    | EkfacSpec
    | KfacSpec
    | GradDotSpec
    | GradCosSpec
    | TracInSpec
    | DatamodelSpec
    | EmpiricalInfluenceSpec,
    Field(discriminator="method"),
]
