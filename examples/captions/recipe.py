"""The model of this example: pictures of digits and one templated caption for each."""

from collections.abc import Sequence

from torch import nn

from attribution.models import build

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def build_model(
    input_shape: tuple[int, ...],
    n_outputs: int,
    template: str = "{}",
    channels: Sequence[int] = (8,),
    width: int = 16,
) -> nn.Module:
    """Two towers that learn to bring a picture and its caption together.

    Args:
        input_shape: Shape of one picture; winnow fills it in.
        n_outputs: Number of classes; winnow fills it in.
        template: A caption, with {} for the digit's name.
        channels: Maps of the picture tower.
        width: Of the space in which pictures and captions meet.
    """
    captions = [template.format(name) for name in NAMES[:n_outputs]]
    return build(
        "two_tower", input_shape, n_outputs, captions=captions, channels=channels, width=width
    )
