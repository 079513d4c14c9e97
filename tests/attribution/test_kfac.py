from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from attribution import attribute
from attribution.estimators.diagonal import GRID
from attribution.estimators.factors import Factors, fit_factors
from attribution.estimators.labels import LabelPasses
from attribution.outputs import evaluate
from attribution.rows import Rows
from attribution.streams import stream
from schemas.errors import DataError, NotFound, ShapeError

DOUBLE = torch.float64
N, K = 14, 3


def data(*shape: int, n: int = N, seed: int = 1) -> tuple[Tensor, Tensor]:
    rng = stream(seed)
    inputs = torch.from_numpy(rng.standard_normal((n, *shape)))
    return inputs, torch.from_numpy(rng.integers(0, K, n))


def made(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for layer in layers:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return nn.Sequential(*layers).double()


def fitted(model: nn.Module, rows: Any, labels: str = "all", **options: Any) -> Factors:
    options = {"task": "classification", "samples": 1, "batch_size": 4, "seed": 0} | options
    return fit_factors(
        model,
        None,
        Rows(rows, "train"),
        labels=labels,
        checkpoint=0,
        device="cpu",
        dtype=DOUBLE,
        **options,
    )


def each_gradient(model: nn.Module, rows: Any, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """[n, p] by one autograd call a row."""
    found = []
    for x, y in zip(*rows, strict=True):
        value = of(model(x.unsqueeze(0)), y.unsqueeze(0)).sum()
        parts = torch.autograd.grad(value, list(model.parameters()))
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found)


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def fisher(model: nn.Module, rows: Any) -> Tensor:
    """Mean over rows of the expectation of g g^T over the model's labels, [p, p]."""
    p = torch.softmax(model(rows[0]), 1).detach()
    total = 0.0
    for label in range(p.shape[1]):
        same = torch.full_like(rows[1], label)
        g = each_gradient(model, (rows[0], same), loss)
        total = total + g.T @ (g * p[:, label : label + 1]) / len(g)
    return total


def scores(method: str, model: nn.Module, train: Any, queries: Any, **options: Any) -> Any:
    options = {"labels": "all", "dtype": DOUBLE, "damping": 0.3} | options
    return attribute(method, model, [model.state_dict()], train=train, queries=queries, **options)


@pytest.mark.parametrize("method", ["ekfac", "kfac"])
def test_it_is_exact_gauss_newton_where_the_fisher_matrix_is_one_kronecker_product(
    method: str,
) -> None:
    # All inputs lie on one line and have one length: delta does not depend on a.
    rng = stream(4)
    signs = rng.choice([-1.0, 1.0], size=(N, 1))
    x = torch.from_numpy(signs * rng.standard_normal(5))
    train = (x, torch.from_numpy(rng.integers(0, 2, N)))
    queries = (data(5)[0], torch.from_numpy(rng.integers(0, 2, N)))
    model = made(nn.Linear(5, 2, bias=False))  # p(1-p) is even in the logit, hence constant
    exact = fisher(model, train)
    unit = float(exact.trace()) / len(exact)
    before = each_gradient(model, train, loss)
    asked = each_gradient(model, queries, lambda z, y: evaluate("margin", z, y))
    ridge = 0.3 * unit * torch.eye(len(exact), dtype=DOUBLE)
    want = -asked @ torch.linalg.solve(exact + ridge, before.T) / N
    got = scores(method, model, train, queries)
    np.testing.assert_allclose(got, want.numpy(), rtol=2e-6, atol=1e-9)


def test_kfac_equals_dense_kronecker_products() -> None:
    model = made(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, K))
    train, queries = data(4), data(4, n=3, seed=2)
    x = train[0]
    hidden = torch.tanh(model[0](x))
    p = torch.softmax(model[2](hidden), 1).detach()
    inputs = [torch.cat([a, torch.ones(N, 1, dtype=DOUBLE)], 1).detach() for a in (x, hidden)]
    backs = []  # delta of each layer, for each label, weighted by sqrt(p)
    for label in range(K):
        top = p - F.one_hot(torch.tensor(label), K)
        low = (top @ model[2].weight.detach()) * (1 - hidden.detach() ** 2)
        weight = p[:, label : label + 1].sqrt()
        backs.append((low * weight, top * weight))
    columns = [F.pad(t, (0, 0)) for t in inputs]
    want = torch.zeros(3, N, dtype=DOUBLE)

    def joined(rows: Any, of: Callable[[Tensor, Tensor], Tensor], place: int) -> Tensor:
        """[n, out * (in + 1)] of one layer: weight and bias side by side."""
        flat = each_gradient(model, rows, of)
        sizes = [24, 6, 18, 3]
        w, b = flat.split(sizes, 1)[2 * place : 2 * place + 2]
        return torch.cat([w.reshape(len(w), b.shape[1], -1), b.unsqueeze(2)], 2).flatten(1)

    for place in (0, 1):
        a = columns[place].T @ columns[place] / N
        b = sum(back[place].T @ back[place] for back in backs) / N
        dense = torch.kron(b, a)
        dense += 0.3 * dense.trace() / len(dense) * torch.eye(len(dense), dtype=DOUBLE)
        left = joined(queries, lambda z, y: evaluate("margin", z, y), place)
        want -= left @ torch.linalg.solve(dense, joined(train, loss, place).T) / N
    got = scores("kfac", model, train, queries)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-8)


