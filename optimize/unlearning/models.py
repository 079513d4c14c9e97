"""Many models of one architecture, as functions of their stacked parameters.

States are [M, ...] by name, as `attribution.training.TrainedModels` holds them. All models run in
eval mode: what is tuned here is what is asked later, and no model's statistics drift. Plain models
run under ``torch.func.vmap``, networks with convolutions (for which the CPU has no fast grouped
kernel) one after the other.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from attribution.devices import resolve
from attribution.gradients import layout_of
from attribution.models import ModelLike, fresh
from attribution.training.anymodel import has_convolutions, needs_loop
from schemas.errors import CheckpointError

States = dict[str, Tensor]
# Logits, activations and tangents that one pass over all models may hold: 256 MiB in float32.
PASS_NUMBERS = 2**26


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelStack:
    """M models.

    Attributes:
        model: The architecture, in eval mode; its own parameters are not read.
        params: Parameters that require gradients [M, ...], in the order of the flat gradient.
        fixed: All else that a state holds, [M, ...].
        looped: Whether models run one after the other.
    """

    model: nn.Module
    params: States
    fixed: States
    looped: bool

    @classmethod
    def of(
        cls, model: ModelLike, states: Mapping[str, Tensor], *, device: str = "auto"
    ) -> "ModelStack":
        """Models from a module, or a factory of it, and stacked states.

        Raises:
            CheckpointError: The states do not belong to the model, or are not stacked alike.
        """
        where = resolve(device)
        net = copy.deepcopy(model) if isinstance(model, nn.Module) else fresh(model, 0)
        net = net.to(where).eval()
        wanted = {**dict(net.named_parameters()), **dict(net.state_dict())}
        for name, value in wanted.items():
            if name in states and states[name].shape[1:] == value.shape:
                continue
            found = tuple(states[name].shape) if name in states else "not there"
            if name in dict(net.named_parameters()) or name not in states:
                raise CheckpointError(
                    f"{name} is {found}; give states [models, {', '.join(map(str, value.shape))}] "
                    "of this architecture"
                )
        if len({len(value) for value in states.values()}) != 1:
            raise CheckpointError("states hold different numbers of models; stack them alike")
        names = layout_of(net).names
        own = {name: states[name].detach().to(where) for name in names}
        rest = {k: v.detach().to(where) for k, v in states.items() if k not in own}
        count = len(next(iter(states.values())))
        slow = count == 1 or needs_loop(net) or (where == "cpu" and has_convolutions(net))
        return cls(model=net, params=own, fixed=rest, looped=slow)

    def __len__(self) -> int:
        return len(next(iter(self.params.values())))

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return next(iter(self.params.values())).device

    @property
    def states(self) -> States:
        """Parameters and buffers by name, [M, ...], on the CPU."""
        return {name: value.cpu() for name, value in {**self.params, **self.fixed}.items()}

    def state(self, row: int) -> States:
        """The state of one model."""
        return {name: value[row] for name, value in {**self.params, **self.fixed}.items()}

    def with_params(self, params: Mapping[str, Tensor]) -> "ModelStack":
        """The same architecture with other parameters."""
        return ModelStack(
            model=self.model, params=dict(params), fixed=self.fixed, looped=self.looped
        )

    def call(self, params: Mapping[str, Tensor], fixed: Mapping[str, Tensor], rows: Tensor) -> Any:
        """Logits of one model."""
        return functional_call(self.model, {**params, **fixed}, (rows,))

    def each(self, function: Callable[..., Any], *own: Any) -> Any:
        """``function(params, fixed, *own)`` of each model, results stacked.

        Args:
            function: Of one model's parameters, fixed values and its part of `own`; returns a
                tensor or a dict of tensors.
            own: Tensors [M, ...], or dicts of them.
        """
        given = (self.params, self.fixed, *own)
        # The fused kernels of attention have no rule for vmap and no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            if not self.looped:
                return vmap(function)(*given)
            found = [function(*_of_model(given, row)) for row in range(len(self))]
        if isinstance(found[0], dict):
            return {name: torch.stack([one[name] for one in found]) for name in found[0]}
        return torch.stack(found)

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """[M, n, ...] of inputs [n, ...]."""
        parts = [
            self.each(lambda params, fixed, rows=rows: self.call(params, fixed, rows))
            for rows in inputs.to(self.device).split(self._batch())
        ]
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def pushed(self, inputs: Tensor, directions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits, and their derivative along one direction of each model, both [M, n, ...].

        Args:
            inputs: [n, ...].
            directions: By the names of the parameters, [M, ...].
        """
        logits, changes = [], []
        for rows in inputs.to(self.device).split(self._batch()):

            def push(
                params: States, fixed: States, along: States, rows: Tensor = rows
            ) -> dict[str, Tensor]:
                # J^T u is linear in u, so its derivative along w is J w: no forward mode, for which
                # layers may lack a rule.
                forward = vjp(lambda moved: self.call(moved, fixed, rows), params)
                value, pull = forward[0], forward[1]
                push_on = vjp(lambda u: pull(u)[0], torch.zeros_like(value))[1]
                return {"value": value, "change": push_on(along)[0]}

            found = self.each(push, dict(directions))
            logits.append(found["value"])
            changes.append(found["change"])
        return torch.cat(logits, dim=1), torch.cat(changes, dim=1)

    def split(self, flat: Tensor) -> States:
        """Vectors [M, p] in the order of the flat gradient, as parameters [M, ...]."""
        sizes = [value[0].numel() for value in self.params.values()]
        parts = flat.to(self.device).split(sizes, dim=1)
        return {
            name: part.reshape(len(flat), *value.shape[1:]).to(value.dtype)
            for (name, value), part in zip(self.params.items(), parts, strict=True)
        }

    def _batch(self) -> int:
        count = sum(value[0].numel() for value in self.params.values())
        models = 1 if self.looped else len(self)
        # A row's activations, as a rule, are fewer numbers than ten times the root of p.
        return max(16, min(1024, PASS_NUMBERS // max(1, models * 10 * int(count**0.5))))


def _of_model(values: Any, row: int) -> Any:
    if isinstance(values, dict):
        return {name: value[row] for name, value in values.items()}
    if isinstance(values, tuple):
        return tuple(_of_model(value, row) for value in values)
    return values[row]
