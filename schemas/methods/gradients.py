"""Methods that read gradients of trained models, with or without a curvature."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.frozen import Name, refuse
from schemas.methods.base import Count, Damping, MethodSpec
from schemas.projections import ProjectionSpec


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
