"""Features: the sketched gradients of one checkpoint on one block of rows, sealed.

Training rows carry the gradient of the task's own output (the margin, the prediction) with the
weights that turn it into the gradient and curvature of the loss; queries carry the gradient of
the output that is asked about.
"""

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.errors import CorruptArtifact
from schemas.manifest import Manifest
from schemas.spec import AttributionSpec
from tasks.blueprint import Blueprint
from tasks.job import Job, blueprint
from tasks.progress import advance
from tasks.retrainings import STATES_FILE
from tasks.sets import IntArray
from tasks.stages.features import FeatureShard
from tasks.stages.scores import Weights, is_sketched
from tasks.train import WEIGHTS_FILE
from tasks.versions import VERSIONS

if TYPE_CHECKING:
    from torch import Tensor

    from attribution.estimators.features import Features

STAGE = "features"


@task(name="featurize", cache_policy=NO_CACHE)
def featurize_shard(job: Job, shard: FeatureShard, of: int) -> Manifest:
    """Sketch one checkpoint's gradients on one block of rows, unless it is sealed."""
    plan = blueprint(job)
    manifest = plan.artifacts.find(STAGE, shard.key) or _featurize(plan, shard)
    advance(STAGE, plan.count_done(STAGE, shard.key), of, "blocks")
    return manifest


def pending_features(job: Job) -> tuple[list[FeatureShard], int]:
    """The shards that are not sealed yet, each once, and how many there are in all."""
    plan = blueprint(job)
    shards = {
        shard.key: shard
        for attribution in plan.spec.attribution
        for shard in plan.scores.features(attribution) or ()
    }
    pending = [s for s in shards.values() if plan.artifacts.find(STAGE, s.key) is None]
    for key in shards.keys() - {shard.key for shard in pending}:
        plan.count_done(STAGE, key)
    return pending, len(shards)


def _featurize(plan: Blueprint, shard: FeatureShard) -> Manifest:
    from attribution.devices import resolve
    from attribution.estimators.features import featurize
    from attribution.outputs import task_output
    from attribution.projection import Projection

    attribution = plan.spec.attribution_named(shard.attribution)
    if not is_sketched(attribution):
        raise ValueError(f"{attribution.name} keeps no sketches")
    weights = plan.scores.weights(attribution)
    if weights is None:
        raise CorruptArtifact("a checkpoint disappeared during the run; run again to rebuild it")
    task = plan.dataset.facts.task
    if shard.side == "train":
        rows, output = plan.dataset.train, str(task_output(task))
    else:
        rows, output = plan.dataset.subset(plan.sets.scored), plan.output(attribution)
    block = slice(shard.start, shard.stop)
    started = time.monotonic()
    features = featurize(
        plan.build_model(),
        load_weights(plan, weights[shard.checkpoint]),
        (np.array(rows.inputs[block]), rows.targets[block].copy()),
        output=output,
        task=task,
        projection=Projection(**attribution.projection.model_dump()),
        seed=plan.spec.seed,
        checkpoint=shard.checkpoint,
        device=resolve(plan.spec.compute.device),
        memory=plan.spec.compute.memory_bytes,
    )
    seconds = time.monotonic() - started
    return _seal(plan, shard, features, weights[shard.checkpoint].digest, seconds)


def _seal(
    plan: Blueprint, shard: FeatureShard, features: "Features", weights: str, seconds: float
) -> Manifest:
    facts = {
        "fingerprint": features.fingerprint,
        "side": shard.side,
        "rows": len(features.sketch),
        "seconds": seconds,
    }
    with plan.artifacts.seal(
        STAGE, shard.key, version=VERSIONS[STAGE], inputs={"weights": weights}, facts=facts
    ) as draft:
        np.save(draft.path / "sketch.npy", features.sketch.cpu().numpy())
        np.save(draft.path / "residual.npy", features.residual.cpu().numpy())
        np.save(draft.path / "curvature.npy", features.curvature.cpu().numpy())
    return draft.manifest


def load_weights(plan: Blueprint, weights: Weights) -> "dict[str, Tensor]":
    """One checkpoint's parameters and buffers."""
    from safetensors.torch import load_file

    folder = plan.artifacts.folder(weights.manifest)
    if weights.manifest.stage == "bank":
        stack = load_file(folder / STATES_FILE)
        return {name: values[weights.place] for name, values in stack.items()}
    return load_file(folder / WEIGHTS_FILE)


def load_features(plan: Blueprint, attribution_name: str, side: str) -> "list[Features]":
    """The features of every checkpoint of an attribution, its shards put together in order."""
    import torch

    from attribution.estimators.features import Features

    shards = plan.scores.features(plan.spec.attribution_named(attribution_name)) or ()
    blocks: dict[int, list[Features]] = {}
    for shard in sorted(shards, key=lambda shard: (shard.checkpoint, shard.start)):
        if shard.side == side:
            manifest = plan.sealed(STAGE, shard.key)
            folder = plan.artifacts.folder(manifest)
            block = Features(
                sketch=torch.from_numpy(np.load(folder / "sketch.npy")),
                residual=torch.from_numpy(np.load(folder / "residual.npy")),
                curvature=torch.from_numpy(np.load(folder / "curvature.npy")),
                fingerprint=str(manifest.facts["fingerprint"]),
            )
            blocks.setdefault(shard.checkpoint, []).append(block)
    return [_joined(parts) for _, parts in sorted(blocks.items())]


def feature_seconds(plan: Blueprint, attribution: AttributionSpec) -> float:
    """What the sketches of an attribution took, also where it shares them with another."""
    total = 0.0
    for shard in plan.scores.features(attribution) or ():
        seconds: Any = plan.sealed(STAGE, shard.key).facts["seconds"]
        total += seconds
    return total


def take(features: "Features", places: IntArray) -> "Features":
    """Some rows of features, in this order."""
    return dataclasses.replace(
        features,
        sketch=features.sketch[places],
        residual=features.residual[places],
        curvature=features.curvature[places],
    )


def averaged(features: "Features") -> "Features":
    """One row: scores are linear in a query's sketch, so the mean sketch gives the mean score."""
    return dataclasses.replace(
        features,
        sketch=features.sketch.mean(dim=0, keepdim=True),
        residual=features.residual.mean(dim=0, keepdim=True),
        curvature=features.curvature.mean(dim=0, keepdim=True),
    )


def _joined(parts: "list[Features]") -> "Features":
    import torch

    if len(parts) == 1:
        return parts[0]
    return dataclasses.replace(
        parts[0],
        sketch=torch.cat([part.sketch for part in parts]),
        residual=torch.cat([part.residual for part in parts]),
        curvature=torch.cat([part.curvature for part in parts]),
    )