class Word(nn.Module):
    """An embedding of tokens with a norm and a sequence-wise linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(7, 4), nn.LayerNorm(4)
        self.each, self.last = nn.Linear(4, 5), nn.Linear(5, K)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(torch.tanh(self.each(self.norm(self.table(tokens)))).mean(1))


def models() -> list[Any]:
    torch.manual_seed(0)
    tokens = torch.from_numpy(stream(6).integers(0, 7, (N, 6)))
    dense = made(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, K))
    conv = made(
        nn.Conv2d(2, 3, 3, padding=1, stride=2),
        nn.GroupNorm(1, 3),
        nn.Tanh(),
        nn.Conv2d(3, 3, 2, groups=3),
        nn.Flatten(),
        nn.Linear(12, K),
    )
    return [
        pytest.param(dense, data(4), id="linear"),
        pytest.param(conv, data(2, 6, 6), id="convolution, grouped convolution and norm"),
        pytest.param(Word().double(), (tokens, data(1)[1]), id="embedding, norm and sequence"),
    ]


@pytest.mark.parametrize(("model", "rows"), models())
def test_corrected_eigenvalues_are_second_moments_in_an_orthogonal_basis(
    model: nn.Module, rows: Any
) -> None:
    made_ = fitted(model, rows)
    exact = fisher(model, rows)
    # Rotation keeps lengths, so its eigenvalues have the trace and the size of the matrix.
    assert float(made_.corrected.sum()) == pytest.approx(float(exact.trace()), rel=1e-9)
    assert len(made_.corrected) == len(exact)
    assert bool((made_.corrected >= 0).all() and (made_.factored >= 0).all())
    # With a damping that hides the matrix, scores are plain products of gradients.
    rho = 1e9
    per_model = scores("ekfac", model, rows, rows, damping=rho, damping_per="model")
    asked = each_gradient(model, rows, lambda z, y: evaluate("margin", z, y))
    products = -asked @ each_gradient(model, rows, loss).T
    unit = float(exact.trace()) / len(exact)
    np.testing.assert_allclose(
        np.asarray(per_model, dtype=np.float64) * rho * unit * N,
        products.numpy(),
        rtol=1e-5,
        atol=1e-6,
    )


def test_corrected_eigenvalues_equal_explicit_loops() -> None:
    model, rows = made(nn.Linear(4, K)), data(4)
    found = fitted(model, rows)
    block = found.blocks[0]
    basis_b, basis_a = block._rows, block._columns
    p = torch.softmax(model(rows[0]), 1).detach()
    want = torch.zeros(K, 5, dtype=DOUBLE)
    for row in range(N):
        a = torch.cat([rows[0][row], torch.ones(1, dtype=DOUBLE)])
        for label in range(K):
            delta = p[row] - F.one_hot(torch.tensor(label), K)
            want += p[row, label] * (basis_b.T @ torch.outer(delta, a) @ basis_a) ** 2 / N
    torch.testing.assert_close(found.corrected.reshape(K, 5), want)


def test_convolution_factors_equal_explicit_patches() -> None:
    model = made(nn.Conv2d(2, 3, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, K))
    rows = data(2, 4, 4)
    found = fitted(model, rows, labels="observed")
    block = found.blocks[0]
    a_sum, b_sum, second = torch.zeros(9, 9), torch.zeros(3, 3), torch.zeros(3, 9)
    a_sum, b_sum, second = a_sum.double(), b_sum.double(), second.double()
    for x, y in zip(*rows, strict=True):
        out = model[0](x.unsqueeze(0))
        delta = torch.autograd.grad(loss(model[1:](out), y.unsqueeze(0)).sum(), out)[0][0]
        gradient = torch.zeros(3, 9, dtype=DOUBLE)
        for i in range(2):
            for j in range(2):
                patch = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten()
                patch = torch.cat([patch, torch.ones(1, dtype=DOUBLE)])
                a_sum += torch.outer(patch, patch) / N
                b_sum += torch.outer(delta[:, i, j], delta[:, i, j]) / (4 * N)
                gradient += torch.outer(delta[:, i, j], patch)
        second += (block._rows.T @ gradient @ block._columns) ** 2 / N
    torch.testing.assert_close(found.corrected[:27].reshape(3, 9), second)
    values = torch.outer(torch.linalg.eigvalsh(b_sum), torch.linalg.eigvalsh(a_sum))
    torch.testing.assert_close(found.factored[:27].reshape(3, 9), values)


@pytest.mark.parametrize(("model", "rows"), models())
@pytest.mark.parametrize("labels", ["signs", "sampled"])
def test_the_batch_size_does_not_matter(model: nn.Module, rows: Any, labels: str) -> None:
    one, other = (
        scores("ekfac", model, rows, rows, labels=labels, samples=2, batch_size=size)
        for size in (3, N)
    )
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-8 * np.abs(one).max())
    again = scores("ekfac", model, rows, rows, labels=labels, samples=2, batch_size=3)
    np.testing.assert_array_equal(one, again)
    reseeded = scores("ekfac", model, rows, rows, labels=labels, samples=2, seed=1)
    assert np.abs(one - reseeded).max() > 1e-3 * np.abs(one).max()


@pytest.mark.parametrize("labels", ["signs", "sampled"])
def test_drawn_labels_have_the_fisher_matrix_as_expectation(labels: str) -> None:
    model, rows = made(nn.Linear(3, K)), data(3, n=5)
    exact = fisher(model, rows)
    passes = LabelPasses(
        "classification", labels=labels, samples=150, n_rows=5, seed=0, checkpoint=0
    )
    total = torch.zeros_like(exact)
    wide = torch.cat([rows[0], torch.ones(5, 1, dtype=DOUBLE)], 1)
    order = [4 * out + place for out in range(K) for place in range(3)]
    order += [4 * out + 3 for out in range(K)]
    for drawn in passes.each(slice(0, 5), rows[1]):
        logits = model(rows[0]).detach().requires_grad_()
        (delta,) = torch.autograd.grad(passes.output(logits, drawn).sum(), logits)
        flat = (delta.unsqueeze(2) * wide.unsqueeze(1)).flatten(1)[:, order]
        total += flat.T @ flat / 5
    assert passes.count == 150
    assert float((total - exact).norm() / exact.norm()) < 0.2


@pytest.mark.parametrize("labels", ["signs", "all", "sampled"])
def test_regression_takes_the_curvature_of_squared_error(labels: str) -> None:
    inputs = data(3)[0]
    rows = (inputs, inputs.sum(1))
    model = made(nn.Linear(3, 1))
    found = fitted(model, rows, labels, task="regression", samples=200)
    wide = torch.cat([inputs, torch.ones(N, 1, dtype=DOUBLE)], 1)
    want = 2 * float((wide**2).sum()) / N
    close = 0.05 if labels == "sampled" else 1e-9
    assert float(found.corrected.sum()) == pytest.approx(want, rel=close)


def test_damping_is_tuned_as_if_every_damping_had_been_scored() -> None:
    model = made(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, K))
    train, queries = data(4), data(4, n=5, seed=2)
    rng = stream(9)
    masks = np.stack([rng.permutation(N) < N // 2 for _ in range(12)])
    truth = scores("ekfac", model, train, queries, damping=GRID[5])
    noise = rng.standard_normal((12, 5)) * 1e-9
    bank = SimpleNamespace(masks=masks, outputs=masks @ np.asarray(truth).T + noise)
    tuned = scores("ekfac", model, train, queries, damping="auto", bank=bank)
    assert tuned.record["damping"] == GRID[5]
    assert dict(tuned.record["damping_table"])[GRID[5]] > 0.999
    np.testing.assert_allclose(tuned, truth, rtol=1e-6)


def test_scores_are_streamed_in_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(nn.Linear(4, K))
    train, queries = data(4), data(4, n=5, seed=2)
    whole = scores("ekfac", model, train, queries)
    for module in ("diagonal", "kfac"):  # two queries, no caching
        monkeypatch.setattr(f"attribution.estimators.{module}.KEPT_ENTRIES", 31)
    parts: dict[int, Any] = {}
    empty = scores(
        "ekfac", model, train, queries, out=lambda rows, block: parts.update({rows.start: block})
    )
    assert sorted(parts) == [0, 2, 4]
    assert empty.shape == (0, N)
    np.testing.assert_allclose(np.concatenate([parts[s] for s in (0, 2, 4)]), whole, rtol=1e-6)


def test_checkpoints_are_averaged() -> None:
    models_ = [made(nn.Linear(4, K)), made(nn.Linear(4, K))]
    with torch.no_grad():
        models_[1][0].weight.mul_(-0.5)
    train = data(4)
    options: dict[str, Any] = {"train": train, "queries": train, "damping": 0.3}
    options |= {"labels": "all", "dtype": DOUBLE}
    states = [model.state_dict() for model in models_]
    alone = [attribute("ekfac", models_[0], [state], **options) for state in states]
    both = attribute("ekfac", models_[0], states, **options)
    np.testing.assert_allclose(both, (alone[0] + alone[1]) / 2, rtol=1e-5)


def test_wrong_requests_are_refused_with_what_to_do() -> None:
    model, rows = made(nn.Linear(4, K)), data(4)
    for options, message in (
        ({"damping_per": "row"}, "say layer or model"),
        ({"labels": "true"}, "sampled, signs, all, observed"),
        ({"samples": 0}, "samples is 0"),
        ({"damping": 0.0}, "positive number"),
    ):
        with pytest.raises(ShapeError, match=message):
            scores("ekfac", model, rows, rows, **options)
    with pytest.raises(NotFound, match="no option 'damping_by'"):
        scores("kfac", model, rows, rows, damping_by="layer")
    huge = (rows[0] * 1e200, rows[1])
    with pytest.raises(DataError, match="overflows"):
        scores("ekfac", model, huge, rows)
