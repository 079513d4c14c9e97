"""Unlearning some training rows from many models at once, by any method.

Every method is one function of (what is given, its recipe) that returns the new models and what
they cost. Forget set and batches are shared by all models; targets are each model's own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from attribution.models import ModelLike
from attribution.outputs import Output, of_examples_unchecked, task_of
from attribution.streams import Purpose, stream
from optimize.unlearning import losses
from optimize.unlearning.directions import forget_directions, shifted
from optimize.unlearning.models import ModelStack, States
from optimize.unlearning.recipes import (
    Ascent,
    AscentDescent,
    FineTune,
    GradDiff,
    InfluenceStep,
    Matching,
    Method,
    Npo,
    OracleMatching,
    ProjectedStep,
    Scrub,
    Tuning,
)
from optimize.unlearning.request import FORWARD, JVP, Arrays, Cost, forget_rows
from optimize.unlearning.steps import influence_step
from optimize.unlearning.tuning import Step, Table, batches, fine_tune
from schemas.errors import ShapeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlearned:
    """Models without the rows.

    Attributes:
        states: Parameters and buffers by name, [M, ...], on the CPU.
        cost: Examples that each model took.
    """

    states: States
    cost: Cost

    def state(self, row: int) -> States:
        """The state of one model, for ``load_state_dict``."""
        return {name: value[row] for name, value in self.states.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Given:
    """What methods work on; tensors are on the device."""

    stack: ModelStack
    inputs: Tensor
    targets: Tensor
    forgotten: Tensor
    task: str
    weight_decay: float
    oracles: ModelStack | None
    flat: Tensor | None
    seed: int

    @property
    def gone(self) -> Tensor:
        return self.forgotten.nonzero()[:, 0]

    @property
    def kept(self) -> Tensor:
        return (~self.forgotten).nonzero()[:, 0]

    def table(self, rows: Tensor, reference: Tensor | None = None) -> Table:
        """These training rows; without a reference, one of zeros."""
        if reference is None:
            reference = self.inputs.new_zeros((len(self.stack), len(rows)), dtype=torch.float32)
        return Table(
            inputs=self.inputs[rows],
            labels=self.targets[rows],
            forgotten=self.forgotten[rows],
            reference=reference,
        )


Found = tuple[ModelStack, Cost]


def unlearn(
    method: Method,
    model: ModelLike,
    states: Mapping[str, Tensor],
    *,
    train: Arrays,
    forget: npt.ArrayLike,
    task: str | None = None,
    weight_decay: float = 0.0,
    oracles: Mapping[str, Tensor] | None = None,
    directions: Tensor | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Unlearned:
    """Make models forget rows that they were trained on.

    Args:
        method: One of `optimize.unlearning.recipes`; `method_of` finds it by name.
        model: The architecture: a module, or a factory of it.
        states: M models trained on all rows, stacked [M, ...] by name.
        train: Inputs [n, ...] and targets [n], or [n, T] of documents.
        forget: Row numbers, or bool [n].
        task: By default what the targets' type says.
        weight_decay: Of the recipe the models were trained with; for the influence step.
        oracles: Stacked models that never saw the rows, for `OracleMatching`: model m is matched to
            oracle m, from the start again where there are fewer.
        directions: Float [M, p], of `forget_directions` with the method's own options, where they
            are at hand already; they count as cost all the same.
        device: auto, cpu or cuda.
        seed: Key of batches, of the sample of rows that stay, and of projections.

    Raises:
        ShapeError: The forget set is empty, everything, or not in the training set; or an array
            does not fit.
        CheckpointError: The states do not belong to the model.
        TrainingDiverged: A parameter became NaN or infinite.
    """
    stack = ModelStack.of(model, states, device=device)
    inputs, targets = (torch.as_tensor(part).to(stack.device) for part in train)
    if len(inputs) != len(targets):
        raise ShapeError(
            f"{len(inputs)} inputs and {len(targets)} targets; give one for each input"
        )
    if inputs.is_floating_point():
        inputs = inputs.to(next(iter(stack.params.values())).dtype)
    forgotten = torch.zeros(len(inputs), dtype=torch.bool, device=stack.device)
    forgotten[torch.from_numpy(forget_rows(forget, len(inputs)))] = True
    given = _Given(
        stack=stack,
        inputs=inputs,
        targets=targets if targets.is_floating_point() else targets.long(),
        forgotten=forgotten,
        task=str(task_of(targets) if task is None else task),
        weight_decay=weight_decay,
        oracles=None if oracles is None else ModelStack.of(model, oracles, device=device),
        flat=directions,
        seed=seed,
    )
    moved, cost = _FUNCTIONS[type(method)](given, method)
    return Unlearned(states=moved.states, cost=cost)


def _tuned(given: _Given, table: Table, epochs: list[list[Step]], tuning: Tuning) -> Found:
    moved, processed = fine_tune(given.stack, table, epochs, tuning)
    return moved, Cost(tuning=processed)


def _finetune(given: _Given, method: FineTune) -> Found:
    return _one_loss(given, given.kept, losses.own_loss(given.task), method.tuning)


def _ascent(given: _Given, method: Ascent) -> Found:
    return _one_loss(given, given.gone, losses.own_loss(given.task, -1.0), method.tuning)


def _one_loss(given: _Given, rows: Tensor, loss: losses.Loss, tuning: Tuning) -> Found:
    epochs = [
        [(part, loss) for part in _batches(given, torch.arange(len(rows)), tuning, epoch)]
        for epoch in range(tuning.epochs)
    ]
    return _tuned(given, given.table(rows), epochs, tuning)


def _ascent_descent(given: _Given, method: AscentDescent) -> Found:
    up, down = losses.own_loss(given.task, -1.0), losses.own_loss(given.task)
    table, epochs = _two_phases(given, up, down, method.ascent_epochs, method.tuning)
    return _tuned(given, table, epochs, method.tuning)


def _scrub(given: _Given, method: Scrub) -> Found:
    up = losses.away(method.temperature)
    down = losses.near(given.task, method.temperature, method.own_loss, method.distillation)
    table, epochs = _two_phases(given, up, down, method.ascent_epochs, method.tuning)
    teacher = given.stack.logits(table.inputs)
    moved, cost = _tuned(given, _with_reference(table, teacher), epochs, method.tuning)
    return moved, Cost(teacher=FORWARD * len(table), tuning=cost.tuning)


def _two_phases(
    given: _Given, up: losses.Loss, down: losses.Loss, ascent_epochs: int, tuning: Tuning
) -> tuple[Table, list[list[Step]]]:
    """First up on what goes, for some epochs; then, in each, down on what stays."""
    table = given.table(torch.cat([given.gone, given.kept]))
    count = len(given.gone)
    epochs = []
    for epoch in range(tuning.epochs):
        steps: list[Step] = []
        if epoch < ascent_epochs:
            rows = torch.arange(count)
            steps += [(part, up) for part in _batches(given, rows, tuning, epoch)]
        rows = torch.arange(count, len(table))
        steps += [(part, down) for part in _batches(given, rows, tuning, epoch, 1)]
        epochs.append(steps)
    return table, epochs


def _graddiff(given: _Given, method: GradDiff) -> Found:
    table, epochs = _in_pairs(given, losses.difference(given.task, method.retain), method.tuning)
    return _tuned(given, table, epochs, method.tuning)


def _npo(given: _Given, method: Npo) -> Found:
    loss = losses.preference(given.task, method.beta, method.retain)
    table, epochs = _in_pairs(given, loss, method.tuning)
    before = torch.func.vmap(lambda logits: of_examples_unchecked(Output.LOGPROB, logits, labels))
    labels = table.labels[: len(given.gone)]
    reference = table.reference.clone()
    reference[:, : len(labels)] = before(given.stack.logits(table.inputs[: len(labels)]))
    moved, cost = _tuned(given, _with_reference(table, reference), epochs, method.tuning)
    return moved, Cost(teacher=FORWARD * len(given.gone), tuning=cost.tuning)


def _in_pairs(given: _Given, loss: losses.Loss, tuning: Tuning) -> tuple[Table, list[list[Step]]]:
    """Each batch of rows that go, with as many that stay, drawn anew in every epoch."""
    table = given.table(torch.cat([given.gone, given.kept]))
    count = len(given.gone)
    epochs: list[list[Step]] = []
    for epoch in range(tuning.epochs):
        others = next(
            batches(
                torch.arange(count, len(table)), len(table), seed=given.seed, epoch=epoch, part=1
            )
        )
        steps: list[Step] = []
        for place, part in enumerate(_batches(given, torch.arange(count), tuning, epoch)):
            first = place * tuning.batch_size % len(others)
            paired = others.roll(-first)[: len(part)]
            steps.append((torch.cat([part, paired.to(part)]), loss))
        epochs.append(steps)
    return table, epochs


def _influence(given: _Given, method: InfluenceStep) -> Found:
    moved, spent = influence_step(
        given.stack,
        given.inputs,
        given.targets,
        given.forgotten,
        method,
        task=given.task,
        weight_decay=given.weight_decay,
    )
    return moved, Cost(scoring=spent)


def _projected(given: _Given, method: ProjectedStep) -> Found:
    flat, spent = _directions(given, method)
    return _stepped(given.stack, flat, method.scale), Cost(scoring=spent)


def _stepped(stack: ModelStack, flat: Tensor, scale: float) -> ModelStack:
    along = stack.split(scale * flat)
    return stack.with_params({name: value - along[name] for name, value in stack.params.items()})


def _matching(given: _Given, method: Matching) -> Found:
    flat, spent = _directions(given, method)
    rows, epochs = _to_match(given, method)
    scale = torch.full((len(rows),), method.scale)
    if method.forgotten_scale is not None:
        scale[: len(given.gone)] = method.forgotten_scale
    _, target = shifted(given.stack, given.inputs[rows], flat, scale, method.shared)
    start = _stepped(given.stack, flat, method.scale) if method.warm else given.stack
    moved, processed = fine_tune(start, given.table(rows, target), epochs, method.tuning)
    # A shared change is the mean of all models': each of them was featurised and pushed for it.
    times = len(given.stack) if method.shared else 1
    return moved, Cost(scoring=spent * times, teacher=JVP * len(rows) * times, tuning=processed)


def _oracle_matching(given: _Given, method: OracleMatching) -> Found:
    if given.oracles is None:
        raise ShapeError(
            "matching oracles needs them; give oracles=, models that never saw the rows"
        )
    rows, epochs = _to_match(given, method)
    logits = given.oracles.logits(given.inputs[rows])
    target = logits[torch.arange(len(given.stack)) % len(logits)]
    moved, cost = _tuned(given, given.table(rows, target), epochs, method.tuning)
    return moved, Cost(teacher=FORWARD * len(rows), tuning=cost.tuning)


def _to_match(given: _Given, method: Matching | OracleMatching) -> tuple[Tensor, list[list[Step]]]:
    """Rows that go and a sample of those that stay; epochs that repeat the first."""
    gone, kept = given.gone, given.kept
    size = min(len(kept), round(method.retain_per_forget * len(gone)))
    drawn = stream(given.seed, Purpose.FORGET, 3).permutation(len(kept))[:size]
    rows = torch.cat([gone, kept[torch.from_numpy(drawn).to(kept)]])
    repeated = torch.cat(
        [torch.arange(len(gone))] * (method.repeats - 1) + [torch.arange(len(rows))]
    )
    epochs: list[list[Step]] = [
        [(part, losses.matching) for part in _batches(given, repeated, method.tuning, epoch)]
        for epoch in range(method.tuning.epochs)
    ]
    return rows, epochs


def _directions(given: _Given, method: Matching | ProjectedStep) -> tuple[Tensor, float]:
    """Direction w of each model, [M, p], and the examples that each took."""
    passes = 4 if method.curvature == "ggn" else 1
    if given.flat is not None:
        if given.flat.ndim != 2 or len(given.flat) != len(given.stack):
            raise ShapeError(
                f"directions have shape {tuple(given.flat.shape)}; give one for each of "
                f"{len(given.stack)} models"
            )
        return given.flat, float(passes * len(given.inputs))
    found = forget_directions(
        given.stack.model,
        given.stack.states,
        train=(given.inputs.cpu(), given.targets.cpu()),
        forget=[given.gone.cpu().numpy()],
        task=given.task,
        curvature=method.curvature,
        damping=method.damping,
        centred=method.centred,
        newton=method.newton,
        projection=method.projection,
        device=given.stack.device.type,
        seed=given.seed,
    )
    return found.flat[0], found.cost


def _batches(
    given: _Given, rows: Tensor, tuning: Tuning, epoch: int, part: int = 0
) -> list[Tensor]:
    return list(batches(rows, tuning.batch_size, seed=given.seed, epoch=epoch, part=part))


def _with_reference(table: Table, reference: Tensor) -> Table:
    return Table(
        inputs=table.inputs,
        labels=table.labels,
        forgotten=table.forgotten,
        reference=reference,
    )


_FUNCTIONS: dict[type[Any], Callable[[_Given, Any], Found]] = {
    FineTune: _finetune,
    Ascent: _ascent,
    AscentDescent: _ascent_descent,
    Scrub: _scrub,
    GradDiff: _graddiff,
    Npo: _npo,
    InfluenceStep: _influence,
    ProjectedStep: _projected,
    Matching: _matching,
    OracleMatching: _oracle_matching,
}
