"""Gradients of many models of any architecture: vmapped, or one model after the other.

Each model has its own parameters [M, ...] and constants [M, ...] (buffers and frozen parameters).
`VmapGradients` runs all models in one call and suits modules whose forward pass is a pure function
of parameters and input. `LoopGradients` is right for every module, batch statistics and dropout
included: what is drawn inside a forward pass is a function of (model's seed, epoch, step).
"""

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from attribution.models import torch_stream
from attribution.outputs import Task, training_loss
from attribution.rows import Inputs, call_at, take
from attribution.streams import Purpose, torch_seed
from attribution.training.batchnorm import normalise_lone_rows
from attribution.training.optimizers import Stack

# Train-mode forward passes that draw random numbers, keep statistics or have no vmap rule.
_LOOPED = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.modules.instancenorm._InstanceNorm,
    nn.RReLU,
    nn.RNNBase,
)


def needs_loop(model: nn.Module) -> bool:
    """Whether a module of the model cannot be trained under `vmap`."""
    return any(
        isinstance(module, _LOOPED)
        or (isinstance(module, nn.MultiheadAttention) and module.dropout > 0)
        for module in model.modules()
    )


def has_convolutions(model: nn.Module) -> bool:
    """Whether the loop beats vmap on the CPU.

    vmap turns stacked convolutions into grouped ones, for which the CPU has no fast kernel: a
    two-layer network on 8 x 8 images trained 3.6 times faster in the loop (one thread).
    """
    return any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules())


def noise_seed(seed: int, epoch: int, step: int) -> int:
    """Torch's seed for whatever a forward pass draws in one training step of one model."""
    # (seed, ORDER, epoch) is the batch order; the longer key names another stream.
    return torch_seed(seed, Purpose.ORDER, epoch, step)


class VmapGradients:
    """Mean-loss gradients through ``torch.func.vmap(grad(...))``.

    Args:
        model: The module; its own parameters are not read.
        params: Stacked parameters that train.
        into: Where gradients are accumulated, same layout.
        constants: Stacked buffers and frozen parameters, by name.
        inputs: [n, ...], or a mapping of them.
        targets: [n].
        task: Which loss.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Stack,
        into: Stack,
        constants: Mapping[str, Tensor],
        *,
        inputs: Inputs,
        targets: Tensor,
        task: Task,
    ) -> None:
        self.params, self.into, self.constants = params, into, constants
        self.inputs, self.targets = inputs, targets
        model.train()

        def loss(
            own: dict[str, Tensor],
            fixed: dict[str, Tensor],
            rows: Inputs,
            labels: Tensor,
            scale: Tensor,
        ) -> tuple[Tensor, Tensor]:
            logits = call_at(model, {**own, **fixed}, rows)
            losses = training_loss(task, logits, labels, "none")
            return (losses * scale).sum(), losses

        self._gradient = vmap(grad(loss, has_aux=True))

    def accumulate(self, beta: float, index: Tensor, scale: float | Tensor) -> Tensor:
        """As `attribution.training.stacked.StackedGradients.accumulate`."""
        n_active = index.shape[0]
        own = {name: tensor[:n_active] for name, tensor in self.params.tensors.items()}
        fixed = {name: tensor[:n_active] for name, tensor in self.constants.items()}
        if isinstance(scale, float):
            scale = torch.full(
                index.shape, scale, dtype=self.params.flat.dtype, device=index.device
            )
        # The fused kernels of attention have no rule for vmap and would run model by model.
        with sdpa_kernel(SDPBackend.MATH):
            grads, losses = self._gradient(
                own, fixed, take(self.inputs, index), self.targets[index], scale
            )
        for name, gradient in grads.items():
            self.into.tensors[name][:n_active].mul_(beta).add_(gradient)
        return (losses * (scale > 0)).sum(1)


class LoopGradients:
    """Mean-loss gradients by autograd, one model after the other.

    Args:
        model: The module; its own parameters are not read.
        params: Stacked parameters that train.
        into: Where gradients are accumulated, same layout.
        constants: Stacked buffers and frozen parameters; running statistics change in place.
        seeds: Seed of each model, for what its forward pass draws; None where it draws nothing.
        inputs: [n, ...], or a mapping of them.
        targets: [n].
        task: Which loss.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Stack,
        into: Stack,
        constants: Mapping[str, Tensor],
        *,
        seeds: Sequence[int] | None,
        inputs: Inputs,
        targets: Tensor,
        task: Task,
    ) -> None:
        # A copy of its own: functional_call swaps the parameters of the module that it is given,
        # and chunks may run on several threads.
        self.model = copy.deepcopy(model).train()
        normalise_lone_rows(self.model)
        self.params, self.into, self.constants = params, into, constants
        self.seeds, self.inputs, self.targets, self.task = seeds, inputs, targets, task
        self.epoch = self.step = 0

    def accumulate(self, beta: float, index: Tensor, scale: float | Tensor) -> Tensor:
        """As `StackedGradients.accumulate` in `stacked`, at ``self.epoch, self.step``."""
        losses = [
            self._one(place, beta, rows if isinstance(scale, float) else rows[scale[place] > 0])
            for place, rows in enumerate(index)
        ]
        return torch.stack(losses)

    def _one(self, place: int, beta: float, rows: Tensor) -> Tensor:
        own = {
            name: tensor[place].detach().requires_grad_()
            for name, tensor in self.params.tensors.items()
        }
        fixed = {name: tensor[place] for name, tensor in self.constants.items()}
        with self._noise(place, rows), torch.enable_grad():
            logits = call_at(self.model, {**own, **fixed}, take(self.inputs, rows))
            losses = training_loss(self.task, logits, self.targets[rows], "none")
            gradients = torch.autograd.grad(
                losses.mean(), list(own.values()), materialize_grads=True
            )
        for name, gradient in zip(own, gradients, strict=True):
            self.into.tensors[name][place].mul_(beta).add_(gradient)
        return losses.detach().sum()

    def _noise(self, place: int, rows: Tensor) -> AbstractContextManager[None]:
        if self.seeds is None:
            return nullcontext()
        seed = noise_seed(self.seeds[place], self.epoch, self.step)
        return torch_stream(seed, cuda=rows.is_cuda)


def vmap_works(
    model: nn.Module,
    params: Mapping[str, Tensor],
    constants: Mapping[str, Tensor],
    *,
    inputs: Inputs,
    targets: Tensor,
    task: Task,
) -> bool:
    """Try one gradient of two copies of a model on two rows.

    Torch says only by trying which forward passes it can vmap: control flow that reads values,
    random numbers and in-place writes to shared buffers raise RuntimeError.
    """
    shapes = {name: value.shape for name, value in params.items()}
    like = next(iter(params.values()))
    pair, into = (Stack(shapes, 2, dtype=like.dtype, device=str(like.device)) for _ in range(2))
    pair.load(params)
    twice = {name: torch.stack([value, value]) for name, value in constants.items()}
    trial = VmapGradients(model, pair, into, twice, inputs=inputs, targets=targets, task=task)
    index = torch.zeros((2, 1), dtype=torch.int64, device=like.device)
    try:
        trial.accumulate(0.0, index, 1.0)
    except RuntimeError:
        return False
    return True
