"""How large removals are on training rows: the sizes of what matching predicts, from the bank.

Predictions are right in order and not quite in size, and a row's own effect is larger than that on
others. The bank tells both sizes, where the weights of its largest subsets are kept: its models say
what becomes of training rows that they lack, beside what is predicted for the same removals.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.bank import states_of
from tasks.blueprint import Blueprint
from tasks.sets import IntArray
from tasks.unlearning.witnesses import FloatArray

if TYPE_CHECKING:
    from torch import Tensor

    from attribution.bank import RetrainBank
    from optimize.unlearning.recipes import Matching, ProjectedStep

# Training rows whose outputs are compared, checkpoints that predict them, and the fewest models of
# the bank that tell anything, and the most that are asked.
ROWS, CHECKPOINTS, FEWEST, MOST = 200, 3, 8, 24
# A smaller share of what is predicted is no size: the bank's removals, larger than a request's, say
# that it is hardly there. Shares of 0.3 to 4 were measured where matching helped. Of few and noisy
# rows, on which models are hardly trained, the bank says 0.07 and less, and so small a size leaves
# rows in place: KLoM P95 was 4.94 at 0.07, 4.65 at 1, of untouched models 4.76, of retrained 4.45.
SMALLEST = 0.2
_DIRECTIONS = ("curvature", "damping", "centred", "newton", "projection")

BoolArray = NDArray[np.bool_]


class Sizes(NamedTuple):
    """The options `scale` and `forgotten_scale` of matching, if the bank tells them, and how."""

    options: dict[str, float]
    sentence: str


def removal_sizes(
    plan: Blueprint, told: "Matching | ProjectedStep", whole: "Mapping[str, Tensor]"
) -> Sizes:
    """How large the effects are that matching predicts; no options where the bank tells nothing.

    Args:
        plan: The blueprint.
        told: The method, whose features and damping make the predictions.
        whole: Weights of models of all rows, [M, ...] by name.
    """
    from optimize.unlearning import removal_slopes

    rows = _near_all(plan)
    if len(rows) < FEWEST:
        return Sizes({}, f"as predicted: the bank keeps weights of {len(rows)} of its models only")
    sample = _sample(plan)
    bank = _bank(plan, rows, sample)
    found = removal_slopes(
        _predicted(plan, told, whole, bank.masks, sample),
        bank,
        rows=sample,
        whole=_own(plan, whole, sample).mean(axis=0),
    )
    said = (
        f"{found.kept:.2g} of what is predicted, and {found.forgotten:.2g} on the rows that go "
        "themselves"
    )
    if min(found.kept, found.forgotten) < SMALLEST:
        return Sizes({}, f"as predicted: by the bank it is {said}, too little to tell a size")
    options = {"scale": found.kept, "forgotten_scale": found.forgotten}
    return Sizes(options, f"by {len(rows)} models of the bank {said}")


def _near_all(plan: Blueprint) -> IntArray:
    """Calibrating rows of the bank of its largest share, of those whose weights are kept."""
    known, bank = plan.retraining.sealed.look(), plan.bank
    drawn = bank.rows("calibrate")
    drawn = drawn[drawn < bank.drawn]
    largest = drawn[bank.alpha[drawn] == max(plan.spec.bank.alpha)]
    kept = [row for row in largest.tolist() if known.weights(bank.ids[row])]
    return np.array(kept[:MOST], dtype=np.int64)


def _sample(plan: Blueprint) -> IntArray:
    from attribution.streams import Purpose, stream

    draw = stream(plan.spec.seed, Purpose.FORGET, 3)
    return np.sort(draw.permutation(plan.n_train)[:ROWS]).astype(np.int64)


def _bank(plan: Blueprint, rows: IntArray, sample: IntArray) -> "RetrainBank":
    from attribution.bank import RetrainBank

    outputs = _own(plan, states_of(plan, plan.bank.ids_of(rows)), sample)
    return RetrainBank(
        masks=plan.bank.masks[rows],
        outputs=outputs.astype(np.float32),
        seeds=plan.bank.seeds[rows],
    )


def _own(plan: Blueprint, states: "Mapping[str, Tensor]", sample: IntArray) -> FloatArray:
    """The task's own output of models on some training rows, [M, rows]."""
    from attribution.outputs import of_models, task_output
    from attribution.training import predict

    train, task = plan.dataset.train, plan.dataset.facts.task
    inputs = np.asarray(train.inputs[sample])
    logits = predict(plan.build_model, states, inputs, device=plan.spec.compute.device)
    said = of_models(
        str(task_output(task)), logits.float().numpy(), train.targets[sample], task=task
    )
    return said.astype(np.float64)


def _predicted(
    plan: Blueprint,
    told: "Matching | ProjectedStep",
    whole: "Mapping[str, Tensor]",
    masks: BoolArray,
    sample: IntArray,
) -> FloatArray:
    """What the method predicts for the removals of some subsets, at scale 1: [M, rows]."""
    from attribution.outputs import of_models, task_output
    from optimize.unlearning import forget_directions, unlearned_logits

    train, task = plan.dataset.train, plan.dataset.facts.task
    few = {name: value[:CHECKPOINTS] for name, value in whole.items()}
    options = {name: getattr(told, name) for name in _DIRECTIONS}
    device = plan.spec.compute.device
    found = forget_directions(
        plan.build_model,
        few,
        train=(np.array(train.inputs), train.targets),
        forget=list(~masks),
        task=task,
        device=device,
        seed=plan.spec.seed,
        **options,
    )
    inputs, targets = np.asarray(train.inputs[sample]), train.targets[sample]
    predicted = []
    for number in range(len(masks)):
        before, after = (
            of_models(str(task_output(task)), logits.float().numpy(), targets, task=task)
            for logits in unlearned_logits(
                plan.build_model, few, inputs, found, forget_set=number, device=device
            )
        )
        predicted.append((after - before).mean(axis=0, dtype=np.float64))
    return np.stack(predicted)
