"""Exact unrolling as an estimator: one training run for each seed, differentiated.

    tau[q, i] = mean over seeds of df_q / dw_i,

w_i the weight of row i in every step of the run (`attribution.metagradient`). With the seed of one
model it explains that very model; with several, what training does on average. It trains its own
models and reads no checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribution.estimators.request import Clock, Record, Request, open_sink
from attribution.metagradient import metagradient
from attribution.streams import checked_seed
from attribution.training import Recipe
from schemas.errors import ShapeError

QUERY_BLOCK = 512


def estimate(
    request: Request,
    *,
    training: Recipe | Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    segment: int | None = None,
    block: int | None = None,
) -> tuple[NDArray[np.float32], Record]:
    """Derivatives of the outputs with respect to the rows' weights, averaged over runs.

    Args:
        request: What is asked; its checkpoints are not read.
        training: The recipe (a `Recipe` or its arguments) by which the model is trained.
        seeds: Of the runs, those of the models to be explained; by default the request's seed.
        segment: Steps between kept states; sqrt(T) by default.
        block: Outputs in one pass; as many as fit the memory by default.
    """
    if training is None:
        raise ShapeError("metagradient trains the model itself; give training=, its Recipe")
    recipe = training if isinstance(training, Recipe) else Recipe(**training)
    chosen = [checked_seed(seed) for seed in ([request.seed] if seeds is None else seeds)]
    if not chosen:
        raise ShapeError("seeds is empty; give the seed of one run or more")
    train = request.train.whole()
    target, send = open_sink(request.out, len(request.queries), len(request.train))
    clock = Clock()
    scores = np.zeros((len(request.queries), len(request.train)))
    for seed in chosen:
        found = metagradient(
            request.model,
            train,
            request.queries,
            training=recipe,
            seed=seed,
            output=request.output,
            task=request.task,
            device=request.device,
            dtype=request.dtype,
            segment=segment,
            block=block,
        )
        scores += found.scores / len(chosen)
    clock.stop("unroll")
    for start in range(0, len(scores), QUERY_BLOCK):
        rows = slice(start, min(start + QUERY_BLOCK, len(scores)))
        send(rows, scores[rows].astype(np.float32))
    record = {
        "damping": None,
        "chosen_from": "there is nothing to damp",
        "fingerprint": [f"unrolled:seed={seed}" for seed in chosen],
        "options": {"training": asdict(recipe), "seeds": chosen},
        "steps": found.steps,
        "states_held": found.states_held,
        "passes": found.passes,
        "seconds": clock.seconds,
    }
    return target, record
