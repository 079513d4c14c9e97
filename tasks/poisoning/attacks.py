"""The worst that each budget could do: attacks found, tried, chosen, and predicted.

The search makes several attacks of each budget (`optimize.poisoning.search`): at the clean models,
then at models of what it has found. A few models of each tell which raises the loss of the targets
most, and others of the chosen one say what to expect of models to come, so that no prediction is
the luck of those that chose.

The loss of a target is hardly foreseen from clean models: it moves where a margin is used up. What
is foreseen from there is the targets' mean output, for every budget and inside every group of rows,
read through a scale that practice and attacks have shown.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from schemas.poisoning import CLASS
from tasks.poisoning.practice import (
    SIDES,
    Practice,
    changes_by,
    clean_models,
    least_practised,
    predicted_by,
)
from tasks.poisoning.scene import MODELS, Scene
from tasks.texts import metadata_of

if TYPE_CHECKING:
    from optimize.poisoning.damage import DamageScale
    from optimize.poisoning.moves import Moves

Float64 = NDArray[np.float64]

# Models of each attack that choose among those of a budget, and of the chosen one that predict.
CHOOSING, PREDICTING = 3, 8
# Budgets of the curve beside those of the spec.
CURVE_POINTS = 10
# Confidence of the intervals of predictions.
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What the search found.

    Attributes:
        attacks: The chosen moves of each budget.
        records: What is said of each budget, as JSON has it; damage is positive where it is worse.
        curve: Budgets, what they are predicted to take from the mean output, interval and bound;
            empty where inputs move, of which there is no linear prediction.
        weak_spots: What the largest budget could take inside each group, by column; likewise.
        scales: How predictions of targets and of others were read, as JSON has it; likewise.
    """

    attacks: "dict[int, Moves]"
    records: list[dict[str, Any]]
    curve: list[dict[str, float]]
    weak_spots: list[dict[str, Any]]
    scales: dict[str, dict[str, float]]


def find_attacks(scene: Scene, practice: Practice) -> Found:
    """Search, try and predict; see the module.

    Args:
        scene: The scene.
        practice: What practice moves did.
    """
    rounds = _rounds(scene, practice)
    attacks, records, observed = best_of(scene, rounds)
    predicted = predicted_by(scene, practice, _flat(rounds))
    scale, side_scale = practice.scales(predicted, observed)
    curve, certificates = _curve(scene, practice, scale, side_scale)
    return Found(
        attacks=attacks,
        records=[record | certificates[record["budget"]] for record in records],
        curve=curve,
        weak_spots=_weak_spots(scene, practice, scale, side_scale),
        scales={"targets": _plain(scale), "elsewhere": _plain(side_scale)},
    )


def best_of(
    scene: Scene, tries: "dict[int, list[Moves]]"
) -> "tuple[dict[int, Moves], list[dict[str, Any]], Float64]":
    """Try attacks, choose one of each budget, and say what to expect of it.

    Args:
        scene: The scene.
        tries: Some attacks of each budget, as many of one as of another.

    Returns:
        The chosen attack of each budget, a record of each with its place among the tries as its
        round, and what all tries changed: float64 [3, n_tries].
    """
    flat = _flat(tries)
    observed = changes_by(scene, flat, 2, repeats=CHOOSING)
    attacks, numbers = {}, {}
    for place, (budget, found) in enumerate(tries.items()):
        own = observed[:, place * len(found) : (place + 1) * len(found)]
        numbers[budget] = _chosen(scene, own)
        attacks[budget] = found[numbers[budget]]
    expected = _expected(scene, list(attacks.values()), flat)
    records: list[dict[str, Any]] = [
        {
            "budget": budget,
            "round": numbers[budget],
            "moves": len(moves),
            "predicted": own["loss"],
            "predicted_elsewhere": own["elsewhere"],
        }
        for (budget, moves), own in zip(attacks.items(), expected, strict=True)
    ]
    return attacks, records, observed


def _flat(tries: "dict[int, list[Moves]]") -> "list[Moves]":
    return [moves for found in tries.values() for moves in found]


def harms(scene: Scene, practice: Practice, moves: "Moves") -> Float64:
    """What each move adds to the targets' loss, seen from clean models: float64 [n_moves]."""
    return moves.gains(practice.loss, scene.own)


def _rounds(scene: Scene, practice: Practice) -> "dict[int, list[Moves]]":
    """The attacks of each budget, one a round."""
    from optimize.poisoning.search import worst_flips

    none = np.empty((2, 0))
    allowance = _allowance(scene, practice.scales(none, none)[1])
    aim = scene.mean_over(scene.reach.targets)
    found = {}
    for budget in scene.reach.budgets:
        attacks = worst_flips(
            scene.lens,
            aim,
            budget=budget,
            side=scene.better * practice.side,
            allowance=allowance,
            rounds=scene.problem.rounds,
            rows=scene.movable,
            clean=practice.loss,
        )
        found[budget] = [attack.moves for attack in attacks]
    return found


def _allowance(scene: Scene, side_scale: "DamageScale") -> float:
    """What may be lost elsewhere, in the unit of the effects."""
    stealth = scene.problem.stealth
    return np.inf if stealth is None else side_scale.inverse(stealth)


