"""Layers whose per-example gradient is a product of two small arrays.

For a Linear or Conv2d with input a and output gradient delta, the gradient of the weight is
sum_t delta[:, t] a[:, t]^T over positions t (tokens, pixels). `factors` gives both sides as
left [B, groups, out/groups, T] and right [B, groups, in, T]; the weight gradient is their product
over T, and the bias gradient is left summed over T.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def is_factored(module: nn.Module) -> bool:
    """Whether `factors` gives this module's exact per-example gradients.

    Subclasses that compute something else, and weights that are computed from other parameters
    (parametrizations, weight norm), are left to the general path.
    """
    for kind in (nn.Linear, nn.Conv2d):
        if isinstance(module, kind) and type(module).forward is kind.forward:
            own_conv = getattr(type(module), "_conv_forward", None)
            plain = kind is nn.Linear or own_conv is nn.Conv2d._conv_forward
            return plain and module._parameters.get("weight") is not None
    return False


def takes_batch(module: nn.Module, inputs: Tensor, n_batch: int) -> bool:
    """Whether the input's first axis is the batch, and the layout is the usual one."""
    right_rank = inputs.ndim == 4 if isinstance(module, nn.Conv2d) else inputs.ndim >= 2
    return right_rank and inputs.shape[0] == n_batch


def factors(module: nn.Module, inputs: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """The two sides of the weight gradient.

    Args:
        module: One for which `is_factored` holds.
        inputs: What it was given, [B, ..., in] or [B, C, H, W].
        delta: The gradient with respect to what it returned.
    """
    if isinstance(module, nn.Conv2d):
        patches = F.unfold(
            _padded(module, inputs), module.kernel_size, module.dilation, 0, module.stride
        )
        n_batch, _, n_positions = patches.shape
        shape = (n_batch, module.groups, -1, n_positions)
        return delta.reshape(shape), patches.reshape(shape)
    n_batch = inputs.shape[0]
    left = delta.reshape(n_batch, -1, delta.shape[-1]).transpose(1, 2)
    right = inputs.reshape(n_batch, -1, inputs.shape[-1]).transpose(1, 2)
    return left.unsqueeze(1), right.unsqueeze(1)


def weight_blocks(left: Tensor, right: Tensor, limit: int) -> Iterator[tuple[int, Tensor]]:
    """The weight gradient in pieces of whole rows: (offset in the weight, [B, entries]).

    Args:
        left: [B, groups, out, T].
        right: [B, groups, in, T].
        limit: Largest number of entries of a piece, as far as a single row allows.
    """
    n_batch, n_groups, n_out, _ = left.shape
    n_in = right.shape[2]
    if n_groups == 1:
        rows = max(1, limit // max(1, n_batch * n_in))
        for start in range(0, n_out, rows):
            piece = _product(left[:, :, start : start + rows], right)
            yield start * n_in, piece.reshape(n_batch, -1)
        return
    groups = max(1, limit // max(1, n_batch * n_out * n_in))
    for start in range(0, n_groups, groups):
        chosen = slice(start, start + groups)
        piece = _product(left[:, chosen], right[:, chosen])
        yield start * n_out * n_in, piece.reshape(n_batch, -1)


def _product(left: Tensor, right: Tensor) -> Tensor:
    if left.shape[-1] == 1:  # a plain outer product: broadcasting is twice as fast as bmm here
        return left * right.transpose(-1, -2)
    return torch.matmul(left, right.transpose(-1, -2))


def _padded(module: nn.Conv2d, inputs: Tensor) -> Tensor:
    if isinstance(module.padding, str):
        sizes = []
        for kernel, dilation in zip(module.kernel_size, module.dilation, strict=True):
            total = dilation * (kernel - 1) if module.padding == "same" else 0
            sizes.append((total // 2, total - total // 2))
    else:
        sizes = [(int(size), int(size)) for size in module.padding]
    (top, bottom), (left, right) = sizes
    if not any((top, bottom, left, right)):
        return inputs
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(inputs, (left, right, top, bottom), mode=mode)
