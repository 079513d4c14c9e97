"""Poisoning: what a contributor of a few rows could do at worst, and whether one would notice.

The answer is an attack for each budget, with the damage that is predicted. The verdict trains
models of it, of the clean rows, and of random moves anywhere and inside the classes of the targets,
none of which was fitted to anything; and asks every screen for the rows that are poisoned. It is
judged on the targets themselves, for they are what the attacker wants: what must be new is the
models.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.manifest import Manifest
from schemas.poisoning import CLASS, PoisonSpec
from tasks.blueprint import Blueprint
from tasks.poisoning.attacks import Found, find_attacks, harms
from tasks.poisoning.inputs import find_moved_inputs
from tasks.poisoning.practice import Practice, practised
from tasks.poisoning.scene import Scene, Seen
from tasks.poisoning.suspicion import suspicion_of
from tasks.problems.shape import ALL, CHOSEN, SOLUTION, VERDICT, arm_seeds
from tasks.reporting.poisoned_words import noticed, poisoned
from tasks.texts import metadata_of
from tasks.versions import VERSIONS

if TYPE_CHECKING:
    from optimize.poisoning.moves import Moves

# The rows that each budget's attack poisons; a research artifact, and labelled as one.
POISONED_FILE = "poisoned.parquet"
# Where inputs move: float32 [inputs of a row], what a poisoned row's become, as models see them.
INPUTS_COLUMN = "poisoned_inputs"
# What each model of random moves does to the targets' mean loss and to their mean output: columns
# budget, kind, number, damage, output_damage.
DRAWS_FILE = "draws.parquet"
ANYWHERE, INSIDE = "anywhere", "inside"
PERCENTILE = 95


def check(plan: Blueprint, problem: PoisonSpec) -> None:
    """Refuse what no attack can be made of, and columns that the rows do not have.

    Raises:
        RequestError: A set, a column or a budget does not fit the rows.
    """
    reach = plan.problems.reach(problem)
    for column in problem.by:
        if column != CLASS:
            metadata_of(plan, column, plan.dataset.example_ids[reach.places])


def solve(plan: Blueprint, problem: PoisonSpec, key: str) -> Manifest:
    """Find the worst moves of each budget, and predict what they do."""
    scene = Scene(plan, problem)
    inputs = {"scores": plan.scores.key(scene.attribution) or ""}
    if scene.moves_inputs:
        practice, found = None, find_moved_inputs(scene)
    else:
        manifest, practice = practised(scene)
        found = find_attacks(scene, practice)
        inputs |= {"poisons": manifest.key}
    with plan.artifacts.seal(SOLUTION, key, version=VERSIONS[SOLUTION], inputs=inputs) as draft:
        _rows(scene, practice, found).write_parquet(draft.path / POISONED_FILE)
        draft.facts |= {
            "budgets": found.records,
            "curve": found.curve,
            "weak_spots": found.weak_spots,
            "scales": found.scales,
            "practice": 0 if practice is None else practice.predicted.shape[1],
            "output": scene.output,
        }
    return draft.manifest


def _rows(scene: Scene, practice: Practice | None, found: Found) -> pl.DataFrame:
    """The poisoned rows of every budget, the most harmful first where that is known."""
    dataset, parts = scene.plan.dataset, []
    names = np.array(dataset.classes)
    for record in found.records:
        moves = found.attacks[record["budget"]]
        places = scene.place_of(moves)
        frame = pl.DataFrame(
            {
                "poisoned_budget": np.full(len(moves), record["budget"]),
                "example_id": dataset.example_ids[places],
                "move": [scene.problem.move] * len(moves),
                "label": names[dataset.targets[places]],
                "poisoned_label": names[moves.labels],
            }
        ).with_columns(_shares(scene, practice, moves), *_changes(scene, moves))
        parts.append(frame.sort("poisoned_share", descending=True, maintain_order=True))
    return pl.concat(parts)


def _shares(scene: Scene, practice: Practice | None, moves: "Moves") -> pl.Series:
    """A move's share of what the attack does by the linear prediction of the loss, if any."""
    name = "poisoned_share"
    if practice is None:
        return pl.Series(name, [None] * len(moves), dtype=pl.Float64)
    harm = harms(scene, practice, moves)
    whole = abs(float(harm.sum()))
    return pl.Series(name, harm / whole if whole else np.zeros(len(harm)))


