from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attribution.models import build
from attribution.training import Recipe, TrainingPath
from attribution.training.chunks import Chunk
from attribution.training.jobs import make_job
from attribution.training.kernels import VECTOR_BYTES, product
from attribution.training.network import network_of, product_reference

RNG = np.random.default_rng(0)
SHORT = Recipe(epochs=2, batch_size=8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("beta", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("n_vectors", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("n_rows", "n_steps"), [(1, 1), (5, 3), (8, 9), (23, 1_100)])
def test_the_tiles_sum_what_the_reference_sums(
    dtype: Any, beta: float, n_vectors: int, n_rows: int, n_steps: int
) -> None:
    wide = n_vectors * VECTOR_BYTES // np.dtype(dtype).itemsize
    a = RNG.normal(size=n_rows + n_steps).astype(dtype)
    b = RNG.normal(size=(n_steps + 1) * wide).astype(dtype)
    c = RNG.normal(size=2 * n_rows * wide).astype(dtype)
    # Windows overlap, lines of B and C lie apart and in no order.
    p, q = RNG.permutation(n_rows), RNG.permutation(n_steps)
    s, r = 3 + RNG.permutation(n_steps) * wide, RNG.permutation(2 * n_rows)[:n_rows] * wide
    want = product_reference(
        *(a.astype(np.float64), p, q, b.astype(np.float64), s, c.astype(np.float64), r),
        wide,
        beta,
    )
    product(a, p, q, b, s, c, r, wide, dtype(beta))
    exact = 1e-12 if dtype is np.float64 else 2e-4
    np.testing.assert_allclose(c, want, rtol=exact, atol=exact)


def test_a_number_that_is_none_is_overwritten_but_not_forgotten() -> None:
    wide = VECTOR_BYTES // 8
    zero, line = np.zeros(1, dtype=np.int64), np.ones(wide)
    sums = np.full(wide, np.nan)
    product(np.ones(1), zero, zero, line, zero, sums, zero, wide, 0.0)
    np.testing.assert_array_equal(sums, line)
    product(np.full(1, np.nan), zero, zero, line, zero, sums, zero, wide, 1.0)
    assert np.isnan(sums).all()


@pytest.mark.parametrize(
    ("options", "regression"),
    [({"hidden": [8, 5]}, False), ({"hidden": [8], "activation": "tanh"}, False), ({}, True)],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_batched_products_and_compiled_epochs_train_the_same_perceptrons(
    options: dict[str, Any], regression: bool, optimizer: str
) -> None:
    inputs = RNG.normal(size=(40, 12))
    targets = inputs[:, 0] if regression else RNG.integers(0, 3, 40)
    masks = RNG.random((3, 40)) < 0.5
    job = make_job(
        build("mlp", (12,), 1 if regression else 3, **options),
        (inputs, targets),
        *(masks, [4, 5, 6], replace(SHORT, optimizer=optimizer), None, "cpu", torch.float64),
    )
    assert job.path is TrainingPath.COMPILED
    rows = np.argsort(-masks.sum(axis=1))
    stacked = replace(job, network=None, examples=None, path=TrainingPath.STACKED)
    compiled, batched = Chunk(job, rows), Chunk(stacked, rows)
    for chunk in (compiled, batched):
        chunk.initialise()
        chunk.run(0)
        chunk.run(1)
    np.testing.assert_allclose(compiled.losses, batched.losses, rtol=1e-9)
    for name, value in batched.tensors().items():
        torch.testing.assert_close(compiled.tensors()[name], value, rtol=1e-7, atol=1e-12)


PICTURE = (2, 6, 6)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(2, 4, 3, groups=2),
        nn.Conv2d(2, 4, 3, dilation=2),
        nn.Conv2d(2, 4, 3, padding="same"),
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(2, 4, 1, padding=1),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(3, stride=1)),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(3, ceil_mode=True)),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Tanh()),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Tanh()),
        nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(2, 4, 3)),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.AvgPool2d(2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.AvgPool2d(2, divisor_override=3)),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.GELU()),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.Dropout()),
    ],
)
def test_what_the_kernels_do_not_know_is_left_to_others(module: nn.Module) -> None:
    head = [nn.Flatten(), nn.LazyLinear(3)]
    model = nn.Sequential(module, *head)
    model(torch.zeros(1, *PICTURE))
    assert network_of(model, PICTURE, 4, torch.float32) is None


def test_shared_frozen_and_hooked_modules_are_left_to_others() -> None:
    twice = nn.Linear(5, 5)
    assert network_of(nn.Sequential(twice, twice), (5,), 4, torch.float32) is None
    model = build("cnn", PICTURE, 3)
    assert network_of(model, PICTURE, 4, torch.float32) is not None
    assert network_of(model, PICTURE, 4, torch.float16) is None
    hook = model.register_forward_hook(lambda *_: None)
    assert network_of(model, PICTURE, 4, torch.float32) is None
    hook.remove()
    next(model.parameters()).requires_grad_(False)
    assert network_of(model, PICTURE, 4, torch.float32) is None
