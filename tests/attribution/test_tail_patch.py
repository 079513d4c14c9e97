"""Tail patch against training by hand, and its limit of a small rate."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attribution import attribute
from attribution.models import build, fresh
from attribution.outputs import UNASKED, of_examples
from attribution.streams import stream
from attribution.tail_patch import tail_patch
from schemas.errors import ShapeError

N, M, T, WORDS = 8, 3, 5, 12


def documents() -> tuple[nn.Module, dict[str, Any], Any, Any]:
    """A small language model and documents; of a query only the last token is asked."""
    rng = stream(0)
    pairs = []
    for count in (N, M):
        tokens = torch.from_numpy(rng.integers(1, WORDS, (count, T + 1)))
        pairs.append((tokens[:, :-1], tokens[:, 1:].clone()))
    pairs[1][1][:, :-1] = UNASKED
    options = {"vocabulary": WORDS, "width": 8, "depth": 1, "heads": 2, "causal": True}
    model = fresh(lambda: build("transformer", (T,), WORDS, **options), 1).double()
    return model, dict(model.state_dict()), *pairs


ROWS = np.array([[0, 5], [5, 2], [7, 0]])


def test_a_patch_is_a_step_of_plain_descent_done_by_hand() -> None:
    model, state, train, queries = documents()
    got = tail_patch(
        model, state, train=train, queries=queries, rows=ROWS, rate=0.1, dtype=torch.float64
    )
    for (query, place), row in np.ndenumerate(ROWS):
        own = copy.deepcopy(model)
        optimizer = torch.optim.SGD(own.parameters(), lr=0.1)

        def logprob(of: nn.Module, query: int = query) -> torch.Tensor:
            asked = slice(query, query + 1)
            return of_examples("logprob", of(queries[0][asked]), queries[1][asked])

        of_examples("loss", own(train[0][[row]]), train[1][[row]]).sum().backward()
        optimizer.step()
        want = float((logprob(own) - logprob(model)).detach())
        assert got[query, place] == pytest.approx(want, abs=1e-10)


def test_a_small_patch_is_the_product_of_gradients() -> None:
    model, state, train, queries = documents()
    rate = 1e-5
    common = {"train": train, "queries": queries, "dtype": torch.float64}
    got = tail_patch(model, state, rows=ROWS, rate=rate, **common)
    want = attribute("graddot", model, [state], output="logprob", **common)
    np.testing.assert_allclose(got / rate, np.take_along_axis(want, ROWS, 1), rtol=2e-3, atol=1e-4)


def test_the_model_that_is_given_is_left_alone() -> None:
    model, state, train, queries = documents()
    before = {name: value.clone() for name, value in state.items()}
    tail_patch(model, state, train=train, queries=queries, rows=ROWS, rate=1.0)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_rows_and_rates_that_make_no_sense_are_refused() -> None:
    model, state, train, queries = documents()
    for rows, rate, match in (
        (ROWS[:2], 0.1, "give \\[3, k\\]"),
        (ROWS + N, 0.1, "rows must lie in"),
        (ROWS, 0.0, "above 0"),
    ):
        with pytest.raises(ShapeError, match=match):
            tail_patch(model, state, train=train, queries=queries, rows=rows, rate=rate)