def _changes(scene: Scene, moves: "Moves") -> list[pl.Series]:
    """How far inputs moved, and where to; null where they did not."""
    names = ("largest_change", "mean_change")
    if moves.inputs is None:
        return [pl.Series(name, [None] * len(moves), dtype=pl.Float64) for name in names]
    moved = moves.inputs.reshape(len(moves), -1)
    change = np.abs(moved.astype(np.float64) - scene.train[0][moves.rows].reshape(moved.shape))
    measured = zip(names, (change.max(axis=1), change.mean(axis=1)), strict=True)
    return [*(pl.Series(*own) for own in measured), pl.Series(INPUTS_COLUMN, moved)]


def attacks_of(scene: Scene, solution: Manifest) -> "dict[int, Moves]":
    """The attack of each budget, as it was sealed."""
    from optimize.poisoning.moves import Moves

    plan = scene.plan
    rows = pl.read_parquet(plan.artifacts.folder(solution) / POISONED_FILE)
    label_of = {name: label for label, name in enumerate(plan.dataset.classes)}
    attacks = {}
    for (budget,), part in rows.group_by("poisoned_budget", maintain_order=True):
        places = plan.dataset.positions(part["example_id"].to_numpy())
        labels = [label_of[name] for name in part["poisoned_label"]]
        own = np.searchsorted(scene.reach.places, places) if scene.inserts else places
        inputs = None
        if scene.moves_inputs:
            shape = (len(part), *scene.train[0].shape[1:])
            inputs = part[INPUTS_COLUMN].to_numpy().reshape(shape)
        attacks[int(str(budget))] = Moves(rows=own, labels=np.array(labels), inputs=inputs)
    return attacks


def judge(plan: Blueprint, problem: PoisonSpec, key: str) -> Manifest:
    """Train models of each attack, of the clean rows and of random moves; run the screens."""
    scene = Scene(plan, problem)
    solution = plan.sealed(SOLUTION, plan.problems.solution_key(problem))
    suffix, seeds = arm_seeds(plan, plan.spec.verdict.seeds)
    names = {ALL: scene.models([None] * len(seeds), seeds)}
    clean, taken = scene.seen(names[ALL]), scene.taken(names[ALL])
    budgets, screens, draws = list[dict[str, Any]](), list[dict[str, Any]](), list[pl.DataFrame]()
    records: Any = solution.facts["budgets"]
    attacks = attacks_of(scene, solution)
    for number, record in enumerate(records):
        budget = record["budget"]
        own = names[f"{CHOSEN}:{budget}"] = scene.models([attacks[budget]] * len(seeds), seeds)
        drawn, names[f"random:{budget}"] = _draws(scene, budget, clean, suffix)
        draws.append(drawn)
        said = _compared(scene, record, scene.seen(own), clean, drawn)
        budgets.append(record | said | {"taken": _mean_of(scene.taken(own))})
        suspicion = suspicion_of(scene, attacks[budget], number)
        screens += [{"budget": budget, **entry} for entry in suspicion.judged()]
    facts = {
        "budgets": budgets,
        "screens": screens,
        "left_out": suspicion.left_out,
        "value": float(clean.targets.mean()),
        "loss": float(clean.loss.mean()),
        "value_elsewhere": float(clean.elsewhere.mean()),
        "targets_right": float(clean.targets_right.mean()),
        "elsewhere_right": float(clean.elsewhere_right.mean()),
        "taken": None if taken is None else float(taken.mean()),
        "output": scene.output,
        "sentence": poisoned(
            budgets[-1],
            move=problem.move,
            n_targets=len(scene.reach.targets),
            wrong_before=1 - float(clean.targets_right.mean()),
            output=scene.output,
            taken=None if taken is None else (str(problem.taken_for), float(taken.mean())),
        ),
        "notice": noticed(
            budgets[-1],
            [one for one in screens if one["budget"] == budget],
            suspicion.left_out,
            copied=_copied(scene, attacks[budget]),
        ),
        "retrainings": [name for own in names.values() for name in own],
    }
    # No "trained_by": a bank holds subsets of the training rows, and these are others.
    inputs = {"solution": solution.key}
    with plan.artifacts.seal(VERDICT, key, version=VERSIONS[VERDICT], inputs=inputs) as draft:
        pl.concat(draws).write_parquet(draft.path / DRAWS_FILE)
        draft.facts |= facts
    return draft.manifest


