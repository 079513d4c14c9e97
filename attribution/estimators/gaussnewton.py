"""What the multi-class Gauss-Newton matrix has beyond the margin's own curvature.

With p = p(y|x), q the other classes' probabilities given that it is not y, and m = e_y - q the
gradient of the margin in the logits, the Hessian of cross-entropy in the logits is

    diag p - p p^T = p(1-p) m m^T + (1-p) sum_{c != y} q_c (e_c - q)(e_c - q)^T.

The first term is the curvature "logistic", whose features are there already; each class of the
second is one more backward pass: sqrt(p_c) J^T (e_c - q). With two classes the second is zero.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attribution.gradients import PerExampleGradients
from attribution.projection import Projection, sketch
from attribution.rows import Rows
from schemas.errors import ShapeError

# On the digits MLP, one checkpoint, LDS is 0.604 without the second term, 0.613, 0.616, 0.618 with
# 1, 2, 3 classes of each row and 0.619 with all nine, at three times the cost.
GGN_CLASSES = 3


class RestOutput:
    """The output sqrt(p_c) (z_c - sum of q z) for one class c of each row, weights held fixed.

    Args:
        kept: Classes used of each row: those whose terms have the largest traces, K - 1 at most.

    Attributes:
        slot: Which of them, 0 to kept - 1; set before each pass.
    """

    def __init__(self, kept: int) -> None:
        self.kept, self.slot = kept, 0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[..., K] and [...] to [...]."""
        n_classes = logits.shape[-1]
        target = targets.long().unsqueeze(-1)
        own = torch.arange(n_classes, device=logits.device) == target
        fixed = logits.detach()
        others = fixed.masked_fill(own, -torch.inf)
        q = torch.softmax(others, dim=-1)
        p = torch.softmax(fixed, dim=-1).masked_fill(own, 0.0)
        if self.kept == n_classes - 1:
            chosen = self.slot + (target <= self.slot).long()
        else:
            trace = p * (1 - 2 * q + (q * q).sum(-1, keepdim=True))
            chosen = trace.topk(self.kept, dim=-1).indices[..., self.slot : self.slot + 1]
        value = logits.gather(-1, chosen) - (q * logits).sum(-1, keepdim=True)
        return (p.gather(-1, chosen).sqrt() * value).squeeze(-1)


def rest_of_curvature(
    model: nn.Module,
    state: Mapping[str, Any] | None,
    rows: Rows,
    *,
    n_outputs: int,
    classes: int,
    projection: Projection,
    seed: int,
    checkpoint: int,
    device: str,
    batch_size: int,
    dtype: torch.dtype,
) -> tuple[Tensor, bool]:
    """The second term, sketched: (rows F with K = F^T F, False), or (K itself, True).

    Arguments as those of `featurize`, whose rows are the training rows; `n_outputs` is the number
    K of logits and `classes` the number of classes used of each row, K - 1 at most.

    Returns:
        [n * classes, k], or [k, k] in float64 where that is smaller.

    Raises:
        ShapeError: `classes` is negative.
    """
    if classes < 0:
        raise ShapeError(f"ggn_classes is {classes}; give 0 (none, as 'logistic') or more")
    kept = min(classes, n_outputs - 1) if n_outputs > 2 else 0
    output = RestOutput(kept)
    owner = PerExampleGradients(model, state, output=output, device=device, dtype=dtype)
    width = projection.width(owner.layout.size)
    dense = len(rows) * kept > width
    total = torch.zeros(width, width, dtype=torch.float64, device=device) if dense else None
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    parts = [torch.zeros(0, width, dtype=kind, device=device)]
    for _, inputs, targets in rows.batches(batch_size) if kept else ():
        found = []
        for output.slot in range(kept):
            batch = owner.run(inputs, targets)
            found.append(
                sketch(
                    batch.blocks(),
                    projection,
                    seed=seed,
                    checkpoint=checkpoint,
                    p=owner.layout.size,
                )
            )
        wide = torch.cat(found)
        if total is None:
            parts.append(wide)
        else:
            total += wide.T @ wide
    return (torch.cat(parts), False) if total is None else (total, True)
