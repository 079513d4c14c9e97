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

    @property
    def rows_only(self) -> bool:
        """Whether it compares rows as they were written, and asks no model."""
        return isinstance(self, Bm25Spec | EmbeddingSpec)

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


class RunMethodSpec(MethodSpec):
    """What every method says that follows one training run from snapshot to snapshot."""

    checkpoints: Literal["run"] = "run"  # type: ignore[assignment]
    """Snapshots of one run, with the learning rate of the epochs that each stands for."""
    epochs: Annotated[tuple[Count, ...], AfterValidator(distinct)] = ()
    """Epochs after which snapshots are taken; by default five, evenly."""

    general: ClassVar[frozenset[str]] = MethodSpec.general | {"epochs"}

    def snapshots(self, last: int) -> tuple[int, ...]:
        """Epochs of the snapshots of a run of `last` epochs, ascending."""
        evenly = {max(1, round(last * part / 5)) for part in range(1, 6)}
        return tuple(sorted(self.epochs or evenly))


class TracInSpec(RunMethodSpec):
    """``method = "tracin"`` (Pruthi et al. 2020): inner products along one training run."""

    method: Literal["tracin"]
    """The estimator."""
    name: Name = "tracin"
    """What the scores are called in tables and reports."""
    normalise: Literal["none", "whole", "layer"] = "none"
    """As published, or unit gradients (GAS, Hammoudeh and Lowd 2022)."""
    projection: ProjectionSpec | None = None
    """How gradients are compressed; exact without it."""


class GasSpec(RunMethodSpec):
    """``method = "gas"`` (Hammoudeh and Lowd 2022): TracIn with unit gradients."""

    method: Literal["gas"]
    """The estimator."""
    name: Name = "gas"
    """What the scores are called in tables and reports."""
    normalise: Literal["whole", "layer"] = "whole"
    """One length for the model, or one for each layer."""
    projection: ProjectionSpec | None = None
    """How gradients are compressed; exact without it."""


class SourceSpec(RunMethodSpec):
    """``method = "source"`` (Bae et al. 2024): influence carried along one training run."""

    method: Literal["source"]
    """The estimator."""
    name: Name = "source"
    """What the scores are called in tables and reports."""
    segments: Count | None = None
    """Pieces of the run with a curvature each; three by default."""


class LograSpec(MethodSpec):
    """``method = "logra"`` (Choe et al. 2024): influence in projections of both sides."""

    method: Literal["logra"]
    """The estimator."""
    name: Name = "logra"
    """What the scores are called in tables and reports."""
    dim: Count | None = None
    """Width of the projection, all layers together; 2048 by default."""
    damping: Damping = "auto"
    """Ridge relative to the mean eigenvalue; 'auto' chooses it on the bank's calibration part."""


class DataInfSpec(MethodSpec):
    """``method = "datainf"`` (Kwon et al. 2024): a mean of inverses in place of an inverse."""

    method: Literal["datainf"]
    """The estimator."""
    name: Name = "datainf"
    """What the scores are called in tables and reports."""
    damping: Damping = "auto"
    """Ridge relative to the mean square of a gradient; 'auto' chooses it on the bank."""


class MetagradientSpec(MethodSpec):
    """``method = "metagradient"`` (Engstrom et al. 2025): derivatives of the training run."""

    method: Literal["metagradient"]
    """The estimator."""
    name: Name = "metagradient"
    """What the scores are called in tables and reports."""
    checkpoints: Literal["none"] = "none"  # type: ignore[assignment]
    """It trains by the recipe itself."""
    runs: Count = 1
    """Training runs that are averaged, with the seeds of the first checkpoints."""

    general: ClassVar[frozenset[str]] = MethodSpec.general | {"runs"}


class AloSpec(MethodSpec):
    """``method = "alo"`` (Rad and Maleki 2020): leave-one-out of a linear model, in closed form."""

    method: Literal["alo"]
    """The estimator."""
    name: Name = "alo"
    """What the scores are called in tables and reports."""
    ridge: Annotated[float, Field(ge=0)] | None = None
    """Penalty of the summed loss; by default the recipe's decay, which goes with its rows."""
    penalise_bias: bool = True
    """Whether it acts on the bias too, as the recipe's does."""
    steps: Annotated[int, Field(ge=0)] = 0
    """Further Newton steps for each row."""


