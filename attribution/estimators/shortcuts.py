"""What a vector in the space of TRAK's features does to the logits of any input.

A sum of scores goes through one vector v of width k a checkpoint, such as K^-1 sum_q w_q phi_q for
a weighted sum of queries. P v is a direction in the space of the parameters, and J_x P v, one
Jacobian-vector product, is what it does to every logit of x: nothing of size [q, n] is formed.
Predictions are linear; calibrate their size on retrained models before trusting it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attribution.estimators.features import Features, batch_rows
from attribution.gradients import PerExampleGradients, layout_of
from attribution.gradients.perexample import private_copy
from attribution.projection import Projection, backproject, fingerprint_of, settled
from attribution.rows import Rows, call, to
from schemas.errors import ShapeError


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
        vectors: v of each checkpoint, [k] each.
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


def _summed(logits: Tensor, targets: Tensor) -> Tensor:
    """Any output that every parameter may matter to; only the shape of its gradient is used."""
    return logits.sum(-1) + 0 * targets
