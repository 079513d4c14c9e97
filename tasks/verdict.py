"""Verdicts: an answer and its rivals, retrained and compared on rows that the solver never saw."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.manifest import Manifest
from tasks.job import Job, blueprint
from tasks.problems import KINDS
from tasks.problems.shape import VERDICT
from tasks.progress import advance


@task(name="verdict", cache_policy=NO_CACHE)
def judge(job: Job, name: str) -> Manifest:
    """Retrain on the answer and on its rivals, and say whether the prediction held."""
    plan = blueprint(job)
    problem = plan.spec.decision_named(name)
    key = plan.problems.verdict_key(problem) or ""
    sealed = plan.artifacts.find(VERDICT, key)
    manifest = sealed or KINDS[problem.kind].judge(plan, problem, key)
    advance(VERDICT, plan.count_done(VERDICT, key), len(plan.problems.decisions), "problems")
    return manifest