class JackknifeSpec(MethodSpec):
    """``method = "jackknife"`` (Jaeckel 1972): derivatives of a linear model in row weights."""

    method: Literal["jackknife"]
    """The estimator."""
    name: Name = "jackknife"
    """What the scores are called in tables and reports."""
    ridge: Annotated[float, Field(ge=0)] | None = None
    """Penalty of the summed loss; by default the recipe's decay, which goes with its rows."""
    penalise_bias: bool = True
    """Whether it acts on the bias too, as the recipe's does."""


class RepresenterSpec(MethodSpec):
    """``method = "representer"`` (Yeh et al. 2018): shares of the last layer's weights."""

    method: Literal["representer"]
    """The estimator."""
    name: Name = "representer"
    """What the scores are called in tables and reports."""
    weight_decay: Annotated[float, Field(gt=0)] | None = None
    """That of the recipe; by default the one for which the last layer is nearest to a minimum."""
    refit: bool = False
    """First fit the last layer to its minimum, which needs a weight decay."""

    @model_validator(mode="after")
    def _a_fit_has_a_decay(self) -> Self:
        if self.refit and self.weight_decay is None:
            refuse([(("weight_decay",), "missing; a refit needs it, above 0")])
        return self


class SimilaritySpec(MethodSpec):
    """``method = "similarity"``: likeness of hidden representations (Hanawa et al. 2021)."""

    method: Literal["similarity"]
    """The estimator."""
    name: Name = "similarity"
    """What the scores are called in tables and reports."""
    measure: Literal["cosine", "dot", "l2"] = "cosine"
    """How two representations are compared."""
    layer: str | None = None
    """Module whose input is the representation; the last linear layer by default."""
    labels: Literal["any", "same"] = "any"
    """Rows of every class, or of the query's own."""


class EmbeddingSpec(MethodSpec):
    """``method = "embedding"``: likeness of embeddings, of one's own or made of the words."""

    method: Literal["embedding"]
    """The estimator."""
    name: Name = "embedding"
    """What the scores are called in tables and reports."""
    checkpoints: Literal["none"] = "none"  # type: ignore[assignment]
    """It reads rows, and no model."""
    column: str | None = None
    """Metadata column that holds each row's embedding, a list of numbers; without one they are
    made of the words by latent semantic analysis (Deerwester et al. 1990)."""
    dim: Count | None = None
    """Width of embeddings that are made of words; 64 by default."""
    measure: Literal["cosine", "dot", "l2"] = "cosine"
    """How two embeddings are compared."""

    general: ClassVar[frozenset[str]] = MethodSpec.general | {"column", "dim"}

    @model_validator(mode="after")
    def _own_embeddings_have_a_width(self) -> Self:
        if self.column is not None and self.dim is not None:
            refuse([(("dim",), f"the embeddings of column '{self.column}' have one; leave it out")])
        return self


class KnnShapleySpec(MethodSpec):
    """``method = "knn_shapley"`` (Jia et al. 2019): a row's part in the vote of the nearest."""

    method: Literal["knn_shapley"]
    """The estimator."""
    name: Name = "knn_shapley"
    """What the scores are called in tables and reports."""
    k: Count | None = None
    """Neighbours that vote; five by default."""
    layer: str | None = None
    """Module whose input measures distance; the last linear layer by default."""


class Bm25Spec(MethodSpec):
    """``method = "bm25"`` (Robertson and Zaragoza 2009): rare words that a row shares."""

    method: Literal["bm25"]
    """The estimator."""
    name: Name = "bm25"
    """What the scores are called in tables and reports."""
    checkpoints: Literal["none"] = "none"  # type: ignore[assignment]
    """It reads the texts, and no checkpoint."""
    k1: Annotated[float, Field(ge=0)] | None = None
    """How soon more of one word stops to count; 1.5 by default."""
    b: Annotated[float, Field(ge=0, le=1)] | None = None
    """How much long texts are held back; 0.75 by default."""


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
    | GasSpec
    | SourceSpec
    | LograSpec
    | DataInfSpec
    | MetagradientSpec
    | AloSpec
    | JackknifeSpec
    | RepresenterSpec
    | SimilaritySpec
    | EmbeddingSpec
    | KnnShapleySpec
    | Bm25Spec
    | DatamodelSpec
    | EmpiricalInfluenceSpec,
    Field(discriminator="method"),
]
