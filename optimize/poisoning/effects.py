"""What training on (x, y) would do to a weighted sum of outputs, for every label y at once.

For weights w [q] the TRAK score of an example (x, y) is tau(x, y) = (1 - p_y) grad f_y(x) . d with
one direction d = P K^-1 sum_q w_q phi_q in the space of the parameters. Since
(1 - p_y) grad f_y = grad log p_y, one Jacobian-vector product u = J_x d gives all classes:

    tau(x, y) = u_y - sum_c p_c u_c,     tau(x, y') - tau(x, y) = u_y' - u_y.

The second is what moving a label does; K and the parameters are those of the clean rows, and there
is no leverage, since the curvature of a row does not depend on its label. Nothing of size
[q, n, K] exists. The unit is the output's, up to the slope that `calibration` finds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from attribution.estimators.features import Features
from attribution.estimators.kernel import Curvature, Gram, working_dtype
from attribution.estimators.shortcuts import logit_changes
from attribution.estimators.trak import Average, check_sides
from attribution.projection import Projection
from attribution.training import predict
from schemas.errors import ShapeError

Float64 = npt.NDArray[np.float64]


def target_vectors(
    train: Sequence[Features],
    queries: Sequence[Features],
    weights: npt.ArrayLike,
    *,
    curvature: str = Curvature.LOGISTIC,
    damping: float = 1.0,
) -> list[Tensor]:
    """K^-1 sum_q w_q phi_q at each checkpoint, [k] each.

    Args:
        train: Features of the clean training rows, one item a checkpoint.
        queries: Features of the queries at the same checkpoints.
        weights: [q], of any sign.
        curvature: As `attribution.estimators.trak.trak_scores`.
        damping: See there.

    Raises:
        ShapeError: Features or weights do not fit together.
    """
    _, n_query = check_sides(train, queries, Average.SCORES)
    given = torch.as_tensor(np.asarray(weights, dtype=np.float64))
    if given.shape != (n_query,) or not bool(torch.isfinite(given).all()):
        raise ShapeError(
            f"weights have shape {tuple(given.shape)}; give a finite one for each of {n_query} "
            "queries"
        )
    vectors = []
    for own, asked in zip(train, queries, strict=True):
        gram = Gram(own, curvature=curvature, dtype=working_dtype(None, damping, own))
        wanted = given.to(asked.sketch.device) @ asked.sketch.double()
        solved = gram.factor(damping).apply(wanted.to(gram.phi.dtype).unsqueeze(0))
        vectors.append(solved[0])
    return vectors


def label_effects(
    model: nn.Module,
    checkpoints: Sequence[Mapping[str, Any]],
    inputs: Any,
    vectors: Sequence[Tensor],
    *,
    train: Sequence[Features],
    projection: Projection,
    seed: int = 0,
    device: str = "cpu",
) -> Float64:
    """What training on each input under each label does to the weighted sum, float64 [m, K].

    The effect of a label flip is the difference of two columns. One pass over the inputs a
    checkpoint.

    Args:
        model: Maps rows to logits [m, K].
        checkpoints: State dicts that the features were made at.
        inputs: [m, ...], training rows or candidates.
        vectors: `target_vectors` of the checkpoints.
        train: Features that the vectors were made from; their fingerprints are checked.
        projection: As the features were made with.
        seed: As the features were made with.
        device: "cpu" or "cuda".

    Raises:
        ShapeError: As `logit_changes`.
    """
    changes = logit_changes(
        model,
        checkpoints,
        inputs,
        vectors,
        train=train,
        projection=projection,
        seed=seed,
        device=device,
    )
    pulls = -changes.astype(np.float64)
    states = {
        name: torch.stack([torch.as_tensor(state[name]) for state in checkpoints])
        for name in checkpoints[0]
    }
    logits = predict(model, states, inputs, device=device)
    chances = torch.softmax(logits.double(), dim=-1).numpy()
    return np.asarray((pulls - (chances * pulls).sum(axis=-1, keepdims=True)).mean(axis=0))
