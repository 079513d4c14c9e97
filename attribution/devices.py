"""Which device the numerics run on. It never falls back: a device that is asked for is used."""

from typing import Literal

from schemas.errors import DeviceUnavailable


def resolve(device: str = "auto") -> Literal["cpu", "cuda"]:
    """The device that a request means on this machine.

    Args:
        device: "auto" takes CUDA where there is one; "cpu" and "cuda" are taken at their word.

    Raises:
        DeviceUnavailable: CUDA was asked for and is not there, or the name is unknown.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceUnavailable(f"unknown device {device!r}; say 'auto', 'cpu' or 'cuda'")
    if device == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise DeviceUnavailable(
            "device='cuda' was asked for and Torch sees no CUDA device; say 'auto' or 'cpu', "
            "or install a CUDA build of Torch on a machine that has one"
        )
    return "cpu"
