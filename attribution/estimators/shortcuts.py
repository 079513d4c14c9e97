"""Sums of TRAK scores without the scores: one vector of width k a checkpoint replaces [q, n].

    weights @ tau       = mean_c Q_c . Phi_c K_c^-1 Phi_c(queries)^T weights       (a target set)
    -tau[:, F].sum(1)   = -mean_c Phi_c(queries) K_c^-1 sum_{i in F} Q_i phi_i     (a removal)

The second is a direction P_c v_c in the space of the parameters, so that the effect of a removal
on every logit of any input is one Jacobian-vector product (Georgiev et al. 2024 need [q, n] scores
for it). Predictions are linear; calibrate their size on retrained models before trusting it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attribution.estimators.features import Features, batch_rows
from attribution.estimators.kernel import Gram, Inverse, leverage_factor, working_dtype
from attribution.estimators.trak import Average, check_sides
from attribution.gradients import PerExampleGradients, layout_of
from attribution.gradients.perexample import private_copy
from attribution.projection import Projection, backproject, fingerprint_of, settled
from attribution.rows import Rows, call, to
from schemas.errors import ShapeError


def target_totals(
    train: Sequence[Features],
    queries: Sequence[Features],
    weights: NDArray[Any],
    *,
    curvature: str = "logistic",
    damping: float = 1.0,
    leverage: bool = False,
    average: str = Average.SCORES,
    dtype: torch.dtype | None = None,
) -> NDArray[np.float32]:
    """Scores of every training row for one weighted sum of queries.

    Args:
        train: Training features, one item a checkpoint.
        queries: Query features of the same checkpoints.
        weights: [q]; 1/q everywhere is the mean over the queries.
        curvature: Options as those of `trak_scores`.
        damping: See there.
        leverage: See there.
        average: See there.
        dtype: See there.

    Returns:
        float32 [n], equal to ``weights @ trak_scores(...)``.

    Raises:
        ShapeError: Features or weights do not fit together.
    """
    _, n_query = check_sides(train, queries, average)
    given = torch.as_tensor(np.asarray(weights, dtype=np.float64))
    if given.shape != (n_query,):
        raise ShapeError(
            f"weights have shape {tuple(given.shape)}; give one for each of {n_query} queries"
        )
    total: Any = 0.0
    for own, asked in zip(train, queries, strict=True):
        gram, inverse, column = _column(own, train, curvature, damping, leverage, average, dtype)
        wanted = given.to(asked.sketch.device) @ asked.sketch.double()
        solved = inverse.apply(wanted.to(gram.phi.dtype).unsqueeze(0))[0]
        total = total + (gram.phi @ solved * column).double() / len(train)
    return _host(total)


def removal_totals(
    train: Sequence[Features],
    queries: Sequence[Features],
    removed: NDArray[Any],
    *,
    curvature: str = "logistic",
    damping: float = 1.0,
    leverage: bool = False,
    average: str = Average.SCORES,
    dtype: torch.dtype | None = None,
) -> NDArray[np.float32]:
    """Predicted change of every query's output when some training rows are removed.

    Args:
        train: Training features, one item a checkpoint.
        queries: Query features of the same checkpoints.
        removed: Positions of the rows, or bool [n].
        curvature: Options as those of `trak_scores`.
        damping: See there.
        leverage: See there.
        average: See there.
        dtype: See there.

    Returns:
        float32 [q], equal to ``-trak_scores(...)[:, removed].sum(1)``.

    Raises:
        ShapeError: Features do not fit together, or a position is out of range.
    """
    check_sides(train, queries, average)
    vectors = removal_vectors(
        train,
        removed,
        curvature=curvature,
        damping=damping,
        leverage=leverage,
        average=average,
        dtype=dtype,
    )
    changes = [
        -(asked.sketch.to(vector.dtype) @ vector).double()
        for asked, vector in zip(queries, vectors, strict=True)
    ]
    return _host(torch.stack(changes).mean(0))


def removal_vectors(
    train: Sequence[Features],
    removed: NDArray[Any],
    *,
    curvature: str = "logistic",
    damping: float = 1.0,
    leverage: bool = False,
    average: str = Average.SCORES,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """K^-1 sum_{i in F} Q_i phi_i of each checkpoint, [k] each; arguments as above."""
    n_train, _ = check_sides(train, train, average)
    chosen = _mask(removed, n_train)
    vectors = []
    for own in train:
        gram, inverse, column = _column(own, train, curvature, damping, leverage, average, dtype)
        total = (column * chosen.to(column)) @ gram.phi
        vectors.append(inverse.apply(total.unsqueeze(0))[0])
    return vectors


def logit_changes(
    model: nn.Module,
    checkpoints: Sequence[Mapping[str, Any]],
    inputs: Any,
    vectors: Sequence[Tensor],
    *,
    train: Sequence[Features],
    projection: Projection,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int | str = "auto",
    dtype: torch.dtype = torch.float32,
) -> NDArray[np.float32]:
    """Predicted change of every logit of any input, -J_x P v at each checkpoint.

    Args:
        model: Maps rows to logits [m, K].
        checkpoints: State dicts that the features were made at, in the same order.
        inputs: [m, ...], or a mapping of such; no labels are needed.
        vectors: `removal_vectors` of the checkpoints.
        train: The features that the vectors were made from; their fingerprints are checked.
        projection: As the features were made with.
        seed: As the features were made with.
        device: "cpu" or "cuda".
        batch_size: Rows at a time, or "auto".
        dtype: Type of weights and logits.

    Returns:
        float32 [C, m, K]; the prediction is the mean over checkpoints.

    Raises:
        ShapeError: There are not as many of one as of another, or the features were made with
            another projection, seed or checkpoint.
    """
    directions = parameter_directions(
        model,
        checkpoints,
        inputs,
        vectors,
        train=train,
        projection=projection,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    rows = _unlabelled(inputs)
    size = batch_rows(batch_size, layout_of(model).size)
    changes = []
    for state, direction in zip(checkpoints, directions, strict=True):
        net = private_copy(model, state, device=device, dtype=dtype)
        parts = [
            -jacobian_product(net, to(batch, device, dtype), direction).detach()
            for _, batch, _ in rows.batches(size)
        ]
        changes.append(torch.cat(parts))
    return torch.stack(changes).to("cpu", torch.float32).numpy()


def parameter_directions(
    model: nn.Module,
    checkpoints: Sequence[Mapping[str, Any]],
    inputs: Any,
    vectors: Sequence[Tensor],
    *,
    train: Sequence[Features],
    projection: Projection,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """P v at each checkpoint, [p] each; arguments and errors as `logit_changes`."""
    if not len(checkpoints) == len(vectors) == len(train) > 0:
        raise ShapeError(
            f"there are {len(checkpoints)} checkpoints, {len(vectors)} vectors and features of "
            f"{len(train)}; give one of each for each checkpoint"
        )
    first, targets = _unlabelled(inputs).batch(0, 1)
    directions = []
    for number, (state, vector, own) in enumerate(zip(checkpoints, vectors, train, strict=True)):
        owner = PerExampleGradients(model, state, output=_summed, device=device, dtype=dtype)
        blocks = owner.run(first, targets).blocks()
        p = owner.layout.size
        name = fingerprint_of(blocks, projection, seed=seed, checkpoint=number, p=p)
        if name != own.fingerprint:
            raise ShapeError(
                f"the features of checkpoint {number} are {own.fingerprint} and this is {name}; "
                "give the projection and the seed that they were made with"
            )
        direction = backproject(
            vector.to(device, dtype),
            settled(blocks, projection, p=p),
            seed=seed,
            checkpoint=number,
            p=p,
            layers=blocks.outer_layers(),
        )
        directions.append(direction)
    return directions


def _unlabelled(inputs: Any) -> Rows:
    length = len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)
    return Rows((inputs, np.zeros(length, dtype=np.float32)), "inputs")


def jacobian_product(
    net: nn.Module, inputs: Any, direction: Tensor, *, create_graph: bool = False
) -> Tensor:
    """J w [B, K]. J^T u is linear in u, so its derivative along w is J w: no forward mode.

    Args:
        net: In eval mode.
        inputs: A batch.
        direction: w [p], over the parameters that require gradients.
        create_graph: Keep what differentiates the product by the inputs.
    """
    weights = [value for value in net.parameters() if value.requires_grad]
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels derive only once
        logits = call(net, inputs)
        probe = torch.zeros_like(logits, requires_grad=True)
        found = torch.autograd.grad(
            logits, weights, grad_outputs=probe, create_graph=True, allow_unused=True
        )
        sizes = [value.numel() for value in weights]
        pairs = zip(found, direction.split(sizes), strict=True)
        product = sum((g.flatten() @ w for g, w in pairs if g is not None), probe.sum() * 0)
        (result,) = torch.autograd.grad(product, probe, create_graph=create_graph)
    return result


def _column(
    own: Features,
    train: Sequence[Features],
    curvature: str,
    damping: float,
    leverage: bool,
    average: str,
    dtype: torch.dtype | None,
) -> tuple[Gram, Inverse, Tensor]:
    """The curvature, its inverse, and what each training row's phi is weighted with, [n]."""
    kind = working_dtype(dtype, damping, own)
    gram = Gram(own, curvature=curvature, dtype=kind)
    inverse = gram.factor(damping)
    column = own.residual.to(kind)
    if average == Average.FEATURES:
        column = torch.stack([each.residual.double() for each in train]).mean(0).to(column)
    if leverage:
        column = column * leverage_factor(gram, inverse)
    return gram, inverse, column


def _mask(removed: NDArray[Any], n_train: int) -> Tensor:
    rows = np.asarray(removed)
    if rows.dtype == bool:
        if rows.shape != (n_train,):
            raise ShapeError(
                f"removed has shape {rows.shape}; give one flag for each of {n_train} rows"
            )
        return torch.from_numpy(rows)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ShapeError(f"removed is {rows.dtype} of shape {rows.shape}; give row positions")
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < n_train:
        raise ShapeError(
            f"removed positions run from {rows.min()} to {rows.max()}; there are {n_train} rows"
        )
    mask = np.zeros(n_train, dtype=bool)
    mask[rows] = True
    return torch.from_numpy(mask)


def _summed(logits: Tensor, targets: Tensor) -> Tensor:
    """Any output that every parameter may matter to; only the shape of its gradient is used."""
    return logits.sum(-1) + 0 * targets


def _host(values: Tensor) -> NDArray[np.float32]:
    return values.to("cpu", torch.float32).numpy()
