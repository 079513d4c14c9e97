import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from attribution.projection import (
    Projection,
    cpu_kernels,
    device,
    fingerprint,
    sketch,
    sketch_implementation,
)
from attribution.projection.reference import (
    KIND_CODES,
    WIDEST,
    bit_signs,
    entries,
    matrix,
    normals,
    sketch_reference,
    walsh_rows,
    words,
)
from attribution.streams import stream
from schemas.errors import RequestError, ShapeError
from schemas.projections import WIDEST_SKETCH

SEED, CHECKPOINT = 2**40 + 7, 3
KINDS = ["sparse", "rademacher", "gaussian", "hadamard"]
KINDS_AND_NONZEROS = [("sparse", 1), ("sparse", 4), *((kind, 1) for kind in KINDS[1:])]


def gradients(rows: int, p: int, dtype: type = np.float32) -> torch.Tensor:
    return torch.from_numpy(stream(1).standard_normal((rows, p)).astype(dtype))


def close(got: torch.Tensor, want: np.ndarray, rtol: float = 2e-5) -> None:
    np.testing.assert_allclose(got.numpy(), want, rtol=rtol, atol=rtol * np.abs(want).std())


@pytest.mark.parametrize("nonzeros", [1, 3, 4, 9])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_fast_sparse_path_equals_the_reference(nonzeros: int, rows: int) -> None:
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


# Rows, parameters, width, offset: a single row; odd sizes; more columns than a Hadamard block has
# places, over the 32-bit boundary; whole Hadamard blocks.
SHAPES = [(1, 300, 50, 0), (7, 5003, 130, 100), (2, 301, 4099, 2**32 - 150), (9, 8192, 64, 4096)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "p", "dim", "offset"), SHAPES)
def test_every_fast_path_equals_the_reference(
    kind: str, rows: int, p: int, dim: int, offset: int
) -> None:
    block = gradients(rows, p)
    key = {"seed": SEED, "checkpoint": CHECKPOINT}
    want = sketch_reference(block.numpy(), kind=kind, dim=dim, offset=offset, **key)
    projection = Projection(kind=kind, dim=dim)
    got = sketch([(offset, block)], projection, **key, p=offset + p)
    assert got.dtype == torch.float32
    close(got, want)
    exact = sketch([(offset, block.double())], projection, **key, p=offset + p)
    close(exact, want, rtol=1e-12)


@pytest.mark.parametrize("kind", ["sparse", "hadamard"])
def test_large_blocks_in_threads_equal_the_reference(kind: str) -> None:
    block = gradients(19, 20_000)
    want = sketch_reference(block.numpy(), kind=kind, dim=32, seed=0, checkpoint=0)
    projection = Projection(kind=kind, dim=32)
    close(sketch([(0, block)], projection, seed=0, checkpoint=0, p=20_000), want)


