"""Layers whose per-example gradient is known in closed form from their input and output gradient.

Three rules, for a layer that was given a and whose output has gradient delta:

- outer (Linear, Conv1d, Conv2d): the weight's gradient is sum_t delta_t a_t^T over positions t
  (tokens, pixels), a_t being a patch for convolutions;
- lookup (Embedding): sum_t onehot(token_t) delta_t^T;
- scale (LayerNorm, RMSNorm, GroupNorm, BatchNorm in eval mode): sum_t delta_t * normalised a_t.

A bias takes sum_t delta_t. Nothing is kept that is larger than a and delta.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from attribution.gradients.patches import padded, patches, unpadded_convolution, weight_gradients


class Rule(StrEnum):
    """How a layer's gradient follows from its input and output gradient."""

    OUTER = "outer"
    LOOKUP = "lookup"
    SCALE = "scale"


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: Rule.OUTER,
    nn.Conv1d: Rule.OUTER,
    nn.Conv2d: Rule.OUTER,
    nn.Embedding: Rule.LOOKUP,
    nn.LayerNorm: Rule.SCALE,
    nn.RMSNorm: Rule.SCALE,
    nn.GroupNorm: Rule.SCALE,
} | dict.fromkeys(_BATCH_NORMS, Rule.SCALE)


@dataclass(frozen=True, kw_only=True)
class Use:
    """One call of a layer: what it was given [B, ...] and the gradient of what it returned."""

    module: nn.Module
    given: Tensor
    delta: Tensor

    @property
    def rule(self) -> Rule:
        """The layer's rule.

        Raises:
            TypeError: It has none; the plan hooks no such layer.
        """
        rule = rule_of(self.module)
        if rule is None:
            raise TypeError(f"{type(self.module).__name__} has no rule")
        return rule

    @property
    def n_outputs(self) -> int:
        """Numbers that the layer returns at one position."""
        weight = self.module.get_parameter("weight")
        return weight.shape[1] if self.rule == Rule.LOOKUP else weight.shape[0]


def rule_of(module: nn.Module) -> Rule | None:
    """The rule that gives this module's exact per-example gradients, if any does.

    Subclasses that compute something else, and weights that are computed from other parameters
    (parametrizations, weight norm), are left to the general path.
    """
    for kind, rule in _RULES.items():
        if not isinstance(module, kind) or type(module).forward is not kind.forward:
            continue
        if isinstance(module, _CONVOLUTIONS):
            plain = type(module)._conv_forward is kind._conv_forward  # type: ignore[attr-defined]
        elif isinstance(module, nn.Embedding):
            plain = module.max_norm is None  # it rewrites its weight
        else:
            plain = True
        return rule if plain and module._parameters.get("weight") is not None else None
    return None


def takes_batch(module: nn.Module, inputs: Tensor, n_batch: int) -> bool:
    """Whether the input's first axis is the batch, and the layout is the usual one."""
    if isinstance(module, nn.Conv2d):
        right_rank = inputs.ndim == 4
    elif isinstance(module, nn.Conv1d):
        right_rank = inputs.ndim == 3
    elif isinstance(module, nn.Embedding):
        right_rank = inputs.ndim >= 1
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        right_rank = inputs.ndim > len(module.normalized_shape)
    else:
        right_rank = inputs.ndim >= 2
    return right_rank and inputs.shape[0] == n_batch


def cuts_by_rows(use: Use, role: str) -> bool:
    """Whether `role_blocks` cuts this gradient at rows of the weight, and at these alone."""
    groups = getattr(use.module, "groups", 1)
    return role == "weight" and use.rule != Rule.SCALE and groups == 1


