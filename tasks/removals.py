"""How large removals are on training rows: the sizes of what matching predicts, from the bank.

Scores are right in order and wrong in size, and a row's own effect is larger than that on others.
The bank tells both sizes, where the weights of its largest subsets are kept: its models say what
becomes of training rows that they lack, and scores of the same rows say what was predicted.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.spec import TrakSpec
from tasks.bank import states_of
from tasks.blueprint import Blueprint, IntArray
from tasks.surrogate import calibrated
from tasks.witnesses import FloatArray

if TYPE_CHECKING:
    from torch import Tensor

    from attribution.bank import RetrainBank

# Training rows whose outputs are compared, checkpoints that score them, and the fewest models of
# the bank that tell anything.
ROWS, CHECKPOINTS, FEWEST = 200, 5, 8


def removal_sizes(
    plan: Blueprint,
    attribution: TrakSpec,
    whole: "Mapping[str, Tensor]",
    damping: float,
    fallback: str,
    gone: Any,
) -> dict[str, float]:
    """The options `scale` and `forgotten_scale` of matching, the second where the bank tells it.

    Args:
        plan: The blueprint.
        attribution: Whose features matching works from.
        whole: Weights of models of all rows, [M, ...] by name.
        damping: Of the scores.
        fallback: Set of test rows whose calibrated slope serves where the bank kept no weights.
        gone: The forgotten rows, bool [n_train].
    """
    from optimize.unlearning import removal_scale, removal_slopes

    rows = _near_all(plan)
    if len(rows) < FEWEST:
        return {"scale": removal_scale(calibrated(plan, attribution, fallback), gone).slope}
    sample = _sample(plan)
    bank, scores = _bank(plan, rows, sample), _scores(plan, attribution, whole, damping, sample)
    found = removal_slopes(scores, bank, rows=sample, whole=_own(plan, whole, sample).mean(axis=0))
    return {"scale": found.kept, "forgotten_scale": found.forgotten}


def _near_all(plan: Blueprint) -> IntArray:
    """Calibrating rows of the bank of its largest share, of those whose weights are kept."""
    known, bank = plan.retrainings.look(), plan.bank
    drawn = bank.rows("calibrate")
    drawn = drawn[drawn < bank.drawn]
    largest = drawn[bank.alpha[drawn] == max(plan.spec.bank.alpha)]
    kept = [row for row in largest.tolist() if known.weights(bank.ids[row])]
    return np.array(kept, dtype=np.int64)


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


def _scores(
    plan: Blueprint,
    attribution: TrakSpec,
    whole: "Mapping[str, Tensor]",
    damping: float,
    sample: IntArray,
) -> Any:
    """Scores of the training rows on some of themselves, [rows, n_train]."""
    from attribution import attribute

    train = plan.dataset.train
    inputs, targets = np.array(train.inputs), train.targets
    count = min(CHECKPOINTS, len(next(iter(whole.values()))))
    return attribute(
        "trak",
        plan.build_model(),
        [{name: value[place] for name, value in whole.items()} for place in range(count)],
        train=(inputs, targets),
        queries=(inputs[sample], targets[sample]),
        task=plan.dataset.facts.task,
        device=plan.spec.compute.device,
        seed=plan.spec.seed,
        damping=damping,
        curvature=attribution.curvature,
        projection=attribution.projection.model_dump(),
    )
