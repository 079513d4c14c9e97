"""Scores: what each training row does to each query's output, and how far to trust it.

`score` tunes the damping on the calibration half of the bank and seals the score matrix;
`evaluate` measures it on the other half.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.manifest import Manifest
from schemas.methods import (
    AloSpec,
    Bm25Spec,
    EmbeddingSpec,
    JackknifeSpec,
    MetagradientSpec,
    SourceSpec,
)
from schemas.spec import AttributionSpec, RunMethodSpec, TrakSpec
from tasks.bank import open_bank
from tasks.blueprint import Blueprint
from tasks.featurize import feature_seconds, load_features, load_weights, take
from tasks.job import Job, blueprint
from tasks.progress import advance
from tasks.sets import IntArray
from tasks.stages.scores import is_sketched
from tasks.texts import options_of_rows
from tasks.versions import VERSIONS

if TYPE_CHECKING:
    from attribution.bank import RetrainBank
    from attribution.evaluate import LdsResult

STAGE, EVALUATION = "scores", "lds"
SCORES_FILE, EFFECTS_FILE, SELF_FILE = "scores.npy", "mean_score.npy", "self_influence.npy"
PER_QUERY_FILE = "per_query.npy"


@task(name="score", cache_policy=NO_CACHE)
def score(job: Job, name: str) -> Manifest:
    """Score every training row for every query, with the damping that the bank prefers."""
    plan = blueprint(job)
    attribution = plan.spec.attribution_named(name)
    key = plan.scores.key(attribution) or ""
    manifest = plan.artifacts.find(STAGE, key) or _score(plan, attribution, key)
    advance(STAGE, plan.count_done(STAGE, key), len(plan.spec.attribution), "attributions")
    return manifest


@task(name="evaluate", cache_policy=NO_CACHE)
def evaluate(job: Job, name: str) -> Manifest:
    """Compare an attribution's predictions with retrained models that tuned nothing."""
    plan = blueprint(job)
    attribution = plan.spec.attribution_named(name)
    key = plan.scores.lds_key(attribution) or ""
    manifest = plan.artifacts.find(EVALUATION, key) or _evaluate(plan, attribution, key)
    advance(
        EVALUATION, plan.count_done(EVALUATION, key), len(plan.spec.attribution), "attributions"
    )
    return manifest


def _score(plan: Blueprint, attribution: AttributionSpec, key: str) -> Manifest:
    from attribution.devices import resolve

    started = time.monotonic()
    if is_sketched(attribution):
        made = _sketched(plan, attribution)
    elif attribution.bank_only:
        made = _fitted(plan, attribution)
    else:
        made = _direct(plan, attribution)
    # Gradients, damping and scores, as for a method that does all in one call.
    seconds = time.monotonic() - started + feature_seconds(plan, attribution)
    with plan.artifacts.seal(STAGE, key, version=VERSIONS[STAGE]) as draft:
        np.save(draft.path / SCORES_FILE, made.scores)
        aimed = made.scores[plan.sets.places(plan.sets.tuning)]
        np.save(draft.path / EFFECTS_FILE, aimed.mean(axis=0))
        if made.self_influence is not None:
            np.save(draft.path / SELF_FILE, made.self_influence)
        draft.facts |= {
            **made.facts,
            "device": resolve(plan.spec.compute.device),
            "seconds": seconds,
            "checkpoints": plan.scores.n_checkpoints(attribution),
        }
    return draft.manifest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Made:
    """Scores [n_query, n_train], self-influence [n_train] if the method gives it, and facts."""

    scores: NDArray[np.float32]
    self_influence: NDArray[np.float32] | None
    facts: dict[str, Any]


def _sketched(plan: Blueprint, attribution: TrakSpec) -> _Made:
    from attribution.estimators.damping import tune_damping
    from attribution.estimators.trak import self_influence, trak_scores

    train = load_features(plan, attribution.name, "train")
    queries = load_features(plan, attribution.name, "query")
    form: dict[str, Any] = {"curvature": attribution.curvature, "average": attribution.average}
    damping: float | str = attribution.damping
    chosen_from = "spec"
    table: tuple[tuple[float, float], ...] = ()
    if damping == "auto":
        aimed = plan.sets.places(plan.sets.tuning)
        bank = _tuning_bank(plan, attribution)
        tuned = tune_damping(train, [take(part, aimed) for part in queries], bank, **form)
        damping, chosen_from, table = tuned.rho, tuned.chosen_from, tuned.table
    form |= {"leverage": attribution.leverage, "damping": damping}
    facts = {
        "damping": damping,
        "damping_from": chosen_from,
        "damping_table": [list(entry) for entry in table],
        "fingerprint": train[0].fingerprint,
    }
    return _Made(
        scores=trak_scores(train, queries, **form),
        self_influence=self_influence(train, **form),
        facts=facts,
    )


def _direct(plan: Blueprint, attribution: AttributionSpec) -> _Made:
    """Scores by `attribution.attribute`, for methods whose work is not kept in between."""
    from attribution import attribute

    options, common = _options(plan, attribution), _common(plan, attribution)
    states = [load_weights(plan, weights) for weights in plan.scores.weights(attribution) or ()]
    model, found = plan.build_model(), {}
    if options.get("damping") == "auto":
        # Tuned on the evaluating set alone: rows that judge a decision must choose nothing.
        aimed = _queries(plan, plan.sets.ids(plan.sets.tuning))
        bank = _tuning_bank(plan, attribution)
        tuned = attribute(
            attribution.method, model, states, queries=aimed, bank=bank, **common, **options
        )
        found = tuned.record
        options["damping"] = found["damping"]
    queries = _queries(plan, plan.sets.scored)
    scores = attribute(attribution.method, model, states, queries=queries, **common, **options)
    record = scores.record | found
    prints = record.get("fingerprint") or [None]
    facts = {
        "damping": record.get("damping"),
        "damping_from": record.get("chosen_from", "no damping"),
        "damping_table": [list(entry) for entry in record.get("damping_table", ())],
        "fingerprint": prints if isinstance(prints, str) else prints[0],
    }
    return _Made(scores=np.asarray(scores), self_influence=None, facts=facts)


