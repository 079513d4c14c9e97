"""Methods that follow a training run."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from schemas.frozen import Name, distinct
from schemas.methods.base import Count, MethodSpec
from schemas.projections import ProjectionSpec


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
