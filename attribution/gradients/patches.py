"""What a convolution sees at each position: its input, padded, and cut into patches.

Also its weight's gradient row by row without patches, which suits CPUs.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.grad import conv1d_weight, conv2d_weight


def patches(module: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """[B, C * kernel, T], in the order of the weight's entries (all groups together)."""
    image = padded(module, inputs)
    pointwise = all(size == 1 for size in (*module.kernel_size, *module.stride))
    if pointwise:
        return image.flatten(2)
    if isinstance(module, nn.Conv1d):
        return F.unfold(
            image.unsqueeze(2),
            (1, *module.kernel_size),
            dilation=(1, *module.dilation),
            stride=(1, *module.stride),
        )
    return F.unfold(image, module.kernel_size, module.dilation, 0, module.stride)


def padded(module: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """The input with the layer's own padding around it."""
    if isinstance(module.padding, str):
        sizes = []
        for kernel, dilation in zip(module.kernel_size, module.dilation, strict=True):
            total = dilation * (kernel - 1) if module.padding == "same" else 0
            sizes.append((total // 2, total - total // 2))
    else:
        sizes = [(int(size), int(size)) for size in module.padding]
    if not any(any(pair) for pair in sizes):
        return inputs
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    around = [size for pair in reversed(sizes) for size in pair]  # the last axis comes first
    return F.pad(inputs, around, mode=mode)


def unpadded_convolution(
    module: nn.Conv1d | nn.Conv2d, image: Tensor, filters: Tensor, bias: Tensor | None
) -> Tensor:
    """Other filters in the place of the layer's, on an input that is padded already."""
    if isinstance(module, nn.Conv1d):
        return F.conv1d(image, filters, bias, module.stride, 0, module.dilation)
    return F.conv2d(image, filters, bias, module.stride, 0, module.dilation)


def weight_gradients(
    module: nn.Conv1d | nn.Conv2d, inputs: Tensor, delta: Tensor, groups: int
) -> Tensor:
    """Each row's gradient of the weight of the channels that delta has, [B, channels * in].

    One call of the CPU's own kernel a row: no patch is written down, which made it 1.5 to 3 times
    faster than patches on pictures of 8 x 8 to 32 x 32.
    """
    zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    image = inputs if zeros else padded(module, inputs)
    padding = module.padding if zeros else 0
    size = torch.Size((delta.shape[1], *module.weight.shape[1:]))
    find = conv1d_weight if isinstance(module, nn.Conv1d) else conv2d_weight
    out = delta.new_empty(len(delta), size.numel())
    for row in range(len(delta)):
        one = slice(row, row + 1)
        found = find(image[one], size, delta[one], module.stride, padding, module.dilation, groups)
        out[row] = found.reshape(-1)
    return out
