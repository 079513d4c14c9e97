"""Logits [M, n, K] of many trained models on the same inputs."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attribution.devices import resolve
from attribution.models import ModelLike, fresh
from attribution.rows import call_at, n_rows, take, tensors, to
from attribution.training.stacked import Layer, forward, layers_of
from schemas.errors import CheckpointError

# Numbers that one stacked forward pass may hold, all layers together: 256 MiB in float32.
_FORWARD_NUMBERS = 2**26


@torch.no_grad()
def predict(
    model: ModelLike,
    states: Mapping[str, Tensor],
    inputs: Any,
    *,
    device: str = "auto",
    batch_size: int = 1024,
) -> Tensor:
    """Logits of each model on each input, in eval mode.

    Args:
        model: The architecture; its own parameters are not read.
        states: Parameters and buffers by name, [M, ...].
        inputs: [n, ...], or a mapping of them.
        device: auto, cpu or cuda.
        batch_size: Inputs in one forward pass.

    Returns:
        [M, n, K] on the CPU, in the type of the parameters.

    Raises:
        CheckpointError: The states do not belong to this model.
    """
    where = resolve(device)
    net = copy.deepcopy(model) if isinstance(model, nn.Module) else fresh(model, 0)
    net = net.to(where).eval()
    _check_fit(net, states)
    n_models = next(iter(states.values())).shape[0]
    dtype = next(value.dtype for value in states.values() if value.is_floating_point())
    rows = tensors(inputs, "inputs")
    layers = None
    if isinstance(rows, Tensor) and rows.is_floating_point():
        layers = layers_of(net, rows.shape[1:])
    parts = []
    for start in range(0, n_rows(rows), batch_size):
        batch = to(take(rows, slice(start, start + batch_size)), where, dtype)
        if layers is None or isinstance(batch, dict):
            found = [
                call_at(net, {k: v[row].to(where) for k, v in states.items()}, batch)
                for row in range(n_models)
            ]
            parts.append(torch.stack(found).cpu())
        else:
            parts.append(torch.cat(list(_stacked(layers, states, batch))))
    return torch.cat(parts, dim=1)


def _stacked(
    layers: tuple[Layer, ...], states: Mapping[str, Tensor], rows: Tensor
) -> Iterator[Tensor]:
    flat = rows.flatten(1)
    numbers = len(flat) * (layers[0].n_in + sum(2 * layer.n_out for layer in layers))
    step = max(1, _FORWARD_NUMBERS // max(1, numbers))
    n_models = next(iter(states.values())).shape[0]
    for start in range(0, n_models, step):
        own = {name: value[start : start + step].to(flat.device) for name, value in states.items()}
        yield forward(layers, own, flat).cpu()


def _check_fit(net: nn.Module, states: Mapping[str, Tensor]) -> None:
    needed = dict(net.named_parameters()) | {
        name: value for name, value in net.named_buffers() if name in net.state_dict()
    }
    if missing := sorted(needed.keys() - states.keys()):
        raise CheckpointError(
            f"the states lack {missing[0]!r}; they belong to another model than this one"
        )
    for name, value in needed.items():
        if states[name].shape[1:] != value.shape:
            raise CheckpointError(
                f"{name!r} has shape {tuple(states[name].shape[1:])} in the states and "
                f"{tuple(value.shape)} in the model; give the model they were trained with"
            )