def _fitted(plan: Blueprint, attribution: AttributionSpec) -> _Made:
    """Scores fitted to the bank's calibration half; each query's only to its own outputs."""
    from attribution import attribute

    ids, share = plan.sets.scored, plan.scores.fitted_share(attribution)
    bank = open_bank(plan, "calibrate", ids, plan.output(attribution))
    scores = attribute(
        attribution.method,
        None,
        None,
        queries=_queries(plan, ids),
        bank=bank if share == 1.0 else bank.split(share, plan.spec.seed)[0],
        **_common(plan, attribution),
        **attribution.options(),
    )
    record = scores.record
    facts: dict[str, Any] = {
        "damping": None,
        "damping_from": f"no damping; fitted to {record['fitted_to']}, {record['chosen_from']}",
        "damping_table": [],
        "fingerprint": None,
        "strength": record.get("strength"),
    }
    return _Made(scores=np.asarray(scores), self_influence=None, facts=facts)


def calibrating_bank(
    plan: Blueprint, attribution: AttributionSpec, ids: IntArray, *, output: str | None = None
) -> "RetrainBank":
    """What an attribution's surrogate is calibrated on, observed on some test rows.

    It is the bank's calibration half, without what the scores themselves were fitted to. The output
    is the attribution's unless another is asked for.
    """
    bank = open_bank(plan, "calibrate", ids, output or plan.output(attribution))
    share = plan.scores.fitted_share(attribution)
    return bank.split(share, plan.spec.seed)[1] if share else bank


def _common(plan: Blueprint, attribution: AttributionSpec) -> dict[str, Any]:
    rows = plan.dataset.train
    return {
        "train": (np.array(rows.inputs), rows.targets.copy()),
        "output": plan.output(attribution),
        "task": plan.dataset.facts.task,
        "device": plan.spec.compute.device,
        "seed": plan.spec.seed,
    }


def _options(plan: Blueprint, attribution: AttributionSpec) -> dict[str, Any]:
    """The spec's options, and those that follow from its recipe."""
    options, decay = attribution.options(), plan.spec.train.weight_decay
    if isinstance(attribution, RunMethodSpec) and not plan.loaded.checkpoint_paths:
        from attribution.training.recipe import exposures

        epochs = attribution.snapshots(plan.spec.train.epochs)
        options["weights"] = exposures(plan.training.recipe(), plan.n_train, epochs)
    if isinstance(attribution, SourceSpec):
        options["weight_decay"] = decay
    if isinstance(attribution, Bm25Spec | EmbeddingSpec):
        options |= options_of_rows(plan, attribution)
    if isinstance(attribution, AloSpec | JackknifeSpec):
        options |= {} if "ridge" in options else {"weight_decay": decay}
    if isinstance(attribution, MetagradientSpec):
        options["training"] = plan.training.recipe()
        options["seeds"] = plan.training.checkpoint_seeds[: attribution.runs]
    return options


def _queries(plan: Blueprint, ids: IntArray) -> tuple[NDArray[Any], NDArray[Any]]:
    rows = plan.dataset.subset(ids)
    return np.array(rows.inputs), rows.targets


def _tuning_bank(plan: Blueprint, attribution: AttributionSpec) -> "RetrainBank":
    return open_bank(plan, "calibrate", plan.sets.ids(plan.sets.tuning), plan.output(attribution))


def _evaluate(plan: Blueprint, attribution: AttributionSpec, key: str) -> Manifest:
    from attribution.evaluate import lds

    scores = load_scores(plan, attribution)[plan.sets.places(plan.sets.tuning)]
    bank = open_bank(plan, "evaluate", plan.sets.ids(plan.sets.tuning), plan.output(attribution))
    result = lds(scores, bank, seed=plan.spec.seed)
    rows = [{"alpha": None, **_facts(result)}]
    if len(result.by_alpha) > 1:
        rows += [{"alpha": alpha, **_facts(part)} for alpha, part in result.by_alpha.items()]
    inputs = {"scores": plan.scores.key(attribution) or ""}
    with plan.artifacts.seal(EVALUATION, key, version=VERSIONS[EVALUATION], inputs=inputs) as draft:
        draft.facts |= {"rows": rows}
        np.save(draft.path / PER_QUERY_FILE, result.per_query)
    return draft.manifest


def _facts(result: "LdsResult") -> dict[str, float | int | None]:
    low, high = result.interval
    return {
        "mean": result.mean,
        "low": low,
        "high": high,
        "ceiling": result.ceiling,
        "relative": result.relative,
        "null_sd": result.null_sd,
        "n_masks": result.n_masks,
        "n_seeds": result.n_seeds,
        "n_queries": len(result.per_query),
    }


def load_scores(plan: Blueprint, attribution: AttributionSpec) -> NDArray[np.float32]:
    """The score matrix [n_query, n_train] of an attribution, memory-mapped."""
    manifest = plan.sealed(STAGE, plan.scores.key(attribution))
    return np.load(plan.artifacts.folder(manifest) / SCORES_FILE, mmap_mode="r")
