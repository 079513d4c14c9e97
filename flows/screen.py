"""Batches of new rows, answered one by one, each once."""

from pathlib import Path

from prefect import flow

from flows.curate import extend, featurize
from flows.runners import task_runner
from schemas.errors import DataError, RequestError
from schemas.screening import ScreenSpec
from tasks.begin import compute_of, ingest_rows, recording_job
from tasks.job import Job, blueprint
from tasks.preflight import open_job
from tasks.score import score
from tasks.screening.answer import conclude_batch, refused, screen_batch
from tasks.screening.check import check_screening
from tasks.screening.inbox import inbox_files, waiting
from tasks.train import train


@flow(name="screen")
def screen(
    spec: str,
    workspace: str | None = None,
    batches: list[str] | None = None,
    problem: str | None = None,
    verify: bool = False,
) -> None:
    """Let in the rows of new batches that look like trusted ones, and hold up the others.

    Args:
        spec: Path of the TOML spec.
        workspace: Folder of results; by default `.winnow` beside the spec.
        batches: Files to answer; by default those of the inbox that wait.
        problem: The problem of kind "screen", where there are several.
        verify: Check each answer by retraining, whatever the spec says.
    """
    job = open_job(spec, workspace)
    arrivals.with_options(task_runner=task_runner(compute_of(job)))(job, batches, problem, verify)


@flow(name="arrivals")
def arrivals(job: Job, batches: list[str] | None, name: str | None, verify: bool) -> None:
    """Make what the screens read, answer what waits, and tell of what cannot be used."""
    with recording_job(job):
        job = ingest_rows(job)
        plan = blueprint(job)
        asked = plan.spec.problem_of(ScreenSpec, name)
        files = inbox_files(plan.loaded, asked) if batches is None else list(map(Path, batches))
        verify = verify or asked.verify
        todo = waiting(plan.loaded, plan.artifacts, asked, files, verify=verify)
        if todo:
            _make_ready(job, asked)
        lost = [said for path in todo if (said := _answer(job, asked, path, verify=verify))]
    if lost:
        raise DataError("; ".join(lost))


def _make_ready(job: Job, asked: ScreenSpec) -> None:
    """Whatever of the trusted rows' models and sketches is missing."""
    train(job)
    extend(job)
    featurize(job)
    score(job, asked.uses)


def _answer(job: Job, asked: ScreenSpec, path: Path, *, verify: bool) -> str | None:
    """Answer one batch; a line for one that cannot be used, which keeps no other waiting."""
    try:
        screening = screen_batch(job, asked.name, path)
        checked = check_screening(job, screening, path) if verify else None
    except RequestError as error:
        return refused(path, error)
    conclude_batch(job, screening, checked)
    return None
