"""The state of a training between two epochs, and the file it is kept in."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from schemas.errors import CheckpointError

States = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingState:
    """Everything that the epochs still to come depend on.

    Args:
        epoch: Epochs done.
        values: ``model/<name>`` and ``optimizer/<slot>/<name>``, each [M, ...], on the CPU.
        losses: Mean training loss, [M, epoch].
        key: Digest of masks, seeds, recipe and type; another training refuses the state.
    """

    epoch: int
    values: States
    losses: npt.NDArray[np.float64]
    key: bytes

    def tensors(self) -> States:
        """One flat dictionary of tensors, as safetensors stores."""
        return {
            **self.values,
            "losses": torch.from_numpy(self.losses),
            "epoch": torch.tensor(self.epoch),
            "key": torch.tensor(list(self.key), dtype=torch.uint8),
        }

    @classmethod
    def from_tensors(cls, tensors: States) -> "TrainingState":
        """The inverse of `tensors`."""
        values = dict(tensors)
        losses, epoch, key = (values.pop(name) for name in ("losses", "epoch", "key"))
        return cls(epoch=int(epoch), values=values, losses=losses.numpy(), key=bytes(key.tolist()))


def save_state(state: TrainingState, path: Path) -> None:
    """Keep a state as safetensors; the file appears whole or not at all."""
    from safetensors.torch import save_file

    draft = path.with_name(f"{path.name}.draft")
    save_file({name: value.contiguous() for name, value in state.tensors().items()}, draft)
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def load_state(path: Path) -> TrainingState:
    """Read what `save_state` kept.

    Raises:
        CheckpointError: The file cannot be read, or is something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return TrainingState.from_tensors(load_file(path))
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(
            f"{path} is no saved training state ({error}); delete it to train from the start"
        ) from error
