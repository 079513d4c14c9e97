"""Certified votes: how many rows a poisoner would have to change, by models of a row's cell alone.

Every model trains on its cells' rows and on nothing else of the pool, so what encodes must not come
from the pool either: columns that were standardised by the training rows are standardised anew,
from the raw values, by the test rows, which nobody who poisons training data can change.
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import InfeasibleProblem
from schemas.manifest import Manifest
from store.artifacts import artifact_key
from tasks.bank import accuracy_of, logits_of, retrained
from tasks.blueprint import Blueprint
from tasks.ingest import SCALING_FILE, columns_of, standardised
from tasks.intake.sources import read_rows
from tasks.progress import advance

STAGE, VERSION = "votes", 1
RADII_FILE = "radii.npy"
# Models of all rows beside which the votes are read.
WHOLE = 3


def votes_key(plan: Blueprint, models: int, spread: int, judged: str) -> str:
    """Key of the votes of so many models on a set of test rows."""
    rows = [plan.data.digests[place] for place in plan.dataset.positions(plan.sets.ids(judged))]
    return artifact_key(STAGE, VERSION, plan.training.digest, models, spread, rows, plan.spec.seed)


def check_votes(plan: Blueprint, models: int, spread: int) -> None:
    """Refuse what cannot vote.

    Raises:
        InfeasibleProblem: There are no classes, or more models than rows to deal to them.
    """
    task = plan.dataset.facts.task
    if task != "classification":
        raise InfeasibleProblem(f"models vote for classes, and a {task} has none")
    if models < 2 or spread < 1 or models * spread > plan.n_train:
        raise InfeasibleProblem(
            f"{models} models with spread {spread} make {models * spread} cells for "
            f"{plan.n_train:,} training rows; give 2 models or more, and a row or more for a cell"
        )


def certified_votes(plan: Blueprint, *, models: int, spread: int, judged: str) -> Manifest:
    """Seal how many test rows stay right whatever so many training rows are changed.

    Args:
        plan: The blueprint.
        models: Each sees about one in so many rows; there are models * spread.
        spread: Models that see a row: 1 is deep partition aggregation, more finite aggregation.
        judged: A set of test rows.

    Raises:
        InfeasibleProblem: As `check_votes`.
        QueryError: The set cannot be used.
    """
    from optimize.defence.partition import partition, train_votes

    check_votes(plan, models, spread)
    key = votes_key(plan, models, spread, judged)
    if known := plan.artifacts.find(STAGE, key):
        return known
    ids = plan.sets.ids(judged)
    places = plan.dataset.positions(ids)
    raw, inputs = _inputs(plan)
    own, labels = inputs[: plan.n_train], plan.dataset.train.targets
    dealt = partition((raw[: plan.n_train], labels), models, spread=spread, seed=plan.spec.seed)
    advance(STAGE, 0, dealt.n_models, "models")
    votes = train_votes(
        plan.build_model,
        (own, labels),
        dealt,
        inputs[places],
        plan.training.recipe(),
        n_classes=len(plan.dataset.classes),
        seed=plan.spec.seed,
        device=plan.spec.compute.device,
    )
    advance(STAGE, dealt.n_models, dealt.n_models, "models")
    whole = np.ones((WHOLE, plan.n_train), dtype=bool)
    names = retrained(plan, whole, np.array(plan.training.seeds(WHOLE), dtype=np.int64))
    truth = plan.dataset.targets[places]
    with plan.artifacts.seal(STAGE, key, version=VERSION) as draft:
        np.save(draft.path / RADII_FILE, np.where(votes.classes == truth, votes.radii, -1))
        draft.facts |= {
            "models": dealt.n_models,
            "spread": spread,
            "rows": plan.n_train,
            "each": float(dealt.masks.sum(axis=1).mean()),
            "judged": judged,
            "n_judged": len(ids),
            "certified": votes.certified_accuracy(truth).tolist(),
            "whole": float(accuracy_of(plan, logits_of(plan, names), ids).mean()),
        }
    return draft.manifest


def _inputs(plan: Blueprint) -> tuple[NDArray[Any], NDArray[Any]]:
    """Raw inputs of all rows, and as models are to see them; training rows first."""
    dataset, data = plan.dataset, plan.spec.data
    path = plan.artifacts.folder(plan.data.manifest) / SCALING_FILE
    if not path.exists():
        inputs = np.array(dataset.inputs)
        return inputs, inputs
    rows = read_rows(data.source, plan.loaded.source_path, columns_of(data))
    order = np.argsort(rows.example_ids, kind="stable")
    found = np.searchsorted(rows.example_ids[order], dataset.example_ids)
    raw = rows.inputs[order[found]]
    scaling = json.loads(path.read_text(encoding="utf-8"))
    test = raw[plan.n_train :].astype(np.float64)
    # Columns that keep their own scale have mean 0 and scale 1 there.
    kept = np.array(scaling["mean"]) == 0.0
    kept &= np.array(scaling["scale"]) == 1.0
    mean, scale = test.mean(axis=0), test.std(axis=0)
    scale[scale == 0.0] = 1.0
    mean[kept], scale[kept] = 0.0, 1.0
    return raw, standardised(raw, {"mean": mean, "scale": scale})
