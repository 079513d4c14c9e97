"""Would one notice? Every screen that the data allows, on rows of which some are poisoned.

Whoever screens has the poisoned rows, models trained on them, and test rows that are trusted; which
rows are poisoned is only known here, to measure what a screen finds. Models of halves of the rows
say how a row fares that they have not seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import RecipeError
from tasks.bank import TrainingRows, retrained
from tasks.poisoning.scene import SCREENS, Scene

if TYPE_CHECKING:
    from torch import nn

    from attribution.estimators.features import Features
    from optimize.poisoning.moves import Moves

Float64 = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

# Random halves of the rows; with the other half of each, every row is left out by so many models.
HALVES = 10
# Rows from which a screen is left out whose matrix is of all pairs, held several times: 4,000 rows
# take 0.4 GB.
MOST_PAIRED = 4_000
# Rows whose distances to all others are computed; the time grows with their square.
MOST_NEIGHBOURS = 50_000
RESTARTS = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Suspicion:
    """What screens say of poisoned rows.

    Attributes:
        poisoned: Bool [n], which rows are.
        screens: Float64 [n] by name, higher for rows that should be looked at first.
        left_out: Why a screen was not run, by its name.
    """

    poisoned: BoolArray
    screens: dict[str, Float64]
    left_out: dict[str, str]

    def judged(self) -> list[dict[str, Any]]:
        """Each screen measured against the rows that are poisoned, the best first.

        A person looks at as many rows as are poisoned; `chance` is the recall of looking at
        random ones.
        """
        from optimize.defence.judge import judge_screens

        found = judge_screens(self.screens, self.poisoned)
        entries = [
            {
                "screen": name,
                "auroc": one.auroc,
                "average_precision": one.average_precision,
                "recall": one.recall,
                "looked_at": one.budget,
                "chance": float(self.poisoned.mean()),
            }
            for name, one in found.items()
        ]
        return sorted(entries, key=lambda entry: (-entry["recall"], -entry["auroc"]))


def suspicion_of(scene: Scene, moves: "Moves", number: int) -> Suspicion:
    """Run the screens on the training rows after some moves.

    Args:
        scene: The scene.
        moves: Those of the attack.
        number: Of the models that are trained for it: each draws seeds of its own.
    """
    from attribution.models import fresh
    from optimize.defence import screens

    rows, poisoned = scene.poisoned(moves)
    labels, budget = rows.targets, int(poisoned.sum())
    states = _trained(scene, rows, np.ones((scene.problem.checkpoints, len(labels)), bool), number)
    net = fresh(scene.plan.build_model, 0)
    own, asked = _features(scene, net, states, rows)
    found, left_out = _by_effects(scene, own, asked, labels, budget)
    found["loss when left out"] = screens.lossy(_unseen_losses(scene, rows, number))
    try:
        hidden = _hidden(net, states, rows)
    except RecipeError as error:
        for name in ("spectral", "residual", "centre", "hidden neighbours"):
            left_out[name] = str(error)
    else:
        found["spectral"] = screens.spectral(hidden, labels)
        found["residual"] = screens.residual(hidden, labels)
        found["centre"] = screens.far_from_centre(hidden, labels)
        _neighbours(found, left_out, "hidden neighbours", hidden, labels)
    if scene.plan.dataset.facts.n_tokens:
        left_out["neighbours"] = "token numbers have no distances"
    else:
        inputs = np.asarray(rows.inputs, dtype=np.float64).reshape(len(labels), -1)
        _neighbours(found, left_out, "neighbours", inputs, labels)
    return Suspicion(poisoned=poisoned, screens=found, left_out=left_out)


def _neighbours(
    found: dict[str, Float64], left_out: dict[str, str], name: str, rows: Float64, labels: Any
) -> None:
    from optimize.defence import screens

    if len(rows) > MOST_NEIGHBOURS:
        left_out[name] = f"{len(rows):,} rows are too many to compare all with all"
    else:
        found[name] = screens.disagreeing(rows, labels)


def _by_effects(
    scene: Scene,
    own: "list[Features]",
    asked: "list[Features]",
    labels: NDArray[np.int64],
    budget: int,
) -> tuple[dict[str, Float64], dict[str, str]]:
    """Screens of TRAK's scores at models of the poisoned rows."""
    from attribution.estimators.trak import self_influence, trak_scores
    from optimize.defence import screens
    from optimize.defence.support import self_supporting

    form: dict[str, Any] = {"curvature": scene.lens.curvature, "damping": scene.lens.damping}
    scores = trak_scores(own, asked, **form)
    harm = {"output": scene.output}
    found = {
        "self-influence": screens.memorised(self_influence(own, **form)),
        "harm": screens.harmful(scores, **harm),
        "harm in class": screens.harmful(scores, labels=labels, **harm),
    }
    if len(labels) > MOST_PAIRED:
        return found, {"self-support": f"{len(labels):,} rows are too many for a matrix of pairs"}
    if 2 * budget >= len(labels):
        return found, {"self-support": "half of the rows or more are poisoned"}
    pairs = trak_scores(own, own, **form)
    support = self_supporting(pairs, sizes=[budget], restarts=RESTARTS, seed=scene.plan.spec.seed)
    return found | {"self-support": support.suspicion}, {}


