"""Training many models as one.

M models share one architecture, one data set and one recipe; each has its own rows (a mask), its
own initial parameters and its own batch order, all functions of its own seed. So a model that is
trained in a stack equals the model trained alone (`train_one_reference`, the slow truth).

Models are sorted by subset size, cut into chunks that fit the cache or the device, and stepped
together; a model with fewer rows has fewer steps and stands still on those that it lacks.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attribution.devices import resolve
from attribution.models import ModelLike, fresh, torch_stream
from attribution.outputs import training_loss
from attribution.rows import Source, call, take
from attribution.training.anymodel import noise_seed
from attribution.training.batchnorm import normalise_lone_rows
from attribution.training.chunks import Chunk, mapper, merge, usual_threads
from attribution.training.jobs import Job, TrainingPath, checked_data, make_job, split_state
from attribution.training.recipe import Optimizer, Recipe, epoch_order
from attribution.training.state import States, TrainingState
from schemas.errors import RecipeError, ShapeError

CPU_MEMORY = 2**30
# Models a chunk on the CPU. As batched products, chunks of 16 to 100 measured the same (42 to 44
# models/s a core for the 17k-parameter perceptron of benchmarks/bank_speed.py), 4 were 7 % slower;
# compiled code takes one model after the other and does not care.
CPU_CHUNK = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedModels:
    """M trained models.

    Args:
        states: Parameters and persistent buffers by name, [M, ...], on the CPU. Of tied
            parameters only the first name is kept.
        snapshots: States after each asked epoch (0 is before training).
        history: Mean training loss of each model in each epoch, [M, epochs].
        path: ``compiled``, ``stacked``, ``vmap`` or ``loop``.
        device: Where they were trained.
    """

    states: States
    snapshots: dict[int, States] = field(default_factory=dict)
    history: npt.NDArray[np.float64]
    path: TrainingPath
    device: str

    @property
    def losses(self) -> npt.NDArray[np.float64]:
        """Mean training loss of each model in its last epoch, [M]."""
        return self.history[:, -1]

    def state(self, row: int) -> States:
        """The state of one model, for ``load_state_dict``."""
        return {name: value[row] for name, value in self.states.items()}


def train_models(
    model: ModelLike,
    train: Source,
    *,
    masks: npt.ArrayLike,
    seeds: Sequence[int] | npt.NDArray[np.integer[Any]],
    training: Recipe,
    task: str | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    memory: int | None = None,
    snapshot_epochs: Collection[int] = (),
    resume: TrainingState | None = None,
    on_epoch: Callable[[int, TrainingState], None] | None = None,
) -> TrainedModels:
    """Train one model for each mask.

    On the CPU chains of linear layers, convolutions, pooling, ReLU and Tanh run as compiled code.
    Other plain perceptrons run as batched products with a backward pass by hand, other modules
    under ``torch.func.vmap``, and those that vmap cannot run (batch norm, dropout, recurrent
    layers) or runs slowly (convolutions on the CPU) one after the other; ``path`` of the result
    says which.

    Args:
        model: A module, re-initialised through `reset_parameters`, or a factory; called once for
            each model under that model's seed.
        train: Inputs [n, ...], or a mapping of inputs that the model takes by keyword, and
            targets [n]; or a map-style Dataset of such pairs (see `attribution.rows`).
        masks: bool [M, n], the rows of each model.
        seeds: [M], each 0 <= seed < 2**63; initial parameters and batch order follow from it.
        training: The recipe.
        task: ``classification`` or ``regression``; by default what the targets' type says.
        device: auto, cpu or cuda.
        dtype: Of parameters, inputs and sums.
        memory: Bytes that the models in training may take; by default 1 GiB on the CPU, half of
            what is free on CUDA. Less memory means smaller chunks, not other results.
        snapshot_epochs: Epochs (0 = before the first) after which states are kept.
        resume: Continue from here; the result equals that of an uninterrupted run. Snapshots of
            epochs already done are not in it.
        on_epoch: Called with (epochs done, state) after each epoch.

    Raises:
        ShapeError: Masks, seeds or data do not fit together, or a mask is empty.
        DataError: An input is NaN or infinite.
        RecipeError: The model cannot be re-initialised, or cannot take the inputs.
        TrainingDiverged: A loss became NaN or infinite.
    """
    job = make_job(model, train, masks, seeds, training, task, device, dtype)
    _check_epochs(snapshot_epochs, training)
    key = job.key()
    if resume is not None and resume.key != key:
        raise ShapeError(
            "the saved state belongs to other masks or seeds, another model or another recipe; "
            "train from the start, without resume"
        )
    threads = usual_threads() if job.device == "cpu" else 1
    groups = _groups(job, memory, threads)
    first = 0 if resume is None else resume.epoch

    def start(rows: npt.NDArray[np.intp]) -> Chunk:
        chunk = Chunk(job, rows)
        if resume is None:
            chunk.initialise()
        else:
            chunk.load(resume.values, resume.losses)
        return chunk

    def advance(chunk: Chunk, epoch: int, kept: dict[int, States]) -> None:
        if epoch == first and epoch in snapshot_epochs:
            kept[epoch] = chunk.states()
        chunk.run(epoch)
        if epoch + 1 in snapshot_epochs:
            kept[epoch + 1] = chunk.states()

    def to_the_end(rows: npt.NDArray[np.intp]) -> tuple[States, dict[int, States], Any]:
        kept: dict[int, States] = {}
        chunk = start(rows)
        for epoch in range(first, training.epochs):
            advance(chunk, epoch, kept)
        return chunk.states(), kept, np.stack(chunk.losses, axis=1)

    def in_step(map_: Callable[..., Iterable[Any]]) -> list[tuple[States, dict[int, States], Any]]:
        chunks = list(map_(start, groups))
        kept: list[dict[int, States]] = [{} for _ in chunks]
        for epoch in range(first, training.epochs):
            list(map_(advance, chunks, [epoch] * len(chunks), kept))
            if on_epoch is not None:
                on_epoch(epoch + 1, _state_of(chunks, groups, epoch + 1, key))
        losses = [np.stack(chunk.losses, axis=1) for chunk in chunks]
        return list(zip([chunk.states() for chunk in chunks], kept, losses, strict=True))

    with mapper(job, threads) as map_:
        # Alone, a chunk runs to its end and is freed; with a listener all advance by epochs.
        parts = in_step(map_) if on_epoch is not None else list(map_(to_the_end, groups))
    states, snapshots, losses = zip(*parts, strict=True)
    back = np.argsort(np.concatenate(groups))
    return TrainedModels(
        states=merge(groups, states),
        snapshots={
            epoch: merge(groups, [one[epoch] for one in snapshots]) for epoch in snapshots[0]
        },
        history=np.concatenate(losses)[back],
        path=job.path,
        device=job.device,
    )


def train_one_reference(
    model: ModelLike,
    train: Source,
    *,
    mask: npt.ArrayLike,
    seed: int,
    training: Recipe,
    task: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[States, list[float]]:
    """One model by the plain PyTorch loop: the truth that `train_models` is tested against.

    Returns:
        Its state, and its mean training loss in each epoch.
    """
    where = resolve(device)
    inputs, targets, kind = checked_data(train, task, dtype, where)
    net = fresh(model, seed).to(device=where, dtype=dtype).train()
    normalise_lone_rows(net)
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = _torch_optimizer(training, trainable)
    subset = np.flatnonzero(np.asarray(mask))
    losses, step = [], 0
    for epoch in range(training.epochs):
        order = torch.from_numpy(subset[epoch_order(seed, epoch, len(subset))]).to(where)
        total = 0.0
        for place, rows in enumerate(order.split(training.batch_size)):
            for group in optimizer.param_groups:
                group["lr"] = training.rate(step, len(subset))
            optimizer.zero_grad()
            with torch_stream(noise_seed(seed, epoch, place), cuda=where == "cuda"):
                loss = training_loss(kind, call(net, take(inputs, rows)), targets[rows], "mean")
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
            step += 1
        losses.append(total / len(subset))
    trained, constants = split_state(net)
    return {name: value.cpu() for name, value in {**trained, **constants}.items()}, losses


def _torch_optimizer(
    training: Recipe, parameters: list[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    if training.optimizer == Optimizer.SGD:
        return torch.optim.SGD(
            parameters,
            lr=training.lr,
            momentum=training.momentum,
            nesterov=training.nesterov,
            weight_decay=training.weight_decay,
        )
    return torch.optim.AdamW(
        parameters,
        lr=training.lr,
        betas=training.betas,
        eps=training.eps,
        weight_decay=training.weight_decay,
    )


def _check_epochs(snapshot_epochs: Collection[int], training: Recipe) -> None:
    for epoch in snapshot_epochs:
        if not 0 <= epoch <= training.epochs:
            raise RecipeError(f"snapshot epoch {epoch} is outside 0..{training.epochs}")


def _groups(job: Job, memory: int | None, threads: int) -> list[npt.NDArray[np.intp]]:
    """Rows of each chunk: models by falling subset size, cut evenly.

    Models of different sizes share no chunk unless nearly every size differs: padded last batches
    would round otherwise in other company, and a result would depend on the number of threads.
    """
    sizes = job.masks.sum(axis=1)
    order = np.argsort(-sizes, kind="stable")
    at_once = threads if job.threaded else 1
    if memory is None:
        memory = torch.cuda.mem_get_info()[0] // 2 if job.device == "cuda" else CPU_MEMORY
    largest = max(1, memory // (at_once * _bytes_per_model(job, int(sizes.max()))))
    if job.device == "cpu":
        largest = min(largest, CPU_CHUNK)
    alike = np.split(order, np.flatnonzero(np.diff(sizes[order])) + 1)
    if len(alike) > len(order) // 2:
        alike = [order]
    groups = []
    for rows in alike:
        # A whole number of chunks for each thread, so that none waits for another's extra chunk.
        n_chunks = -(-len(rows) // largest)
        n_chunks = min(len(rows), -(-n_chunks // at_once) * at_once)
        groups += np.array_split(rows, n_chunks)
    return groups


def _bytes_per_model(job: Job, n_rows: int) -> int:
    slots = 3 if job.recipe.optimizer == Optimizer.SGD else 5
    params = sum(value.numel() for value in split_state(job.template)[0].values())
    width = min(job.recipe.batch_size, n_rows)
    activations = 4 * _activation_numbers(job) * width
    return (slots * params + activations) * job.dtype.itemsize + 8 * n_rows


def _activation_numbers(job: Job) -> int:
    """Numbers that one forward pass of one row produces, all modules together."""
    one = take(job.inputs, slice(1))
    found = [values.numel() for values in (one.values() if isinstance(one, dict) else [one])]

    def count(_module: object, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            found.append(output.numel())

    handles = [module.register_forward_hook(count) for module in job.template.modules()]
    mode = job.template.training
    with torch.no_grad():
        call(job.template.eval(), one)
    job.template.train(mode)
    for handle in handles:
        handle.remove()
    return sum(found)


def _state_of(
    chunks: list[Chunk], groups: list[npt.NDArray[np.intp]], epoch: int, key: bytes
) -> TrainingState:
    losses = np.concatenate([np.stack(chunk.losses, axis=1) for chunk in chunks])
    return TrainingState(
        epoch=epoch,
        values=merge(groups, [chunk.tensors() for chunk in chunks]),
        losses=losses[np.argsort(np.concatenate(groups))],
        key=key,
    )
