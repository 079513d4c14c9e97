import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.projection import Projection, cpu, device, fingerprint, sketch
from attribution.projection.reference import entries, sketch_reference
from attribution.streams import stream
from schemas.errors import RequestError, ShapeError

SEED, CHECKPOINT = 2**40 + 7, 3


def gradients(rows: int, p: int, dtype: type = np.float32) -> torch.Tensor:
    return torch.from_numpy(stream(1).standard_normal((rows, p)).astype(dtype))


def close(got: torch.Tensor, want: np.ndarray, rtol: float = 2e-5) -> None:
    np.testing.assert_allclose(got.numpy(), want, rtol=rtol, atol=rtol * np.abs(want).std())


@pytest.mark.parametrize("nonzeros", [1, 3, 4, 9])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_fast_path_equals_the_reference(nonzeros: int, rows: int) -> None:
    block, dim = gradients(rows, 1003), 64
    options = {"dim": dim, "nonzeros": nonzeros, "seed": SEED, "checkpoint": CHECKPOINT}
    want = sketch_reference(block.numpy(), **options)
    projection = Projection(dim=dim, nonzeros=nonzeros)
    got = sketch([(0, block)], projection, seed=SEED, checkpoint=CHECKPOINT, p=1003)
    assert got.dtype == torch.float32
    close(got, want)
    exact = sketch([(0, block.double())], projection, seed=SEED, checkpoint=CHECKPOINT, p=1003)
    assert exact.dtype == torch.float64
    close(exact, want, rtol=1e-12)


def test_large_blocks_in_threads_equal_the_reference() -> None:
    block = gradients(9, 80_000)
    want = sketch_reference(block.numpy(), dim=32, nonzeros=1, seed=0, checkpoint=0)
    close(sketch([(0, block)], Projection(dim=32), seed=0, checkpoint=0, p=80_000), want)


def test_columns_and_signs_are_the_same_bits_everywhere() -> None:
    start, count, nonzeros, dim = 2**33 - 5, 40, 6, 1000
    columns, signs = entries(
        start, start + count, dim=dim, nonzeros=nonzeros, seed=SEED, checkpoint=CHECKPOINT
    )
    fast_columns = np.empty((count, nonzeros), dtype=np.uint32)
    fast_signs = np.empty((count, nonzeros), dtype=np.float32)
    cpu._draw(start, SEED, CHECKPOINT, dim, fast_columns, fast_signs)
    np.testing.assert_array_equal(fast_columns, columns)
    np.testing.assert_array_equal(fast_signs, signs)


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_torch_path_equals_the_reference(where: str) -> None:
    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    block = gradients(3, 500, np.float64).to(where)
    out = torch.zeros(3, 40, dtype=torch.float64, device=where)
    options = {"nonzeros": 5, "seed": SEED, "checkpoint": CHECKPOINT, "offset": 2**32 - 100}
    device.add_sketch(block, out, **options)
    want = sketch_reference(block.cpu().numpy(), dim=40, **options)
    close(out.cpu() / 5**0.5, want, rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 299), order=st.booleans())
def test_sketches_do_not_care_where_we_cut(cut: int, order: bool) -> None:
    block = gradients(4, 300)
    options = {"seed": 5, "checkpoint": 0, "p": 300}
    parts = [(0, block[:, :cut]), (cut, block[:, cut:])]
    whole = sketch([(0, block)], Projection(dim=50, nonzeros=2), **options)
    cut_up = sketch(parts[::-1] if order else parts, Projection(dim=50, nonzeros=2), **options)
    close(cut_up, whole.numpy())
    single = sketch([(0, block[2:3])], Projection(dim=50, nonzeros=2), **options)
    torch.testing.assert_close(single, whole[2:3], rtol=0, atol=0)


def test_the_bits_never_change() -> None:
    columns, signs = entries(0, 4, dim=2048, nonzeros=2, seed=0, checkpoint=0)
    assert columns.tolist() == GOLDEN_COLUMNS
    assert signs.tolist() == GOLDEN_SIGNS


GOLDEN_COLUMNS = [[20, 1581], [656, 1853], [516, 2037], [367, 1434]]
GOLDEN_SIGNS = [[-1, 1], [-1, 1], [1, -1], [1, -1]]


