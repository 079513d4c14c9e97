"""Tracing: which rows made the model say this, by several methods, and what retraining says of it.

Each method names its most helpful rows for each query. Where rows and queries share the name of a
fact, MRR and recall tell how many of those rows state it. Whether they are why the model says it is
asked of retraining: models that lack the rows of many queries at once, method by method, and models
that lack as many random rows, beside models of all rows.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import NotFound, ShapeError
from schemas.manifest import Manifest
from schemas.methods import FALLING
from schemas.spec import TraceSpec
from tasks.bank import read_outputs, retrained
from tasks.bank_extension import MASKS_FILE, SEEDS_FILE
from tasks.blueprint import Blueprint
from tasks.problems.shape import ALL, SOLUTION, VERDICT, arm_seeds
from tasks.score import load_scores
from tasks.texts import metadata_of
from tasks.versions import VERSIONS

if TYPE_CHECKING:
    from attribution.fact_removal import RemovalEffects

# Intp [n_methods, n_query, top], places of training rows; int64 [n_query], ids of the queries.
TOP_FILE, QUERIES_FILE = "top.npy", "queries.npy"
# Float64 [n_arms, n_judged], change of each query's output; int64 [n_judged], ids of the queries.
CHANGES_FILE, JUDGED_FILE = "changes.npy", "judged.npy"


def check(plan: Blueprint, problem: TraceSpec) -> None:
    """Refuse more rows than there are, methods of several outputs, and truth that links nothing.

    Raises:
        ShapeError: `top` is too large, or the methods explain different outputs.
        NotFound: No query shares the truth with a training row.
    """
    outputs = {name: plan.output(plan.spec.attribution_named(name)) for name in problem.uses}
    if len(set(outputs.values())) > 1:
        said = ", ".join(f"'{name}' the {output}" for name, output in outputs.items())
        raise ShapeError(f"problem '{problem.name}': {said}; let all explain one output")
    if 2 * problem.top > plan.n_train:
        raise ShapeError(
            f"problem '{problem.name}': top = {problem.top} of {plan.n_train} rows; write at most "
            "half of them"
        )
    if problem.truth is not None and not truth_of(plan, problem).any():
        raise NotFound(
            f"problem '{problem.name}': no query shares its '{problem.truth}' with a training row; "
            "name the column that holds the fact of both"
        )


def truth_of(plan: Blueprint, problem: TraceSpec) -> NDArray[np.bool_]:
    """Bool [n_query, n_train], the rows that state what a query asks for; empty values are none."""
    column = str(problem.truth)
    ids = plan.sets.ids(problem.targets)
    asked, given = (
        np.array(["" if value is None else str(value) for value in metadata_of(plan, column, side)])
        for side in (ids, plan.dataset.train.example_ids)
    )
    return (asked[:, None] == given) & (asked[:, None] != "")


def solve(plan: Blueprint, problem: TraceSpec, key: str) -> Manifest:
    """Name each method's rows for each query, and count how many state what it asks for."""
    from attribution.tracing import retrieval, top_rows_of

    check(plan, problem)
    ids = plan.sets.ids(problem.targets)
    truth = None if problem.truth is None else truth_of(plan, problem)
    top, methods = [], list[dict[str, Any]]()
    for name in problem.uses:
        scores = _helpful(plan, problem, name)
        top.append(top_rows_of(scores, problem.top, seed=plan.spec.seed))
        facts: dict[str, Any] = {"name": name, "mrr": None, "recall": None}
        if truth is not None:
            found = retrieval(scores, truth, k=problem.top, seed=plan.spec.seed)
            facts |= {"mrr": list(found.mrr), "recall": list(found.recall_at_k)}
        methods.append(facts)
    inputs = {
        name: plan.scores.key(plan.spec.attribution_named(name)) or "" for name in problem.uses
    }
    with plan.artifacts.seal(SOLUTION, key, version=VERSIONS[SOLUTION], inputs=inputs) as draft:
        np.save(draft.path / TOP_FILE, np.stack(top))
        np.save(draft.path / QUERIES_FILE, ids)
        draft.facts |= {
            "methods": methods,
            "with_truth": 0 if truth is None else int(truth.any(axis=1).sum()),
            "output": plan.output(plan.spec.attribution_named(problem.uses[0])),
        }
    return draft.manifest