def _chosen(scene: Scene, observed: Float64) -> int:
    """The most harmful attack of those that keep to the stealth, or the one that loses least.

    Args:
        scene: The scene.
        observed: Float64 [3, n_rounds], as `tasks.poisoning.practice.changes_by`.
    """
    lost, harm = -scene.better * observed[1], observed[2]
    stealth = scene.problem.stealth
    holds = np.ones(len(harm), dtype=bool) if stealth is None else lost <= stealth
    return int(np.where(holds, harm, -np.inf).argmax() if holds.any() else lost.argmin())


def _expected(
    scene: Scene, attacks: "list[Moves]", tried: "list[Moves]"
) -> list[dict[str, list[float]]]:
    """What damage to expect of the verdict's models, from models that chose nothing."""
    from optimize.poisoning.damage import changes_to_come

    found = _repeated(scene, attacks, 3, PREDICTING)
    others = _repeated(scene, tried, 2, CHOOSING)
    clean, coming = scene.seen(clean_models(scene)), scene.plan.spec.verdict.seeds
    expected: list[dict[str, list[float]]] = [{} for _ in attacks]
    for side, worse in (("loss", 1), ("elsewhere", -scene.better)):
        means, halves = changes_to_come(
            found[side],
            getattr(clean, side),
            others=others[side],
            coming=coming,
            proportional=side == "loss",
        )
        for place, (mean, half) in enumerate(zip(means.tolist(), halves.tolist(), strict=True)):
            expected[place][side] = [worse * mean, worse * mean - half, worse * mean + half]
    return expected


def _repeated(scene: Scene, sets: "list[Moves]", number: int, repeats: int) -> dict[str, Float64]:
    """What several models of each set say, [n_sets, repeats] by side."""
    seeds = scene.seeds(MODELS, number, count=repeats * len(sets))
    found = scene.seen(scene.models([one for one in sets for _ in range(repeats)], seeds))
    return {side: getattr(found, side).reshape(-1, repeats) for side in SIDES}


def _curve(
    scene: Scene, practice: Practice, scale: "DamageScale", side_scale: "DamageScale"
) -> tuple[list[dict[str, float]], dict[int, dict[str, Any]]]:
    """What each budget takes from the mean output, and the certificate of each budget of the spec.

    The curve spans the budgets that were practised: a scale says nothing of others.
    """
    from optimize.poisoning.damage import damage_curve

    allowance, budgets = _allowance(scene, side_scale), scene.reach.budgets
    _, problem = scene.worst(practice.target, practice.side, budget=1, allowance=allowance)
    between = np.linspace(least_practised(scene), budgets[-1], CURVE_POINTS).round().astype(int)
    found = damage_curve(problem, [*between.tolist(), *budgets], scale=scale)
    reach = _half_width(scale)
    curve, certificates = [], {}
    for place, budget in enumerate(found.budgets):
        damage, solution = float(found.predicted[place]), found.solutions[place]
        point = {"damage": damage, "low": damage - reach, "high": damage + reach}
        curve.append({"budget": budget, **point, "bound": float(found.bounds[place])})
        certificates[budget] = {
            "linear": list(point.values()),
            "bound": float(found.bounds[place]),
            "gap": solution.gap,
            "status": str(solution.status),
        }
    return curve, {budget: certificates[budget] for budget in budgets}


def _weak_spots(
    scene: Scene, practice: Practice, scale: "DamageScale", side_scale: "DamageScale"
) -> list[dict[str, Any]]:
    """What the largest budget could do inside each value of each column, worst first."""
    from optimize.poisoning.damage import weak_spots

    budget, reach = scene.reach.budgets[-1], _half_width(scale)
    allowance = _allowance(scene, side_scale)
    _, problem = scene.worst(practice.target, practice.side, budget=budget, allowance=allowance)
    spots = []
    for column in scene.problem.by:
        values = _values(scene, column)
        names, groups = np.unique(values, return_inverse=True)
        group_of = np.full(int(scene.movable.max()) + 1, -1)
        group_of[scene.movable] = groups
        for group, solution in weak_spots(problem, group_of).items():
            damage = float(scale(solution.value))
            spots.append(
                {
                    "column": column,
                    "value": str(names[group]),
                    "rows": int((groups == group).sum()),
                    "moves": solution.size,
                    "damage": damage,
                    "low": damage - reach,
                    "high": damage + reach,
                }
            )
    return spots


def _values(scene: Scene, column: str) -> NDArray[np.str_]:
    """The value of a column of each row that may be moved, empty where there is none."""
    dataset, places = scene.plan.dataset, scene.reach.places
    if column == CLASS:
        return np.array(dataset.classes)[dataset.targets[places]]
    found = metadata_of(scene.plan, column, dataset.example_ids[places])
    return np.array(["" if value is None else str(value) for value in found])


def _half_width(scale: "DamageScale") -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, scale.n - 2) * scale.error)


def _plain(scale: "DamageScale") -> dict[str, float]:
    return {"scale": scale.scale, "power": scale.power, "error": scale.error, "sets": scale.n}
