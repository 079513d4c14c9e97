from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attribution import attribute
from attribution.estimators.datainf import GRID
from attribution.outputs import evaluate
from attribution.streams import stream
from schemas.errors import DataError, ShapeError

N, M, D, K = 17, 4, 5, 3
LAYERS = ("first", "norm", "head")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(D, 4), nn.LayerNorm(4), nn.Linear(4, K)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.first(inputs))))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().double()


def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = stream(seed)
    inputs = torch.from_numpy(rng.standard_normal((n, D)))
    return inputs, torch.from_numpy(rng.integers(0, K, n))


TRAIN, QUERIES = rows(N, 1), rows(M, 2)
STATES = [
    {name: value + 0.1 * shift for name, value in net().state_dict().items()} for shift in (0, 1)
]
OPTIONS: dict[str, Any] = {"train": TRAIN, "queries": QUERIES, "dtype": torch.float64}


def gradients(state: dict[str, Tensor], pair: Any, output: str) -> dict[str, Tensor]:
    """[n, p_l] of each layer, one autograd call a row."""
    model = net()
    model.load_state_dict(state)
    found: dict[str, list[Tensor]] = {layer: [] for layer in LAYERS}
    for x, y in zip(*pair, strict=True):
        model.zero_grad()
        evaluate(output, model(x[None]), y[None]).sum().backward()
        for layer, parts in found.items():
            values = getattr(model, layer).parameters()
            parts.append(torch.cat([value.grad.flatten() for value in values]))
    return {layer: torch.stack(parts) for layer, parts in found.items()}


def by_hand(state: dict[str, Tensor], rho: float, output: str = "margin") -> np.ndarray:
    """With a mean of n dense inverses for each layer."""
    tau = torch.zeros(M, N, dtype=torch.float64)
    own, asked = gradients(state, TRAIN, "loss"), gradients(state, QUERIES, output)
    for layer in LAYERS:
        g = own[layer]
        eye = torch.eye(g.shape[1], dtype=torch.float64)
        damping = rho * (g**2).mean()
        inverse = sum(torch.linalg.inv(torch.outer(row, row) + damping * eye) for row in g) / N
        tau -= asked[layer] @ inverse @ g.T / N
    return tau.numpy()


@pytest.mark.parametrize("output", ["margin", "loss"])
@pytest.mark.parametrize("rho", [0.1, 3.0])
def test_it_is_a_mean_of_dense_inverses_layer_by_layer(output: str, rho: float) -> None:
    want = np.mean([by_hand(state, rho, output) for state in STATES], axis=0)
    got = attribute("datainf", net(), STATES, output=output, damping=rho, **OPTIONS)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * np.abs(want).max())
    assert got.record["damping"] == rho


def test_without_a_bank_the_damping_is_the_published_one() -> None:
    got = attribute("datainf", net(), STATES[:1], **OPTIONS)
    assert got.record["damping"] == 0.1
    squares = [float((g**2).mean()) for g in gradients(STATES[0], TRAIN, "loss").values()]
    np.testing.assert_allclose(
        got.record["options"]["layer_damping"], [[0.1 * value for value in squares]]
    )


def test_it_is_exact_gauss_newton_where_gradients_differ_only_in_sign() -> None:
    inputs = torch.from_numpy(stream(4).choice([-1.0, 1.0], (N, 1)) * np.arange(1.0, 1 + D))
    train = (inputs, torch.from_numpy(stream(5).integers(0, 2, N)))
    model = nn.Linear(D, 2, bias=False).double()
    nn.init.zeros_(model.weight)  # p = 1/2 whatever the row
    asked = (QUERIES[0], torch.zeros(M, dtype=torch.int64))

    def flat(pair: Any, output: str) -> Tensor:
        rows = zip(*pair, strict=True)
        values = [evaluate(output, model(x[None]), y[None]).sum() for x, y in rows]
        parts = [torch.autograd.grad(value, model.weight)[0] for value in values]
        return torch.stack(parts).flatten(1)

    own = flat(train, "loss")
    fisher = own.T @ own / N
    ridge = 0.3 * fisher.trace() / len(fisher) * torch.eye(len(fisher), dtype=torch.float64)
    want = -flat(asked, "margin") @ torch.linalg.solve(fisher + ridge, own.T) / N
    got = attribute(
        "datainf",
        model,
        [model.state_dict()],
        train=train,
        queries=asked,
        damping=0.3,
        dtype=torch.float64,
    )
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-9)


def test_blocks_and_batches_do_not_change_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attribute("datainf", net(), STATES, damping=0.1, **OPTIONS)
    monkeypatch.setattr("attribution.estimators.datainf.BLOCK_ENTRIES", 130)  # two queries
    parts: list[np.ndarray] = []
    for size in (1, 5):
        parts.clear()
        empty = attribute(
            "datainf",
            net(),
            STATES,
            damping=0.1,
            batch_size=size,
            out=lambda _, block: parts.append(block),
            **OPTIONS,
        )
        assert empty.shape == (0, N)
        assert len(parts) == 2
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6, atol=1e-8)


def test_damping_is_tuned_as_if_every_damping_had_been_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = stream(9)
    masks = np.stack([rng.permutation(N) < N // 2 for _ in range(12)])
    truth = attribute("datainf", net(), STATES, damping=GRID[6], **OPTIONS)
    bank = SimpleNamespace(masks=masks, outputs=masks @ np.asarray(truth, dtype=np.float64).T)
    for entries in (2**26, 130):
        monkeypatch.setattr("attribution.estimators.datainf.BLOCK_ENTRIES", entries)
        tuned = attribute("datainf", net(), STATES, bank=bank, **OPTIONS)
        assert tuned.record["damping"] == GRID[6]
        assert dict(tuned.record["damping_table"])[GRID[6]] > 0.999
        np.testing.assert_allclose(tuned, truth, rtol=1e-6)


def test_a_row_raises_its_own_margin() -> None:
    own = attribute("datainf", net(), STATES, **(OPTIONS | {"queries": TRAIN}))
    assert (np.diag(own) > 0).all()


def test_bad_requests_are_refused_with_what_to_do() -> None:
    for damping in (0.0, -1.0, float("nan")):
        with pytest.raises(ShapeError, match="positive number"):
            attribute("datainf", net(), STATES, damping=damping, **OPTIONS)
    huge = (TRAIN[0] * 1e200, TRAIN[1])
    plain = nn.Linear(D, K).double()
    with pytest.raises(DataError, match="row 0"):
        attribute("datainf", plain, [plain.state_dict()], **(OPTIONS | {"train": huge}))