def judge(plan: Blueprint, problem: TraceSpec, key: str) -> Manifest:
    """Retrain without the rows that each method names, and without random ones."""
    from attribution.fact_removal import design_removal, removal_effects
    from attribution.streams import Purpose, stream

    solution = plan.sealed(SOLUTION, plan.problems.solution_key(problem))
    folder = plan.artifacts.folder(solution)
    top, ids = np.load(folder / TOP_FILE), np.load(folder / QUERIES_FILE)
    drawn = stream(plan.spec.seed, Purpose.VERDICT, len(ids), 0, 0).permutation(len(ids))
    chosen = np.sort(drawn[: problem.judged])
    _, seeds = arm_seeds(plan, plan.spec.verdict.seeds)
    design = design_removal(
        {name: rows[chosen] for name, rows in zip(problem.uses, top, strict=True)},
        plan.n_train,
        repeats=len(seeds),
        seed=plan.spec.seed,
    )
    # All arms share the training seeds: what an initialisation does to a query is no row's effect.
    own = np.empty(len(design.masks), dtype=np.int64)
    for repeat, seed in enumerate(seeds):
        own[design.model_of[:, repeat]] = seed
    masks = np.concatenate([np.ones((len(seeds), plan.n_train), dtype=bool), design.masks])
    every = np.concatenate([seeds, own])
    names = retrained(plan, masks, every)
    output = str(solution.facts["output"])
    outputs = read_outputs(plan, names, ids[chosen], output)
    base, after = outputs[: len(seeds)], outputs[len(seeds) :]
    effects = removal_effects(design, after, base, better=-1 if output in FALLING else 1)
    arms = [
        {
            "arm": arm,
            "value": float(after[design.model_of[place], np.arange(len(chosen))].mean()),
            "change": _plain(effects.mean(arm)),
            "against_random": None if arm == design.arms[-1] else _plain(effects.difference(arm)),
            "models": int((design.arm_of == place).sum()),
        }
        for place, arm in enumerate(design.arms)
    ]
    origins = [ALL] * len(seeds) + [design.arms[arm] for arm in design.arm_of]
    inputs = {"solution": solution.key, "trained_by": plan.training.digest}
    with plan.artifacts.seal(VERDICT, key, version=VERSIONS[VERDICT], inputs=inputs) as draft:
        np.save(draft.path / MASKS_FILE, masks)
        np.save(draft.path / SEEDS_FILE, every)
        np.save(draft.path / CHANGES_FILE, np.stack([effects.per_query(a) for a in design.arms]))
        np.save(draft.path / JUDGED_FILE, ids[chosen])
        draft.facts |= {
            "arms": arms,
            "value": float(base.mean()),
            "removed": design.removed,
            "pairs": _pairs(effects, problem.uses),
            "output": output,
            "retrainings": names,
            "origins": [f"{VERDICT}:{origin}" for origin in origins],
        }
    return draft.manifest


def _helpful(plan: Blueprint, problem: TraceSpec, name: str) -> NDArray[np.float64]:
    """Scores of the targets [n_query, n_train], turned so that the most helpful rows come first."""
    attribution = plan.spec.attribution_named(name)
    scores = load_scores(plan, attribution)[plan.sets.places(problem.targets)]
    sign = -1.0 if plan.output(attribution) in FALLING else 1.0
    return sign * np.asarray(scores, dtype=np.float64)


def _pairs(effects: "RemovalEffects", names: tuple[str, ...]) -> list[dict[str, Any]]:
    """How much more queries lose by the first method's rows than by each other method's."""
    return [
        {"arm": names[0], "other": other, "difference": _plain(effects.difference(names[0], other))}
        for other in names[1:]
    ]


def _plain(triple: tuple[float, float, float]) -> list[float | None]:
    """Mean and bounds as JSON has them: bounds that nobody knows are null."""
    return [value if np.isfinite(value) else None for value in triple]
