"""Built-in convolutional models for pictures: a small CNN and a small ResNet.

Both take one input of shape (c, h, w) or (h, w), or a flat one of s*s or 3*s*s numbers, which is
read as a square picture of one or of three channels, channel first, row by row (s*s is never
3*t*t, so the rule is unambiguous). Neither has batch statistics: rows stay independent, in
training too, so many models can train as one and every example has a gradient of its own.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from schemas.errors import RecipeError, ShapeError

# A map is halved only while it is at least this wide: 8 x 8 digits end at 4 x 4, 28 x 28 at 7 x 7.
SMALLEST_POOLED = 8


def picture_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width of one input.

    Raises:
        ShapeError: It is no picture by the rule of this module.
    """
    shape = tuple(int(size) for size in input_shape)
    if len(shape) == 3 and min(shape) > 0:
        return shape
    if len(shape) == 2 and min(shape) > 0:
        return (1, *shape)
    if len(shape) == 1:
        for channels in (1, 3):
            side = math.isqrt(shape[0] // channels)
            if side > 0 and channels * side * side == shape[0]:
                return (channels, side, side)
    raise ShapeError(
        f"inputs of shape {shape} are no pictures; give (channels, height, width), "
        "(height, width), or the numbers of a square picture in one row"
    )


def cnn(
    input_shape: Sequence[int],
    n_outputs: int,
    *,
    channels: Sequence[int] = (16, 32),
    hidden: Sequence[int] = (32,),
) -> nn.Sequential:
    """3x3 convolutions with ReLU, each followed by 2x2 max pooling while the map is 8 or wider.

    The defaults have 21,546 parameters on 8 x 8 pictures with 10 classes and 55k on 28 x 28.

    Args:
        input_shape: Shape of one input, a picture.
        n_outputs: Classes, or 1 for regression.
        channels: Maps that each convolution makes.
        hidden: Widths of the linear layers between the last map and the output; may be empty.

    Raises:
        ShapeError: The input is no picture.
        RecipeError: A width is not a positive integer.
    """
    check_sizes("channels", channels)
    check_sizes("hidden", hidden, empty=True)
    deep, height, width = picture_shape(input_shape)
    layers = _as_pictures(input_shape)
    for wide in channels:
        layers += [nn.Conv2d(deep, wide, 3, padding=1), nn.ReLU()]
        deep = wide
        if min(height, width) >= SMALLEST_POOLED:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
    layers.append(nn.Flatten())
    size = deep * height * width
    for wide in hidden:
        layers += [nn.Linear(size, wide), nn.ReLU()]
        size = wide
    return nn.Sequential(*layers, nn.Linear(size, n_outputs))


class Residual(nn.Module):
    """Two 3x3 convolutions with GroupNorm, added to their input (He et al. 2016; Wu and He 2018).

    Where the shape changes, a 1x1 convolution brings the input to the new one.

    Args:
        deep: Maps that come in.
        wide: Maps that go out.
        stride: 2 halves the map.
    """

    def __init__(self, deep: int, wide: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(deep, wide, 3, stride=stride, padding=1, bias=False)
        self.first_norm = _norm(wide)
        self.second = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.second_norm = _norm(wide)
        same = stride == 1 and deep == wide
        self.skip = nn.Identity() if same else nn.Conv2d(deep, wide, 1, stride=stride, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        """[n, deep, h, w] to [n, wide, h / stride, w / stride]."""
        inner = self.first_norm(self.first(rows)).relu()
        return (self.second_norm(self.second(inner)) + self.skip(rows)).relu()


class _Average(nn.Module):
    """The mean over all pixels; unlike AdaptiveAvgPool2d its backward is deterministic on CUDA."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows.mean((2, 3))


def resnet(
    input_shape: Sequence[int],
    n_outputs: int,
    *,
    width: int = 16,
    blocks: Sequence[int] = (1, 1, 1),
) -> nn.Sequential:
    """A ResNet for small pictures, with GroupNorm in place of batch statistics.

    Args:
        input_shape: Shape of one input, a picture.
        n_outputs: Classes, or 1 for regression.
        width: Maps of the first stage; each further stage has twice as many at half the size.
        blocks: Residual blocks of each stage.

    Raises:
        ShapeError: The input is no picture.
        RecipeError: A size is not a positive integer.
    """
    check_sizes("width", [width])
    check_sizes("blocks", blocks)
    deep, _, _ = picture_shape(input_shape)
    layers = _as_pictures(input_shape)
    layers += [nn.Conv2d(deep, width, 3, padding=1, bias=False), _norm(width), nn.ReLU()]
    deep = width
    for stage, count in enumerate(blocks):
        wide = width << stage
        for place in range(count):
            layers.append(Residual(deep, wide, 2 if stage and not place else 1))
            deep = wide
    return nn.Sequential(*layers, _Average(), nn.Linear(deep, n_outputs))


def check_sizes(name: str, sizes: Any, *, empty: bool = False) -> None:
    """Refuse what is no list of positive whole numbers.

    Raises:
        RecipeError: It is not; the message names the option.
    """
    listed = isinstance(sizes, Sequence) and not isinstance(sizes, str)
    if not listed or not (sizes or empty) or any(type(s) is not int or s < 1 for s in sizes):
        raise RecipeError(
            f"{name} = {list(sizes) if listed else sizes!r}; give positive whole numbers, "
            "as in [16, 32] for a list"
        )


def _as_pictures(input_shape: Sequence[int]) -> list[nn.Module]:
    shape = picture_shape(input_shape)
    if len(input_shape) == 1:
        return [nn.Unflatten(1, shape)]
    return [nn.Unflatten(1, shape[:2])] if len(input_shape) == 2 else []


def _norm(width: int) -> nn.GroupNorm:
    # Groups of 8 maps where that divides: He et al.'s nets lose little with any of 4 to 32 groups.
    return nn.GroupNorm(max(1, width // 8) if width % 8 == 0 else 1, width)
