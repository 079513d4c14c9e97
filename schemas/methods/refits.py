"""Methods that say what training without rows gives: in closed form, or from the bank's models."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from schemas.frozen import Name, refuse
from schemas.methods.base import MethodSpec


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


class DatamodelSpec(MethodSpec):
    """``method = "datamodel"`` (Ilyas et al. 2022): the bank's outputs regressed on its subsets."""

    bank_only: ClassVar[bool] = True

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

    bank_only: ClassVar[bool] = True

    method: Literal["empirical_influence"]
    """The estimator."""
    name: Name = "empirical_influence"
    """What the scores are called in tables and reports."""
    checkpoints: Literal["none"] = "none"  # type: ignore[assignment]
    """It reads the bank's calibration part, and no checkpoint."""
