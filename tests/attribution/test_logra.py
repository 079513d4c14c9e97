from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from attribution import attribute
from attribution.estimators.diagonal import GRID
from attribution.gradients import PerExampleGradients
from attribution.outputs import evaluate
from attribution.projection.factored import allocation_of, factored_matrix
from attribution.streams import stream
from schemas.errors import DataError, ShapeError

N, M, D, K = 15, 4, 6, 3
DIM = 24


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(D, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, K))
    return nn.Sequential(*layers).double()


def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = stream(seed)
    inputs = torch.from_numpy(rng.standard_normal((n, D)))
    return inputs, torch.from_numpy(rng.integers(0, K, n))


TRAIN, QUERIES = rows(N, 1), rows(M, 2)
OPTIONS: dict[str, Any] = {
    "train": TRAIN,
    "queries": QUERIES,
    "dtype": torch.float64,
    "dim": DIM,
    "labels": "all",
}


def scores(**options: Any) -> Any:
    model = net()
    return attribute("logra", model, [model.state_dict()], **(OPTIONS | options))


def gradients(model: nn.Module, pair: Any, output: str) -> Tensor:
    found = []
    for x, y in zip(*pair, strict=True):
        value = evaluate(output, model(x[None]), y[None]).sum()
        parts = torch.autograd.grad(value, list(model.parameters()))
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found)


def matrix(seed: int = 0) -> tuple[Tensor, list[slice]]:
    """The projection as a dense matrix [p, k], and the columns of each layer."""
    owner = PerExampleGradients(net(), None, output="loss", dtype=torch.float64)
    blocks = owner.run(*TRAIN).blocks()
    p = owner.layout.size
    dense = factored_matrix(blocks.outer_layers(), p, DIM, seed=seed, checkpoint=0)
    found = allocation_of(blocks, p, DIM)
    spans = [slice(part.first, part.first + part.rows * part.columns) for part in found.parts]
    return torch.from_numpy(dense), [*spans, slice(found.rest_first, DIM)]


def fisher(model: nn.Module, labels: str) -> Tensor:
    if labels == "observed":
        g = gradients(model, TRAIN, "loss")
        return g.T @ g / N
    p = torch.softmax(model(TRAIN[0]), 1).detach()
    total = torch.zeros(0)
    for label in range(K):
        g = gradients(model, (TRAIN[0], torch.full((N,), label)), "loss")
        part = g.T @ (g * p[:, label : label + 1]) / N
        total = part if not len(total) else total + part
    return total


@pytest.mark.parametrize("labels", ["all", "observed"])
@pytest.mark.parametrize("blocks", ["layer", "model"])
def test_it_is_influence_in_the_projected_space_by_dense_algebra(labels: str, blocks: str) -> None:
    model, rho = net(), 0.3
    projection, spans = matrix()
    inside = projection.T @ fisher(model, labels) @ projection
    own = gradients(model, TRAIN, "loss") @ projection
    asked = gradients(model, QUERIES, "margin") @ projection
    want = torch.zeros(M, N, dtype=torch.float64)
    for span in spans if blocks == "layer" else [slice(0, DIM)]:
        part = inside[span, span]
        used = int((part.diagonal() > 0).sum())
        ridge = rho * float(part.trace()) / used
        dense = part + ridge * torch.eye(len(part), dtype=torch.float64)
        want -= asked[:, span] @ torch.linalg.solve(dense, own[:, span].T) / N
    got = scores(labels=labels, blocks=blocks, damping=rho)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-6 * float(want.abs().max()))
    assert "factored" in got.record["fingerprint"][0]


def test_as_wide_as_the_gradient_it_is_exact_gauss_newton() -> None:
    torch.manual_seed(0)
    model = nn.Linear(D, K).double()
    curvature = fisher(model, "all")
    unit = float(curvature.trace()) / len(curvature)
    ridge = 0.3 * unit * torch.eye(len(curvature), dtype=torch.float64)
    own, asked = gradients(model, TRAIN, "loss"), gradients(model, QUERIES, "margin")
    want = -asked @ torch.linalg.solve(curvature + ridge, own.T) / N
    options = OPTIONS | {"dim": 500, "damping": 0.3}
    got = attribute("logra", model, [model.state_dict()], **options)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-8)
    hessian = sum(
        torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(x, x))
        for x, p in zip(TRAIN[0], F.softmax(model(TRAIN[0]), 1).detach(), strict=True)
    )
    size = K * D  # of the weight alone
    torch.testing.assert_close(curvature[:size, :size] * N, hessian)


@pytest.mark.parametrize("labels", ["signs", "sampled"])
def test_the_batch_size_does_not_matter(labels: str) -> None:
    one, other = (scores(labels=labels, samples=2, batch_size=size, damping=0.1) for size in (4, N))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7 * np.abs(one).max())
    again = scores(labels=labels, samples=2, batch_size=4, damping=0.1)
    np.testing.assert_array_equal(one, again)


def test_many_passes_are_gathered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scores(damping=0.1)
    monkeypatch.setattr("attribution.estimators.logra.GATHERED_ROWS", 4)
    np.testing.assert_allclose(scores(damping=0.1, batch_size=3), whole, rtol=1e-5, atol=1e-9)


def test_damping_is_tuned_as_if_every_damping_had_been_scored() -> None:
    rng = stream(9)
    masks = np.stack([rng.permutation(N) < N // 2 for _ in range(12)])
    truth = scores(damping=GRID[4])
    bank = SimpleNamespace(masks=masks, outputs=masks @ np.asarray(truth, dtype=np.float64).T)
    tuned = scores(bank=bank)
    assert tuned.record["damping"] == GRID[4]
    np.testing.assert_allclose(tuned, truth, rtol=1e-6)
    assert scores().record["damping"] == 0.1


def test_a_row_raises_its_own_margin() -> None:
    assert (np.diag(scores(queries=TRAIN, dim=200)) > 0).all()


def test_bad_requests_are_refused_with_what_to_do() -> None:
    for options, message in (
        ({"blocks": "row"}, "say layer or model"),
        ({"labels": "true"}, "unknown labels"),
        ({"damping": 0.0}, "positive number"),
        ({"dim": 2}, "3 layers to share it"),
    ):
        with pytest.raises(ShapeError, match=message):
            scores(**options)
    plain = nn.Linear(D, K).double()
    huge = OPTIONS | {"train": (TRAIN[0] * 1e200, TRAIN[1]), "labels": "observed"}
    with pytest.raises(DataError, match="overflows"):
        attribute("logra", plain, [plain.state_dict()], **huge)
