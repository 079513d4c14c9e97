"""The Fisher information of a model in Kronecker factors, at one checkpoint or over several.

In the eigenbases of a layer's factors (see `fisher_blocks`) K-FAC takes B x A's eigenvalues
(Martens and Grosse 2015), EK-FAC E[(Q_B^T G Q_A)^2] (George et al. 2018). Delta is that of the
training loss at labels drawn from the model, or of what has the same expectation (see `labels`):
the Fisher information. Expectations are means over rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attribution.estimators.fisher_blocks import Block, blocks_of, refuse_overflow
from attribution.estimators.labels import LabelPasses
from attribution.gradients import GradientBlocks, PerExampleGradients
from attribution.rows import Rows


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The Fisher information per training row.

    Attributes:
        blocks: In a fixed order; the rotated gradient is their parts joined.
        factored: Eigenvalues of K-FAC [p], float64.
        corrected: Eigenvalues of EK-FAC [p], float64.
    """

    blocks: tuple[Block, ...]
    factored: Tensor
    corrected: Tensor

    def rotate(self, blocks: GradientBlocks) -> Tensor:
        """A batch of gradients in the eigenbases, [B, p]."""
        return torch.cat([block.rotate(blocks) for block in self.blocks], dim=1)

    def turn(self, vectors: Tensor) -> Tensor:
        """Flat vectors [b, p] in the eigenbases."""
        return torch.cat([block.turn(vectors) for block in self.blocks], dim=1)

    def turn_back(self, rotated: Tensor) -> Tensor:
        """The inverse of `turn`."""
        out = torch.zeros_like(rotated)
        parts = rotated.split([block.size for block in self.blocks], dim=1)
        for block, part in zip(self.blocks, parts, strict=True):
            block.turn_back(part, out)
        return out

    def unit(self, eigenvalues: Tensor, per_layer: bool) -> Tensor:
        """The mean eigenvalue that damping counts in, for each parameter [p]."""
        if not per_layer:
            return torch.full_like(eigenvalues, float(eigenvalues.mean()))
        sizes = [block.size for block in self.blocks]
        return torch.cat([part.mean().expand(len(part)) for part in eigenvalues.split(sizes)])


def fit_factors(
    model: nn.Module,
    state: Mapping[str, Any] | None,
    rows: Rows,
    *,
    checkpoint: int,
    **options: Any,
) -> Factors:
    """`fit_mean_factors` of one checkpoint."""
    return fit_mean_factors(model, {checkpoint: state}, rows, **options)


def fit_mean_factors(
    model: nn.Module,
    states: Mapping[int, Mapping[str, Any] | None],
    rows: Rows,
    *,
    task: str,
    labels: str,
    samples: int,
    seed: int,
    device: str,
    batch_size: int,
    dtype: torch.dtype,
) -> Factors:
    """Two passes over the training rows: one for the bases, one for EK-FAC's eigenvalues.

    Both see the same labels (with others the eigenvalues would not be those of this Fisher
    matrix). Arguments are those of `LabelPasses` and of `PerExampleGradients`; factors and
    eigenvalues are means over the states, which are given by the checkpoints' indices.

    Raises:
        DataError: A factor is NaN or infinite.
    """
    sources = []
    for checkpoint, state in states.items():
        passes = LabelPasses(
            task, labels=labels, samples=samples, n_rows=len(rows), seed=seed, checkpoint=checkpoint
        )
        owner = PerExampleGradients(model, state, output=passes.output, device=device, dtype=dtype)
        sources.append((passes, owner))

    def batches() -> Iterator[GradientBlocks]:
        for passes, owner in sources:
            for positions, inputs, targets in rows.batches(batch_size):
                for drawn in passes.each(positions, targets):
                    batch = owner.run(inputs, drawn)
                    passes.n_outputs = batch.logits.shape[-1]
                    yield batch.blocks()

    found: tuple[Block, ...] = ()
    n_rows = len(rows) * len(sources)
    for blocks in batches():
        found = found or blocks_of(blocks)
        for block in found:
            block.gather(blocks)
    factored = [block.settle(n_rows, sources[0][0].count).to(device) for block in found]
    corrected = torch.zeros(sum(block.size for block in found), dtype=torch.float64, device=device)
    made = Factors(blocks=found, factored=torch.cat(factored), corrected=corrected)
    for blocks in batches():
        corrected += made.rotate(blocks).double().square().sum(0) / n_rows
    refuse_overflow(corrected)
    return made
