from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from attribution import attribute
from attribution.outputs import evaluate
from attribution.streams import stream
from schemas.errors import RecipeError, ShapeError

DOUBLE = torch.float64
N, M, D, K = 40, 5, 4, 3
DECAY = 0.05


def net(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, K, bias=bias))
    return nn.Sequential(*layers).double()


def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = stream(seed)
    inputs = torch.from_numpy(rng.standard_normal((n, D)))
    return inputs, torch.from_numpy(rng.integers(0, K, n))


TRAIN, QUERIES = rows(N, 1), rows(M, 2)
OPTIONS: dict[str, Any] = {"train": TRAIN, "queries": QUERIES, "dtype": DOUBLE}


def refitted(bias: bool) -> nn.Module:
    """The head by scikit-learn, which minimises C sum l + |W|^2 / 2; the bias is a column of W."""
    model = net(bias)
    hidden = torch.tanh(model[0](TRAIN[0])).detach()
    if bias:
        hidden = torch.cat([hidden, torch.ones(N, 1, dtype=DOUBLE)], 1)
    fit = LogisticRegression(C=1 / (N * DECAY), fit_intercept=False, tol=1e-10, max_iter=10_000)
    found = torch.from_numpy(fit.fit(hidden.numpy(), TRAIN[1].numpy()).coef_)
    with torch.no_grad():
        model[2].weight.copy_(found[:, :6])
        if bias:
            model[2].bias.copy_(found[:, 6])
    return model


def by_hand(model: nn.Module, ridge: float, output: str) -> np.ndarray:
    one = torch.ones(0 if model[2].bias is None else 1, dtype=DOUBLE)
    tau = np.zeros((M, N))
    for q in range(M):
        above = torch.cat([torch.tanh(model[0](QUERIES[0][q])), one])
        z = model(QUERIES[0][q : q + 1]).detach().requires_grad_()
        (along,) = torch.autograd.grad(evaluate(output, z, QUERIES[1][q : q + 1]).sum(), z)
        for i in range(N):
            below = torch.cat([torch.tanh(model[0](TRAIN[0][i])), one])
            p = torch.softmax(model(TRAIN[0][i : i + 1])[0], 0).detach()
            p[TRAIN[1][i]] -= 1
            tau[q, i] = -(p @ along[0]).item() * (below @ above).item() / ridge
    return tau


@pytest.mark.parametrize("output", ["margin", "loss", "logit"])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_published_formula_row_by_row(bias: bool, output: str) -> None:
    model, options = net(bias), OPTIONS | {"output": output}
    got = attribute("representer", model, [model.state_dict()], weight_decay=DECAY, **options)
    want = by_hand(model, N * DECAY, output)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * np.abs(want).max())
    assert got.record["options"]["layer"] == ["2"]
    assert got.record["options"]["distance_from_stationary"][0] > 1  # never trained


@pytest.mark.parametrize("bias", [True, False])
def test_where_the_head_is_stationary_the_rows_shares_add_up_to_the_logit(bias: bool) -> None:
    model = refitted(bias)
    options = OPTIONS | {"output": "logit", "weight_decay": DECAY}
    got = attribute("representer", model, [model.state_dict()], **options)
    logits = model(QUERIES[0]).detach()
    want = logits.gather(1, QUERIES[1][:, None])[:, 0].numpy()
    np.testing.assert_allclose(got.sum(1), want, rtol=1e-4, atol=1e-5)
    assert got.record["options"]["distance_from_stationary"][0] < 1e-4


def test_refitting_moves_any_head_to_the_same_stationary_point() -> None:
    trained, fresh = refitted(True), net()
    options = OPTIONS | {"weight_decay": DECAY}
    want = attribute("representer", trained, [trained.state_dict()], **options)
    got = attribute("representer", fresh, [fresh.state_dict()], refit=True, **options)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
    assert got.record["options"]["distance_from_stationary"][0] < 1e-5
    assert "refitted" in got.record["chosen_from"]


def test_without_a_weight_decay_the_nearest_one_is_found() -> None:
    model = refitted(True)
    got = attribute("representer", model, [model.state_dict()], **OPTIONS)
    assert got.record["options"]["weight_decay"][0] == pytest.approx(DECAY, rel=1e-4)


def test_a_regression_head_is_a_sum_over_rows_too() -> None:
    inputs, asked = TRAIN[0], QUERIES[0]
    y = inputs.sum(1) + 0.3
    model = nn.Linear(D, 1).double()
    got = attribute(
        "representer",
        model,
        [model.state_dict()],
        train=(inputs, y),
        queries=(asked, torch.zeros(M, dtype=DOUBLE)),
        weight_decay=DECAY,
        refit=True,
        dtype=DOUBLE,
    )
    wide = torch.cat([inputs, torch.ones(N, 1, dtype=DOUBLE)], 1)
    ridge = N * DECAY / 2 * torch.eye(D + 1, dtype=DOUBLE)
    theta = torch.linalg.solve(wide.T @ wide + ridge, wide.T @ y)
    want = torch.cat([asked, torch.ones(M, 1, dtype=DOUBLE)], 1) @ theta
    np.testing.assert_allclose(got.sum(1), want.numpy(), rtol=1e-5)


def test_blocks_batches_and_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [net().state_dict(), refitted(True).state_dict()]
    options = OPTIONS | {"weight_decay": DECAY}
    alone = [attribute("representer", net(), [state], **options) for state in states]
    monkeypatch.setattr("attribution.estimators.representer.QUERY_BLOCK", 2)
    parts: list[np.ndarray] = []
    attribute(
        "representer",
        net(),
        states,
        batch_size=7,
        out=lambda _, block: parts.append(block),
        **options,
    )
    want = (alone[0] + alone[1]) / 2
    np.testing.assert_allclose(np.concatenate(parts), want, rtol=1e-5, atol=1e-7)


def test_bad_requests_are_refused_with_what_to_do() -> None:
    state = [net().state_dict()]
    for options, message in (
        ({"weight_decay": 0.0}, "above 0"),
        ({"refit": True}, "needs the weight_decay"),
    ):
        with pytest.raises(ShapeError, match=message):
            attribute("representer", net(), state, **options, **OPTIONS)
    wrong = refitted(True)
    with torch.no_grad():  # a head that points away from what the rows ask for
        wrong[2].weight.neg_()
        wrong[2].bias.neg_()
    with pytest.raises(ShapeError, match="no weight decay"):
        attribute("representer", wrong, [wrong.state_dict()], **OPTIONS)
    twisted = nn.Sequential(nn.Linear(D, K), nn.Tanh()).double()
    with pytest.raises(RecipeError, match="linear head"):
        attribute("representer", twisted, [twisted.state_dict()], weight_decay=0.1, **OPTIONS)
