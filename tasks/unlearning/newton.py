"""What training without some rows does to test outputs, by Newton steps from the checkpoints.

A sum of scores does not see that rows alike hold one another in place; a Newton step, with the
curvature of the rows that stay, does, and the bank says how large such steps are. It takes
checkpoints of all rows, features that can be turned back into parameters, and a few subsets of the
bank; where one of them is missing the linear surrogate predicts, and the solution says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from schemas.spec import AttributionSpec, TrakSpec
from tasks.blueprint import Blueprint
from tasks.featurize import load_weights
from tasks.score import calibrating_bank
from tasks.sets import IntArray
from tasks.stages.scores import Weights
from tasks.unlearning.unlearners import REVERSIBLE

if TYPE_CHECKING:
    from torch import Tensor

    from attribution.bank import RetrainBank
    from optimize.unlearning import RemovalChange

# Distinct subsets of the bank that tell sizes, and the most rows that one of them may lack or a
# request may name: a step without m rows solves a system of m equations.
FEWEST, MOST, MOST_GONE = 8, 32, 4_000
# As the teacher of matching; not centred, for here the bank tells what any row does. On digits
# 0.1 and 1 predicted no better than 0.3.
DAMPING = 0.3

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Foretold:
    """Predicted changes of the outputs of some sets.

    Attributes:
        sets: Of each named set, in the order of its rows.
        checkpoints: How many predicted.
    """

    sets: "dict[str, RemovalChange]"
    checkpoints: int

    @property
    def sentence(self) -> str:
        """How it was predicted."""
        some = next(iter(self.sets.values()))
        models = "1 checkpoint" if self.checkpoints == 1 else f"{self.checkpoints} checkpoints"
        far = ""
        if some.reach > 1:
            far = (
                f"; it reaches {some.reach:.1f} times as far as any removal in the bank, so that "
                "its size is an extrapolation"
            )
        return (
            f" Predicted by Newton steps from {models}, sized on {some.subsets} subsets of the "
            f"bank{far}."
        )

    def record(self) -> dict[str, dict[str, float | int]]:
        """What was fitted for each set."""
        told = ("slope", "size_effect", "reliability", "reach", "subsets", "dof")
        return {
            name: {key: getattr(found, key) for key in told} for name, found in self.sets.items()
        }


def unable(plan: Blueprint, attribution: AttributionSpec, gone: BoolArray) -> str:
    """Why Newton steps cannot predict a removal; empty where they can."""
    if not isinstance(attribution, TrakSpec):
        return f"attribution '{attribution.name}' has no features of 'trak'"
    if attribution.projection.kind not in REVERSIBLE:
        return (
            f"the projection '{attribution.projection.kind}' cannot be turned back into parameters"
        )
    if attribution.checkpoints != "full":
        return "the checkpoints are not of all rows"
    if gone.sum() > MOST_GONE:
        return f"more than {MOST_GONE:,} rows go"
    masks = plan.bank.masks[plan.bank.rows("calibrate")]
    if (found := len(np.unique(masks[_near_all(masks)], axis=0))) < FEWEST:
        return f"{found} subsets of the bank hold most rows, and {FEWEST} are needed"
    return ""


def foretold(
    plan: Blueprint,
    attribution: TrakSpec,
    gone: BoolArray,
    names: Sequence[str],
    *,
    seeds: int,
) -> Foretold:
    """Predict what training without some rows does to outputs on sets of test rows.

    Args:
        plan: The blueprint.
        attribution: Whose curvature, projection and checkpoints predict; `unable` says which can.
        gone: The rows, bool [n_train].
        names: Of the sets.
        seeds: Models on each side of the change that will be observed.
    """
    from optimize.unlearning import removal_change

    ids = {name: plan.sets.ids(name) for name in names}
    edges = np.cumsum([len(each) for each in ids.values()])[:-1]
    together = np.concatenate(list(ids.values()))
    weights = plan.scores.weights(attribution) or ()
    bank = _calibrating(plan, attribution, together)
    distinct, place = np.unique(bank.masks, axis=0, return_inverse=True)
    predicted = _predicted(plan, attribution, weights, [*~distinct, gone], together)
    of_bank = predicted[:-1][place.reshape(-1)]
    parts = zip(ids, np.split(np.arange(len(together)), edges), strict=True)
    found = {
        name: removal_change(
            of_bank[:, :, part],
            replace(bank, outputs=bank.outputs[:, part]),
            asked=predicted[-1][:, part],
            gone=int(gone.sum()),
            seeds=seeds,
        )
        for name, part in parts
    }
    return Foretold(sets=found, checkpoints=len(weights))


def _near_all(masks: BoolArray) -> BoolArray:
    """Which subsets hold at least half of the rows, and lack few enough; [M]."""
    lost = (~masks).sum(axis=1)
    return (lost > 0) & (lost <= min(MOST_GONE, masks.shape[1] // 2))


def _calibrating(plan: Blueprint, attribution: TrakSpec, ids: IntArray) -> "RetrainBank":
    """The bank's calibrating models of at most `MOST` distinct subsets near all rows."""
    bank = calibrating_bank(plan, attribution, ids)
    near = bank.subset(np.flatnonzero(_near_all(bank.masks)))
    groups = near.distinct()
    # As far apart as they can be in the bank, whose sizes take turns.
    chosen = np.unique(np.linspace(0, len(groups) - 1, MOST).astype(np.intp))
    return near.subset(np.sort(np.concatenate([groups[number] for number in chosen])))


def _predicted(
    plan: Blueprint,
    attribution: TrakSpec,
    weights: Sequence[Weights],
    removals: Sequence[BoolArray],
    ids: IntArray,
) -> NDArray[np.float32]:
    """Changes of an output of some test rows, float32 [removals, C, rows], at scale 1."""
    from attribution.outputs import of_models
    from optimize.unlearning import forget_directions, unlearned_logits

    dataset, output = plan.dataset, plan.output(attribution)
    device, task = plan.spec.compute.device, dataset.facts.task
    states = _stack([load_weights(plan, one) for one in weights])
    found = forget_directions(
        plan.build_model,
        states,
        train=(np.array(dataset.train.inputs), dataset.train.targets),
        forget=removals,
        task=task,
        curvature=attribution.curvature,
        damping=DAMPING,
        newton=True,
        projection=attribution.projection.model_dump(exclude_none=True),
        device=device,
        seed=plan.spec.seed,
    )
    asked = dataset.subset(ids)
    inputs, targets = np.array(asked.inputs), asked.targets

    def change(number: int) -> NDArray[np.float32]:
        logits = unlearned_logits(
            plan.build_model, states, inputs, found, forget_set=number, device=device
        )
        before, after = (
            of_models(output, each.float().numpy(), targets, task=task) for each in logits
        )
        return after - before

    return np.stack([change(number) for number in range(len(removals))])


def _stack(states: "Sequence[dict[str, Tensor]]") -> "dict[str, Tensor]":
    import torch

    return {name: torch.stack([state[name] for state in states]) for name in states[0]}
