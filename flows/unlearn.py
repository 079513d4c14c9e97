"""Requests to forget rows, answered in the order in which they came."""

from prefect import flow

from flows.curate import STEPS
from flows.runners import task_runner
from tasks.begin import compute_of, ingest_rows, recording_job
from tasks.forget import conclude, job_upto, waiting
from tasks.job import Job
from tasks.preflight import open_job


@flow(name="unlearn")
def unlearn(spec: str, workspace: str | None = None) -> None:
    """Answer every request to forget rows that waits, each once and with its own certificate.

    Args:
        spec: Path of the TOML spec.
        workspace: Folder of results; by default `.winnow` beside the spec.
    """
    job = open_job(spec, workspace)
    answers.with_options(task_runner=task_runner(compute_of(job)))(job)


@flow(name="answers")
def answers(job: Job) -> None:
    """Run the spec with the requests up to each that waits, then seal its receipt."""
    with recording_job(job):
        job = ingest_rows(job)
        for number in waiting(job):
            one = job_upto(job, number)
            for step in STEPS:
                step(one)
            conclude(one)
