"""One question about one output: what is missing for it is made, then it is answered."""

from prefect import flow

from flows.curate import extend, featurize
from flows.runners import task_runner
from schemas.questions import DebugSpec
from tasks.begin import compute_of, ingest_rows, recording_job
from tasks.job import Job
from tasks.preflight import open_job
from tasks.score import score
from tasks.solve import solve
from tasks.train import train
from tasks.verdict import judge


@flow(name="debug")
def debug(spec: str, ask: DebugSpec, workspace: str | None = None, retrain: bool = True) -> None:
    """Propose which rows hold an output down, and retrain without them.

    Args:
        spec: Path of the TOML spec.
        ask: The question.
        workspace: Folder of results; by default `.winnow` beside the spec.
        retrain: Whether to check the proposal.
    """
    job = open_job(spec, workspace, ask)
    diagnosis.with_options(task_runner=task_runner(compute_of(job)))(job, ask, retrain)


@flow(name="diagnosis")
def diagnosis(job: Job, ask: DebugSpec, retrain: bool) -> None:
    """Make what the question reads, propose, and judge."""
    with recording_job(job):
        job = ingest_rows(job)
        train(job)
        extend(job)
        featurize(job)
        score(job, ask.uses)
        solve(job, ask.name)
        if retrain:
            judge(job, ask.name)
