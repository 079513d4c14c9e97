"""What a run sealed, as rows of the ledger's tables: read from artifacts, written nowhere.

Scores are not among them; `tasks.commit` takes those from their files.
"""

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.frames import FRAMES
from schemas.manifest import Manifest
from schemas.spec import (
    AttributionSpec,
    ChoiceSpec,
    DecisionSpec,
    PoisonSpec,
    TraceSpec,
    UnlearnSpec,
    ValueSpec,
    target_sets,
)
from store.segments import kept_per_query
from tasks.aiming import curve_points
from tasks.bank import read_outputs, retrained
from tasks.bank_extension import load_rows
from tasks.bank_plan import CALIBRATE, EVALUATE
from tasks.blueprint import Blueprint
from tasks.problems.poison_tables import poisoning_tables
from tasks.problems.shape import CHOICE_FILE, COPIES_FILE, UTILITY_FILE
from tasks.problems.trace_tables import tracing_tables
from tasks.problems.unlearn_rows import unlearning_rows
from tasks.reporting.gathering import arm_of
from tasks.reporting.judgement import verdict_sentence
from tasks.score import EFFECTS_FILE, SELF_FILE
from tasks.value import ERRORS_FILE, VALUES_FILE

_SCORE_FACTS = ("fingerprint", "damping", "damping_from", "device", "seconds")
_PREDICTION = ("predicted_change", "predicted_low", "predicted_high")
# What an arm's record holds as mean, low and high.
_INTERVALS = (
    "accuracy", "value", "predicted_change", "observed_change", "advantage", "logprob",
    "logprob_advantage",
)  # fmt: skip

Rows = dict[str, list[dict[str, Any]]]


def tables(plan: Blueprint, started: datetime) -> dict[str, pl.DataFrame]:
    """Every table that the run fills but its scores, as the ledger has them."""
    apart = ("examples", "scores", "run_parts")
    rows: Rows = {name: [] for name in FRAMES if name not in apart}
    rows["runs"].append(_run(plan, started))
    frames = {"examples": plan.dataset.examples.with_columns(dataset_id=pl.lit(_dataset_id(plan)))}
    for attribution in plan.spec.attribution:
        _add_attribution(plan, attribution, rows)
    _add_bank(plan, rows)
    for problem in plan.problems.decisions:
        if isinstance(problem, TraceSpec):
            _add_tracing(plan, problem, rows)
        elif isinstance(problem, PoisonSpec):
            _add_poisoning(plan, problem, rows)
        else:
            _add_problem(plan, problem, rows)
    for valuation in plan.spec.valuations:
        _add_valuation(plan, valuation, rows)
    for name, entries in rows.items():
        frames[name] = pl.DataFrame(entries, schema=FRAMES[name].create_empty().schema)
    wanted = FRAMES["examples"].create_empty().columns
    return {**frames, "examples": frames["examples"].select(wanted)}


def _dataset_id(plan: Blueprint) -> str:
    return plan.dataset.facts.dataset_id


def _run(plan: Blueprint, started: datetime) -> dict[str, Any]:
    from attribution.devices import resolve

    now = datetime.now(UTC)
    first = plan.spec.attribution[:1]
    devices = [plan.sealed("scores", plan.scores.key(each)).facts["device"] for each in first]
    return {
        "run_id": plan.run_id(),
        "dataset_id": _dataset_id(plan),
        "spec_name": plan.spec.name,
        "spec_digest": plan.loaded.digest,
        "spec_toml": plan.loaded.text,
        "status": "committed",
        "seed": plan.spec.seed,
        "device": devices[0] if devices else resolve(plan.spec.compute.device),
        "code_version": version("winnow"),
        "started_at": started,
        "committed_at": now,
        "seconds": (now - started).total_seconds(),
    }


def attribution_id(plan: Blueprint, attribution: AttributionSpec) -> str:
    """Name of an attribution in the ledger: its own, and what its scores depend on."""
    return f"{attribution.name}-{(plan.scores.key(attribution) or '')[:12]}"


def solution_id(plan: Blueprint, problem: DecisionSpec) -> str:
    """Name of a solution in the ledger."""
    return f"{problem.name}-{(plan.problems.solution_key(problem) or '')[:12]}"


