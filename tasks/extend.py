"""Explicit acts that change what the bank holds from now on: draw, adopt or choose retrainings.

An act is sealed first and its models are trained afterwards, so whatever kills it, the next run or
the same act again goes on. Nothing else ever enlarges a bank.
"""

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.manifest import Manifest
from tasks.bank_design import appraised, chosen_next, is_to_choose
from tasks.bank_extension import (
    models_to_draw,
    record_adoption,
    record_models,
    rows_to_adopt,
)
from tasks.job import Job, blueprint
from tasks.preflight import ingested, open_job


@task(name="draw models", cache_policy=NO_CACHE)
def draw_models(job: Job, models: int) -> Manifest | None:
    """Seal that the bank holds so many drawn models; None where an earlier act did."""
    plan = blueprint(job)
    wanted = models_to_draw(plan, models)
    return record_models(plan, wanted) if wanted > plan.retraining.extension.models else None


@task(name="adopt verdicts", cache_policy=NO_CACHE)
def adopt_verdicts(job: Job) -> Manifest:
    """Seal that the bank calibrates on the models that verdicts have compared so far."""
    plan = blueprint(job)
    return record_adoption(plan, rows_to_adopt(plan))


@task(name="choose next", cache_policy=NO_CACHE)
def choose_next(job: Job, count: int) -> Manifest | None:
    """Seal the subsets that are expected to tell most; None where a killed act goes on."""
    plan = blueprint(job)
    return chosen_next(plan, count) if is_to_choose(plan, count) else None


@task(name="appraise", cache_policy=NO_CACHE)
def appraise(job: Job) -> Manifest:
    """Say what the last act's subsets, trained by now, did to the surrogate."""
    return appraised(blueprint(job))


def reopened(job: Job) -> Job:
    """The job as a new one, which sees the acts that were sealed meanwhile."""
    return ingested(open_job(job.spec, job.workspace))