def _mean_of(shares: NDArray[np.float64] | None) -> list[float | None]:
    """A mean over models with its interval, or three times None."""
    from attribution.evaluate import mean_interval

    return [None] * 3 if shares is None else list(mean_interval(shares))


def _draws(
    scene: Scene, budget: int, clean: Seen, suffix: tuple[int, ...]
) -> tuple[pl.DataFrame, list[str]]:
    """Random moves, a model each, and the models' names.

    One model each, where an attack is a mean of several: training noise widens the spread of random
    moves, so that an attack that exceeds them does so the more surely.
    """
    from attribution.streams import SEED_LIMIT, Purpose, stream

    seed, count = scene.plan.spec.seed, scene.problem.draws
    sets, seeds = [], []
    for inside in (False, True):
        for number in range(count):
            rng = stream(seed, Purpose.ARMS, 2 + inside, budget, number, *suffix)
            sets.append(scene.random(budget, rng, inside=inside))
            seeds.append(int(rng.integers(SEED_LIMIT)))
    names = scene.models(sets, np.array(seeds, dtype=np.int64))
    seen = scene.seen(names)
    frame = pl.DataFrame(
        {
            "budget": np.full(2 * count, budget),
            "kind": [ANYWHERE] * count + [INSIDE] * count,
            "number": np.tile(np.arange(count), 2),
            "damage": seen.loss - clean.loss.mean(),
            "output_damage": -scene.better * (seen.targets - clean.targets.mean()),
        }
    )
    return frame, names


def _copied(scene: Scene, moves: "Moves") -> int:
    """How many of the rows that are added have the inputs of a training row."""
    if not scene.inserts:
        return 0
    dataset = scene.plan.dataset
    known = {row.tobytes() for row in np.asarray(dataset.train.inputs)}
    added = np.asarray(dataset.inputs[scene.place_of(moves)])
    return sum(row.tobytes() in known for row in added)


def _compared(
    scene: Scene, record: dict[str, Any], own: Seen, clean: Seen, draws: pl.DataFrame
) -> dict[str, Any]:
    """What retraining says of one budget's attack, beside random moves."""
    from attribution.evaluate import mean_interval, welch_interval

    damage = list(welch_interval(own.loss, clean.loss))
    taken = scene.damage(welch_interval(own.targets, clean.targets))
    lost = scene.damage(welch_interval(own.elsewhere, clean.elsewhere))
    rivals = {
        kind: float(np.percentile(draws.filter(kind=kind)["damage"].to_numpy(), PERCENTILE))
        for kind in (ANYWHERE, INSIDE)
    }
    (_, low, high), (_, least, most) = record["predicted"], record["linear"]
    stealth = scene.problem.stealth
    return {
        "observed": damage,
        "observed_output": taken,
        "observed_elsewhere": lost,
        "targets_right": list(mean_interval(own.targets_right)),
        "elsewhere_right": list(mean_interval(own.elsewhere_right)),
        "rivals": rivals,
        "exceeds": damage[0] > max(rivals.values()),
        "inside_interval": low <= damage[0] <= high,
        "inside_linear": None if least is None else least <= taken[0] <= most,
        "stealth_held": None if stealth is None else lost[0] <= stealth,
        "stealth_sure": None if stealth is None else lost[2] <= stealth,
    }
