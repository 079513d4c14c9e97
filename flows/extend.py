"""The bank's extension from now on: more models, those of verdicts, or the most telling ones."""

from prefect import flow

from flows.curate import extend
from flows.runners import task_runner
from tasks.begin import compute_of, ingest_rows, recording_job
from tasks.extend import adopt_verdicts, appraise, choose_next, draw_models, reopened
from tasks.job import Job
from tasks.preflight import open_job


@flow(name="extend-bank")
def extend_bank(
    spec: str,
    workspace: str | None = None,
    models: int | None = None,
    verdicts: bool = False,
    subsets: int | None = None,
) -> None:
    """Enlarge a bank for good, and train what it then lacks.

    Args:
        spec: Path of the TOML spec.
        workspace: Folder of results; by default `.winnow` beside the spec.
        models: Models that the bank is to have drawn in all.
        verdicts: Adopt the retrainings of verdicts, for calibration.
        subsets: Choose so many subsets by what they are expected to tell, and train those.
    """
    job = open_job(spec, workspace)
    acts.with_options(task_runner=task_runner(compute_of(job)))(job, models, verdicts, subsets)


@flow(name="acts")
def acts(job: Job, models: int | None, verdicts: bool, subsets: int | None) -> None:
    """Record what was asked for, train, and say what chosen subsets bought."""
    with recording_job(job):
        job = ingest_rows(job)
        if models is not None:
            draw_models(job, models)
        if verdicts:
            adopt_verdicts(job)
        if subsets is not None:
            choose_next(job, subsets)
        job = reopened(job)
        extend(job)
        if subsets is not None:
            appraise(job)
