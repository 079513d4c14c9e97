"""The methods that ``[[attribution]]`` may name, and the options of each.

`method` chooses the class, so options of one method cannot be written for another. Options that
are not of the method's paper say what else they are.
"""

from typing import Annotated

from pydantic import Field

from schemas.methods.base import FALLING, OUTPUTS_OF_TASK, Output
from schemas.methods.gradients import (
    DataInfSpec,
    EkfacSpec,
    GradCosSpec,
    GradDotSpec,
    InfluenceSpec,
    KfacSpec,
    LograSpec,
    TrakSpec,
)
from schemas.methods.likeness import (
    Bm25Spec,
    EmbeddingSpec,
    KnnShapleySpec,
    RepresenterSpec,
    SimilaritySpec,
)
from schemas.methods.refits import AloSpec, DatamodelSpec, EmpiricalInfluenceSpec, JackknifeSpec
from schemas.methods.runs import GasSpec, MetagradientSpec, RunMethodSpec, SourceSpec, TracInSpec

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

__all__ = [
    "FALLING",
    "OUTPUTS_OF_TASK",
    "AloSpec",
    "AttributionSpec",
    "Bm25Spec",
    "DataInfSpec",
    "DatamodelSpec",
    "EkfacSpec",
    "EmbeddingSpec",
    "EmpiricalInfluenceSpec",
    "GasSpec",
    "GradCosSpec",
    "GradDotSpec",
    "InfluenceSpec",
    "JackknifeSpec",
    "KfacSpec",
    "KnnShapleySpec",
    "LograSpec",
    "MetagradientSpec",
    "Output",
    "RepresenterSpec",
    "RunMethodSpec",
    "SimilaritySpec",
    "SourceSpec",
    "TracInSpec",
    "TrakSpec",
]
