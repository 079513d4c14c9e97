"""Weights that a user already has: read without running any code, and held against the model.

A file is safetensors, or a PyTorch file read with ``weights_only=True``. It must hold exactly the
names of the model's state dict, with its shapes and finite values; there is no partial loading.
"""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


def read_checkpoint(path: Path, model: "nn.Module") -> dict[str, "Tensor"]:
    """Read one state dict for ``model``.

    A PyTorch file may hold the state dict itself, or keep it under the key ``state_dict``.

    Returns:
        The model's names in the model's order, on the CPU, in the model's dtypes.

    Raises:
        CheckpointError: The file is missing, truncated or of another kind, or its names, shapes
            or values do not fit; the message names them.
    """
    import torch

    found = _read(path)
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    if missing or extra:
        parts = [f"lacks {_some(missing)}"] if missing else []
        parts += [f"has {_some(extra)} that the model does not"] if extra else []
        raise CheckpointError(
            f"{path} {' and '.join(parts)}; check model.build and model.options against it"
        )
    state = {}
    for name, own in wanted.items():
        tensor = found[name]
        if tensor.shape != own.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)} but the model's is "
                f"{tuple(own.shape)}; check model.options against it"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name} holds NaN or infinite values; train it again")
        state[name] = tensor.detach().to(device="cpu", dtype=own.dtype)
    return state


def _read(path: Path) -> dict[str, "Tensor"]:
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint {path} does not exist; model.checkpoints are relative to the spec file"
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    raise CheckpointError(
        f"checkpoint {path} ends in {path.suffix or 'nothing'!r}; "
        f"give .safetensors or one of {', '.join(TORCH_SUFFIXES)}"
    )


def _read_safetensors(path: Path) -> dict[str, "Tensor"]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path, device="cpu"))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({_line(error)}); it may be cut short, "
            "save it again"
        ) from error


def _read_torch(path: Path) -> dict[str, "Tensor"]:
    import torch

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} does not hold plain weights, and winnow runs no code from a checkpoint; "
            "save model.state_dict(), best as safetensors"
        ) from error
    # What torch raises for a truncated file depends on the byte at which it ends.
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch file ({_line(error)}); it may be cut short, "
            "save it again"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__} that is no state dict of tensors; "
            "save model.state_dict()"
        )
    return dict(content)


def _some(names: Iterable[str], most: int = 3) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__
