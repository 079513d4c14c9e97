"""Batches of new rows: answered once each, written beside the data, recorded.

A batch is known by the digest of its file. Its answer is sealed with the accepted and the
quarantined rows, then written to the ledger, then sent to MLflow; the receipt comes last, and a
batch without one waits. An answer that was killed goes on where it was.
"""

import json
from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from schemas.arrivals import SCREENING_FRAMES
from schemas.errors import DataError, RequestError
from schemas.manifest import Manifest
from schemas.spec import ScreenSpec
from store.artifacts import Artifacts
from tasks.blueprint import Blueprint
from tasks.commit import record_screening
from tasks.job import Job, blueprint
from tasks.preflight import check_screen
from tasks.progress import advance
from tasks.reporting.screening import entry_of, text_of
from tasks.reporting.tracking import log_entry
from tasks.screening.batches import Batch, batch_digest, read_batch
from tasks.screening.evidence import Evidence, gather
from tasks.screening.inbox import RECEIPT, STAGE, VERSION, screening_key
from tasks.screening.reasons import Reason, reasons_of

ACCEPTED_FILE, QUARANTINED_FILE = "accepted.parquet", "quarantined.parquet"
ROWS_FILE, VALUES_FILE = "rows.json", "values.parquet"
# What quarantined rows have beside their own columns.
ROW_COLUMN, REASONS_COLUMN = "batch_row", "reasons"


@task(name="screen batch", cache_policy=NO_CACHE)
def screen_batch(job: Job, name: str, path: Path) -> Manifest:
    """Decide which rows of a batch to let in, unless that is sealed."""
    plan = blueprint(job)
    problem = plan.spec.problem_of(ScreenSpec, name)
    digest = batch_digest(path)
    key = screening_key(plan.loaded, problem, digest)
    return plan.artifacts.find(STAGE, key) or _screen(plan, problem, key, path, digest)


@task(name="conclude batch", cache_policy=NO_CACHE)
def conclude_batch(job: Job, screening: Manifest, checked: Manifest | None = None) -> Manifest:
    """Write an answer to the ledger and to MLflow, and seal the receipt."""
    plan = blueprint(job)
    verdict: Any = checked.facts if checked else None
    facts: Any = screening.facts
    record_screening(plan, _tables(plan, screening, verdict))
    keys = [screening.key, *([checked.key] if checked else [])]
    missing = [key for key in keys if plan.artifacts.find(RECEIPT, key) is None]
    if missing:
        sent = log_entry(
            plan.workspace,
            plan.spec.name,
            entry_of(facts, verdict),
            uri=plan.spec.tracking.uri,
            texts={"screening.txt": text_of(answer_of(plan.artifacts, screening), verdict)},
            files={"screened": plan.artifacts.folder(screening) / QUARANTINED_FILE},
            flow_run=str(flow_run.get_id() or "") or None,
        )
    for key in missing:
        with plan.artifacts.seal(RECEIPT, key, version=VERSION, facts=sent):
            pass
    return plan.artifacts.find(RECEIPT, keys[-1]) or screening


def _screen(plan: Blueprint, problem: ScreenSpec, key: str, path: Path, digest: str) -> Manifest:
    check_screen(plan, problem)
    batch = read_batch(plan, path)
    if batch.digest != digest:
        raise DataError(f"batch {path} changed while it was read; move files in when complete")
    advance(STAGE, 0, len(batch), "rows")
    evidence = gather(plan, problem, batch)
    reasons = reasons_of(plan, problem, batch, evidence)
    accepted = np.array([not each for each in reasons])
    inputs = {"batch": batch.digest, "data": plan.data.manifest.key}
    with plan.artifacts.seal(STAGE, key, version=VERSION, inputs=inputs) as draft:
        batch.frame.filter(pl.Series(accepted)).write_parquet(draft.path / ACCEPTED_FILE)
        _quarantined(batch, reasons).write_parquet(draft.path / QUARANTINED_FILE)
        rows = _rows(batch, evidence, reasons)
        (draft.path / ROWS_FILE).write_text(json.dumps(rows, indent=1), encoding="utf-8")
        _values(problem, evidence).write_parquet(draft.path / VALUES_FILE)
        draft.facts |= _facts(plan, problem, batch, evidence, reasons)
    advance(STAGE, len(batch), len(batch), "rows")
    return draft.manifest


def _quarantined(batch: Batch, reasons: Sequence[Sequence[Reason]]) -> pl.DataFrame:
    held = [row for row, own in enumerate(reasons) if own]
    said = ["; ".join(reason.words for reason in reasons[row]) for row in held]
    taken = set(batch.frame.columns)
    names = [f"winnow_{name}" if name in taken else name for name in (ROW_COLUMN, REASONS_COLUMN)]
    return batch.frame[held].with_columns(
        pl.Series(names[0], [row + 1 for row in held], dtype=pl.Int64),
        pl.Series(names[1], said, dtype=pl.String),
    )


