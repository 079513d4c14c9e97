"""Methods that compare rows: by what a model makes of them, or as they were written."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from schemas.frozen import Name, refuse
from schemas.methods.base import Count, MethodSpec


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


class EmbeddingSpec(MethodSpec):
    """``method = "embedding"``: likeness of embeddings, of one's own or made of the words."""

    rows_only: ClassVar[bool] = True

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


class Bm25Spec(MethodSpec):
    """``method = "bm25"`` (Robertson and Zaragoza 2009): rare words that a row shares."""

    rows_only: ClassVar[bool] = True

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
