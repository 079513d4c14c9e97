"""A chunk: a few models that take their steps together, and the threads that run chunks.

Rows of a chunk are sorted by falling subset size, so that the models that still have a batch in
this epoch are always a prefix. On the CPU every chunk of a plain chain of layers runs on one
thread of its own: no barriers, and the same bits for every way to cut the stack. Of those that are
not compiled this holds as long as the subsets are of one size: several sizes pad each other's last
batch with zeros; that regroups sums, and the last digit of a weight can depend on the company that
a model keeps.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attribution.models import fresh_each
from attribution.training.anymodel import LoopGradients, VmapGradients
from attribution.training.compiled import CompiledEpochs
from attribution.training.jobs import Job, TrainingPath, split_state
from attribution.training.optimizers import Stack, make_optimizer
from attribution.training.recipe import epoch_order
from attribution.training.stacked import StackedGradients
from schemas.errors import RecipeError, TrainingDiverged


class Chunk:
    """Some models of a job, with their optimizer's state.

    Args:
        job: The training.
        rows: Which models, sorted by falling subset size.
    """

    def __init__(self, job: Job, rows: npt.NDArray[np.intp]) -> None:
        self.job, self.rows = job, rows
        self.seeds = [job.seeds[row] for row in rows]
        self.subsets = [np.flatnonzero(job.masks[row]) for row in rows]
        self.sizes = np.array([len(subset) for subset in self.subsets])
        trainable, constants = split_state(job.template)
        shapes = {name: value.shape for name, value in trainable.items()}
        layout = None if job.network is None else job.network.layout
        self.params = Stack(shapes, len(rows), dtype=job.dtype, device=job.device, layout=layout)
        self.constants = {
            name: torch.empty((len(rows), *value.shape), dtype=value.dtype, device=value.device)
            for name, value in constants.items()
        }
        self.optimizer = make_optimizer(job.recipe, self.params)
        self.gradients = self._gradients()
        self.losses: list[npt.NDArray[np.float64]] = []

    def initialise(self) -> None:
        """Draw every model's first parameters under its own seed."""
        for place, made in enumerate(fresh_each(self.job.model, self.seeds)):
            trainable, constants = split_state(made)
            targets = {**self.params.tensors, **self.constants}
            drawn = {**trainable, **constants}
            if drawn.keys() != targets.keys() or any(
                drawn[name].shape != target.shape[1:] for name, target in targets.items()
            ):
                raise RecipeError(
                    "the model factory returned another architecture under seed "
                    f"{self.seeds[place]}; it must return the same one each time"
                )
            for name, target in targets.items():
                target[place].copy_(drawn[name])

    def tensors(self) -> dict[str, Tensor]:
        """Copies on the CPU of all that a later epoch depends on, each [rows, ...]."""
        found = {f"model/{name}": value for name, value in self._state().items()}
        for slot, stack in self.optimizer.slots.items():
            found |= {f"optimizer/{slot}/{name}": value for name, value in stack.tensors.items()}
        return {name: _copied(value) for name, value in found.items()}

    def states(self) -> dict[str, Tensor]:
        """Copies on the CPU of parameters and constants, each [rows, ...]."""
        return {name: _copied(value) for name, value in self._state().items()}

    def load(self, tensors: dict[str, Tensor], losses: npt.NDArray[np.float64]) -> None:
        """Continue from what `tensors` gave, for all models of the job."""
        rows = torch.from_numpy(self.rows)
        for name, value in self._state().items():
            value.copy_(tensors[f"model/{name}"][rows])
        for slot, stack in self.optimizer.slots.items():
            for name, value in stack.tensors.items():
                value.copy_(tensors[f"optimizer/{slot}/{name}"][rows])
        self.losses = list(losses[self.rows].T)

    def run(self, epoch: int) -> None:
        """One pass of every model over its own rows.

        Raises:
            TrainingDiverged: A loss or a parameter is no longer finite.
        """
        steps = -(-self.sizes // self.job.recipe.batch_size)
        # Inference mode saves the bookkeeping of views; torch.func cannot run inside it.
        mode = torch.inference_mode if self.job.path is TrainingPath.STACKED else torch.no_grad
        with mode():
            sums = self._run(epoch, steps)
        self.losses.append(sums / self.sizes)
        self._check(epoch, steps)

    def _run(self, epoch: int, steps: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """Summed losses of each model over one epoch."""
        recipe, sizes = self.job.recipe, self.sizes
        if isinstance(self.gradients, CompiledEpochs):
            return self.gradients.run(epoch, self._order(epoch), sizes)
        order = torch.from_numpy(self._order(epoch)).to(self.job.device)
        sums = torch.zeros(len(sizes), dtype=self.job.dtype, device=self.job.device)
        for step in range(int(steps[0])):
            n_active = int(np.count_nonzero(steps > step))
            start = step * recipe.batch_size
            counts = np.minimum(recipe.batch_size, sizes[:n_active] - start)
            index = order[:n_active, start : start + int(counts.max())]
            if isinstance(self.gradients, LoopGradients):
                self.gradients.epoch, self.gradients.step = epoch, step
            sums[:n_active] += self.gradients.accumulate(
                self.optimizer.beta, index, self._scale(counts)
            )
            times = (epoch * steps[:n_active] + step).tolist()
            self.optimizer.step(n_active, self._rates(times), times)
        return sums.double().cpu().numpy()

    def _state(self) -> dict[str, Tensor]:
        return {**self.params.tensors, **self.constants}

    def _gradients(self) -> CompiledEpochs | StackedGradients | VmapGradients | LoopGradients:
        job, params, into = self.job, self.params, self.optimizer.accumulator
        if job.network is not None and job.examples is not None:
            return CompiledEpochs(
                job.network,
                self.optimizer,
                examples=job.examples,
                targets=job.targets,
                task=job.task,
            )
        if job.layers is not None and isinstance(job.inputs, Tensor):
            return StackedGradients(
                job.layers,
                params,
                into,
                inputs=job.inputs.flatten(1),
                targets=job.targets,
                task=job.task,
                batch_size=min(job.recipe.batch_size, int(self.sizes.max())),
            )
        if job.path is TrainingPath.VMAP:
            return VmapGradients(
                job.template,
                params,
                into,
                self.constants,
                inputs=job.inputs,
                targets=job.targets,
                task=job.task,
            )
        return LoopGradients(
            job.template,
            params,
            into,
            self.constants,
            seeds=None if job.pure else self.seeds,
            inputs=job.inputs,
            targets=job.targets,
            task=job.task,
        )

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Rows of the data in the order of this epoch, [models, largest subset].

        Padding repeats a model's own row, so that a value that is multiplied by zero is one that
        the model has to bear anyway.
        """
        order = np.empty((len(self.rows), int(self.sizes[0])), dtype=np.int64)
        for place, (seed, subset) in enumerate(zip(self.seeds, self.subsets, strict=True)):
            order[place, : len(subset)] = subset[epoch_order(seed, epoch, len(subset))]
            order[place, len(subset) :] = subset[0]
        return order

    def _scale(self, counts: npt.NDArray[np.intp]) -> float | Tensor:
        width = int(counts.max())
        if (counts == width).all():
            return 1.0 / width
        inside = np.arange(width) < counts[:, None]
        scale = torch.from_numpy(inside / counts[:, None])
        return scale.to(dtype=self.job.dtype, device=self.job.device)

    def _rates(self, times: Sequence[int]) -> list[float]:
        known: dict[int, float] = {}
        rates = []
        for time, size in zip(times, self.sizes.tolist(), strict=False):
            if size not in known:
                known[size] = self.job.recipe.rate(time, size)
            rates.append(known[size])
        return rates

    def _check(self, epoch: int, steps: npt.NDArray[np.intp]) -> None:
        finite = np.isfinite(self.losses[-1])
        # One sum tells whether all is well; it overflows long after a model is lost.
        if finite.all() and bool(torch.isfinite(self.params.flat.sum())):
            return
        for tensor in self.params.tensors.values():
            finite &= torch.isfinite(tensor).reshape(len(finite), -1).all(1).cpu().numpy()
        if finite.all():
            return
        place = int(np.flatnonzero(~finite)[0])
        last = (epoch + 1) * int(steps[place]) - 1
        rate = self.job.recipe.rate(last, int(self.sizes[place]))
        raise TrainingDiverged(
            f"model {self.rows[place]} (seed {self.seeds[place]}) diverged in epoch {epoch + 1}: "
            f"its mean loss is {self.losses[-1][place]:g} at a learning rate of {rate:g}; "
            "lower lr, or let it climb with warmup"
        )


def _copied(value: Tensor) -> Tensor:
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def merge(
    groups: Sequence[npt.NDArray[np.intp]], found: Sequence[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """One dictionary of [M, ...] from one of each chunk, in the order of the masks."""
    back = torch.from_numpy(np.argsort(np.concatenate(groups)))
    return {name: torch.cat([one[name] for one in found])[back] for name in found[0]}


@contextmanager
def mapper(job: Job, count: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` over chunks: on ``count`` threads where the job allows it, else in turn."""
    if not job.threaded:
        yield map
        return
    with _one_thread_each(), ThreadPoolExecutor(count) as pool:
        yield pool.map


_threads_lock = threading.Lock()
_threads_users = 0
_threads_before = 1


def usual_threads() -> int:
    """How many threads Torch has when no other call holds it to one."""
    with _threads_lock:
        return _threads_before if _threads_users else torch.get_num_threads()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    # Torch's thread count is one number for the process: the first that needs it sets it to one,
    # the last that leaves puts it back.
    global _threads_users, _threads_before
    with _threads_lock:
        if _threads_users == 0:
            _threads_before = torch.get_num_threads()
            torch.set_num_threads(1)
        _threads_users += 1
    try:
        yield
    finally:
        with _threads_lock:
            _threads_users -= 1
            if _threads_users == 0:
                torch.set_num_threads(_threads_before)
