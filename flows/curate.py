"""The whole: from rows to a decision that retraining has judged."""

from collections.abc import Callable

from prefect import flow, unmapped

from flows.runners import task_runner
from tasks.bank import extend_bank, pending_chunks
from tasks.begin import compute_of, discard, ingest_rows, recording_job
from tasks.commit import commit
from tasks.featurize import featurize_shard, pending_features
from tasks.job import Job, attribution_names, decision_names, valuation_names
from tasks.outbox import send
from tasks.preflight import open_job
from tasks.score import evaluate, score
from tasks.solve import solve
from tasks.train import train
from tasks.value import appraise
from tasks.verdict import judge
from tasks.versions import STAGES


def extend(job: Job) -> None:
    """Retrain what the bank lacks."""
    extend_bank.map(unmapped(job), pending_chunks(job)).result()


def featurize(job: Job) -> None:
    """Sketch the gradients that are not sketched yet."""
    shards, total = pending_features(job)
    featurize_shard.map(unmapped(job), shards, unmapped(total)).result()


def each(step: Callable[..., object], names: Callable[[Job], list[str]]) -> Callable[[Job], None]:
    """A step that does one thing after another, by name."""

    def do(job: Job) -> None:
        for name in names(job):
            step(job, name)

    return do


# What the stages do, in the order of `STAGES` but for the first: the rows name all the others.
STEPS: tuple[Callable[[Job], object], ...] = (
    train,
    extend,
    featurize,
    each(score, attribution_names),
    each(evaluate, attribution_names),
    each(solve, decision_names),
    each(judge, decision_names),
    each(appraise, valuation_names),
    commit,
    send,
)


@flow(name="curate")
def curate(
    spec: str,
    workspace: str | None = None,
    refresh: list[str] | None = None,
    only: str | None = None,
) -> None:
    """Score the training rows, choose which to keep, prove it by retraining, and record it all.

    Args:
        spec: Path of the TOML spec.
        workspace: Folder of results; by default `.winnow` beside the spec.
        refresh: Stages to do again although they are done.
        only: Stop after this stage.
    """
    job = open_job(spec, workspace)
    # A flow has one runner for its tasks, and here only the spec knows which.
    stages.with_options(task_runner=task_runner(compute_of(job)))(job, refresh or [], only)


@flow(name="stages")
def stages(job: Job, refresh: list[str], only: str | None) -> None:
    """Make what is missing, stage by stage; remove first what is to be made again."""
    with recording_job(job):
        discard(job, [stage for stage in refresh if stage == "data"])
        job = ingest_rows(job)
        discard(job, refresh)
        for step in STEPS[: STAGES.index(only or STAGES[-1])]:
            step(job)
