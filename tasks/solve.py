"""Solutions: a problem written in model outputs, with the surrogate in their place, solved.

The scores of a problem are made for its own aim: the damping is the one at which the mean output
over the targets is predicted best, which is seldom the best one for single queries.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.manifest import Manifest
from schemas.methods import FALLING
from schemas.spec import ProblemSpec
from tasks.bank import open_bank
from tasks.blueprint import VERSIONS, Blueprint, IntArray, is_sketched
from tasks.featurize import averaged as mean_row
from tasks.featurize import load_features, take
from tasks.job import Job, blueprint
from tasks.preflight import check_problem, selection_bounds
from tasks.progress import advance
from tasks.score import load_scores

if TYPE_CHECKING:
    from attribution.bank import RetrainBank
    from optimize.surrogate import LinearDatamodel

STAGE = "solution"
CHOICE_FILE, UTILITY_FILE, JUDGE_FILE = "choice.npy", "utility.npy", "judge_scores.npy"
# Standard deviations; a bank of a few hundred subsets reaches three.
FAR = 3.0

FloatArray = NDArray[np.float32]


@task(name="solve", cache_policy=NO_CACHE)
def solve(job: Job, name: str) -> Manifest:
    """Choose the rows that raise the mean output over the targets most."""
    plan = blueprint(job)
    problem = next(problem for problem in plan.spec.problem if problem.name == name)
    key = plan.solution_key(problem) or ""
    manifest = plan.artifacts.find(STAGE, key) or _solve(plan, problem, key)
    advance(STAGE, plan.count_done(STAGE, key), len(plan.spec.problem))
    return manifest


def _solve(plan: Blueprint, problem: ProblemSpec, key: str) -> Manifest:
    from optimize.select import select

    check_problem(plan, problem)
    output = plan.output(plan.spec.attribution_named(problem.uses))
    judged, aimed = plan.sets.ids(plan.spec.verdict.judge_on), plan.sets.ids(problem.targets)
    target_scores, judge_scores, damping = _mean_scores(plan, problem, output)
    surrogate = surrogate_of(plan, target_scores, aimed, output)
    scale = float(surrogate.scale[0]) or 1.0
    utility = (-1.0 if output in FALLING else 1.0) * scale * target_scores.astype(np.float64)
    solution = select(utility, **selection_bounds(plan, problem))
    judge = surrogate_of(plan, judge_scores, judged, output)
    warning = _extrapolation(plan, judge_scores, solution.choice)
    inputs = {"scores": plan.scores_key(plan.spec.attribution_named(problem.uses)) or ""}
    with plan.artifacts.seal(STAGE, key, version=VERSIONS[STAGE], inputs=inputs) as draft:
        np.save(draft.path / CHOICE_FILE, solution.choice)
        np.save(draft.path / UTILITY_FILE, utility)
        np.save(draft.path / JUDGE_FILE, judge_scores)
        draft.facts |= {
            "status": str(solution.status),
            "size": solution.size,
            "value": solution.value,
            "bound": solution.bound,
            "gap": solution.gap,
            "prices": dict(solution.prices),
            "sentence": f"{solution.sentence}{warning}",
            "output": output,
            "damping": damping,
            "scale": scale,
            "predicted": predicted_change(plan, judge, solution.choice[None]),
        }
    return draft.manifest


def _mean_scores(
    plan: Blueprint, problem: ProblemSpec, output: str
) -> tuple[FloatArray, FloatArray, float]:
    from attribution.estimators.damping import tune_damping
    from attribution.estimators.trak import trak_scores

    attribution = plan.spec.attribution_named(problem.uses)
    if not is_sketched(attribution):
        return _sealed_means(plan, problem)
    train = load_features(plan, attribution.name, "train")
    queries = load_features(plan, attribution.name, "query")
    aimed = [take(part, plan.sets.places(problem.targets)) for part in queries]
    places = plan.sets.places(plan.spec.verdict.judge_on)
    judged = [take(part, places) for part in queries]
    form: dict[str, Any] = {"curvature": attribution.curvature, "average": attribution.average}
    damping = attribution.damping
    if damping == "auto":
        ids = plan.sets.ids(problem.targets)
        bank = open_bank(plan, "calibrate", ids, output)
        equal = np.full(len(ids), 1 / len(ids))
        damping = tune_damping(train, aimed, bank, aggregate=equal, **form).rho
    form |= {"leverage": attribution.leverage, "damping": damping}
    means = [
        trak_scores(train, [mean_row(part) for part in side], **form)[0] for side in (aimed, judged)
    ]
    return means[0], means[1], float(damping)


def _sealed_means(plan: Blueprint, problem: ProblemSpec) -> tuple[FloatArray, FloatArray, float]:
    """Means of the scores as they are, for methods that would have to start anew."""
    attribution = plan.spec.attribution_named(problem.uses)
    scores = load_scores(plan, attribution)
    facts: Any = plan.sealed("scores", plan.scores_key(attribution)).facts
    means = [
        scores[plan.sets.places(name)].mean(axis=0)
        for name in (problem.targets, plan.spec.verdict.judge_on)
    ]
    return means[0], means[1], float(facts["damping"] or 0.0)


def _extrapolation(plan: Blueprint, scores: FloatArray, choice: NDArray[np.bool_]) -> str:
    """A sentence where the choice is unlike every subset that the surrogate was fitted to.

    Measured by how far the sum of its scores lies from that of random rows, in standard deviations
    of the same over the bank. Beyond the bank effects need not add up.
    """
    bank = plan.bank.masks[plan.bank.rows("calibrate")]
    centred = scores.astype(np.float64) - scores.mean(dtype=np.float64)
    usual = float((bank @ centred).std())
    distance = abs(float(centred[choice].sum())) / usual if usual else 0.0
    if distance <= FAR:
        return ""
    return (
        f" It lies {distance:.0f} standard deviations from a random choice, where the bank has no "
        "subset: its predicted change is an extrapolation."
    )


def surrogate_of(
    plan: Blueprint, scores: FloatArray, ids: IntArray, output: str
) -> "LinearDatamodel":
    """The calibrated surrogate of the mean output over some test rows.

    Args:
        plan: The blueprint.
        scores: float32 [n_train], mean scores over the rows.
        ids: The rows.
        output: What is predicted.
    """
    from optimize.surrogate import calibrate

    return calibrate(scores[None], averaged(open_bank(plan, "calibrate", ids, output)))


def averaged(bank: "RetrainBank") -> "RetrainBank":
    """The bank of the mean output over all its queries, as one query.

    Errors of single queries correlate, so the mean is calibrated itself.
    """
    import dataclasses

    return dataclasses.replace(bank, outputs=bank.outputs.mean(axis=1, keepdims=True))


def predicted_change(
    plan: Blueprint, surrogate: "LinearDatamodel", masks: NDArray[np.bool_]
) -> list[float | None]:
    """Mean predicted change from all rows to some subsets, with its 95 % interval.

    It is the change of a mean over as many retrainings a side as the verdict has.

    Bounds are None where the bank cannot tell: it has one subset size, and the subsets another.
    """
    mean, sd = surrogate.predict_change(np.ones_like(masks), masks, seeds=plan.spec.verdict.seeds)
    low, high = surrogate.interval(mean, sd, confidence=0.95)
    means = (float(np.mean(part)) for part in (mean, low, high))
    return [value if np.isfinite(value) else None for value in means]
