"""The retrain bank: many models on subsets of the training rows, trained as one, chunk by chunk.

A chunk seals the logits of its models on every test row, and the weights of those models that an
attribution reads as checkpoints. `outputs_of` is how everything else sees the bank.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.manifest import Manifest
from tasks.blueprint import VERSIONS, Blueprint, IntArray
from tasks.job import Job, blueprint
from tasks.progress import advance

if TYPE_CHECKING:
    from attribution.bank import RetrainBank
    from attribution.training import TrainedModels

STAGE = "bank"
LOGITS_FILE = "logits.npy"
STATES_FILE = "states.safetensors"


@task(name="extend bank", cache_policy=NO_CACHE)
def extend_bank(job: Job, chunk: int) -> Manifest:
    """Train one chunk of the bank, unless it is sealed."""
    plan = blueprint(job)
    key = plan.bank.keys[chunk]
    manifest = plan.artifacts.find(STAGE, key) or _train_chunk(plan, chunk, key)
    advance(STAGE, plan.count_done(STAGE, key), len(plan.bank.keys))
    return manifest


def pending_chunks(job: Job) -> list[int]:
    """Numbers of the chunks that are not sealed yet."""
    plan = blueprint(job)
    sealed = [plan.artifacts.find(STAGE, key) is not None for key in plan.bank.keys]
    for chunk in np.flatnonzero(sealed):
        plan.count_done(STAGE, plan.bank.keys[chunk])
    return [chunk for chunk, done in enumerate(sealed) if not done]


def _train_chunk(plan: Blueprint, chunk: int, key: str) -> Manifest:
    from safetensors.torch import save_file

    rows, bank = plan.bank.chunks[chunk], plan.bank
    trained, logits = retrain(plan, bank.masks[rows], bank.seeds[rows])
    kept = np.flatnonzero(np.isin(rows, plan.bank.kept(rows)))
    inputs = {"model": plan.model_digest, "recipe": plan.recipe_digest}
    with plan.artifacts.seal(STAGE, key, version=VERSIONS[STAGE], inputs=inputs) as draft:
        draft.facts |= {
            "models": len(rows),
            "retrainings": [plan.bank.ids[row] for row in rows],
            "path": trained.path,
        }
        np.save(draft.path / LOGITS_FILE, logits)
        if len(kept):
            states = {name: values[kept].contiguous() for name, values in trained.states.items()}
            save_file(states, draft.path / STATES_FILE)
    return draft.manifest


def retrain(
    plan: Blueprint, masks: NDArray[np.bool_], seeds: IntArray
) -> "tuple[TrainedModels, NDArray[np.float32]]":
    """Train a model on each mask; also their logits on every test row [m, n_test, n_outputs]."""
    from attribution.bank import train_bank_models

    train, test = plan.dataset.train, plan.dataset.test
    return train_bank_models(
        plan.build_model,
        (np.array(train.inputs), train.targets),
        eval_inputs=np.array(test.inputs),
        masks=masks,
        seeds=seeds,
        training=plan.training(),
        task=plan.dataset.facts.task,
        device=plan.spec.compute.device,
        memory=plan.spec.compute.memory_bytes,
    )


def outputs_of(
    plan: Blueprint, logits: NDArray[np.float32], ids: IntArray, output: str
) -> NDArray[np.float32]:
    """An output of retrained models on some test rows: float32 [m, len(ids)]."""
    import torch

    from attribution.outputs import of_examples

    places = plan.dataset.positions(ids) - plan.n_train
    targets = torch.from_numpy(plan.dataset.test.targets[places])
    chosen = torch.from_numpy(np.ascontiguousarray(logits[:, places]))
    repeated = targets.repeat(len(chosen), *[1] * (targets.ndim - 1))
    flat = of_examples(output, chosen.flatten(0, 1), repeated)
    return flat.reshape(len(chosen), len(places)).numpy()


def open_bank(plan: Blueprint, kind: str, ids: IntArray, output: str) -> "RetrainBank":
    """The rows of one kind, observed on some test rows."""
    from attribution.bank import RetrainBank

    logits: list[NDArray[np.float32]] = []
    for rows, key in zip(plan.bank.chunks, plan.bank.keys, strict=True):
        inside = plan.bank.kinds[rows] == kind
        if inside.any():
            folder = plan.artifacts.folder(plan.sealed(STAGE, key))
            logits.append(np.load(folder / LOGITS_FILE, mmap_mode="r")[inside])
    chosen = plan.bank.rows(kind)
    return RetrainBank(
        masks=plan.bank.masks[chosen],
        outputs=outputs_of(plan, np.concatenate(logits), ids, output),
        seeds=plan.bank.seeds[chosen],
        alpha=plan.bank.alpha[chosen],
        kinds=plan.bank.kinds[chosen],
        output=output,
    )
