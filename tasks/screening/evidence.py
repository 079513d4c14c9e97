"""What is known of a batch's rows beside the trusted ones: each screen's values and places.

Both sides are seen by the same models of the bank, each by those whose subset lacks it. Losses are
those of every model of the smallest subsets whose weights are kept; what rows would do is read from
the attribution's sketches, at the bank's checkpoints. Nothing is trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ShapeError
from schemas.screening import SKETCHED, ScreenName
from schemas.spec import ScreenSpec
from tasks.bank import states_of
from tasks.blueprint import Blueprint
from tasks.screening.batches import Batch
from tasks.screening.sketched import Sketched, tells
from tasks.sets import IntArray

if TYPE_CHECKING:
    from torch import Tensor

    from optimize.defence.arrivals import Neighbourhood, Standing

# Models whose losses are averaged, and entries of logits that are held at once.
LOSS_MODELS, ENTRIES = 40, 1 << 25
# Rows whose joint effect is predicted, at most: the cube of their number is computed.
JOINT_ROWS = 2_000

BoolArray = NDArray[np.bool_]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What the screens say of a batch.

    Attributes:
        known: Bool [n], the rows that they speak of; all arrays below are of these alone.
        standings: By screen; a screen that cannot speak of the batch is not there.
        around: The labels around each row, where 'neighbours' is used.
        partners: By row that 'group' holds up, the rows of the batch that support it most; both by
            their places among the known.
        effects: Float64 [k], predicted change of the mean output over the judging set by having
            each row; None without sketches.
    """

    known: BoolArray
    standings: Mapping[ScreenName, "Standing"]
    around: "Neighbourhood | None" = None
    partners: Mapping[int, list[int]] = field(default_factory=dict)
    effects: Float64 | None = None


def gather(plan: Blueprint, problem: ScreenSpec, batch: Batch) -> Evidence:
    """Ask every screen of a problem.

    Raises:
        ShapeError: The bank keeps no weights, or its models trained on every trusted row.
    """
    rates, known = problem.quarantine.rates, batch.known
    if not known.any():
        return Evidence(known=known, standings={})
    standings: dict[ScreenName, Standing] = {}
    rows = batch.inputs[known], batch.targets[known]
    if "loss" in rates:
        standings["loss"] = _losses(plan, rows)
    around = None
    if "neighbours" in rates:
        around, standings["neighbours"] = _neighbours(plan, problem, rows)
    partners, effects = dict[int, list[int]](), None
    if any(name in rates for name in SKETCHED):
        seen = Sketched(plan, problem, rows)
        standings |= {name: made for name, made in seen.standings().items() if name in rates}
        if "group" in standings:
            held = np.flatnonzero(standings["group"].places <= rates["group"])
            partners = seen.partners(held)
        effects = seen.effects()
    return Evidence(
        known=known,
        standings={name: standings[name] for name in rates if name in standings},
        around=around,
        partners=partners,
        effects=effects,
    )


def predicted_changes(
    plan: Blueprint, problem: ScreenSpec, batch: Batch, groups: Sequence[BoolArray]
) -> list[float] | None:
    """Predicted change of the mean output over the judging set by having groups of a batch's rows.

    Args:
        plan: The blueprint.
        problem: Whose attribution predicts.
        batch: The batch.
        groups: Bool [n] each, rows of known labels.

    Returns:
        None where the attribution does not tell, or a group is too large to be taken in jointly.
    """
    attribution = plan.spec.attribution_named(problem.uses)
    most = max((int(rows.sum()) for rows in groups), default=0)
    if not tells(attribution) or most > JOINT_ROWS:
        return None
    known = batch.known
    seen = Sketched(plan, problem, (batch.inputs[known], batch.targets[known]))
    return seen.together([rows[known] for rows in groups])


def loss_models(plan: Blueprint) -> tuple[IntArray, list[str]]:
    """Rows of the bank whose models give losses, and their names: no subset is twice among them.

    Raises:
        ShapeError: The bank keeps no weights.
    """
    drawn = plan.bank.alpha[: plan.bank.drawn]
    found = plan.retraining.sealed.look()
    rows = np.flatnonzero(drawn == drawn.min(initial=1.0))[:: plan.spec.bank.seeds]
    kept = [row for row in rows.tolist() if found.weights(plan.bank.ids[row])][:LOSS_MODELS]
    if not kept:
        raise ShapeError(
            "the bank keeps no weights of models as large as this one, and losses are theirs; give "
            "the attribution checkpoints = 'bank'"
        )
    return np.array(kept, dtype=np.int64), [plan.bank.ids[row] for row in kept]


def _losses(plan: Blueprint, rows: tuple[NDArray[Any], NDArray[Any]]) -> "Standing":
    from optimize.defence.arrivals import standing

    places, names = loss_models(plan)
    states, train = states_of(plan, names), plan.dataset.train
    trusted = losses_of(plan, states, train.inputs, train.targets)
    incoming = losses_of(plan, states, *rows)
    return standing(trusted, incoming, ~plan.bank.masks[places])


def losses_of(
    plan: Blueprint, states: "dict[str, Tensor]", inputs: NDArray[Any], targets: NDArray[Any]
) -> Float64:
    """Training loss of some rows by some models, [m, n], a few rows at a time."""
    from attribution.outputs import of_models
    from attribution.training import predict

    models = len(next(iter(states.values())))
    width = max(1, plan.dataset.facts.n_outputs * (targets.shape[1] if targets.ndim > 1 else 1))
    step, task = max(1, ENTRIES // (models * width)), plan.dataset.facts.task
    found = np.empty((models, len(targets)))
    for start in range(0, len(targets), step):
        part = slice(start, start + step)
        logits = predict(
            plan.build_model, states, np.array(inputs[part]), device=plan.spec.compute.device
        )
        found[:, part] = of_models("loss", logits.float().numpy(), targets[part], task=task)
    return found


def _neighbours(
    plan: Blueprint, problem: ScreenSpec, rows: tuple[NDArray[Any], NDArray[Any]]
) -> "tuple[Neighbourhood, Standing]":
    from optimize.defence.arrivals import neighbourhood, standing

    train = plan.dataset.train
    trusted, incoming = _vectors(plan, train.inputs), _vectors(plan, rows[0])
    own = neighbourhood(trusted, train.targets, k=problem.nearest)
    around = neighbourhood(trusted, train.targets, incoming, rows[1], k=problem.nearest)
    return around, standing(own.suspicion, around.suspicion)


def _vectors(plan: Blueprint, inputs: NDArray[Any]) -> NDArray[Any]:
    """What distances are taken of: inputs, or of texts the square roots of their shares of words.

    Distances of the latter are Hellinger's, whatever the lengths of the texts.
    """
    tokens = plan.dataset.facts.n_tokens
    if not tokens:
        return np.array(inputs)
    counts = np.zeros((len(inputs), tokens), dtype=np.float32)
    np.add.at(counts, (np.arange(len(inputs))[:, None], inputs), 1.0)
    counts[:, 0] = 0.0  # padding
    return np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0))
