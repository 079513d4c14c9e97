import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attribution import attribute
from attribution.estimators.features import Features, featurize
from attribution.estimators.kernel import Gram
from attribution.estimators.trak import trak_scores
from attribution.projection import Projection, sketch
from attribution.streams import stream
from schemas.errors import ShapeError

DOUBLE = torch.float64
N, D, K = 12, 5, 4


def rows(n_classes: int = K, n: int = N) -> tuple[Tensor, Tensor]:
    rng = stream(3)
    inputs = torch.from_numpy(rng.standard_normal((n, D)))
    return inputs, torch.from_numpy(rng.integers(0, n_classes, n))


def net(n_classes: int = K) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(D, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, n_classes)
    ).double()


def features(model: nn.Module, data: object, projection: Projection, **options: object) -> Features:
    return featurize(
        model,
        None,
        data,
        output="margin",
        task="classification",
        projection=projection,
        dtype=DOUBLE,
        ggn=True,
        **options,
    )


def dense_gauss_newton(model: nn.Module, inputs: Tensor, projection: Projection) -> Tensor:
    """Sum of J^T (diag p - p p^T) J by one autograd call a logit, sketched row by row."""
    weights = list(model.parameters())
    size = sum(value.numel() for value in weights)
    total = torch.zeros(projection.width(size), projection.width(size), dtype=DOUBLE)
    for row in inputs:
        logits = model(row.unsqueeze(0))[0]
        jacobian = torch.stack(
            [
                torch.cat([g.flatten() for g in torch.autograd.grad(z, weights, retain_graph=True)])
                for z in logits
            ]
        )
        j = sketch([(0, jacobian)], projection, seed=0, checkpoint=0, p=size)
        p = torch.softmax(logits, 0).detach()
        total += j.T @ (torch.diag(p) - torch.outer(p, p)) @ j
    return total


def gauss_newton_of(found: Features) -> Tensor:
    psi = found.sketch * found.curvature.sqrt().unsqueeze(1)
    rest = found.rest_gram if found.rest is None else found.rest.T @ found.rest
    return psi.T @ psi + rest


@pytest.mark.parametrize(
    "projection",
    [Projection(kind="none"), Projection(dim=16), Projection(dim=300, nonzeros=3)],
    ids=str,
)
def test_ggn_equals_the_dense_gauss_newton_matrix(projection: Projection) -> None:
    inputs, labels = rows()
    model = net()
    found = features(model, (inputs, labels), projection, ggn_classes=K - 1)
    want = dense_gauss_newton(model, inputs, projection)
    assert (found.rest is None) == (projection.dim == 16)
    torch.testing.assert_close(gauss_newton_of(found), want, rtol=1e-9, atol=1e-11)
    gram = Gram(found, curvature="ggn", dtype=DOUBLE)
    inverse = gram.factor(0.3)
    x = found.sketch[:3]
    ridge = 0.3 * gram.unit * torch.eye(len(want), dtype=DOUBLE)
    torch.testing.assert_close(inverse.apply(x), torch.linalg.solve(want + ridge, x.T).T)
    assert gram.unit == pytest.approx(float(want.trace()) / min(N * K, len(want)))
    solved = torch.linalg.solve(want + ridge, found.sketch.T).T
    left = 1 - found.curvature * (solved * found.sketch).sum(1)
    torch.testing.assert_close(inverse.remainder(gram), left)


@pytest.mark.parametrize("task", ["two classes", "regression"])
def test_ggn_is_logistic_where_the_loss_has_one_direction(task: str) -> None:
    inputs, labels = rows(2)
    if task == "regression":
        model, kind = nn.Linear(D, 1).double(), "regression"
        data: tuple[Tensor, Tensor] = (inputs, labels.double())
    else:
        model, kind, data = net(2), "classification", (inputs, labels)
    options = {"task": kind, "dtype": DOUBLE, "damping": 0.5, "projection": {"kind": "none"}}
    states = [model.state_dict()]
    both = [
        attribute("trak", model, states, train=data, queries=data, curvature=name, **options)
        for name in ("ggn", "logistic")
    ]
    np.testing.assert_allclose(*both, rtol=1e-6)


def test_fewer_classes_leave_the_smaller_terms_out() -> None:
    model, data, exact = net(), rows(), Projection(kind="none")
    traces = [
        float(gauss_newton_of(features(model, data, exact, ggn_classes=kept)).trace())
        for kept in (0, 1, 2, 3, 99)
    ]
    assert traces == sorted(traces)
    assert traces[2] - traces[1] > traces[3] - traces[2] > 0
    assert traces[3] == traces[4]
    logistic = Gram(features(model, data, exact), curvature="logistic", dtype=DOUBLE)
    assert traces[0] == pytest.approx(logistic.unit * N)


def test_ggn_does_not_depend_on_the_batch_size() -> None:
    model, data = net(), rows()
    for projection in (Projection(kind="none"), Projection(dim=16)):
        one, all_ = (features(model, data, projection, batch_size=size) for size in (1, N))
        torch.testing.assert_close(gauss_newton_of(one), gauss_newton_of(all_))


def test_ggn_of_features_without_it_is_refused() -> None:
    model, data = net(), rows()
    plain = featurize(model, None, data, output="margin", task="classification", dtype=DOUBLE)
    with pytest.raises(ShapeError, match="ggn=True"):
        trak_scores([plain], [plain], curvature="ggn")
    with pytest.raises(ShapeError, match="ggn_classes is -1"):
        features(model, data, Projection(dim=8), ggn_classes=-1)
