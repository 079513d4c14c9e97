"""Epochs of many models by compiled code: `kernels.train_epoch` over a chunk's stacks."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from attribution.outputs import Task
from attribution.training import kernels
from attribution.training.network import Network
from attribution.training.optimizers import AdamW, Sgd, Stack
from attribution.training.recipe import Optimizer, Recipe


class CompiledEpochs:
    """A chunk's epochs; parameters and the optimizer's state change in place.

    Args:
        network: What the models are.
        optimizer: Holds the stacks, in the network's layout.
        examples: From `Network.examples`.
        targets: [n], class indices (int64) or numbers.
        task: Which loss.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Sgd | AdamW,
        *,
        examples: Tensor,
        targets: Tensor,
        task: Task,
    ) -> None:
        self.network, self.optimizer = network, optimizer
        self.recipe = optimizer.recipe
        number = optimizer.params.flat.numpy().dtype
        regression = task is Task.REGRESSION
        self.data = kernels.Data(
            examples=examples.numpy().reshape(-1),
            size=examples.shape[1],
            labels=np.empty(0, dtype=np.int64) if regression else targets.numpy(),
            numbers=targets.numpy() if regression else np.empty(0, dtype=number),
        )
        self.room = kernels.Room(
            numbers=np.zeros(network.room, dtype=number),
            winners=np.zeros(network.winners, dtype=np.int8),
            first_rows=np.zeros(network.first_rows, dtype=np.int64),
        )
        self.rule = _rule(self.recipe, optimizer.beta, number)

    def run(
        self, epoch: int, order: npt.NDArray[np.int64], sizes: npt.NDArray[np.intp]
    ) -> npt.NDArray[np.float64]:
        """One pass of every model over its own rows.

        Args:
            epoch: 0-based.
            order: int64 [M, largest size], the rows in the order of this epoch.
            sizes: [M], how many of them are a model's own.

        Returns:
            [M]: each model's summed loss.
        """
        losses = np.empty(len(sizes))
        kernels.train_epoch(
            self.network.stages,
            self.network.tables,
            self.data,
            order,
            sizes,
            self.recipe.batch_size,
            self.rule,
            self._rates(epoch, sizes),
            epoch * -(-sizes // self.recipe.batch_size),
            self._stacks(),
            self.room,
            losses,
        )
        return losses

    def _stacks(self) -> kernels.Stacks:
        def rows(stack: Stack) -> npt.NDArray[np.floating]:
            return stack.flat.numpy().reshape(stack.n_models, -1)

        optimizer = self.optimizer
        params, accumulator = rows(optimizer.params), rows(optimizer.accumulator)
        none = np.empty((0, 0), dtype=params.dtype)
        slots = [slot for slot in optimizer.slots.values() if slot is not optimizer.accumulator]
        first, second, *_ = *(rows(slot) for slot in slots), none, none
        return kernels.Stacks(params, accumulator, first, second)

    def _rates(self, epoch: int, sizes: npt.NDArray[np.intp]) -> npt.NDArray[np.floating]:
        """Learning rates [M, steps] of the epoch."""
        most = self.recipe.steps_per_epoch(int(sizes.max()))
        rates = np.zeros((len(sizes), most), dtype=self.data.examples.dtype)
        for size in np.unique(sizes).tolist():
            steps = self.recipe.steps_per_epoch(size)
            times = range(epoch * steps, (epoch + 1) * steps)
            rates[sizes == size, :steps] = [self.recipe.rate(time, size) for time in times]
        return rates


def _rule(recipe: Recipe, keep: float, dtype: np.dtype[np.floating]) -> kernels.Rule:
    number = dtype.type
    return kernels.Rule(
        kind=kernels.SGD if recipe.optimizer == Optimizer.SGD else kernels.ADAMW,
        nesterov=recipe.nesterov,
        keep=number(keep),
        momentum=number(recipe.momentum),
        decay=number(recipe.weight_decay),
        eps=number(recipe.eps),
        beta1=recipe.betas[0],
        beta2=recipe.betas[1],
    )