def role_blocks(use: Use, role: str, limit: int) -> Iterator[tuple[int, Tensor]]:
    """A parameter's gradient in pieces: (offset in the parameter, [B, entries]).

    Args:
        use: The layer's call.
        role: "weight" or "bias".
        limit: Largest number of entries of a piece, as far as a single row of a weight allows.
    """
    n_batch = use.given.shape[0]
    if use.rule == Rule.SCALE:
        yield 0, _scale_gradient(use, role)
    elif role == "bias":
        channels_last = isinstance(use.module, nn.Linear)
        delta = use.delta.reshape(n_batch, -1, use.delta.shape[-1]).transpose(1, 2)
        yield 0, (delta if channels_last else use.delta.flatten(2)).sum(-1)
    elif use.rule == Rule.LOOKUP:
        yield from _lookup_blocks(use, limit)
    elif isinstance(use.module, _CONVOLUTIONS) and use.given.device.type == "cpu":
        yield from _convolution_blocks(use.module, use, limit)
    else:
        yield from _outer_blocks(*sides(use), limit)


def sides(use: Use) -> tuple[Tensor, Tensor]:
    """The two sides of an outer layer's gradient: [B, groups, out, T] and [B, groups, in, T]."""
    module, n_batch = use.module, use.given.shape[0]
    if isinstance(module, _CONVOLUTIONS):
        right = patches(module, use.given)
        shape = (n_batch, module.groups, -1, right.shape[-1])
        return use.delta.reshape(shape), right.reshape(shape)
    left = use.delta.reshape(n_batch, -1, use.delta.shape[-1]).transpose(1, 2)
    right = use.given.reshape(n_batch, -1, use.given.shape[-1]).transpose(1, 2)
    return left.unsqueeze(1), right.unsqueeze(1)


def is_single(use: Use) -> bool:
    """Whether the gradient is one plain outer product: a Linear with one position."""
    return isinstance(use.module, nn.Linear) and use.given.numel() == (
        use.given.shape[0] * use.given.shape[-1]
    )


def patch_entries(use: Use) -> int:
    """Numbers in one row's patches; 0 where the input is used as it is."""
    if not isinstance(use.module, _CONVOLUTIONS) or use.given.device.type == "cpu":
        return 0
    positions = use.delta[0].numel() // use.module.out_channels
    return use.module.in_channels * math.prod(use.module.kernel_size) * positions


def outer_shape(module: nn.Module) -> tuple[int, int] | None:
    """(rows, columns) of a weight that `projected` can project from both sides."""
    if rule_of(module) not in (Rule.OUTER, Rule.LOOKUP) or getattr(module, "groups", 1) != 1:
        return None
    shape = module.get_parameter("weight").shape
    return shape[0], math.prod(shape[1:])


def projected(use: Use, rows: Tensor | None, columns: Tensor | None, bias: Tensor | None) -> Tensor:
    """R^T G C for each example's gradient G of the weight, without G: [B, k_rows, k_columns].

    Args:
        use: The call of a layer that has an `outer_shape`.
        rows: R [rows, k_rows], or None for the identity.
        columns: C [columns, k_columns], or None for the identity.
        bias: One more row of C [k_columns (+ 1 where C is the identity)], for the bias: the layer
            then counts as having a constant input of 1. None leaves the bias out.
    """
    if use.rule == Rule.LOOKUP:
        left, right = _projected_lookup(use, rows, columns)
    else:
        left, right = _projected_outer(use, rows, columns, bias)
    if left.dtype == torch.bfloat16:  # sums over positions are taken in float32
        left, right = left.float(), right.float()
    if left.shape[-1] == 1:
        return left * right.transpose(1, 2)
    return torch.bmm(left, right.transpose(1, 2))


