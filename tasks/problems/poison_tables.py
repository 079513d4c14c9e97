"""A poisoning as rows of the ledger's tables."""

from collections.abc import Iterable
from typing import Any

import polars as pl

from schemas.spec import PoisonSpec
from tasks.blueprint import Blueprint
from tasks.problems.poison import ANYWHERE, DRAWS_FILE, INPUTS_COLUMN, INSIDE, POISONED_FILE
from tasks.problems.shape import SOLUTION, VERDICT

Rows = dict[str, list[dict[str, Any]]]

# [mean, low, high] of a budget, by the columns that they become.
_TRIPLES = {
    "linear": "linear",
    "predicted": "predicted",
    "observed": "observed",
    "observed_output": "observed_output",
    "predicted_elsewhere": "predicted_elsewhere",
    "observed_elsewhere": "observed_elsewhere",
    "targets_right": "accuracy",
    "elsewhere_right": "accuracy_elsewhere",
    "taken": "taken",
}
_PLAIN = (
    "budget",
    "moves",
    "round",
    "bound",
    "gap",
    "exceeds",
    "inside_interval",
    "inside_linear",
    "stealth_held",
)
_RIVALS = (("random_p95", ANYWHERE), ("inside_p95", INSIDE))


def poisoning_tables(plan: Blueprint, problem: PoisonSpec, attribution: str) -> Rows:
    """Rows of `poisonings` and of the tables that belong to it.

    Args:
        plan: The blueprint.
        problem: The problem, solved and judged.
        attribution: Id in the ledger of the attribution that it uses.
    """
    solution = plan.sealed(SOLUTION, plan.problems.solution_key(problem))
    verdict = plan.sealed(VERDICT, plan.problems.verdict_key(problem))
    facts: Any = solution.facts
    said: Any = verdict.facts
    # Moved inputs have no linear prediction that would be brought to size.
    reach, scale = plan.problems.reach(problem), facts["scales"].get("targets", {})
    own = {"poisoning_id": f"{problem.name}-{solution.key[:12]}"}
    poisoning = own | {
        "run_id": plan.run_id(),
        "dataset_id": plan.dataset.facts.dataset_id,
        "attribution_id": attribution,
        "problem": problem.name,
        "move": problem.move,
        "radius": problem.radius,
        "taken_for": problem.taken_for,
        "targets": problem.targets,
        "n_targets": len(reach.targets),
        "n_elsewhere": len(reach.elsewhere),
        "n_movable": len(reach.places),
        "stealth": problem.stealth,
        "output": said["output"],
        "value": said["value"],
        "loss": said["loss"],
        "value_elsewhere": said["value_elsewhere"],
        "accuracy": said["targets_right"],
        "accuracy_elsewhere": said["elsewhere_right"],
        "taken": said["taken"],
        "scale": scale.get("scale"),
        "power": scale.get("power"),
        "scale_error": scale.get("error"),
        "practice_sets": scale.get("sets"),
        "sentence": said["sentence"],
        "notice": said["notice"],
    }
    folders = (plan.artifacts.folder(sealed) for sealed in (solution, verdict))
    rows, draws = (
        pl.read_parquet(folder / name).drop(INPUTS_COLUMN, strict=False).to_dicts()
        for folder, name in zip(folders, (POISONED_FILE, DRAWS_FILE), strict=True)
    )
    return {
        "poisonings": [poisoning],
        "poison_budgets": [own | _budget(record) for record in said["budgets"]],
        "poison_curve": [own | _ends(point) for point in facts["curve"]],
        "poison_draws": [own | draw for draw in draws],
        "poisoned_rows": [own | row for row in rows],
        "poison_screens": [own | entry for entry in said["screens"]],
        "weak_spots": [
            own
            | {"column_name": spot["column"], "value": spot["value"], "n_rows": spot["rows"]}
            | {"moves": spot["moves"]}
            | _ends({name: spot[name] for name in ("damage", "low", "high")})
            for spot in facts["weak_spots"]
        ],
    }


def _budget(record: dict[str, Any]) -> dict[str, Any]:
    found = {name: record[name] for name in _PLAIN}
    found |= {column: record["rivals"][kind] for column, kind in _RIVALS}
    for name, column in _TRIPLES.items():
        found |= dict(zip(_bounds(column), record[name], strict=True))
    return found


def _bounds(name: str) -> Iterable[str]:
    return (name, f"{name}_low", f"{name}_high")


def _ends(point: dict[str, Any]) -> dict[str, Any]:
    """The ends of an interval under the names of columns."""
    names = {"low": "damage_low", "high": "damage_high"}
    return {names.get(name, name): value for name, value in point.items()}
