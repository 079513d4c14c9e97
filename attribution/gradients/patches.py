"""What a convolution sees at each position: its input, padded, and cut into patches."""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


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
