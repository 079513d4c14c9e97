"""The state of a training between two epochs, and the file it is kept in."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    def checkpoint(self, row: int) -> States:
        """The state dict of one model."""
        return self._of("model", row)

    def moments(self, row: int, *, steps: int | None = None) -> dict[str, Any]:
        """What AdamW kept of one model, as the method "less" takes it.

        Args:
            row: Which of the M models.
            steps: Steps that it took, ``epoch * Recipe.steps_per_epoch(n_rows)``, if they matter.

        Raises:
            CheckpointError: The training was not by adamw.
        """
        found = {
            name: self._of(f"optimizer/{slot}", row)
            for name, slot in (("exp_avg", "first_moment"), ("exp_avg_sq", "second_moment"))
        }
        if not found["exp_avg_sq"]:
            raise CheckpointError(
                "this training kept no second moments; train with optimizer='adamw', or use "
                "'graddot' or 'gradcos' with raw gradients"
            )
        return found if steps is None else {**found, "step": steps}

    def _of(self, kind: str, row: int) -> States:
        start = f"{kind}/"
        return {
            name.removeprefix(start): value[row]
            for name, value in self.values.items()
            if name.startswith(start)
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
