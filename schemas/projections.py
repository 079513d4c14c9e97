"""``attribution.projection``: how the gradients of an attribution are compressed."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.frozen import Frozen, refuse

# As in attribution.projection.reference, which schemas may not import; a test compares them.
WIDEST_SKETCH = {
    "sparse": 2**31 - 1,
    "rademacher": 2**23,
    "gaussian": 2**18,
    "hadamard": 2**22,
}


class ProjectionSpec(Frozen):
    """``attribution.projection``: how gradients are compressed."""

    kind: Literal["sparse", "rademacher", "gaussian", "hadamard", "factored", "auto"] = "sparse"
    """Random places, dense matrices, fast transforms, both sides of each weight, or by cost."""
    dim: Annotated[int, Field(gt=0)] = 2048
    """Numbers kept of each gradient."""
    nonzeros: Annotated[int, Field(gt=0)] = 1
    """Places that each gradient entry is added to; for kind 'sparse' alone."""

    @model_validator(mode="after")
    def _places_fit(self) -> Self:
        if self.kind != "sparse" and self.nonzeros != 1:
            refuse([(("nonzeros",), f"kind {self.kind!r} has none to choose; leave it out")])
        widest = WIDEST_SKETCH.get(self.kind, WIDEST_SKETCH["sparse"])
        if self.dim > widest:
            refuse([(("dim",), f"{self.dim} for kind {self.kind!r}; write at most {widest}")])
        if self.nonzeros > self.dim:
            refuse([(("nonzeros",), f"{self.nonzeros} places of {self.dim}; write at most dim")])
        return self
