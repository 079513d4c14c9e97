"""Attacks that move inputs and leave labels: found at networks, sealed, tried, and predicted.

There is no integer programme and no linear prediction here, for what a moved input does depends on
where it has gone. Attacks are sought at clean networks and then at networks of what was found. Each
is sealed as soon as it is found: signs of tiny gradients may differ from one machine to another,
and a run that goes on elsewhere would otherwise train models of other inputs.
"""

from typing import TYPE_CHECKING

import numpy as np

from store.artifacts import artifact_key
from tasks.poisoning.attacks import Found, best_of
from tasks.poisoning.practice import STAGE
from tasks.poisoning.scene import LOSS, Scene

if TYPE_CHECKING:
    from optimize.poisoning.clean_label import Ball
    from optimize.poisoning.moves import Moves

# Raised when the numbers change.
VERSION = 1
# Steps that inputs are moved on in each round, networks trained before each.
STEPS = 4
# Int64 [m], training rows; float32 [m, ...], what their inputs become.
ROWS_FILE, INPUTS_FILE = "poisoned_rows.npy", "poisoned_inputs.npy"


def find_moved_inputs(scene: Scene) -> Found:
    """Seek, try and predict; see the module.

    Args:
        scene: The scene, of a problem that moves inputs.
    """
    rounds = {budget: _rounds(scene, budget) for budget in scene.reach.budgets}
    attacks, records, _ = best_of(scene, rounds)
    none = {"linear": [None] * 3, "bound": None, "gap": None}
    records = [record | none for record in records]
    return Found(attacks=attacks, records=records, curve=[], weak_spots=[], scales={})


def _rounds(scene: Scene, budget: int) -> "list[Moves]":
    """The attacks of one budget, one a round."""
    found: list[Moves] = []
    for number in range(scene.problem.rounds + 1):
        found.append(_round(scene, budget, found[-1] if found else None, number))
    return found


def _round(scene: Scene, budget: int, before: "Moves | None", number: int) -> "Moves":
    """One attack, found and sealed where it is not yet."""
    from optimize.poisoning.moves import Moves

    artifacts, key = scene.plan.artifacts, _key(scene, budget, number)
    manifest = artifacts.find(STAGE, key)
    if manifest is None:
        sought = _matched if scene.reach.taken_for is not None else _worst
        moves = sought(scene, budget, before, number)
        facts = {"budget": budget, "round": number}
        with artifacts.seal(STAGE, key, version=VERSION, facts=facts) as draft:
            np.save(draft.path / ROWS_FILE, moves.rows)
            np.save(draft.path / INPUTS_FILE, np.asarray(moves.inputs))
        return moves
    folder = artifacts.folder(manifest)
    rows = np.load(folder / ROWS_FILE)
    return Moves(rows=rows, labels=scene.labels[rows], inputs=np.load(folder / INPUTS_FILE))


def _key(scene: Scene, budget: int, number: int) -> str:
    plan, problem = scene.plan, scene.problem
    scores = plan.scores.key(scene.attribution)
    asked = (problem.move, problem.checkpoints, problem.radius, problem.valid, scene.reach.digest)
    named = (plan.training.digest, plan.data.train_digest, plan.data.test_digest)
    return artifact_key(STAGE, VERSION, scores, asked, (budget, number), *named)


def _worst(scene: Scene, budget: int, before: "Moves | None", number: int) -> "Moves":
    """The worst as seen from clean models; then what walks there from a step away, and on."""
    from optimize.poisoning.clean_label import STEP, moved_on, worst_inputs

    lens, aim = scene.lens, scene.mean_over(scene.reach.targets)

    def worst(ball: "Ball") -> "Moves":
        return worst_inputs(lens, aim, ball=ball, budget=budget, rows=scene.movable, output=LOSS)

    if before is None:
        return worst(scene.ball)
    moves = worst(scene.ball.shrunk(STEP)) if number == 1 else before
    for step in range((number - 1) * STEPS, number * STEPS):
        moves = moved_on(lens, aim, moves, ball=scene.ball, number=1 + step, output=LOSS)
    return moves


def _matched(scene: Scene, budget: int, before: "Moves | None", number: int) -> "Moves":
    """Rows of the wanted class whose gradients match, at networks of the round before."""
    from optimize.poisoning.clean_label import matching_inputs

    reach = scene.reach
    assert reach.taken_for is not None  # noqa: S101
    return matching_inputs(
        scene.lens,
        np.array(scene.plan.dataset.subset(reach.targets).inputs),
        reach.taken_for,
        ball=scene.ball,
        budget=budget,
        rows=scene.movable,
        before=before,
        number=number,
    )
