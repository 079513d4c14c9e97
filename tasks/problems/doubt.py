"""How doubtful each training label is, by the best witness that is sealed already."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.spec import AttributionSpec
from tasks.bank import states_of
from tasks.blueprint import Blueprint
from tasks.score import SELF_FILE, load_scores

# Logits in all up to which the bank's models are asked about training rows.
MOST_LOGITS = 1 << 28
# Share of the rows that some model of the bank did not see, from which such models are asked.
FEWEST_LEFT_OUT = 0.5
# Training rows from which a share of wrong labels can be told.
FEWEST_ROWS = 10


class Doubt(NamedTuple):
    """How doubtful each label is.

    Attributes:
        probability: That it is wrong, float64 [n_train].
        doubtful: Bool [n_train], labels that are in doubt.
        by: What says so.
    """

    probability: NDArray[np.float64]
    doubtful: NDArray[np.bool_]
    by: str


def doubt_of(plan: Blueprint, attribution: AttributionSpec, *, sign: float) -> Doubt:
    """How doubtful each label is: by models that did not see the row, or else by the scores.

    Args:
        plan: The blueprint.
        attribution: Whose scores are asked where the bank cannot be.
        sign: +1 where more of its output is better, else -1.
    """
    from attribution.mislabels import wrong_label_probability

    if not plan.dataset.classes or plan.n_train < FEWEST_ROWS:
        nobody = np.zeros(plan.n_train)
        return Doubt(nobody, nobody > 0, "nothing")
    by_bank = _by_bank(plan)
    if by_bank is not None:
        return by_bank
    folder = plan.artifacts.folder(plan.sealed("scores", plan.scores.key(attribution)))
    if (itself := folder / SELF_FILE).exists():
        suspicion, by = sign * np.load(itself), "self-influence"
    else:
        aimed = load_scores(plan, attribution)[plan.sets.places(plan.sets.tuning)]
        suspicion, by = -sign * aimed.mean(axis=0, dtype=np.float64), "harm"
    found = wrong_label_probability(suspicion)
    return Doubt(found.probability, found.probability >= 0.5, by)


def _by_bank(plan: Blueprint) -> Doubt | None:
    """What the bank's models say of rows that they did not see, where it can be asked."""
    from scipy.special import softmax

    from attribution.mislabels import confident_errors, out_of_bag
    from attribution.training import predict

    bank, known = plan.bank, plan.retraining.sealed.look()
    rows = np.array(
        [row for row in bank.rows("calibrate") if known.weights(bank.ids[row])], dtype=np.intp
    )
    size = len(rows) * plan.n_train * plan.dataset.facts.n_outputs
    left_out = ~bank.masks[rows].all(axis=0)
    # Where subsets are large and few, a row may be in all of them: nothing is said of it.
    if size > MOST_LOGITS or left_out.mean() < FEWEST_LEFT_OUT:
        return None
    train, states = plan.dataset.train, states_of(plan, bank.ids_of(rows))
    device = plan.spec.compute.device
    inputs, labels = np.array(train.inputs)[left_out], train.targets[left_out]
    logits = predict(plan.build_model, states, inputs, device=device)
    p = out_of_bag(softmax(logits.numpy(), axis=-1), bank.masks[rows][:, left_out])
    suspicion, doubted = np.zeros(plan.n_train), np.zeros(plan.n_train, dtype=bool)
    suspicion[left_out] = 1 - p[np.arange(len(p)), labels]
    doubted[left_out] = confident_errors(p, labels)
    return Doubt(suspicion, doubted, "models that did not see the row")
