"""The model of this example: any function that returns a torch module will do."""

from torch import nn


def build_model(input_shape: tuple[int, ...], n_outputs: int, width: int = 32) -> nn.Module:
    """Build a small network without batch statistics, which would tie rows together.

    Args:
        input_shape: Shape of one row, here (4,); winnow fills it in.
        n_outputs: Number of classes; winnow fills it in.
        width: From ``[model] options``.
    """
    return nn.Sequential(
        nn.Linear(input_shape[0], width),
        nn.GELU(),
        nn.Linear(width, width),
        nn.GELU(),
        nn.Linear(width, n_outputs),
    )
