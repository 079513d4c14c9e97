"""How a flow begins: its rows are ingested, and what is to be made again is removed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.errors import NotFound
from schemas.spec import ComputeSpec, load_spec
from store.artifacts import Artifacts
from store.workspace import Workspace
from tasks.ingest import data_key
from tasks.intake.sources import source_digest
from tasks.job import Job, blueprint
from tasks.preflight import ingested
from tasks.progress import recording
from tasks.value import models_of
from tasks.versions import STAGES


@task(name="ingest", cache_policy=NO_CACHE)
def ingest_rows(job: Job) -> Job:
    """Read, check, split and seal the rows."""
    return ingested(job)


def compute_of(job: Job) -> ComputeSpec:
    """Where the job's spec wants its tasks to run."""
    return load_spec(job.spec).spec.compute


@contextmanager
def recording_job(job: Job) -> Iterator[None]:
    """Keep the run's progress in its workspace, and any other run out of it, for the block."""
    with recording(Workspace(job.workspace).progress, load_spec(job.spec).spec.name):
        yield


def discard(job: Job, stages: Sequence[str]) -> None:
    """Remove the sealed artifacts of some stages, so that they are made again.

    Only what this spec asks for is removed; other specs may share the workspace.

    Raises:
        NotFound: There is no such stage.
    """
    for stage in stages:
        if stage not in STAGES:
            raise NotFound(f"there is no stage '{stage}'; stages are {', '.join(STAGES)}")
        artifacts = Artifacts(Workspace(job.workspace).artifacts)
        if stage == "verdict":
            discard_models_of_verdicts(job)
        if stage == "values":
            discard_models_of_values(job)
        for key in _keys(job, stage):
            artifacts.discard(stage, key)


def discard_models_of_verdicts(job: Job) -> None:
    """Remove the chunks of the models that the job's verdicts compared."""
    plan = blueprint(job)
    for key in _keys(job, "verdict"):
        verdict = plan.artifacts.find("verdict", key)
        names: Any = verdict.facts["retrainings"] if verdict else []
        for chunk in plan.retraining.sealed.look().chunks(names):
            plan.artifacts.discard(chunk.stage, chunk.key)


def discard_models_of_values(job: Job) -> None:
    """Remove the chunks of the models that the job's values were made of."""
    plan = blueprint(job)
    for key in _keys(job, "values"):
        values = plan.artifacts.find("values", key)
        names = models_of(plan, values) if values else []
        for chunk in plan.retraining.sealed.look().chunks(names):
            plan.artifacts.discard(chunk.stage, chunk.key)


def _keys(job: Job, stage: str) -> list[str]:
    if stage == "data":
        loaded = load_spec(job.spec)
        return [data_key(loaded.spec, source_digest(loaded.spec.data.source, loaded.source_path))]
    return [key for key in blueprint(job).keys(stage) if key is not None]
