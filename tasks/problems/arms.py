"""The arms of a selection's verdict: the choice, and the rows that its rivals are trained on.

    chosen        the answer, the same rows for every seed
    all           every row
    random        as many as the choice, other rows for each seed
    balanced      likewise, as many of each class as there are
    highest_loss  as many, whose mean loss over the checkpoints is highest
    lowest_loss   as many, whose mean loss over the checkpoints is lowest
    similar       as many, whose hidden representations are most like the targets' (mean cosine)
    clean         every row whose label is true: an oracle, of a size of its own

The checkpoints are those trained on all rows, or one's own weights: losses are of rows that the
models have seen. Rivals keep to the choice's size and to no other constraint.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from schemas.errors import InfeasibleProblem, RecipeError
from schemas.methods import FALLING
from schemas.spec import SelectSpec
from tasks.blueprint import Blueprint
from tasks.featurize import load_weights
from tasks.problems.shape import ALL, CHOSEN
from tasks.stages.scores import Weights

if TYPE_CHECKING:
    from torch import Tensor

BoolArray = NDArray[np.bool_]

CLEAN = "clean"
# The same rows for every seed.
FIXED = (CHOSEN, ALL, "highest_loss", "lowest_loss", "similar", CLEAN)
# Rows of one forward pass over all checkpoints, whose logits are held together.
_BLOCK = 1024


def refuse_arms(plan: Blueprint, problem: SelectSpec) -> None:
    """Refuse arms that these rows, or this model, cannot have.

    Raises:
        InfeasibleProblem: No label is known to be wrong, or there are no classes to balance.
        RecipeError: The model has no hidden layer to compare rows by.
    """
    arms = plan.spec.verdict.arms
    if CLEAN in arms and not plan.dataset.facts.n_corrupted:
        raise InfeasibleProblem(
            "verdict.arms: no label is known to be wrong, so that 'clean' would be 'all'; leave it "
            "out"
        )
    if "balanced" in arms and not plan.dataset.classes:
        raise InfeasibleProblem(
            f"verdict.arms: a {plan.dataset.facts.task} has no classes to balance; leave "
            "'balanced' out"
        )
    if "similar" in arms:
        from attribution.models import fresh

        try:
            _likeness(plan, problem, [fresh(plan.build_model, 0).state_dict()], rows=2)
        except RecipeError as error:
            raise RecipeError(f"verdict.arms: 'similar': {error}") from error


def masks_of(
    plan: Blueprint, problem: SelectSpec, choice: BoolArray, suffix: tuple[int, ...]
) -> dict[str, BoolArray]:
    """Subsets of each arm: bool [seeds, n_train].

    Args:
        plan: The blueprint.
        problem: The problem, whose targets are those of 'similar'.
        choice: Its answer, bool [n_train].
        suffix: Of the streams of random arms.
    """
    from attribution.streams import Purpose, stream
    from optimize.select import balanced_subset, random_subset

    size, repeats = int(choice.sum()), plan.spec.verdict.seeds
    labels = plan.dataset.train.targets
    masks = {CHOSEN: np.tile(choice, (repeats, 1))}
    for arm in plan.spec.verdict.arms:
        if arm in FIXED:
            masks[arm] = np.tile(_fixed(plan, problem, arm, size), (repeats, 1))
            continue
        keys = ((arm == "balanced", repeat, *suffix) for repeat in range(repeats))
        draws = [stream(plan.spec.seed, Purpose.ARMS, *key) for key in keys]
        if arm == "random":
            masks[arm] = np.stack([random_subset(len(choice), size, draw) for draw in draws])
        else:
            masks[arm] = np.stack([balanced_subset(labels, size, draw) for draw in draws])
    return masks


def _fixed(plan: Blueprint, problem: SelectSpec, arm: str, size: int) -> BoolArray:
    """The rows of an arm that no stream draws, bool [n_train]."""
    rows = plan.dataset.train
    if arm == ALL:
        return np.ones(len(rows), dtype=bool)
    if arm == CLEAN:
        return rows.targets == rows.true_targets
    states = [load_weights(plan, weights) for weights in _checkpoints(plan)]
    if arm == "similar":
        rank = -_likeness(plan, problem, states)
    else:
        rank = training_losses(plan, states) * (-1.0 if arm == "highest_loss" else 1.0)
    mask = np.zeros(len(rows), dtype=bool)
    mask[np.argsort(rank, kind="stable")[:size]] = True
    return mask


def _checkpoints(plan: Blueprint) -> list[Weights]:
    sealed = [plan.sealed("checkpoints", key) for key in plan.training.checkpoint_keys]
    return [Weights(each, 0, each.file("model.safetensors").sha256) for each in sealed]


def training_losses(plan: Blueprint, states: "list[dict[str, Tensor]]") -> NDArray[np.float64]:
    """Loss of each training row under its label as given, mean over checkpoints: [n_train]."""
    import torch

    from attribution.outputs import of_models
    from attribution.training import predict

    rows, task = plan.dataset.train, plan.dataset.facts.task
    stack = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    losses = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        inputs = np.array(rows.inputs[block])
        logits = predict(plan.build_model, stack, inputs, device=plan.spec.compute.device)
        found = of_models("loss", logits.float().numpy(), rows.targets[block], task=task)
        losses[block] = found.mean(axis=0)
    return losses


def _likeness(
    plan: Blueprint,
    problem: SelectSpec,
    states: "list[dict[str, Tensor]]",
    *,
    rows: int | None = None,
) -> NDArray[np.float64]:
    """Mean cosine of each training row's hidden layer with the targets', by the sets' weights."""
    from attribution import attribute

    train, output = plan.dataset.train, plan.output(plan.spec.attribution_named(problem.uses))
    mean = np.zeros(len(train.inputs[:rows]))
    for name, weight in problem.weights.items():
        queries = plan.dataset.subset(plan.sets.ids(name)[:rows])
        cosines = attribute(
            "similarity",
            plan.build_model(),
            states,
            train=(np.array(train.inputs[:rows]), train.targets[:rows].copy()),
            queries=(np.array(queries.inputs), queries.targets),
            output=output,
            task=plan.dataset.facts.task,
            device=plan.spec.compute.device,
        )
        # `similarity` turns its sign for outputs that training lowers; likeness has none.
        sign = -1.0 if output in FALLING else 1.0
        mean += sign * weight * np.asarray(cosines, dtype=np.float64).mean(axis=0)
    return mean