def _rows(
    batch: Batch, evidence: Evidence, reasons: Sequence[Sequence[Reason]]
) -> list[dict[str, Any]]:
    effects: list[float | None] = [None] * len(batch)
    if evidence.effects is not None:
        rows = np.flatnonzero(evidence.known).tolist()
        for row, effect in zip(rows, evidence.effects.tolist(), strict=True):
            effects[row] = effect
    return [
        {
            "batch_row": row + 1,
            "label": batch.labels[row] if batch.labels else None,
            "accepted": not own,
            "reasons": "; ".join(reason.words for reason in own),
            "codes": ",".join(reason.code for reason in own),
            "effect": effects[row],
        }
        for row, own in enumerate(reasons)
    ]


def _values(problem: ScreenSpec, evidence: Evidence) -> pl.DataFrame:
    numbers = np.flatnonzero(evidence.known) + 1
    parts = [
        {
            "batch_row": numbers,
            "screen": [screen] * len(numbers),
            "value": seen.values,
            "place": seen.places,
            "rate": [problem.quarantine.rates[screen]] * len(numbers),
        }
        for screen, seen in evidence.standings.items()
    ]
    wanted = SCREENING_FRAMES["screened_values"].create_empty().drop("screening_id")
    return pl.concat([wanted, *(pl.DataFrame(part, schema=wanted.schema) for part in parts)])


def _facts(
    plan: Blueprint,
    problem: ScreenSpec,
    batch: Batch,
    evidence: Evidence,
    reasons: Sequence[Sequence[Reason]],
) -> dict[str, Any]:
    codes = [{reason.code for reason in own} for own in reasons]
    rates, known = problem.quarantine.rates, int(evidence.known.sum())
    counts = {
        code: sum(code in own for own in codes) for code in sorted(set().union(*codes) - set(rates))
    }
    quarantined = sum(map(bool, reasons))
    asked = {name: rate for name, rate in rates.items() if name in evidence.standings}
    out = sum(not own.isdisjoint(rates) for own in codes)
    facts = {
        "spec": plan.spec.name,
        "problem": problem.name,
        "batch": batch.path.name,
        "batch_digest": batch.digest,
        "dataset_id": plan.dataset.facts.dataset_id,
        "n_rows": len(batch),
        "accepted": len(batch) - quarantined,
        "quarantined": quarantined,
        "screened_out": out,
        "expected": known * min(1.0, sum(asked.values())),
        "n_trusted": plan.n_train,
        "output": plan.output(plan.spec.attribution_named(problem.uses)),
        "targets": problem.targets,
        "screens": [
            {"screen": name, "rate": rate, "held": sum(name in own for own in codes)}
            | {"expected": known * rate, "asked": name in asked}
            for name, rate in rates.items()
        ],
        "contents": counts,
    }
    return facts | {"sentence": _sentence(facts)}


def _sentence(facts: dict[str, Any]) -> str:
    out, expected = facts["screened_out"], facts["expected"]
    other = facts["quarantined"] - out
    beside = f", {other:,} more as copies or for their label" if other else ""
    return (
        f"Accepted: {facts['accepted']:,}. Quarantined: {facts['quarantined']:,}, {out:,} by "
        f"screens{beside}. Were all rows good, the screens would be expected to hold up "
        f"{expected:.0f}, or fewer where they agree."
    )


def answer_of(artifacts: Artifacts, screening: Manifest) -> dict[str, Any]:
    """An answer with its rows, each with its smallest place among trusted rows."""
    folder, facts = artifacts.folder(screening), dict(screening.facts)
    rows: list[dict[str, Any]] = json.loads((folder / ROWS_FILE).read_text(encoding="utf-8"))
    values = pl.read_parquet(folder / VALUES_FILE)
    least = dict(values.group_by("batch_row").agg(pl.col("place").min()).iter_rows())
    place = f"{artifacts.root.name}/{STAGE}/{screening.key}"
    return facts | {
        "rows": [row | {"place": least.get(row["batch_row"])} for row in rows],
        "accepted_file": f"{place}/{ACCEPTED_FILE}",
        "quarantined_file": f"{place}/{QUARANTINED_FILE}",
        "screened_at": screening.created_at,
    }


def _tables(
    plan: Blueprint, screening: Manifest, verdict: dict[str, Any] | None
) -> dict[str, pl.DataFrame]:
    answer = answer_of(plan.artifacts, screening)
    own = {"screening_id": f"{answer['problem']}-{screening.key[:12]}"}
    taken = SCREENING_FRAMES["screenings"].columns().keys() & answer.keys()
    first = own | {name: answer[name] for name in taken} | {"spec_name": answer["spec"]}
    first |= {"screened_at": screening.created_at.astimezone(UTC)}
    first |= {"verified": verdict["sentence"] if verdict else None}
    values = pl.read_parquet(plan.artifacts.folder(screening) / VALUES_FILE)
    arms: list[dict[str, Any]] = verdict["arms"] if verdict else []
    entries = {
        "screenings": [first],
        "screened_rows": [
            own | {name: value for name, value in row.items() if name != "place"}
            for row in answer["rows"]
        ],
        "screened_values": [own | row for row in values.to_dicts()],
        "screening_arms": [own | {"place": place} | arm for place, arm in enumerate(arms)],
    }
    return {
        name: pl.DataFrame(rows, schema=SCREENING_FRAMES[name].create_empty().schema)
        for name, rows in entries.items()
    }


def refused(path: Path, error: RequestError) -> str:
    """A line for a batch that cannot be used; others are answered all the same."""
    text = str(error)
    return text if str(path) in text else f"batch {path}: {text}"
