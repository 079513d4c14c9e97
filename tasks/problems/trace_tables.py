"""A tracing as rows of the ledger's tables."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from schemas.spec import TraceSpec
from tasks.blueprint import Blueprint
from tasks.problems.shape import SOLUTION, VERDICT
from tasks.problems.trace import CHANGES_FILE, JUDGED_FILE, QUERIES_FILE, TOP_FILE
from tasks.reporting.judgement import tracing_sentence
from tasks.reporting.tracing import traced_arm
from tasks.score import load_scores

Rows = dict[str, list[dict[str, Any]]]


def tracing_tables(plan: Blueprint, problem: TraceSpec, attributions: Mapping[str, str]) -> Rows:
    """Rows of `tracings`, `tracing_arms`, `tracing_effects` and `tracing_rows`.

    Args:
        plan: The blueprint.
        problem: The problem, solved and judged.
        attributions: Id in the ledger of each attribution, by its name.
    """
    solution = plan.sealed(SOLUTION, plan.problems.solution_key(problem))
    verdict = plan.sealed(VERDICT, plan.problems.verdict_key(problem))
    facts: Any = solution.facts
    said: Any = verdict.facts
    own = {"tracing_id": f"{problem.name}-{solution.key[:12]}"}
    found = {method["name"]: method for method in facts["methods"]}
    arms = [
        own
        | {"place": place, "arm": arm["arm"], "attribution_id": attributions.get(arm["arm"])}
        | {"models": arm["models"], "value": arm["value"]}
        | _columns("mrr", found.get(arm["arm"], {}).get("mrr"))
        | _columns("recall", found.get(arm["arm"], {}).get("recall"))
        | _columns("change", arm["change"])
        | _columns("against_random", arm["against_random"])
        for place, arm in enumerate(said["arms"])
    ]
    queries = np.load(plan.artifacts.folder(solution) / QUERIES_FILE)
    judged = np.load(plan.artifacts.folder(verdict) / JUDGED_FILE)
    text = plan.spec.data.text
    tracing = own | {
        "run_id": plan.run_id(),
        "dataset_id": plan.dataset.facts.dataset_id,
        "problem": problem.name,
        "targets": problem.targets,
        "text_column": None if text is None else text.column,
        "truth": problem.truth,
        "top": problem.top,
        "n_queries": len(queries),
        "with_truth": facts["with_truth"],
        "judged": len(judged),
        "removed": said["removed"],
        "output": said["output"],
        "value": said["value"],
        "sentence": tracing_sentence([traced_arm(arm) for arm in arms], said["output"]),
    }
    changes = np.load(plan.artifacts.folder(verdict) / CHANGES_FILE)
    effects = [
        own | {"arm": arm["arm"], "query_id": query, "change": change}
        for arm, values in zip(said["arms"], changes.tolist(), strict=True)
        for query, change in zip(judged.tolist(), values, strict=True)
    ]
    return {
        "tracings": [tracing],
        "tracing_arms": arms,
        "tracing_effects": effects,
        "tracing_rows": _named(plan, problem, own),
    }


def _named(plan: Blueprint, problem: TraceSpec, own: dict[str, Any]) -> list[dict[str, Any]]:
    folder = plan.artifacts.folder(plan.sealed(SOLUTION, plan.problems.solution_key(problem)))
    top, queries = np.load(folder / TOP_FILE), np.load(folder / QUERIES_FILE).tolist()
    ids, rows = plan.dataset.train.example_ids, list[dict[str, Any]]()
    for name, places in zip(problem.uses, top, strict=True):
        scores = load_scores(plan, plan.spec.attribution_named(name))
        scores = scores[plan.sets.places(problem.targets)]
        values = np.take_along_axis(np.asarray(scores), places, axis=1)
        rows += [
            own | {"arm": name, "query_id": query, "rank": rank, "train_id": row, "score": score}
            for query, own_ids, own_values in zip(queries, ids[places], values, strict=True)
            for rank, (row, score) in enumerate(
                zip(own_ids.tolist(), own_values.tolist(), strict=True), start=1
            )
        ]
    return rows


def _columns(name: str, triple: list[float | None] | None) -> dict[str, float | None]:
    """[mean, low, high] as three columns."""
    names = (name, f"{name}_low", f"{name}_high")
    return dict(zip(names, triple or (None, None, None), strict=True))
