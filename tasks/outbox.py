"""Sends a committed run to MLflow with its pictures, and seals the receipt.

The ledger comes first; a server that is away fails this stage only, and the next run sends again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from schemas.manifest import Manifest
from tasks.aiming import made_for, predictor
from tasks.bank import open_bank
from tasks.bank_extension import MASKS_FILE
from tasks.blueprint import Blueprint
from tasks.job import Job, blueprint
from tasks.problems.poison import DRAWS_FILE
from tasks.problems.shape import CHOICE_FILE, SOLUTION, UTILITY_FILE, VERDICT
from tasks.problems.unlearn import JUDGED_FILE, OBSERVED_FILE
from tasks.progress import advance
from tasks.reporting import figures, unlearning_figures
from tasks.reporting.bakeoff import Contender, bake_off
from tasks.reporting.curve_figures import size_curve
from tasks.reporting.forgetting import from_facts
from tasks.reporting.gallery import gallery
from tasks.reporting.gathering import arm_of
from tasks.reporting.judgement import LIKELIHOODS, arms_title
from tasks.reporting.poisoning_figures import damage_by_budget
from tasks.reporting.tracking import log_run
from tasks.requests import CERTIFICATE_FILE
from tasks.run_tables import arm_rows
from tasks.score import PER_QUERY_FILE
from tasks.versions import VERSIONS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from schemas.spec import AttributionSpec, PoisonSpec, SelectSpec, UnlearnSpec

STAGE = "tracking"
SHOWN = 16
FloatArray = NDArray[Any]


@task(name="track", cache_policy=NO_CACHE)
def send(job: Job) -> Manifest:
    """Log the committed run to MLflow, unless it has been."""
    plan = blueprint(job)
    key = plan.tracking_key() or ""
    manifest = plan.artifacts.find(STAGE, key) or _send(plan, key)
    advance(STAGE, 1, 1)
    return manifest


def _send(plan: Blueprint, key: str) -> Manifest:
    receipt = log_run(
        plan.workspace.published,
        plan.workspace,
        plan.run_id(),
        plan.loaded.text,
        uri=plan.spec.tracking.uri,
        figures=pictures(plan),
        files=certificates(plan),
        flow_run=str(flow_run.get_id() or "") or None,
    )
    version = VERSIONS[STAGE]
    with plan.artifacts.seal(STAGE, key, version=version, facts=receipt) as draft:
        pass
    return draft.manifest


def pictures(plan: Blueprint) -> "dict[str, Figure]":
    """The figures of a run by name.

    LDS of each attribution, the bake-off of several, three to five of each selection, two of each
    unlearning, one of each poisoning.
    """
    drawn = {f"lds-{entry.name}": _lds_figure(plan, entry) for entry in plan.spec.attribution}
    if len(plan.spec.attribution) > 1:
        drawn["bake-off"] = bake_off([_contender(plan, each) for each in plan.spec.attribution])
    for problem in plan.spec.selections:
        drawn |= {f"{problem.name}-{name}": each for name, each in _answer(plan, problem).items()}
    for forgotten in _unlearnings(plan):
        for name, each in _forgetting(plan, forgotten).items():
            drawn[f"{forgotten.name}-{name}"] = each
    for poisoning in plan.spec.poisonings:
        drawn[f"{poisoning.name}-damage"] = _damage(plan, poisoning)
    return drawn


def certificates(plan: Blueprint) -> dict[str, Path]:
    """The certificate of each problem that made models forget, by the folder it is kept in."""
    found = {}
    for problem in _unlearnings(plan):
        verdict = plan.sealed(VERDICT, plan.problems.verdict_key(problem))
        place = plan.artifacts.folder(verdict) / CERTIFICATE_FILE
        found[f"certificates/{problem.name}"] = place
    return found


def _unlearnings(plan: Blueprint) -> "list[UnlearnSpec]":
    return [problem for problem in plan.spec.unlearnings if problem in plan.problems.decisions]


def _forgetting(plan: Blueprint, problem: "UnlearnSpec") -> "dict[str, Figure]":
    solution = plan.sealed(SOLUTION, plan.problems.solution_key(problem))
    verdict = plan.sealed(VERDICT, plan.problems.verdict_key(problem))
    predicted, _ = np.load(plan.artifacts.folder(solution) / JUDGED_FILE)
    observed = np.load(plan.artifacts.folder(verdict) / OBSERVED_FILE)
    found, output = from_facts(verdict.facts), str(verdict.facts["output"])
    return {
        "changes": unlearning_figures.changes(predicted, observed, found, output=output),
        "distances": unlearning_figures.distances(found),
    }


def _damage(plan: Blueprint, problem: "PoisonSpec") -> "Figure":
    verdict = plan.sealed(VERDICT, plan.problems.verdict_key(problem))
    solution: Any = plan.sealed(SOLUTION, plan.problems.solution_key(problem)).facts
    said: Any = verdict.facts
    draws = pl.read_parquet(plan.artifacts.folder(verdict) / DRAWS_FILE)
    return damage_by_budget(solution["curve"], said["budgets"], draws, output=said["output"])


def _lds_figure(plan: Blueprint, attribution: "AttributionSpec") -> "Figure":
    manifest = plan.sealed("lds", plan.scores.lds_key(attribution))
    rows: Any = manifest.facts["rows"]
    per_query = np.load(plan.artifacts.folder(manifest) / PER_QUERY_FILE)
    mean = (rows[0]["mean"], rows[0]["low"], rows[0]["high"])
    return figures.lds_per_query(per_query, mean=mean, ceiling=rows[0]["ceiling"])


def _contender(plan: Blueprint, attribution: "AttributionSpec") -> Contender:
    rows: Any = plan.sealed("lds", plan.scores.lds_key(attribution)).facts["rows"]
    seconds: Any = plan.sealed("scores", plan.scores.key(attribution)).facts["seconds"]
    return Contender(
        name=attribution.name,
        seconds=seconds,
        lds=(rows[0]["mean"], rows[0]["low"], rows[0]["high"]),
        ceiling=rows[0]["ceiling"],
    )


def _answer(plan: Blueprint, problem: "SelectSpec") -> "dict[str, Figure]":
    arms, output = _arms(plan, problem, "accuracy", "value")
    logprobs, _ = _arms(plan, problem, "logprob")
    verdict = plan.sealed(VERDICT, plan.problems.verdict_key(problem))
    said = arms_title([arm_of(row) for row in arm_rows(verdict)])
    predicted, observed, groups, points = _against_observed(plan, problem, arms, output)
    measure = "accuracy" if plan.dataset.classes else output
    drawn = {
        "arms": figures.arms(
            arms,
            title=said,
            measure=measure,
            logprobs=None if output in LIKELIHOODS else logprobs,
        ),
        "predicted": figures.predicted_against_observed(
            predicted, observed, output=output, groups=groups, arms=points
        ),
    }
    curve: Any = plan.sealed("solution", plan.problems.solution_key(problem)).facts.get("curve")
    if curve:
        drawn["size"] = size_curve(curve)
    if plan.dataset.facts.n_tokens:  # token numbers are nothing to look at
        return drawn
    inputs, captions = _worst(plan, problem)
    features = plan.dataset.facts.features or None
    title = f"The {len(inputs)} rows it would drop first"
    drawn["gallery"] = gallery(inputs, captions, feature_names=features, title=title)
    if measure == "accuracy":
        drawn["overview"] = figures.hero(
            inputs,
            captions,
            arms,
            predicted,
            observed,
            output=output,
            groups=groups,
            points=points,
            arms_title=said,
            feature_names=features,
        )
    return drawn


def _arms(
    plan: Blueprint, problem: "SelectSpec", *measures: str
) -> tuple[dict[str, figures.Interval], str]:
    """The first of some measures that each arm has, for those that have one; and the output."""
    facts = plan.sealed("verdict", plan.problems.verdict_key(problem)).facts
    records: Any = facts["arms"]
    found = {arm["arm"]: next(filter(None, map(arm.get, measures)), None) for arm in records}
    return {arm: tuple(each) for arm, each in found.items() if each}, str(facts["output"])


def _against_observed(
    plan: Blueprint, problem: "SelectSpec", arms: Mapping[str, figures.Interval], output: str
) -> tuple[FloatArray, FloatArray, list[str], dict[str, tuple[float, float]]]:
    """The mean output on the judging rows: of the models that only evaluate, and of each arm."""
    ids = plan.sets.ids(plan.spec.verdict.judge_on)
    verdict = plan.sealed("verdict", plan.problems.verdict_key(problem))
    surrogate = predictor(plan, problem, plan.spec.verdict.judge_on, made_for(plan, problem))
    bank = open_bank(plan, "evaluate", ids, output)
    masks = np.load(plan.artifacts.folder(verdict) / MASKS_FILE).reshape(
        len(arms), -1, plan.n_train
    )
    records: Any = verdict.facts["arms"]
    points = {
        arm["arm"]: (float(surrogate.expect(subsets).mean()), float(arm["value"][0]))
        for arm, subsets in zip(records, masks, strict=True)
    }
    sizes = bank.masks.mean(axis=1)
    groups = [f"{share:.0%} of the rows" for share in sizes]
    return surrogate.expect(bank.masks)[:, 0], bank.outputs.mean(axis=1), groups, points


def _worst(plan: Blueprint, problem: "SelectSpec") -> tuple[FloatArray, list[str]]:
    """The most harmful of the dropped rows, and a caption for each."""
    solution = plan.sealed("solution", plan.problems.solution_key(problem))
    folder, rows = plan.artifacts.folder(solution), plan.dataset.train
    harm = np.where(np.load(folder / CHOICE_FILE), np.inf, np.load(folder / UTILITY_FILE))
    worst = [row for row in np.argsort(harm, kind="stable")[:SHOWN] if np.isfinite(harm[row])]
    names = plan.dataset.classes
    captions = []
    for row in worst:
        said, true = rows.targets[row], rows.true_targets[row]
        label = names[said] if names else f"{said:.3g}"
        wrong = f", truly {names[true] if names else true}" if said != true else ""
        captions.append(f"{label}{wrong}")
    return np.asarray(rows.inputs)[worst], captions