def _projected_outer(
    use: Use, rows: Tensor | None, columns: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    module, n_batch = use.module, use.given.shape[0]
    if isinstance(module, _CONVOLUTIONS):
        left = use.delta.flatten(2)
        left = left if rows is None else torch.matmul(rows.T, left)
    else:
        last = use.delta.reshape(n_batch, -1, use.delta.shape[-1])
        left = (last if rows is None else last @ rows).transpose(1, 2)
    if columns is None:
        right = sides(use)[1].squeeze(1)
        if bias is not None:
            right = torch.cat([right, right.new_ones(n_batch, 1, right.shape[-1])], dim=1)
    elif isinstance(module, _CONVOLUTIONS):
        # The projection of a patch is a convolution of its own: no patch is written down.
        filters = columns.T.reshape(-1, *module.weight.shape[1:])
        right = unpadded_convolution(module, padded(module, use.given), filters, bias).flatten(2)
    else:
        given = use.given.reshape(-1, use.given.shape[-1])
        made = given @ columns if bias is None else torch.addmm(bias, given, columns)
        right = made.reshape(n_batch, -1, columns.shape[1]).transpose(1, 2)
    return left, right


def _projected_lookup(
    use: Use, rows: Tensor | None, columns: Tensor | None
) -> tuple[Tensor, Tensor]:
    tokens, delta = _tokens_and_delta(use)
    if rows is None:
        left = F.one_hot(tokens, use.module.get_parameter("weight").shape[0]).to(delta.dtype)
    else:
        left = F.embedding(tokens, rows)
    right = delta if columns is None else delta @ columns
    return left.transpose(1, 2), right.transpose(1, 2)


def _tokens_and_delta(use: Use) -> tuple[Tensor, Tensor]:
    """[B, T] and [B, T, width]; padding has no gradient."""
    n_batch = use.given.shape[0]
    tokens = use.given.reshape(n_batch, -1)
    delta = use.delta.reshape(n_batch, tokens.shape[1], -1)
    padding = use.module.padding_idx
    if isinstance(padding, int):
        delta = delta * (tokens != padding).unsqueeze(-1).to(delta.dtype)
    return tokens, delta


def _lookup_blocks(use: Use, limit: int) -> Iterator[tuple[int, Tensor]]:
    tokens, delta = _tokens_and_delta(use)
    n_batch, _, width = delta.shape
    n_tokens = use.module.get_parameter("weight").shape[0]
    step = max(1, limit // max(1, n_batch * width))
    place = torch.arange(n_batch, device=delta.device).unsqueeze(1).expand_as(tokens)
    for start in range(0, n_tokens, step):
        count = min(step, n_tokens - start)
        inside = (tokens >= start) & (tokens < start + count)
        block = delta.new_zeros(n_batch * count, width)
        chosen = (place * count + tokens - start)[inside]
        block.index_add_(0, chosen, delta[inside])
        yield start * width, block.reshape(n_batch, -1)


def _convolution_blocks(
    module: nn.Conv1d | nn.Conv2d, use: Use, limit: int
) -> Iterator[tuple[int, Tensor]]:
    n_in = math.prod(module.weight.shape[1:])
    rows = max(1, limit // max(1, use.given.shape[0] * n_in))
    if module.groups > 1:
        rows = module.out_channels  # depthwise and the like are small
    for start in range(0, module.out_channels, rows):
        delta = use.delta[:, start : start + rows]
        yield start * n_in, weight_gradients(module, use.given, delta, module.groups)


def _outer_blocks(left: Tensor, right: Tensor, limit: int) -> Iterator[tuple[int, Tensor]]:
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


def _scale_gradient(use: Use, role: str) -> Tensor:
    """[B, entries]: sums over all positions, in the order of the parameter."""
    module, n_batch = use.module, use.given.shape[0]
    product = use.delta if role == "bias" else use.delta * _normalised(module, use.given)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return product.reshape(n_batch, -1, math.prod(module.normalized_shape)).sum(1)
    return product.reshape(n_batch, product.shape[1], -1).sum(-1)


def _normalised(module: nn.Module, given: Tensor) -> Tensor:
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(given, module.normalized_shape, None, None, module.eps)
    if isinstance(module, nn.RMSNorm):
        return F.rms_norm(given, module.normalized_shape, None, module.eps)
    if isinstance(module, _BATCH_NORMS):
        mean, var = module.running_mean, module.running_var
        return F.batch_norm(given, mean, var, None, None, False, 0.0, module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(given, module.num_groups, None, None, module.eps)
    raise TypeError(f"{type(module).__name__} has no scale")
