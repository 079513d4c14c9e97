"""What a model makes of its inputs just before its last layer, [n, d]."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from attribution.gradients.perexample import private_copy
from attribution.rows import Rows, call, to
from schemas.errors import RecipeError


@torch.no_grad()
def last_hidden(
    model: nn.Module,
    state: Mapping[str, Any] | None,
    rows: Rows,
    *,
    device: str,
    dtype: torch.dtype,
    batch_size: int,
) -> npt.NDArray[np.float64]:
    """The input of the linear layer that runs last, for every row; of a linear model, its input.

    Raises:
        RecipeError: No linear layer runs, or its input is not one vector a row.
    """
    net = private_copy(model, state, device=device, dtype=dtype)
    seen: list[Tensor] = []

    def remember(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = inputs[:1]

    for module in net.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(remember)
    parts = []
    for _, inputs, _ in rows.batches(batch_size):
        seen.clear()
        logits = call(net, to(inputs, device, dtype))
        if not seen or seen[0].ndim != 2 or len(seen[0]) != len(logits):
            found = f"takes {tuple(seen[0].shape)}" if seen else "does not exist"
            raise RecipeError(
                f"the model's last linear layer {found} for {len(logits)} rows, and one vector a "
                "row is needed; give features=(train, queries)"
            )
        parts.append(seen[0].double().cpu())
    return torch.cat(parts).numpy()