def test_columns_and_signs_are_the_same_bits_everywhere() -> None:
    start, count, nonzeros, dim = 2**33 - 5, 40, 6, 1000
    columns, signs = entries(
        start, start + count, dim=dim, nonzeros=nonzeros, seed=SEED, checkpoint=CHECKPOINT
    )
    fast_columns = np.empty((count, nonzeros), dtype=np.uint32)
    fast_signs = np.empty((count, nonzeros), dtype=np.float32)
    cpu_kernels.draw_sparse(start, SEED, CHECKPOINT, dim, fast_columns, fast_signs)
    np.testing.assert_array_equal(fast_columns, columns)
    np.testing.assert_array_equal(fast_signs, signs)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_dense_matrices_are_the_same_bits_everywhere(kind: str, where: str) -> None:
    on(where)
    start, count, dim = 2**33 - 20, 60, 1003
    drawn = words(
        np.arange(start, start + count, dtype=np.uint64)[:, None],
        np.arange(-(-dim // (128 if kind == "rademacher" else 4))),
        kind=KIND_CODES[kind],
        seed=SEED,
        checkpoint=CHECKPOINT,
    )
    want = (bit_signs if kind == "rademacher" else normals)(drawn).reshape(count, -1)[:, :dim]
    fill = cpu_kernels.fill_signs if kind == "rademacher" else cpu_kernels.fill_normals
    compiled = np.empty((count, dim), dtype=np.float32)
    fill(0, count, start, SEED, CHECKPOINT, compiled)
    np.testing.assert_array_equal(compiled, want)
    rows = device.rademacher_rows if kind == "rademacher" else device.gaussian_rows
    index = torch.arange(start, start + count, device=where)
    torch_rows = rows(index, dim, SEED, CHECKPOINT).cpu().numpy()
    np.testing.assert_array_equal(torch_rows, want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_torch_path_equals_the_reference(kind: str, where: str) -> None:
    on(where)
    nonzeros = 5 if kind == "sparse" else 1
    for rows, p, dim, offset in SHAPES:
        block = gradients(rows, p, np.float64).to(where)
        out = torch.zeros(rows, dim, dtype=torch.float64, device=where)
        options = {"kind": kind, "nonzeros": nonzeros, "seed": SEED, "checkpoint": CHECKPOINT}
        device.add_sketch(block, out, offset=offset, **options)
        want = sketch_reference(block.cpu().numpy(), dim=dim, offset=offset, **options)
        scale = Projection(kind=kind, dim=dim, nonzeros=nonzeros).scale
        close(out.cpu() * scale, want, rtol=1e-12)


def test_matrix_products_do_not_depend_on_tf32() -> None:
    values = gradients(3, 1000) * 2.0 ** torch.arange(-20, 20, 0.04)
    parts = device._eight_bit_parts(values)
    torch.testing.assert_close(parts[0] + parts[1] + parts[2], values, rtol=0, atol=0)
    for part in parts:  # TF32 keeps ten bits behind the first
        bits = part.view(torch.int32)
        assert not (bits & 0x1FFF).any()
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert device._tf32_is_on()
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert not device._tf32_is_on()
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_what_sketches_is_on_record() -> None:
    assert sketch_implementation("cpu") == "numba"
    assert sketch_implementation("cpu", Projection(kind="none")) == "torch"
    assert sketch_implementation("cuda", Projection(dim=2**20)).startswith("torch (sparse")
    usable = importlib.util.find_spec("cupy") is not None and torch.cuda.is_available()
    on_gpu = sketch_implementation("cuda", Projection(kind="hadamard"))
    assert on_gpu == "cupy" or (not usable and on_gpu.startswith("torch (CuPy "))


def test_only_one_module_imports_cupy() -> None:
    package = Path(device.__file__).parents[1]
    importers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"^\s*(import|from) cupy", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert importers == {"projection/cuda.py"}


def on(where: str) -> None:
    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(cut=st.integers(1, 299), order=st.booleans())
def test_sketches_do_not_care_where_we_cut(kind: str, cut: int, order: bool) -> None:
    block = gradients(4, 300)
    options = {"seed": 5, "checkpoint": 0, "p": 4296}
    parts = [(3996, block[:, :cut]), (3996 + cut, block[:, cut:])]
    projection = Projection(kind=kind, dim=50, nonzeros=2 if kind == "sparse" else 1)
    whole = sketch([(3996, block)], projection, **options)
    cut_up = sketch(parts[::-1] if order else parts, projection, **options)
    close(cut_up, whole.numpy())
    single = sketch([(3996, block[2:3])], projection, **options)
    if kind in ("sparse", "hadamard"):  # a matrix product sums in an order of its own
        torch.testing.assert_close(single, whole[2:3], rtol=0, atol=0)
    close(single, whole[2:3].numpy())


def test_the_bits_never_change() -> None:
    columns, signs = entries(0, 4, dim=2048, nonzeros=2, seed=0, checkpoint=0)
    assert columns.tolist() == GOLDEN_COLUMNS
    assert signs.tolist() == GOLDEN_SIGNS


GOLDEN_COLUMNS = [[20, 1581], [656, 1853], [516, 2037], [367, 1434]]
GOLDEN_SIGNS = [[-1, 1], [-1, 1], [1, -1], [1, -1]]


def test_the_bits_of_the_other_kinds_never_change() -> None:
    key = {"seed": 0, "checkpoint": 0}
    index = np.arange(2, dtype=np.uint64)
    signs = bit_signs(words(index, 0, kind=KIND_CODES["rademacher"], **key))
    assert np.packbits(signs[:, :32] < 0, bitorder="little").view(np.uint32).tolist() == (
        GOLDEN_SIGN_WORDS
    )
    numbers = normals(words(index, 0, kind=KIND_CODES["gaussian"], **key))
    assert numbers.view(np.uint32).tolist() == GOLDEN_NORMALS
    rows, column_signs = walsh_rows(1, dim=6, **key)
    assert rows.tolist() == GOLDEN_ROWS
    assert column_signs.tolist() == GOLDEN_ROW_SIGNS


GOLDEN_SIGN_WORDS = [264706156, 1135498333]
GOLDEN_NORMALS = [
    [3210369992, 1068444931, 3213818506, 1061015565],
    [3193175569, 1014219807, 1057008796, 3222973800],
]
GOLDEN_ROWS = [834, 2787, 2998, 3721, 823, 59]
GOLDEN_ROW_SIGNS = [-1, -1, 1, 1, 1, 1]


@pytest.mark.parametrize(("kind", "nonzeros"), KINDS_AND_NONZEROS)
def test_inner_products_are_kept_on_average(kind: str, nonzeros: int) -> None:
    a, b = gradients(2, 200, np.float64).numpy()
    both = torch.from_numpy(np.stack([a, b]))
    projection = Projection(kind=kind, dim=64, nonzeros=nonzeros)
    products = []
    for seed in range(600):
        s = sketch([(3990, both)], projection, seed=seed, checkpoint=0, p=4190)
        products.append([float(s[0] @ s[1]), float(s[0] @ s[0])])
    spread = np.std(products, axis=0) / np.sqrt(len(products))
    assert np.all(np.abs(np.mean(products, axis=0) - [a @ b, a @ a]) < 4 * spread)


@pytest.mark.parametrize(("kind", "nonzeros"), KINDS_AND_NONZEROS)
def test_inner_products_are_off_by_one_over_the_root_of_the_width(kind: str, nonzeros: int) -> None:
    # The error of <a, b> is |a| |b| / sqrt(k) for vectors without structure; measured over 20
    # matrices and 190 pairs. A Hadamard block of at most k places would add none: 10,000
    # parameters are three blocks.
    rows = gradients(20, 10_000)
    rows /= rows.norm(dim=1, keepdim=True)
    pairs = np.triu_indices(20, k=1)
    truth = (rows.double() @ rows.double().T).numpy()[pairs]
    for dim in (64, 256):
        projection = Projection(kind=kind, dim=dim, nonzeros=nonzeros)
        errors = []
        for seed in range(20):
            s = sketch([(0, rows)], projection, seed=seed, checkpoint=0, p=10_000).double()
            errors.append((s @ s.T).numpy()[pairs] - truth)
        ratio = np.sqrt(np.mean(np.square(errors)) * dim)
        assert 0.9 < ratio < 1.1


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "hadamard"])
def test_vectors_of_two_entries_are_kept_wherever_the_entries_are(kind: str) -> None:
    # Spikes are the hard case of a fast transform: place 0 of two Hadamard blocks (where every
    # Walsh function is 1), two places of one block, and neighbours.
    dim = 256
    for one, other in ((0, 4096), (0, 2048), (5, 6), (4095, 4096)):
        options = [{"kind": kind, "dim": dim, "seed": s, "checkpoint": 0} for s in range(200)]
        products = np.array(
            [matrix(one, one + 1, **o)[0] @ matrix(other, other + 1, **o)[0] for o in options]
        )
        assert abs(products.mean()) < 4 / np.sqrt(200 * dim)
        assert np.sqrt(np.mean(products**2) * dim) < 1.25


def test_a_hadamard_block_is_kept_exactly_by_as_many_columns() -> None:
    p = matrix(4096, 4096 + 40, kind="hadamard", dim=8192, seed=3, checkpoint=0)
    np.testing.assert_allclose(p @ p.T, np.eye(40), atol=1e-12)
    rows, _ = walsh_rows(7, dim=8192, seed=3, checkpoint=0)
    assert sorted(rows[:4096]) == list(range(4096))
    assert sorted(rows[4096:]) == list(range(4096))
    assert not np.array_equal(rows[:4096], rows[4096:])


def test_sampled_walsh_rows_look_independent() -> None:
    # For every difference i of places, the mean square of the product of two columns of P^T is
    # (1 - k / 4096) / k; over 400 blocks its average has a relative spread of sqrt(2 / 400).
    dim, blocks = 256, 400
    places = np.concatenate([2 ** np.arange(12), 4095 - 2 ** np.arange(12), [3, 48, 4095]])
    squares = np.zeros(len(places))
    for block in range(blocks):
        rows, _ = walsh_rows(block, dim=dim, seed=11, checkpoint=0)
        walsh = 1 - 2 * (np.bitwise_count(places[:, None] & rows) & 1).astype(np.int8)
        squares += walsh.sum(axis=1) ** 2.0
    ratio = squares / blocks / (dim * (1 - dim / 4096))
    assert np.abs(ratio - 1).max() < 4.5 * np.sqrt(2 / blocks)


def test_normals_are_normal() -> None:
    drawn = words(np.arange(50_000, dtype=np.uint64), 3, kind=2, seed=1, checkpoint=0)
    numbers = normals(drawn)
    a, b = (drawn[:, i::2].astype(np.float64) for i in range(2))
    u, turn = (2 * (a // 512) + 1) / 2**24, b // 128 * 128 + 64
    angle = 2 * np.pi * (turn / 2**32 - 1 / 8)
    want = np.sqrt(-2 * np.log(u))[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    np.testing.assert_allclose(numbers, want.reshape(-1, 4), rtol=3e-7, atol=3e-7)
    assert stats.kstest(numbers.ravel(), "norm").pvalue > 0.01
    assert abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.02
    extremes = np.array([[0, 2**29, 2**32 - 1, 2**29]], dtype=np.uint32)
    assert 5.7 < np.abs(normals(extremes)).max() < 5.8


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
            *(Projection(kind=kind) for kind in KINDS[1:]),
        )
        for seed in (0, 1)
        for checkpoint in (0, 1)
        for p in (10, 11)
    }
    assert len(prints) == 6 * 8 + 4  # exact gradients have no seed
    assert fingerprint(Projection(), seed=0, checkpoint=2, p=9) == (
        "sparse/1:dim=2048,nonzeros=1,seed=0,checkpoint=2,p=9"
    )
    assert fingerprint(Projection(kind="hadamard"), seed=0, checkpoint=2, p=9) == (
        "hadamard/1:dim=2048,seed=0,checkpoint=2,p=9"
    )


KEY = {"seed": 0, "checkpoint": 0}


def test_specs_refuse_the_same_widths() -> None:
    assert {kind: WIDEST_SKETCH[kind] for kind in KINDS} == WIDEST


def test_what_does_not_fit_is_refused() -> None:
    for bad in (
        {"kind": "dense"},
        {"dim": 0},
        {"nonzeros": 0},
        {"dim": 4, "nonzeros": 5},
        {"kind": "gaussian", "nonzeros": 2},
        {"kind": "gaussian", "dim": 2**18 + 1},
    ):
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
