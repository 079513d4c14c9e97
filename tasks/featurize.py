"""Features: the sketched gradients of one checkpoint on one block of rows, sealed.

Training rows carry the gradient of the task's own output (the margin, the prediction) with the
weights that turn it into the gradient and curvature of the loss; queries carry the gradient of
the output that is asked about.
"""

from typing import TYPE_CHECKING

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.errors import CorruptArtifact
from schemas.manifest import Manifest
from tasks.bank import STATES_FILE
from tasks.blueprint import VERSIONS, Blueprint, FeatureShard, Job, Weights, blueprint
from tasks.progress import advance
from tasks.train import WEIGHTS_FILE

if TYPE_CHECKING:
    from torch import Tensor

    from attribution.estimators.trak import Features

STAGE = "features"


@task(name="featurize", cache_policy=NO_CACHE)
def featurize_shard(job: Job, shard: FeatureShard, of: int) -> Manifest:
    """Sketch one checkpoint's gradients on one block of rows, unless it is sealed."""
    plan = blueprint(job)
    manifest = plan.artifacts.find(STAGE, shard.key) or _featurize(plan, shard)
    advance(STAGE, plan.count_done(STAGE, shard.key), of)
    return manifest


def pending_features(job: Job) -> tuple[list[FeatureShard], int]:
    """The shards that are not sealed yet, each once, and how many there are in all."""
    plan = blueprint(job)
    shards = {
        shard.key: shard
        for attribution in plan.spec.attribution
        for shard in plan.features(attribution) or ()
    }
    pending = [s for s in shards.values() if plan.artifacts.find(STAGE, s.key) is None]
    for key in shards.keys() - {shard.key for shard in pending}:
        plan.count_done(STAGE, key)
    return pending, len(shards)


def _featurize(plan: Blueprint, shard: FeatureShard) -> Manifest:
    from attribution.estimators.trak import featurize

    attribution = plan.spec.attribution_named(shard.attribution)
    weights = plan.weights(attribution)
    if weights is None:
        raise CorruptArtifact("a checkpoint disappeared during the run; run again to rebuild it")
    if shard.side == "train":
        rows, output = plan.dataset.train, None
    else:
        rows, output = plan.dataset.subset(plan.scored_ids), plan.output(attribution)
    block = slice(shard.start, shard.stop)
    features = featurize(
        plan.build_model(),
        load_weights(plan, weights[shard.checkpoint]),
        (np.asarray(rows.inputs[block]), rows.targets[block]),
        output=output,
        task=plan.dataset.facts.task,
        projection=attribution.projection.model_dump(),
        seed=plan.spec.seed,
        checkpoint=shard.checkpoint,
        device=plan.spec.compute.device,
    )
    return _seal(plan, shard, features, weights[shard.checkpoint].digest)


def _seal(plan: Blueprint, shard: FeatureShard, features: "Features", weights: str) -> Manifest:
    facts = {"fingerprint": features.fingerprint, "side": shard.side, "rows": len(features.sketch)}
    with plan.artifacts.seal(
        STAGE, shard.key, version=VERSIONS[STAGE], inputs={"weights": weights}, facts=facts
    ) as draft:
        np.save(draft.path / "sketch.npy", features.sketch)
        np.save(draft.path / "residual.npy", features.residual)
        np.save(draft.path / "curvature.npy", features.curvature)
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
    from attribution.estimators.trak import Features

    shards = plan.features(plan.spec.attribution_named(attribution_name)) or ()
    blocks: dict[int, list[Features]] = {}
    for shard in sorted(shards, key=lambda shard: (shard.checkpoint, shard.start)):
        if shard.side == side:
            manifest = plan.sealed(STAGE, shard.key)
            folder = plan.artifacts.folder(manifest)
            block = Features(
                sketch=np.load(folder / "sketch.npy", mmap_mode="r"),
                residual=np.load(folder / "residual.npy"),
                curvature=np.load(folder / "curvature.npy"),
                fingerprint=str(manifest.facts["fingerprint"]),
            )
            blocks.setdefault(shard.checkpoint, []).append(block)
    return [Features.joined(parts) for _, parts in sorted(blocks.items())]
