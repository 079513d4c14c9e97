"""Solutions: a problem written in model outputs, with the surrogate in their place, solved."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.manifest import Manifest
from tasks.job import Job, blueprint
from tasks.problems import KINDS
from tasks.problems.shape import SOLUTION
from tasks.progress import advance


@task(name="solve", cache_policy=NO_CACHE)
def solve(job: Job, name: str) -> Manifest:
    """Answer a problem, and predict with an interval what its answer will do."""
    plan = blueprint(job)
    problem = plan.spec.decision_named(name)
    key = plan.problems.solution_key(problem) or ""
    sealed = plan.artifacts.find(SOLUTION, key)
    manifest = sealed or KINDS[problem.kind].solve(plan, problem, key)
    advance(SOLUTION, plan.count_done(SOLUTION, key), len(plan.problems.decisions), "problems")
    return manifest