def _add_attribution(plan: Blueprint, attribution: AttributionSpec, rows: Rows) -> None:
    scores = plan.sealed("scores", plan.scores.key(attribution))
    lds = plan.sealed("lds", plan.scores.lds_key(attribution))
    own = {"attribution_id": attribution_id(plan, attribution)}
    facts: Any = scores.facts
    evaluation: Any = lds.facts["rows"]
    n_query = len(plan.sets.scored)
    rows["attributions"].append(
        own
        | {
            "run_id": plan.run_id(),
            "dataset_id": _dataset_id(plan),
            "name": attribution.name,
            "method": attribution.method,
            "output": plan.output(attribution),
            "options": attribution.model_dump_json(exclude={"name", "method"}),
            "n_train": plan.n_train,
            "n_query": n_query,
            "kept": n_query * kept_per_query(n_query, plan.n_train, plan.spec.store.max_rows),
        }
        | {name: facts[name] for name in _SCORE_FACTS}
    )
    folder = plan.artifacts.folder(scores)
    itself = folder / SELF_FILE
    effects = zip(
        plan.dataset.train.example_ids.tolist(),
        np.load(folder / EFFECTS_FILE).tolist(),
        np.load(itself).tolist() if itself.exists() else [None] * plan.n_train,
        strict=True,
    )
    rows["example_effects"] += [
        own | {"example_id": example, "mean_score": mean, "self_influence": itself}
        for example, mean, itself in effects
    ]
    rows["lds"] += [own | entry for entry in evaluation]


def _add_bank(plan: Blueprint, rows: Rows) -> None:
    bank = plan.bank
    for row, name in enumerate(plan.bank.ids):
        entry = _retraining(plan, name, str(bank.kinds[row]), int(bank.seeds[row]), bank.masks[row])
        rows["bank"].append(entry | {"alpha": float(bank.alpha[row]) if row < bank.drawn else None})
    for output in {plan.output(attribution) for attribution in plan.spec.attribution}:
        for kind in (CALIBRATE, EVALUATE):
            _add_outputs(plan, bank.ids_of(bank.rows(kind)), output, rows)


def _retraining(
    plan: Blueprint, name: str, kind: str, seed: int, mask: NDArray[np.bool_]
) -> dict[str, Any]:
    return {
        "retrain_id": name,
        "dataset_id": _dataset_id(plan),
        "kind": kind,
        "alpha": None,
        "seed": seed,
        "n_rows": int(mask.sum()),
        "mask": (mask.astype(np.uint8) + ord("0")).tobytes().decode("ascii"),
    }


def _add_outputs(plan: Blueprint, names: list[str], output: str, rows: Rows) -> None:
    queries = plan.sets.scored.tolist()
    values = read_outputs(plan, names, plan.sets.scored, output)
    for name, row in zip(names, values.tolist(), strict=True):
        rows["bank_outputs"] += [
            {"retrain_id": name, "query_id": query, "output": output, "value": value}
            for query, value in zip(queries, row, strict=True)
        ]


def _add_problem(plan: Blueprint, problem: ChoiceSpec, rows: Rows) -> None:
    solution = plan.sealed("solution", plan.problems.solution_key(problem))
    facts: Any = solution.facts
    folder = plan.artifacts.folder(solution)
    own = {"solution_id": solution_id(plan, problem)}
    predicted = dict(zip(_PREDICTION, facts["predicted"], strict=True))
    attribution = plan.spec.attribution_named(problem.uses)
    rows["solutions"].append(
        own
        | predicted
        | {
            "run_id": plan.run_id(),
            "attribution_id": attribution_id(plan, attribution),
            "problem": problem.name,
            "kind": problem.kind,
            "n_pool": plan.n_train,
            "targets": ", ".join(target_sets(problem)),
        }
        | {name: facts[name] for name in ("status", "size", "value", "bound", "gap", "sentence")}
    )
    utility = np.load(folder / UTILITY_FILE)
    position = np.empty(len(utility), dtype=np.int64)
    position[np.argsort(-utility, kind="stable")] = np.arange(1, len(utility) + 1)
    columns = zip(
        plan.dataset.train.example_ids.tolist(),
        np.load(folder / CHOICE_FILE).tolist(),
        utility.tolist(),
        position.tolist(),
        _copies(plan, folder),
        strict=True,
    )
    names = ("example_id", "chosen", "utility", "position", "copy_of")
    rows["solution_rows"] += [own | dict(zip(names, values, strict=True)) for values in columns]
    rows["size_curves"] += [own | point for point in curve_points(facts.get("curve"))]
    if "origins" in facts:
        _add_retrainings(plan, solution, rows)
    rows["solution_prices"] += [
        own | {"constraint_name": name, "price": price}
        for name, price in facts.get("prices", {}).items()
    ]
    _add_verdict(plan, problem, own, rows)


def _copies(plan: Blueprint, folder: Path) -> list[int | None]:
    """The chosen example that each training row is a copy of, where a solution says."""
    path = folder / COPIES_FILE
    if not path.exists():
        return [None] * plan.n_train
    ids = plan.dataset.train.example_ids
    return [int(ids[row]) if row >= 0 else None for row in np.load(path).tolist()]


