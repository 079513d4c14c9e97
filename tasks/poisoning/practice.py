"""How far predictions of poisons go: models of practice moves, trained, and the scale they show.

Linear predictions of poisons are far too large (`optimize.poisoning.damage`), so before anything is
said about an attack, random moves and half-planned ones are trained, and predictions are read
through what they did. The effects of all labels and these models are sealed as one artifact, which
problems that differ in stealth, in weak spots or in their draws share.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.manifest import Manifest
from store.artifacts import artifact_key
from tasks.poisoning.scene import LOSS, MODELS, SETS, Scene

if TYPE_CHECKING:
    from optimize.poisoning.damage import DamageScale
    from optimize.poisoning.moves import Moves

STAGE = "poisons"
# Raised when the numbers change.
VERSION = 1
# Float64 [3, m, K], effects of rows under labels at clean models: on the targets' output, on the
# others', on the targets' loss. Float64 [2, n_sets], predicted changes of the first two by the
# practice sets; float64 [3, n_sets], observed changes of all.
EFFECTS_FILE, PREDICTED_FILE, OBSERVED_FILE = "effects.npy", "predicted.npy", "observed.npy"

# What is seen of each model, in the order of changes.
SIDES = ("targets", "elsewhere", "loss")
# Models of the clean rows, and of each practice set.
CLEAN, REPEATS = 10, 2
# Random sets of each budget, anywhere and inside the classes of the targets; and how many times the
# budget's rows the most harmful moves are drawn from that make a half-planned set.
RANDOM_SETS, REACHES = 5, (2, 3, 4, 6, 8)

Float64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Practice:
    """What was sealed.

    Attributes:
        target: Float64 [m, K], effects of each row under each label on the targets' mean output.
        side: The same elsewhere.
        loss: The same on the targets' mean loss, by which attacks are sought.
        predicted: Float64 [2, n_sets], linear predictions of targets and others.
        observed: Float64 [3, n_sets], what training said, of the targets' loss too.
    """

    target: Float64
    side: Float64
    loss: Float64
    predicted: Float64
    observed: Float64

    def scales(self, predicted: Float64, observed: Float64) -> "tuple[DamageScale, DamageScale]":
        """Scales of targets and others, from the practice and further sets [2 or 3, n]."""
        from optimize.poisoning.damage import fit_scale

        x = np.concatenate([self.predicted, predicted], axis=1)
        y = np.concatenate([self.observed[:2], observed[:2]], axis=1)
        return fit_scale(x[0], y[0]), fit_scale(x[1], y[1])


def practised(scene: Scene) -> tuple[Manifest, Practice]:
    """The practice of a problem, trained and sealed where it is not yet."""
    artifacts = scene.plan.artifacts
    key = practice_key(scene)
    manifest = artifacts.find(STAGE, key) or _practise(scene, key)
    folder = artifacts.folder(manifest)
    target, side, loss = np.load(folder / EFFECTS_FILE)
    return manifest, Practice(
        target=target,
        side=side,
        loss=loss,
        predicted=np.load(folder / PREDICTED_FILE),
        observed=np.load(folder / OBSERVED_FILE),
    )


def practice_key(scene: Scene) -> str:
    """Key of what a problem's practice depends on."""
    plan, problem = scene.plan, scene.problem
    scores = plan.scores.key(scene.attribution)
    asked = (problem.move, problem.checkpoints, scene.reach.digest)
    return artifact_key(STAGE, VERSION, scores, asked, plan.training.digest, plan.data.test_digest)


def predicted_by(scene: Scene, practice: Practice, sets: "Sequence[Moves]") -> Float64:
    """Linear predictions of the changes by some sets, float64 [2, n_sets]."""
    sides = (practice.target, practice.side)
    return np.array([[one.gains(side, scene.own).sum() for one in sets] for side in sides])


def clean_models(scene: Scene) -> list[str]:
    """Names of the models of the clean rows that changes are measured against."""
    return scene.models([None] * CLEAN, scene.seeds(MODELS, 0, count=CLEAN))


def changes_by(scene: Scene, sets: "Sequence[Moves]", number: int, *, repeats: int) -> Float64:
    """Changes by training of the targets' output, the others' and the targets' loss.

    Means over rows and models: float64 [3, n_sets].

    Args:
        scene: The scene.
        sets: Moves.
        number: Of the models: each draws seeds of its own; 1 or more.
        repeats: Models of each set.
    """
    clean = scene.seen(clean_models(scene))
    seeds = scene.seeds(MODELS, number, count=repeats * len(sets))
    found = scene.seen(scene.models([one for one in sets for _ in range(repeats)], seeds))
    pairs = ((getattr(found, side), getattr(clean, side)) for side in SIDES)
    return np.array([own.reshape(-1, repeats).mean(axis=1) - base.mean() for own, base in pairs])


def _practise(scene: Scene, key: str) -> Manifest:
    lens, reach = scene.lens, scene.reach
    aims = np.stack([scene.mean_over(reach.targets), scene.mean_over(reach.elsewhere)])
    target, side = lens.effects(aims, output=scene.output)
    loss = target if scene.output == LOSS else lens.effects(aims[0], output=LOSS)
    effects = np.stack([target, side, loss])
    sets = practice_sets(scene, scene.better * target)
    observed = changes_by(scene, sets, 1, repeats=REPEATS)
    facts: dict[str, Any] = {"sets": len(sets), "models": REPEATS * len(sets) + CLEAN}
    with scene.plan.artifacts.seal(STAGE, key, version=VERSION, facts=facts) as draft:
        np.save(draft.path / EFFECTS_FILE, effects)
        sides = (target, side)
        predicted = [[one.gains(each, scene.own).sum() for one in sets] for each in sides]
        np.save(draft.path / PREDICTED_FILE, np.array(predicted))
        np.save(draft.path / OBSERVED_FILE, observed)
    return draft.manifest


def least_practised(scene: Scene) -> int:
    """The smallest practice sets are half of the smallest budget."""
    return max(1, scene.reach.budgets[0] // 2)


def practice_sets(scene: Scene, worth: Float64) -> "list[Moves]":
    """Random and half-planned moves, at half the smallest budget and at every budget.

    Args:
        scene: The scene.
        worth: Float64 [m, K], effects of rows under labels, higher is better for the targets.
    """
    from attribution.streams import Purpose, stream
    from optimize.poisoning.moves import Moves

    rng = stream(scene.plan.spec.seed, Purpose.POISON, SETS)
    gains = worth.copy()
    if scene.own is not None:
        places = np.arange(len(worth))
        gains -= worth[places, scene.own][:, None]
        gains[places, scene.own] = np.inf  # no flip, though better than any for some rows
    gains = gains[scene.movable]
    label, order = gains.argmin(axis=1), np.argsort(gains.min(axis=1), kind="stable")
    sets = []
    for budget in sorted({least_practised(scene), *scene.reach.budgets}):
        for inside in (False, True):
            sets += [scene.random(budget, rng, inside=inside) for _ in range(RANDOM_SETS)]
        for reach in REACHES:
            some = rng.choice(order[: reach * budget], budget, replace=False)
            sets.append(Moves(rows=scene.movable[some], labels=label[some]))
    return sets
