from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attribution.estimators.features import Features, featurize
from attribution.estimators.shortcuts import logit_changes
from attribution.outputs import evaluate
from attribution.projection import Projection, backproject, sketch
from attribution.streams import stream
from schemas.errors import ShapeError

DOUBLE = torch.float64
N, M, D, K, C = 20, 6, 5, 3, 2
KINDS = ["none", "sparse", "rademacher", "gaussian", "hadamard", "factored", "auto"]


def net() -> nn.Module:
    return nn.Sequential(
        nn.Linear(D, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, K, bias=False)
    ).double()


def states() -> list[dict[str, Any]]:
    found = []
    for seed in range(C):
        torch.manual_seed(seed)
        found.append(net().state_dict())
    return found


def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = stream(seed)
    return torch.from_numpy(rng.standard_normal((n, D))), torch.from_numpy(rng.integers(0, K, n))


@cache
def sets(
    projection: Projection, output: Any = "margin", ggn: bool = True
) -> tuple[list[Features], list[Features]]:
    def of(data: Any, output: Any, ggn: bool) -> list[Features]:
        return [
            featurize(
                net(),
                state,
                data,
                output=output,
                task="classification",
                projection=projection,
                seed=5,
                checkpoint=number,
                dtype=DOUBLE,
                ggn=ggn,
            )
            for number, state in enumerate(states())
        ]

    return of(rows(N, 1), "margin", ggn), of(rows(M, 2), output, False)


@pytest.mark.parametrize("kind", KINDS)
def test_logit_changes_are_products_with_the_features_of_every_logit(kind: str) -> None:
    projection = Projection(kind=kind, dim=16)
    inputs, labels = rows(M, 2)
    train, margins = sets(projection)
    width = train[0].sketch.shape[1]
    vectors = [torch.from_numpy(stream(9, c).standard_normal(width)) for c in range(C)]

    def product(asked: list[Features]) -> np.ndarray:
        pairs = zip(asked, vectors, strict=True)
        return -torch.stack([own.sketch @ vector for own, vector in pairs]).mean(0).numpy()

    changes = logit_changes(
        net(),
        states(),
        inputs,
        vectors,
        train=train,
        projection=projection,
        seed=5,
        batch_size=4,
        dtype=DOUBLE,
    )
    assert changes.shape == (C, M, K)
    for number in range(K):

        def logit(logits: Tensor, targets: Tensor, number: int = number) -> Tensor:
            return logits[..., number] + 0 * targets

        _, asked = sets(projection, logit, ggn=False)
        np.testing.assert_allclose(
            changes[:, :, number].mean(0), product(asked), rtol=1e-5, atol=1e-6
        )
    # The margin, through the logits: its derivative at each checkpoint times their changes.
    through = torch.zeros(M, dtype=DOUBLE)
    for state, change in zip(states(), changes, strict=True):
        model = net()
        model.load_state_dict(state)
        logits = model(inputs).detach().requires_grad_()
        (slope,) = torch.autograd.grad(evaluate("margin", logits, labels).sum(), logits)
        through += (slope * torch.from_numpy(change)).sum(1) / C
    np.testing.assert_allclose(through.numpy(), product(margins), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "nonzeros"),
    [("sparse", 1), ("sparse", 3)]
    + [(k, 1) for k in ("rademacher", "gaussian", "hadamard", "none")],
)
def test_backprojection_is_the_transpose_of_the_sketch(
    kind: str, nonzeros: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attribution.projection.transpose.DRAWN_ENTRIES", 1024)
    projection, p = Projection(kind=kind, dim=32, nonzeros=nonzeros), 777
    rng = stream(8)
    gradients = torch.from_numpy(rng.standard_normal((4, p)))
    vector = torch.from_numpy(rng.standard_normal(projection.width(p)))
    key = {"seed": 2**40, "checkpoint": 3, "p": p}
    found = backproject(vector, projection, **key)
    assert found.shape == (p,)
    left = sketch([(0, gradients)], projection, **key) @ vector
    torch.testing.assert_close(gradients @ found, left, rtol=1e-6, atol=1e-6)


def refusals() -> list[tuple[str, Callable[[list[Features]], object]]]:
    sparse = Projection(dim=16)

    def change(train: list[Features], **options: Any) -> object:
        options = {"projection": sparse, "seed": 5} | options
        vectors = [torch.ones(own.sketch.shape[1], dtype=DOUBLE) for own in train]
        inputs = rows(M, 2)[0]
        return logit_changes(net(), states(), inputs, vectors, train=train, dtype=DOUBLE, **options)

    return [
        ("the seed that they were made with", lambda train: change(train, seed=6)),
        ("2 checkpoints, 1 vectors", lambda train: change(train[:1])),
        (
            "'auto' names no matrix",
            lambda _: backproject(
                torch.zeros(9), Projection(kind="auto", dim=9), seed=0, checkpoint=0, p=99
            ),
        ),
        (
            "one number for each column",
            lambda _: backproject(torch.zeros(9), sparse, seed=0, checkpoint=0, p=99),
        ),
    ]


@pytest.mark.parametrize(("message", "request_"), refusals())
def test_what_does_not_fit_is_refused(message: str, request_: Callable[..., object]) -> None:
    train, _ = sets(Projection(dim=16), ggn=False)
    with pytest.raises(ShapeError, match=message):
        request_(train)
