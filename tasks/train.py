"""Checkpoints: models trained on all training rows, or the user's own weights, sealed one by one.

All missing seeds are trained as one stack. The state of an interrupted training is kept beside the
artifacts and taken up again; it is removed when the checkpoints are sealed.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.frozen import digest_of
from schemas.manifest import Manifest
from tasks.blueprint import Blueprint
from tasks.intake.checkpoints import read_checkpoint
from tasks.job import Job, blueprint
from tasks.progress import advance
from tasks.versions import VERSIONS

if TYPE_CHECKING:
    from torch import Tensor

    from attribution.training import TrainingState

STAGE = "checkpoints"
WEIGHTS_FILE = "model.safetensors"
# Keeping the state of a stack costs milliseconds for a small one; once in so long costs nothing.
KEEP_EVERY_SECONDS = 15.0


@task(name="train", cache_policy=NO_CACHE)
def train(job: Job) -> tuple[Manifest, ...]:
    """Train the checkpoints that are missing, all as one, or read the user's own."""
    plan = blueprint(job)
    if plan.training.snapshots:
        _train_run(plan)
    if not plan.training.needs_checkpoints and not plan.loaded.checkpoint_paths:
        return ()
    missing = [
        place
        for place, key in enumerate(plan.training.checkpoint_keys)
        if plan.artifacts.find(STAGE, key) is None
    ]
    if missing and plan.loaded.checkpoint_paths:
        _adopt(plan, missing)
    elif missing:
        _train(plan, missing)
    found = (plan.artifacts.find(STAGE, key) for key in plan.training.checkpoint_keys)
    return tuple(manifest for manifest in found if manifest)


def _train_run(plan: Blueprint) -> None:
    """Train the first checkpoint once more where snapshots of its run are missing."""
    from attribution.training import train_models

    keys = plan.training.snapshots
    missing = [epoch for epoch, key in keys.items() if plan.artifacts.find(STAGE, key) is None]
    if not missing:
        return
    rows = plan.dataset.train
    trained = train_models(
        plan.build_model,
        (np.array(rows.inputs), rows.targets),
        masks=np.ones((1, len(rows)), dtype=bool),
        seeds=[plan.training.checkpoint_seeds[0]],
        training=plan.training.recipe(),
        task=plan.dataset.facts.task,
        device=plan.spec.compute.device,
        snapshot_epochs=missing,
    )
    for done, epoch in enumerate(missing):
        state = {name: values[0] for name, values in trained.snapshots[epoch].items()}
        _seal(plan, keys[epoch], state, {"epoch": epoch, "rows": len(rows)})
        advance(STAGE, done + 1, len(missing), "snapshots")


def _adopt(plan: Blueprint, missing: list[int]) -> None:
    model = plan.build_model()
    for done, place in enumerate(missing):
        path = plan.loaded.checkpoint_paths[place]
        state = read_checkpoint(path, model)
        _seal(plan, plan.training.checkpoint_keys[place], state, {"source": path.name})
        advance(STAGE, done + 1, len(missing), "models")


def _train(plan: Blueprint, missing: list[int]) -> None:
    from attribution.training import train_models

    rows, epochs = plan.dataset.train, plan.spec.train.epochs
    masks = np.ones((len(missing), len(rows)), dtype=bool)
    advance(STAGE, 0, epochs, "epochs")
    with _kept_state(plan, missing) as (resume, keep):
        trained = train_models(
            plan.build_model,
            (np.array(rows.inputs), rows.targets),
            masks=masks,
            seeds=[plan.training.checkpoint_seeds[place] for place in missing],
            training=plan.training.recipe(),
            task=plan.dataset.facts.task,
            device=plan.spec.compute.device,
            memory=plan.spec.compute.memory_bytes,
            resume=resume,
            on_epoch=keep,
        )
        for stacked, place in enumerate(missing):
            state = trained.state(stacked)
            facts = {
                "seed": plan.training.checkpoint_seeds[place],
                "rows": len(rows),
                "rows_digest": plan.data.train_digest,
                "loss": float(trained.losses[stacked]),
                "path": trained.path,
            }
            _seal(plan, plan.training.checkpoint_keys[place], state, facts)


@contextmanager
def _kept_state(
    plan: Blueprint, missing: list[int]
) -> "Iterator[tuple[TrainingState | None, Callable[[int, TrainingState], None]]]":
    """The state that an interrupted training left, and what keeps the state of this one."""
    from attribution.training import load_state, save_state

    name = digest_of([plan.training.checkpoint_keys[place] for place in missing])
    path = plan.workspace.artifacts / "unfinished" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = time.monotonic()

    def keep(epoch: int, state: "TrainingState") -> None:
        nonlocal kept
        advance(STAGE, epoch, plan.spec.train.epochs, "epochs")
        if time.monotonic() - kept >= KEEP_EVERY_SECONDS:
            save_state(state, path)
            kept = time.monotonic()

    yield load_state(path) if path.exists() else None, keep
    path.unlink(missing_ok=True)


def _seal(
    plan: Blueprint, key: str, state: Mapping[str, "Tensor"], facts: Mapping[str, object]
) -> None:
    from safetensors.torch import save_file

    inputs = {"model": plan.training.model_digest, "recipe": plan.training.recipe_digest}
    with plan.artifacts.seal(
        STAGE, key, version=VERSIONS[STAGE], inputs=inputs, facts=facts
    ) as draft:
        tensors = {name: value.contiguous().clone() for name, value in state.items()}
        save_file(tensors, draft.path / WEIGHTS_FILE)
