from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attribution import attribute
from attribution.outputs import UNASKED
from attribution.streams import stream
from schemas.errors import DataError, NotFound, RecipeError, ShapeError

DOUBLE = torch.float64
N, M, D, K = 19, 5, 4, 3


class Net(nn.Module):
    """Its head is not the module that is defined last."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, K)
        self.drop = nn.Dropout(0.5)
        self.body = nn.Linear(D, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.drop(torch.tanh(self.body(inputs))))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 5), nn.Linear(5, K)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens)).mean(1)


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().double()


def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = stream(seed)
    inputs = torch.from_numpy(rng.standard_normal((n, D)))
    return inputs, torch.from_numpy(rng.integers(0, K, n))


TRAIN, QUERIES = rows(N, 1), rows(M, 2)
STATES = [{name: value * scale for name, value in net().state_dict().items()} for scale in (1, 2)]
OPTIONS: dict[str, Any] = {"train": TRAIN, "queries": QUERIES, "dtype": DOUBLE}


def hidden(state: dict[str, Tensor], inputs: Tensor) -> Tensor:
    return torch.tanh(inputs @ state["body.weight"].T + state["body.bias"])


def compared(a: Tensor, b: Tensor, measure: str) -> np.ndarray:
    out = np.empty((len(a), len(b)))
    for q, left in enumerate(a):
        for i, right in enumerate(b):
            if measure == "l2":
                out[q, i] = -float(((left - right) ** 2).sum())
            elif measure == "dot":
                out[q, i] = float(left @ right)
            else:
                out[q, i] = float(torch.cosine_similarity(left, right, dim=0))
    return out


@pytest.mark.parametrize("measure", ["dot", "cosine", "l2"])
def test_the_input_of_the_last_linear_layer_is_compared(measure: str) -> None:
    want = np.mean(
        [compared(hidden(state, QUERIES[0]), hidden(state, TRAIN[0]), measure) for state in STATES],
        axis=0,
    )
    got = attribute("similarity", net().train(), STATES, measure=measure, **OPTIONS)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)
    assert got.record["options"]["layer"] == ["head", "head"]
    lowered = attribute("similarity", net(), STATES, measure=measure, output="loss", **OPTIONS)
    np.testing.assert_array_equal(lowered, -got)
    asked = OPTIONS | {"queries": TRAIN}
    own = np.asarray(attribute("similarity", net(), STATES, measure=measure, **asked))
    if measure != "dot":  # nothing is more similar to a row than the row itself
        assert (own.argmax(1) == np.arange(N)).all()


def test_a_layer_is_found_by_its_name_and_positions_are_averaged() -> None:
    got = attribute("similarity", net(), STATES[:1], layer="body", measure="dot", **OPTIONS)
    np.testing.assert_allclose(got, (QUERIES[0] @ TRAIN[0].T).numpy(), rtol=1e-6, atol=1e-9)
    maps = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, K)).double()
    pictures = {
        "train": (TRAIN[0].reshape(N, 1, 2, 2), TRAIN[1]),
        "queries": (QUERIES[0].reshape(M, 1, 2, 2), QUERIES[1]),
        "dtype": DOUBLE,
    }
    whole = attribute("similarity", maps, [maps.state_dict()], layer="0", measure="dot", **pictures)
    np.testing.assert_array_equal(whole, got)
    torch.manual_seed(0)
    words = Words().double()
    tokens = torch.from_numpy(stream(3).integers(0, 9, (N, 7)))
    options = OPTIONS | {"train": (tokens, TRAIN[1]), "queries": (tokens, TRAIN[1])}
    found = words.table(tokens).mean(1).detach()
    got = attribute("similarity", words, [words.state_dict()], measure="dot", **options)
    np.testing.assert_allclose(got, (found @ found.T).numpy(), rtol=1e-6, atol=1e-9)


def test_of_a_document_only_the_tokens_asked_for_count() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 5), nn.Linear(5, 9)).double()
    tokens = torch.from_numpy(stream(3).integers(0, 9, (N, 7)))
    targets = tokens.roll(-1, 1)
    targets[:, 4:] = UNASKED
    rows = (tokens, targets)
    state = [model.state_dict()]
    got = attribute(
        "similarity", model, state, train=rows, queries=rows, measure="dot", dtype=DOUBLE
    )
    found = model[0](tokens[:, :4]).mean(1).detach()
    np.testing.assert_allclose(got, (found @ found.T).numpy(), rtol=1e-6, atol=1e-9)
    with pytest.raises(ShapeError, match="no class to share"):
        attribute("similarity", model, state, train=rows, queries=rows, labels="same")
    with pytest.raises(ShapeError, match="one prediction a row"):
        attribute("representer", model, state, train=rows, queries=rows)


@pytest.mark.parametrize("measure", ["dot", "cosine", "l2"])
def test_rows_of_other_labels_do_nothing_if_only_the_same_count(measure: str) -> None:
    every = attribute("similarity", net(), STATES, measure=measure, **OPTIONS)
    same = attribute("similarity", net(), STATES, measure=measure, labels="same", **OPTIONS)
    alike = (QUERIES[1][:, None] == TRAIN[1]).numpy()
    np.testing.assert_array_equal(same[alike], every[alike])
    farthest = every.min(1, keepdims=True) if measure == "l2" else np.zeros((M, 1))
    np.testing.assert_array_equal(same[~alike], np.broadcast_to(farthest, every.shape)[~alike])


def test_given_embeddings_are_compared_as_they_are() -> None:
    rng = stream(5)
    own, asked = rng.standard_normal((N, 8)), rng.standard_normal((M, 8))
    own[3] = 0.0
    options = OPTIONS | {"train_embeddings": own, "query_embeddings": asked}
    got = attribute("embedding", net(), STATES[:1], **options)
    want = compared(torch.from_numpy(asked), torch.from_numpy(own), "cosine")
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)
    assert not got[:, 3].any()


def test_blocks_and_batches_do_not_change_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attribute("similarity", net(), STATES, labels="same", **OPTIONS)
    monkeypatch.setattr("attribution.estimators.representations.QUERY_BLOCK", 2)
    parts: list[np.ndarray] = []
    attribute(
        "similarity",
        net(),
        STATES,
        labels="same",
        batch_size=3,
        out=lambda _, block: parts.append(block),
        **OPTIONS,
    )
    assert [len(part) for part in parts] == [2, 2, 1]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6)


def test_bad_requests_are_refused_with_what_to_do() -> None:
    state = STATES[:1]
    for options, message in (
        ({"measure": "angle"}, "say dot, cosine, l2"),
        ({"labels": "other"}, "say any or same"),
    ):
        with pytest.raises(ShapeError, match=message):
            attribute("similarity", net(), state, **options, **OPTIONS)
    with pytest.raises(NotFound, match="its modules: head, drop, body"):
        attribute("similarity", net(), state, layer="neck", **OPTIONS)
    numbers = {"train": (TRAIN[0], TRAIN[0][:, 0]), "queries": (QUERIES[0], QUERIES[0][:, 0])}
    with pytest.raises(ShapeError, match="no class to share"):
        attribute("similarity", nn.Linear(D, 1).double(), state, labels="same", **numbers)
    huge = (torch.full_like(TRAIN[0], 1e300), TRAIN[1])
    plain = nn.Sequential(nn.Linear(D, 4), nn.Linear(4, K)).double()
    nn.init.constant_(plain[0].weight, 1e10)
    with pytest.raises(DataError, match="train row 0"):
        attribute("similarity", plain, [plain.state_dict()], **(OPTIONS | {"train": huge}))
    flat = nn.Sequential(nn.Conv1d(D, K, 1), nn.Flatten()).double()
    with pytest.raises(RecipeError, match="calls no linear layer"):
        attribute(
            "similarity",
            flat,
            [flat.state_dict()],
            train=(TRAIN[0][:, :, None], TRAIN[1]),
            queries=(QUERIES[0][:, :, None], QUERIES[1]),
            dtype=DOUBLE,
        )
    for embeddings, message in (
        ({}, "needs query_embeddings"),
        ({"query_embeddings": np.ones((M, 2))}, "needs train_embeddings"),
        ({"query_embeddings": np.ones((M, 2)), "train_embeddings": np.ones((N, 3))}, "2 columns"),
        ({"query_embeddings": np.ones((M + 1, 2))}, "one for each row"),
    ):
        with pytest.raises(ShapeError, match=message):
            attribute("embedding", net(), state, **embeddings, **OPTIONS)
    broken = np.ones((M, 2))
    broken[2, 1] = np.nan
    with pytest.raises(DataError, match="row 2"):
        attribute("embedding", net(), state, query_embeddings=broken, **OPTIONS)