@pytest.mark.parametrize("nonzeros", [1, 4])
def test_inner_products_are_kept_on_average(nonzeros: int) -> None:
    a, b = gradients(2, 200, np.float64).numpy()
    both = torch.from_numpy(np.stack([a, b]))
    projection = Projection(dim=64, nonzeros=nonzeros)
    products = []
    for seed in range(600):
        s = sketch([(0, both)], projection, seed=seed, checkpoint=0, p=200)
        products.append([float(s[0] @ s[1]), float(s[0] @ s[0])])
    spread = np.std(products, axis=0) / np.sqrt(len(products))
    assert np.all(np.abs(np.mean(products, axis=0) - [a @ b, a @ a]) < 4 * spread)


def test_columns_and_signs_are_even() -> None:
    columns, signs = entries(0, 40_000, dim=20, nonzeros=2, seed=9, checkpoint=1)
    assert set(columns[:, 0]) == set(range(10))
    assert set(columns[:, 1]) == set(range(10, 20))
    counts = np.bincount(columns.ravel(), minlength=20)
    assert ((counts - 4000) ** 2 / 4000).sum() < 45  # chi-square, 18 degrees of freedom
    assert np.abs(signs.mean(axis=0)).max() < 0.02
    assert abs(np.mean(signs[:, 0] * signs[:, 1])) < 0.02


def test_seeds_checkpoints_and_parameters_have_matrices_of_their_own() -> None:
    base = {"dim": 4096, "nonzeros": 1, "seed": 1, "checkpoint": 0}
    columns, _ = entries(0, 1000, **base)
    for change in ({"seed": 2}, {"seed": 1 + 2**32}, {"checkpoint": 1}):
        other, _ = entries(0, 1000, **(base | change))
        assert (other == columns).mean() < 0.01
    shifted, _ = entries(500, 1500, **base)
    np.testing.assert_array_equal(shifted[:500], columns[500:])
    beyond, _ = entries(2**32, 2**32 + 1000, **base)
    assert (beyond == columns).mean() < 0.01


def test_no_projection_keeps_the_gradients() -> None:
    block = gradients(3, 10)
    got = sketch([(4, block[:, 4:]), (0, block[:, :4])], Projection(kind="none"), **KEY, p=10)
    torch.testing.assert_close(got, block, rtol=0, atol=0)
    with pytest.raises(ShapeError, match="sparse"):
        Projection(kind="none").width(10**7)


def test_half_precision_gradients_are_summed_in_float32() -> None:
    block = torch.full((2, 5000), 300.0, dtype=torch.float16)
    got = sketch([(0, block)], Projection(dim=1), **KEY, p=5000)
    assert got.dtype == torch.float32
    assert torch.isfinite(got).all()


def test_fingerprints_name_everything_that_changes_the_bits() -> None:
    prints = {
        fingerprint(projection, seed=seed, checkpoint=checkpoint, p=p)
        for projection in (
            Projection(),
            Projection(dim=64),
            Projection(nonzeros=2),
            Projection(kind="none"),
        )
        for seed in (0, 1)
        for checkpoint in (0, 1)
        for p in (10, 11)
    }
    assert len(prints) == 3 * 8 + 4  # exact gradients have no seed
    assert fingerprint(Projection(), seed=0, checkpoint=2, p=9) == (
        "sparse/1:dim=2048,nonzeros=1,seed=0,checkpoint=2,p=9"
    )


KEY = {"seed": 0, "checkpoint": 0}


def test_what_does_not_fit_is_refused() -> None:
    for bad in ({"kind": "dense"}, {"dim": 0}, {"nonzeros": 0}, {"dim": 4, "nonzeros": 5}):
        with pytest.raises(ShapeError):
            Projection(**bad)
    with pytest.raises(ShapeError, match=r"8\.\.13 of 12"):
        sketch([(8, gradients(1, 5))], Projection(), **KEY, p=12)
    with pytest.raises(ShapeError, match="no gradient block"):
        sketch([], Projection(), **KEY, p=12)
    with pytest.raises(ShapeError, match="expected 2 rows"):
        sketch([(0, gradients(2, 5)), (5, gradients(3, 5))], Projection(), **KEY, p=12)
    with pytest.raises(RequestError, match="seed"):
        sketch([(0, gradients(2, 5))], Projection(), seed=-1, checkpoint=0, p=5)
