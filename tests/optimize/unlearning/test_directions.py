from typing import Any

import numpy as np
import pytest
import torch

from attribution import attribute
from attribution.estimators.features import featurize
from attribution.outputs import evaluate
from attribution.projection import Projection, backproject
from attribution.training import predict
from optimize.unlearning import forget_directions, unlearned_logits
from schemas.errors import CheckpointError, ShapeError
from tests.optimize.unlearning.problem import mlp, rows, trained

STATES = trained()
FORGET = np.array([3, 4, 17, 40])


def checkpoints() -> list[dict[str, torch.Tensor]]:
    return [{name: value[row] for name, value in STATES.items()} for row in range(3)]


@pytest.mark.parametrize(
    "options",
    [
        {"projection": {"kind": "none"}, "curvature": "logistic"},
        {"projection": {"kind": "none"}, "curvature": "ggn", "damping": 0.3},
        {"projection": {"kind": "sparse", "dim": 30}, "curvature": "ggn"},
        {"projection": {"kind": "rademacher", "dim": 30}, "curvature": "after-kernel"},
        {"projection": {"kind": "sparse", "dim": 90}, "curvature": "logistic", "leverage": True},
    ],
)
def test_one_direction_predicts_the_sum_of_the_scores_of_all_forgotten_rows(
    options: dict[str, Any],
) -> None:
    inputs, labels = rows(9, key=1)
    options = {"damping": 1.0, **options}
    scores = attribute(
        "trak",
        mlp(),
        checkpoints(),
        train=rows(),
        queries=(inputs, labels),
        seed=5,
        **options,
    )
    directions = forget_directions(
        mlp, STATES, train=rows(), forget=[FORGET], seed=5, device="cpu", **options
    )
    z, unlearned = unlearned_logits(mlp, STATES, inputs, directions)
    torch.testing.assert_close(z, predict(mlp, STATES, inputs))
    along = z - unlearned
    targets = torch.from_numpy(labels).expand(3, -1)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(evaluate("margin", z, targets).sum(), z)
    changes = (gradient * along).sum(-1)
    explicit = np.asarray(scores)[:, FORGET].sum(axis=1)
    np.testing.assert_allclose(changes.mean(0).numpy(), explicit, rtol=2e-3, atol=2e-5)


def test_forget_sets_share_features_and_do_not_disturb_one_another() -> None:
    common: dict[str, Any] = {"train": rows(), "curvature": "logistic", "device": "cpu"}
    both = forget_directions(mlp, STATES, forget=[FORGET, [7]], **common)
    alone = forget_directions(mlp, STATES, forget=[[7]], **common)
    torch.testing.assert_close(both.flat[1], alone.flat[0])
    assert both.sizes == (4, 1)
    assert both.cost == 60  # one forward and backward pass over 60 rows
    ggn = forget_directions(mlp, STATES, forget=[FORGET], train=rows(), ggn_classes=2)
    assert ggn.cost == 180


def test_centred_directions_sum_to_nothing_over_all_rows() -> None:
    parts = np.array_split(np.arange(60), 4)
    common: dict[str, Any] = {"train": rows(), "forget": parts, "curvature": "logistic"}
    plain = forget_directions(mlp, STATES, **common).flat
    centred = forget_directions(mlp, STATES, centred=True, **common).flat
    torch.testing.assert_close(centred.sum(0), torch.zeros_like(centred[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(centred, plain - plain.mean(0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dim", [40, 400])
def test_newton_directions_solve_with_the_curvature_of_the_rows_that_stay(dim: int) -> None:
    projection = Projection(kind="rademacher", dim=dim)
    common: dict[str, Any] = {"curvature": "logistic", "damping": 0.3, "projection": projection}
    found = forget_directions(mlp, STATES, train=rows(), forget=[FORGET], newton=True, **common)
    options: dict[str, Any] = {"output": "margin", "task": "classification"}
    for checkpoint, state in enumerate(checkpoints()):
        features = featurize(
            mlp(), state, rows(), projection=projection, checkpoint=checkpoint, **options
        )
        phi, r, q = (
            value.double() for value in (features.sketch, features.curvature, features.residual)
        )
        whole = phi.T @ (r[:, None] * phi)
        ridge = 0.3 * whole.trace() / min(60, dim)
        kept = torch.ones(60, dtype=torch.bool)
        kept[FORGET] = False
        left = phi[kept].T @ (r[kept, None] * phi[kept]) + ridge * torch.eye(dim)
        v = torch.linalg.solve(left, phi[FORGET].T @ q[FORGET])
        p = found.flat.shape[2]
        want = backproject(v, projection, seed=0, checkpoint=checkpoint, p=p)
        torch.testing.assert_close(
            found.flat[0, checkpoint], want.float(), rtol=1e-3, atol=1e-4 * float(want.abs().max())
        )


def test_a_shared_change_is_the_mean_over_models_and_scales_are_each_inputs_own() -> None:
    inputs = rows(4, key=2)[0]
    directions = forget_directions(mlp, STATES, train=rows(), forget=[FORGET])
    z, own = unlearned_logits(mlp, STATES, inputs, directions)
    _, shared = unlearned_logits(mlp, STATES, inputs, directions, shared=True)
    torch.testing.assert_close(z - shared, (z - own).mean(0, keepdim=True).expand_as(z))
    _, scaled = unlearned_logits(mlp, STATES, inputs, directions, scale=[0.0, 1.0, 2.0, 3.0])
    factor = torch.arange(4.0).view(1, -1, 1)
    torch.testing.assert_close(z - scaled, factor * (z - own), rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    common: dict[str, Any] = {"train": rows(), "forget": [FORGET]}
    with pytest.raises(ShapeError, match="'factored' cannot be turned back"):
        forget_directions(mlp, STATES, projection={"kind": "factored"}, **common)
    with pytest.raises(ShapeError, match="empty"):
        forget_directions(mlp, STATES, train=rows(), forget=[[]])
    directions = forget_directions(mlp, STATES, **common)
    fewer = {name: value[:2] for name, value in STATES.items()}
    with pytest.raises(ShapeError, match="3 checkpoints do not fit 2"):
        unlearned_logits(mlp, fewer, rows()[0], directions)
    with pytest.raises(CheckpointError, match="give states"):
        unlearned_logits(mlp, {"1.weight": torch.zeros(3, 8, 4)}, rows()[0], directions)
