"""A job: what a task is told, and the blueprint that it finds by it."""

import dataclasses
import functools
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, Field

from schemas.errors import CorruptArtifact
from schemas.frozen import Frozen
from schemas.spec import DebugSpec, LoadedSpec, load_spec
from store.artifacts import Artifacts
from store.workspace import Workspace
from tasks.blueprint import Blueprint


class Job(Frozen):
    """Which spec is worked on, and where: all that a task needs to be told."""

    spec: Path
    """The TOML file, absolute."""
    workspace: Path
    """The workspace's folder, absolute."""
    data: str = ""
    """Key of the ingested data; empty before the first stage."""
    upto: int | None = None
    """The last request to forget rows that counts; without one, those that have been answered."""
    ask: DebugSpec | None = None
    """A question that the spec does not ask, and this job does."""
    started_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    """When the work began."""


def attribution_names(job: Job) -> list[str]:
    """Names of a job's attributions, in the order of its spec."""
    return [attribution.name for attribution in blueprint(job).spec.attribution]


def decision_names(job: Job) -> list[str]:
    """Names of a job's problems that a verdict judges, in the order of its spec."""
    return [problem.name for problem in blueprint(job).problems.decisions]


def valuation_names(job: Job) -> list[str]:
    """Names of a job's problems that value sources or rows, in the order of its spec."""
    return [problem.name for problem in blueprint(job).spec.valuations]


def blueprint(job: Job) -> Blueprint:
    """The blueprint of a job whose data is ingested; the same object for every task of a process.

    Raises:
        CorruptArtifact: The data set is not there, or lost a file.
    """
    # The file's time is a key, so that a long-lived worker sees an edited spec.
    return _remembered(job, job.spec.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _remembered(job: Job, changed: int) -> Blueprint:  # noqa: ARG001
    workspace = Workspace(job.workspace)
    data = Artifacts(workspace.artifacts).find("data", job.data)
    if data is None:
        raise CorruptArtifact(f"the data set {job.data} lost a file; run again to rebuild it")
    return Blueprint(loaded_of(job), workspace, data, upto=job.upto)


def loaded_of(job: Job) -> LoadedSpec:
    """The job's spec, with the question that it asks beside."""
    loaded = load_spec(job.spec)
    if job.ask is None or job.ask in loaded.spec.problem:
        return loaded
    asked = loaded.spec.model_copy(update={"problem": (*loaded.spec.problem, job.ask)})
    return dataclasses.replace(loaded, spec=asked)
