"""One training of many models, checked before anything is computed.

A `Job` is what all its models share: data on the device, the recipe, masks [M, n] and seeds [M],
and the path on which gradients are computed. It trains nothing.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from attribution.devices import resolve
from attribution.models import ModelLike, fresh
from attribution.outputs import Task, check_targets, task_of
from attribution.rows import Inputs, Rows, Source, call, take, to
from attribution.streams import checked_seed
from attribution.training.anymodel import has_convolutions, needs_loop, vmap_works
from attribution.training.network import Network, network_of
from attribution.training.recipe import Recipe
from attribution.training.stacked import Layer, layers_of
from schemas.errors import RecipeError, ShapeError


class TrainingPath(StrEnum):
    """How gradients are computed."""

    COMPILED = "compiled"
    STACKED = "stacked"
    VMAP = "vmap"
    LOOP = "loop"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all chunks of one training share; tensors are on the device already.

    ``pure`` says that a forward pass is a function of parameters and input alone; ``examples``
    are the inputs as the network's kernels read them.
    """

    model: ModelLike
    template: nn.Module
    network: Network | None
    examples: Tensor | None
    layers: tuple[Layer, ...] | None
    path: TrainingPath
    pure: bool
    inputs: Inputs
    targets: Tensor
    task: Task
    recipe: Recipe
    masks: npt.NDArray[np.bool_]
    seeds: tuple[int, ...]
    dtype: torch.dtype
    device: str

    @property
    def threaded(self) -> bool:
        """Whether chunks may run on threads: CPU, and no draw from Torch's global generators."""
        return self.device == "cpu" and self.pure and self.path is not TrainingPath.VMAP

    def key(self) -> bytes:
        """Digest of what a saved state depends on, the data's values apart."""
        trainable, constants = split_state(self.template)
        shapes = [(name, value.shape) for name, value in {**trainable, **constants}.items()]
        parts = (self.recipe, self.seeds, str(self.dtype), self.masks.shape, shapes)
        digest = hashlib.sha256(repr(parts).encode())
        digest.update(np.packbits(self.masks).tobytes())
        return digest.digest()


def make_job(
    model: ModelLike,
    train: Source | Rows,
    masks: npt.ArrayLike,
    seeds: Sequence[int] | npt.NDArray[np.integer[Any]],
    recipe: Recipe,
    task: str | None,
    device: str,
    dtype: torch.dtype,
) -> Job:
    """Check everything, try the model on one row, and choose the path."""
    where = resolve(device)
    inputs, targets, kind = checked_data(train, task, dtype, where)
    rows, numbers = checked_masks(masks, seeds, len(targets))
    template = fresh(model, numbers[0]).to(device=where, dtype=dtype)
    _try_forward(template, inputs, targets)
    network, examples, layers = None, None, None
    if isinstance(inputs, Tensor) and inputs.is_floating_point() and kind is not Task.LANGUAGE:
        if where == "cpu":
            batch = min(recipe.batch_size, int(rows.sum(axis=1).max()))
            network = network_of(template, inputs.shape[1:], batch, dtype)
            examples = None if network is None else network.examples(inputs)
        layers = layers_of(template, inputs.shape[1:])
    params, constants = split_state(template)
    pure = (network or layers) is not None or (
        not needs_loop(template)
        and vmap_works(template, params, constants, inputs=inputs, targets=targets, task=kind)
    )
    path = TrainingPath.COMPILED if network is not None else TrainingPath.STACKED
    if network is None and layers is None:
        slow = where == "cpu" and has_convolutions(template)
        path = TrainingPath.VMAP if pure and not slow else TrainingPath.LOOP
    return Job(
        model=model,
        template=template,
        network=network,
        examples=examples,
        layers=layers,
        path=path,
        pure=pure,
        inputs=inputs,
        targets=targets,
        task=kind,
        recipe=recipe,
        masks=rows,
        seeds=numbers,
        dtype=dtype,
        device=where,
    )


def checked_data(
    train: Source | Rows, task: str | None, dtype: torch.dtype, device: str
) -> tuple[Inputs, Tensor, Task]:
    """Inputs [n, ...] and targets [n] on the device, in the types that training needs."""
    inputs, targets = Rows(train, "train").whole()
    kind = task_of(targets) if task is None else Task(task)
    if kind is Task.REGRESSION:
        targets = targets.to(dtype)
    elif targets.is_floating_point():
        raise ShapeError("classification needs integer class indices; these are floating")
    if targets.ndim != (2 if kind is Task.LANGUAGE else 1):
        raise ShapeError(
            f"targets have shape {tuple(targets.shape)}; give one number a row, or for documents "
            "one class index a token"
        )
    return to(inputs, device, dtype), targets.to(device), kind


def checked_masks(
    masks: npt.ArrayLike, seeds: Sequence[int] | npt.NDArray[np.integer[Any]], n_train: int
) -> tuple[npt.NDArray[np.bool_], tuple[int, ...]]:
    """Masks bool [M, n_train], none of them empty, and one seed for each.

    Raises:
        ShapeError: They do not fit the rows or each other.
    """
    rows = np.asarray(masks)
    if rows.dtype != np.bool_ or rows.ndim != 2 or rows.shape[1] != n_train or len(rows) == 0:
        raise ShapeError(
            f"masks are {rows.dtype} of shape {rows.shape}; give bool [models, {n_train}]"
        )
    if len(seeds) != len(rows):
        raise ShapeError(f"{len(seeds)} seeds for {len(rows)} masks; give one for each")
    empty = np.flatnonzero(~rows.any(axis=1))
    if len(empty):
        raise ShapeError(f"mask {empty[0]} holds no row; there is nothing to train on")
    return rows, tuple(checked_seed(seed) for seed in seeds)


def _try_forward(template: nn.Module, inputs: Inputs, targets: Tensor) -> None:
    template.eval()
    try:
        with torch.no_grad():
            logits = call(template, take(inputs, slice(1)))
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"the model cannot take {_described(inputs)}: {reason}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 1 + targets.ndim:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        wanted = "[n, outputs]" if targets.ndim == 1 else "[n, tokens, outputs]"
        raise RecipeError(f"the model returned {found} for one input; return a tensor {wanted}")
    check_targets(logits.expand(len(targets), *logits.shape[1:]), targets)
    if targets.is_floating_point() and logits.shape[1] != 1:
        raise ShapeError(f"a regression needs a model with 1 output; this has {logits.shape[1]}")


def _described(inputs: Inputs) -> str:
    named = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
    return ", ".join(
        f"{name} of shape {tuple(values.shape[1:])} and type {values.dtype}"
        for name, values in named.items()
    )


def split_state(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(parameters that train, frozen parameters and persistent buffers), by name."""
    trainable: dict[str, Tensor] = {}
    constants: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        (trainable if parameter.requires_grad else constants)[name] = parameter.detach()
    persistent = module.state_dict().keys()
    constants |= {name: value for name, value in module.named_buffers() if name in persistent}
    return trainable, constants
