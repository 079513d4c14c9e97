"""The one writer: what a run sealed goes into the ledger in one transaction; then the snapshot.

Everything here is read from sealed artifacts, so a commit can be repeated at any time.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.manifest import Manifest
from store.publish import publish
from store.segments import kept_per_query, write_segment
from store.writer import RunBundle, commit_run, commit_screening
from tasks.blueprint import Blueprint
from tasks.job import Job, blueprint
from tasks.progress import advance
from tasks.run_tables import attribution_id, tables
from tasks.score import load_scores
from tasks.versions import VERSIONS

STAGE = "run"
# Queries whose scores are written as one Parquet segment.
SEGMENT_ROWS = 2_000_000


@task(name="commit", cache_policy=NO_CACHE)
def commit(job: Job) -> Manifest:
    """Write the run into the ledger, publish the snapshot, and seal the receipt."""
    plan = blueprint(job)
    key = plan.run_key() or ""
    manifest = plan.artifacts.find(STAGE, key)
    if manifest is None or not plan.workspace.published.is_file():
        plan.artifacts.discard(STAGE, key)
        manifest = _commit(plan, key, job.started_at)
    advance(STAGE, 1, 1)
    return manifest


def _commit(plan: Blueprint, key: str, started: datetime) -> Manifest:
    workspace = plan.workspace
    with _segments(plan) as scores:
        counts = commit_run(
            workspace.ledger, RunBundle(tables=tables(plan, started), scores=scores)
        )
    if plan.spec.store.publish:
        publish(workspace.ledger, workspace.published)
    facts = {"run_id": plan.run_id(), "rows": counts}
    with plan.artifacts.seal(STAGE, key, version=VERSIONS[STAGE], facts=facts) as draft:
        (draft.path / "spec.toml").write_text(plan.loaded.text, encoding="utf-8")
    return draft.manifest


def record_screening(plan: Blueprint, rows: Mapping[str, pl.DataFrame]) -> None:
    """Write the answer to a batch into the ledger, and publish the snapshot."""
    commit_screening(plan.workspace.ledger, rows)
    if plan.spec.store.publish:
        publish(plan.workspace.ledger, plan.workspace.published)


@contextmanager
def _segments(plan: Blueprint) -> Iterator[dict[str, list[Path]]]:
    """The scores of every attribution as Parquet files, for as long as the block lasts."""
    keep = kept_per_query(len(plan.sets.scored), plan.n_train, plan.spec.store.max_rows)
    step = max(1, SEGMENT_ROWS // plan.n_train)
    with tempfile.TemporaryDirectory(dir=plan.workspace.root, prefix="segments-") as folder:
        paths: dict[str, list[Path]] = {}
        for attribution in plan.spec.attribution:
            scores = load_scores(plan, attribution)
            name = attribution_id(plan, attribution)
            for start in range(0, len(scores), step):
                path = Path(folder) / f"{name}-{start}.parquet"
                write_segment(
                    path,
                    scores[start : start + step],
                    query_ids=plan.sets.scored[start : start + step],
                    train_ids=plan.dataset.train.example_ids,
                    keep=keep,
                )
                paths.setdefault(name, []).append(path)
        yield paths