def _trained(scene: Scene, rows: TrainingRows, masks: BoolArray, *key: int) -> list[dict[str, Any]]:
    """Models of some of the rows."""
    seeds = scene.seeds(SCREENS, *key, count=len(masks))
    names = retrained(scene.plan, masks, seeds, weights=True, rows=rows)
    return scene.states(names)


def _features(
    scene: Scene, net: "nn.Module", states: Sequence[dict[str, Any]], rows: TrainingRows
) -> "tuple[list[Features], list[Features]]":
    """TRAK's features of the rows and of the trusted test rows, at each model."""
    from attribution.estimators.features import featurize

    trusted = scene.plan.dataset.subset(scene.asked)
    sides = (
        ((rows.inputs, rows.targets), "margin"),
        ((np.array(trusted.inputs), trusted.targets), scene.output),
    )
    own, asked = (
        [
            featurize(
                net,
                state,
                source,
                output=output,
                task="classification",
                projection=scene.lens.projection,
                seed=scene.lens.seed,
                checkpoint=number,
            )
            for number, state in enumerate(states)
        ]
        for source, output in sides
    )
    return own, asked


def _unseen_losses(scene: Scene, rows: TrainingRows, number: int) -> Float64:
    """Loss of each row by models that lack it, NaN by the others: float64 [2 HALVES, n]."""
    import torch

    from attribution.bank import draw_masks
    from attribution.outputs import of_models
    from attribution.training import predict

    plan = scene.plan
    drawn, _, _ = draw_masks(len(rows.targets), HALVES, [0.5], 1, plan.spec.seed)
    masks = np.concatenate([drawn, ~drawn])
    states = _trained(scene, rows, masks, number, 1)
    stack = {key: torch.stack([state[key] for state in states]) for key in states[0]}
    logits = predict(plan.build_model, stack, rows.inputs, device=plan.spec.compute.device)
    losses = of_models("loss", logits.float().numpy(), rows.targets, task="classification")
    return np.asarray(np.where(masks, np.nan, losses), dtype=np.float64)


def _hidden(net: "nn.Module", states: Sequence[dict[str, Any]], rows: TrainingRows) -> Float64:
    """What the head of each model is given, side by side: float64 [n, models * d].

    Raises:
        RecipeError: The model has no such layer.
    """
    import torch

    from attribution.estimators.hidden import HiddenLayer
    from attribution.rows import Rows

    source = Rows((rows.inputs, rows.targets), "train")
    parts = []
    for state in states:
        layer = HiddenLayer(net, state, source, layer=None, device="cpu", dtype=torch.float32)
        parts.append(layer.run(source, "auto").inputs.double().numpy())
    return np.concatenate(parts, axis=1)