def _add_tracing(plan: Blueprint, problem: TraceSpec, rows: Rows) -> None:
    names = {name: plan.spec.attribution_named(name) for name in problem.uses}
    ids = {name: attribution_id(plan, attribution) for name, attribution in names.items()}
    for table, entries in tracing_tables(plan, problem, ids).items():
        rows[table] += entries
    _add_retrainings(plan, plan.sealed("verdict", plan.problems.verdict_key(problem)), rows)


def _add_poisoning(plan: Blueprint, problem: PoisonSpec, rows: Rows) -> None:
    # Its models stay out of the bank's tables: their rows are no subsets of the training rows.
    attribution = attribution_id(plan, plan.spec.attribution_named(problem.uses))
    for table, entries in poisoning_tables(plan, problem, attribution).items():
        rows[table] += entries


def _add_verdict(plan: Blueprint, problem: DecisionSpec, own: dict[str, Any], rows: Rows) -> None:
    verdict = plan.sealed("verdict", plan.problems.verdict_key(problem))
    arms = arm_rows(verdict)
    if arms:  # a diagnosis without a cause has none
        own_words = verdict.facts.get("sentence")
        arms[0]["sentence"] = own_words or verdict_sentence([arm_of(arm) for arm in arms])
    rows["verdicts"] += [own | {"run_id": plan.run_id()} | arm for arm in arms]
    if isinstance(problem, UnlearnSpec):
        ids = {arm["arm"]: own | {"verdict_id": arm["verdict_id"]} for arm in arms}
        for table, entries in unlearning_rows(plan, problem, ids).items():
            rows[table] += entries
    _add_retrainings(plan, verdict, rows)


def _add_retrainings(plan: Blueprint, sealed: Manifest, rows: Rows) -> None:
    """The models of a solution or verdict, but for those that the run has added already."""
    made = load_rows(plan.artifacts, sealed)
    # They are all there, unless somebody removed a chunk since.
    names = retrained(plan, made.masks, made.seeds)
    output = str(sealed.facts["output"])
    entries = zip(names, made.origins.tolist(), made.seeds.tolist(), made.masks, strict=True)
    models = {entry[0]: _retraining(plan, *entry) for entry in entries}
    there = {entry["retrain_id"] for entry in rows["bank"]}
    rows["bank"] += [entry for name, entry in models.items() if name not in there]
    there = {entry["retrain_id"] for entry in rows["bank_outputs"] if entry["output"] == output}
    _add_outputs(plan, [name for name in models if name not in there], output, rows)


def _add_valuation(plan: Blueprint, problem: ValueSpec, rows: Rows) -> None:
    key = plan.values.key(problem)
    found = plan.sealed("values", key)
    folder, players = plan.artifacts.folder(found), plan.values.players(problem)
    own = {"valuation_id": f"{problem.name}-{key[:12]}"}
    facts = ("output", "retrainings", "nothing", "everything", "converged", "sentence")
    rows["valuations"].append(
        own
        | {
            "run_id": plan.run_id(),
            "problem": problem.name,
            "method": problem.method,
            "sources": problem.by,
            "targets": problem.targets,
            "n_players": len(players),
        }
        | {name: found.facts[name] for name in facts}
    )
    columns = zip(
        players.names,
        players.sizes.tolist(),
        np.load(folder / VALUES_FILE).tolist(),
        np.load(folder / ERRORS_FILE).tolist(),
        strict=True,
    )
    names = ("player", "n_rows", "value", "standard_error")
    rows["player_values"] += [own | dict(zip(names, values, strict=True)) for values in columns]


def arm_rows(verdict: Manifest) -> list[dict[str, Any]]:
    """The arms of a sealed verdict as rows of `verdicts`, but for what names run and solution."""
    facts: Any = verdict.facts
    return [
        {
            "verdict_id": f"{verdict.key[:12]}-{place}-{arm['arm']}",
            "output": facts["output"],
            "sentence": "",
        }
        | _flat(arm)
        for place, arm in enumerate(facts["arms"])
    ]


def _flat(arm: dict[str, Any]) -> dict[str, Any]:
    """[mean, low, high] entries as three columns, empty where the record has none."""
    flat = {name: value for name, value in arm.items() if name not in _INTERVALS}
    for name in _INTERVALS:
        stem = name.removesuffix("_change")
        columns = (name, f"{stem}_low", f"{stem}_high")
        flat |= dict(zip(columns, arm.get(name) or (None, None, None), strict=True))
    return flat
