"""What an unlearning verdict found, as rows of the ledger's tables."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from schemas.manifest import Manifest
from schemas.spec import UnlearnSpec
from tasks.blueprint import Blueprint
from tasks.problems.shape import CHOSEN, SOLUTION, VERDICT
from tasks.problems.unlearn import JUDGED_FILE, OBSERVED_FILE, TARGETS_FILE
from tasks.reporting.forgetting import JUDGING
from tasks.requests import CERTIFICATE_FILE

Rows = list[dict[str, Any]]


def certificate_place(plan: Blueprint, verdict: Manifest) -> str:
    """Where a verdict's certificate is, relative to the workspace."""
    path = plan.artifacts.folder(verdict) / CERTIFICATE_FILE
    return path.relative_to(plan.workspace.root).as_posix()


def unlearning_rows(
    plan: Blueprint, problem: UnlearnSpec, ids: Mapping[str, Mapping[str, str]]
) -> dict[str, Rows]:
    """Rows by table.

    Args:
        plan: The blueprint.
        problem: What was asked.
        ids: solution_id and verdict_id of each arm.
    """
    verdict = plan.sealed(VERDICT, plan.problems.verdict_key(problem))
    facts: Any = verdict.facts
    solution = {"solution_id": ids[CHOSEN]["solution_id"]}
    own = ("method", "n_forgotten", "requests", "models", "oracles")
    place = {"certificate": certificate_place(plan, verdict)}
    return {
        "unlearnings": [
            {**solution, **{name: facts[name] for name in own}, **facts["queries"], **place}
        ],
        "unlearned": [_of_arm(each, ids) for each in facts["unlearned"]],
        "closeness": [_of_arm(each, ids) for each in facts["closeness"]],
        "query_changes": [solution | change for change in _changes(plan, problem, verdict)],
    }


def _of_arm(record: Mapping[str, Any], ids: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    rest = {name: value for name, value in record.items() if name != "arm"}
    return {**ids[record["arm"]], **rest}


def _changes(plan: Blueprint, problem: UnlearnSpec, verdict: Manifest) -> Iterator[dict[str, Any]]:
    solution = plan.sealed(SOLUTION, plan.problems.solution_key(problem))
    folder = plan.artifacts.folder(solution)
    observed = np.load(plan.artifacts.folder(verdict) / OBSERVED_FILE).tolist()
    judging = plan.sets.ids(plan.spec.verdict.judge_on).tolist()
    made = dict(zip(judging, observed, strict=True))
    aims = (
        ("targets", problem.targets, TARGETS_FILE),
        (JUDGING, plan.spec.verdict.judge_on, JUDGED_FILE),
    )
    for aim, name, file in aims:
        mean, sd = np.load(folder / file)
        for query, change, spread in zip(plan.sets.ids(name).tolist(), mean, sd, strict=True):
            yield {
                "query_id": query,
                "aim": aim,
                "predicted": float(change),
                "predicted_sd": float(spread) if np.isfinite(spread) else None,
                "observed": made.get(query),
            }
