from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attribution import attribute
from attribution.estimators.factors import fit_factors, fit_mean_factors
from attribution.gradients import PerExampleGradients
from attribution.outputs import evaluate
from attribution.rows import Rows
from attribution.streams import stream
from attribution.training import Recipe
from attribution.training.recipe import exposures
from schemas.errors import ShapeError

DOUBLE = torch.float64
N, M, D, K = 12, 4, 3, 3


class Net(nn.Module):
    """Each kind of block: a table, a norm, linear layers with and without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(6, 4), nn.LayerNorm(4)
        self.each, self.head = nn.Linear(4, 5, bias=False), nn.Linear(5, K)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.each(self.norm(self.table(tokens)))).mean(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().double()


def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = stream(seed)
    return torch.from_numpy(rng.integers(0, 6, (n, 4))), torch.from_numpy(rng.integers(0, K, n))


def states(count: int) -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    return [
        {name: value + 0.2 * torch.randn_like(value) for name, value in net().state_dict().items()}
        for _ in range(count)
    ]


TRAIN, QUERIES = rows(N, 1), rows(M, 2)
OPTIONS: dict[str, Any] = {"train": TRAIN, "queries": QUERIES, "dtype": DOUBLE}
FITTING: dict[str, Any] = {
    "task": "classification",
    "labels": "all",
    "samples": 1,
    "seed": 0,
    "device": "cpu",
    "batch_size": 5,
    "dtype": DOUBLE,
}


def gradients(state: dict[str, Tensor], pair: Any, output: str) -> Tensor:
    model, found = net(), []
    model.load_state_dict(state)
    for x, y in zip(*pair, strict=True):
        value = evaluate(output, model(x[None]), y[None]).sum()
        parts = torch.autograd.grad(value, list(model.parameters()))
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found)


def test_flat_vectors_turn_as_gradients_do_and_back() -> None:
    state = states(1)[0]
    factors = fit_factors(net(), state, Rows(TRAIN, "train"), checkpoint=0, **FITTING)
    owner = PerExampleGradients(net(), state, output="margin", dtype=DOUBLE)
    flat = gradients(state, QUERIES, "margin")
    rotated = factors.rotate(owner.run(*QUERIES).blocks())
    torch.testing.assert_close(factors.turn(flat), rotated)
    torch.testing.assert_close(factors.turn_back(rotated), flat)
    p = flat.shape[1]
    basis = factors.turn(torch.eye(p, dtype=DOUBLE))
    torch.testing.assert_close(basis @ basis.T, torch.eye(p, dtype=DOUBLE))


def test_mean_factors_are_those_of_all_states_rows_together() -> None:
    parts = states(2)
    both = fit_mean_factors(net(), dict(enumerate(parts)), Rows(TRAIN, "train"), **FITTING)
    traces = [
        float(
            fit_factors(net(), state, Rows(TRAIN, "train"), checkpoint=0, **FITTING).corrected.sum()
        )
        for state in parts
    ]
    assert float(both.corrected.sum()) == pytest.approx(np.mean(traces))
    same = {0: parts[0], 1: parts[0]}
    again = fit_mean_factors(net(), same, Rows(TRAIN, "train"), **FITTING)
    alone = fit_factors(net(), parts[0], Rows(TRAIN, "train"), checkpoint=0, **FITTING)
    torch.testing.assert_close(again.corrected.sort()[0], alone.corrected.sort()[0])
    torch.testing.assert_close(again.factored.sort()[0], alone.factored.sort()[0])


@pytest.mark.parametrize("segments", [3, [1, 2, 1], 1])
def test_it_is_the_published_formula_by_dense_algebra(segments: Any) -> None:
    parts, weights, decay = states(4), [0.3, 0.1, 0.0, 0.2], 0.05
    sizes = {"3": [2, 1, 1], "1": [4]}.get(str(segments), segments)
    bounds = np.cumsum([0, *sizes])
    after = gradients(parts[-1], QUERIES, "margin")
    want = torch.zeros(M, N, dtype=DOUBLE)
    for start, stop in reversed(list(pairwise(bounds))):
        chosen = {number: parts[number] for number in range(start, stop)}
        factors = fit_mean_factors(net(), chosen, Rows(TRAIN, "train"), **FITTING)
        basis = factors.turn(torch.eye(after.shape[1], dtype=DOUBLE))
        h = basis @ torch.diag(factors.corrected + decay) @ basis.T
        time = N * sum(weights[start:stop])
        kept = torch.linalg.matrix_exp(-time * h)
        mean = torch.stack([gradients(state, TRAIN, "loss") for state in chosen.values()]).mean(0)
        r = (torch.eye(len(h), dtype=DOUBLE) - kept) @ torch.linalg.solve(h, mean.T)
        want -= after @ r / N
        after = after @ kept
    got = attribute(
        "source",
        net(),
        parts,
        weights=weights,
        segments=segments,
        weight_decay=decay,
        labels="all",
        **OPTIONS,
    )
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-6 * float(want.abs().max()))
    assert got.record["options"]["segments"] == sizes
    np.testing.assert_allclose(sum(got.record["options"]["times"]), N * sum(weights))


def descend(recipe: Recipe, weights: Tensor, x: Tensor, y: Tensor) -> list[Tensor]:
    """Full-batch gradient descent on mean of w_i (y_i - x_i theta)^2, differentiable in w."""
    theta = torch.zeros(x.shape[1], dtype=DOUBLE)
    velocity = torch.zeros_like(theta)
    path = [theta]
    for step in range(recipe.epochs):
        gradient = -2 * x.T @ (weights * (y - x @ theta)) / len(x) + recipe.weight_decay * theta
        velocity = recipe.momentum * velocity + gradient
        theta = theta - recipe.rate(step, len(x)) * velocity
        path.append(theta)
    return path


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"momentum": 0.0, "lr": 0.01}, 0.003),
        ({"momentum": 0.0, "lr": 0.02, "schedule": "cosine", "weight_decay": 0.1}, 0.005),
        ({"momentum": 0.8, "lr": 0.002}, 0.01),
    ],
)
def test_on_least_squares_it_is_the_derivative_of_the_trained_outputs_by_a_rows_weight(
    options: dict[str, Any], tolerance: float
) -> None:
    rng = stream(3)
    x, y = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((N, D), (N,)))
    asked = torch.from_numpy(rng.standard_normal((M, D)))
    recipe = Recipe(batch_size=N, epochs=150, **({"weight_decay": 0.0} | options))
    ones = torch.ones(N, dtype=DOUBLE)
    want = torch.autograd.functional.jacobian(
        lambda weights: asked @ descend(recipe, weights, x, y)[-1], ones
    )
    path = descend(recipe, ones, x, y)
    model = nn.Linear(D, 1, bias=False).double()

    def source(stride: int) -> np.ndarray:
        # A segment every `stride` epochs, with the weights at its middle.
        ends = list(range(stride, recipe.epochs + 1, stride))
        checkpoints = [{"weight": path[end - stride // 2][None]} for end in ends]
        return attribute(
            "source",
            model,
            checkpoints,
            train=(x, y),
            queries=(asked, torch.zeros(M, dtype=DOUBLE)),
            weights=exposures(recipe, N, ends),
            segments=len(ends),
            weight_decay=recipe.weight_decay,
            dtype=DOUBLE,
        )

    def error(got: np.ndarray) -> float:
        return float(np.linalg.norm(got - want.numpy()) / want.norm())

    errors = [error(source(stride)) for stride in (10, 50, 150)]
    assert errors[0] < tolerance
    assert errors == sorted(errors)  # the fewer segments, the coarser
    assert errors[2] < 0.1


def test_of_a_short_run_it_is_tracin_and_of_an_endless_one_influence() -> None:
    parts = states(2)
    weights = [2e-7, 1e-7]
    short = attribute("source", net(), parts, weights=weights, **OPTIONS)
    tracin = attribute("tracin", net(), parts, weights=weights, **OPTIONS)
    np.testing.assert_allclose(short, tracin, rtol=1e-4, atol=1e-5 * np.abs(tracin).max())

    decay = 0.1
    factors = fit_factors(net(), parts[0], Rows(TRAIN, "train"), checkpoint=0, **FITTING)
    options = OPTIONS | {"labels": "all"}
    endless = attribute("source", net(), parts[:1], weights=[1e6], weight_decay=decay, **options)
    ekfac = attribute(
        "ekfac",
        net(),
        parts[:1],
        damping=decay / float(factors.corrected.mean()),
        damping_per="model",
        **options,
    )
    np.testing.assert_allclose(endless, ekfac, rtol=1e-4, atol=1e-5 * np.abs(ekfac).max())


def test_blocks_and_batches_do_not_change_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    options = OPTIONS | {"weights": [0.1, 0.2]}
    whole = attribute("source", net(), states(2), **options)
    monkeypatch.setattr("attribution.estimators.source.QUERY_BLOCK", 3)
    parts: list[np.ndarray] = []
    empty = attribute(
        "source",
        net(),
        states(2),
        batch_size=5,
        out=lambda _, block: parts.append(block),
        **options,
    )
    assert empty.shape == (0, N)
    assert [len(part) for part in parts] == [3, 1]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-8)


def test_a_row_raises_its_own_margin() -> None:
    own = attribute("source", net(), states(1), **(OPTIONS | {"queries": TRAIN, "weights": [0.5]}))
    assert (np.diag(own) > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exposures"),
        ({"weights": [1.0]}, "each of the 2"),
        ({"weights": [1.0, -1.0]}, "0 or more"),
        ({"weights": [1.0, 1.0], "segments": 3}, "give 1 to 2"),
        ({"weights": [1.0, 1.0], "segments": [1, 2]}, "do not make up the 2"),
        ({"weights": [1.0, 1.0], "weight_decay": -1.0}, "0 or more"),
        ({"weights": [1.0, 1.0], "labels": "true"}, "unknown labels"),
    ],
)
def test_bad_requests_are_refused_with_what_to_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        attribute("source", net(), states(2), **options, **OPTIONS)
