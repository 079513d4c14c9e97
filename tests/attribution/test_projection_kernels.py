"""The CUDA kernels: compiled for a GPU, run on the host, and run on a GPU where there is one."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from attribution.projection import Projection, launches
from attribution.projection.launches import THREADS, Launch
from attribution.projection.reference import (
    KIND_CODES,
    entries,
    normals,
    permuted,
    sketch_reference,
    words,
)
from attribution.streams import stream

KERNELS = Path(launches.__file__).parent / "kernels"
SHIM = Path(__file__).parent / "cuda_on_host.h"
FILES = sorted(path.stem for path in KERNELS.glob("*.cu"))
SEED, CHECKPOINT = 2**40 + 7, 3
KEY = {"seed": SEED, "checkpoint": CHECKPOINT}
KINDS = [("sparse", 1), ("sparse", 3), ("rademacher", 1), ("gaussian", 1), ("hadamard", 1)]
# Rows, parameters, width, offset: odd sizes over block and tile boundaries, and 2**32.
SHAPES = [(1, 100, 5, 0), (5, 2500, 300, 4000), (3, 700, 130, 2**32 - 300)]


def compiled(source: Path, library: Path, *options: str) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile for the host")
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas", "-Werror"]
    command = ["g++", *flags, "-shared", "-fPIC", *options, "-x", "c++", source, "-o", library]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


# --- random.cuh -----------------------------------------------------------------------------------

DOOR = """
#include "random.cuh"
using namespace winnow;
extern "C" void words_of(const u64* index, const u32* part, int kind, u64 seed, u32 checkpoint,
                         i64 n, u32* out) {
  for (i64 i = 0; i < n; ++i) {
    Words words = draw(index[i], part[i], (Kind)kind, Key{seed, checkpoint});
    for (int w = 0; w < 4; ++w) out[4 * i + w] = words.w[w];
  }
}
extern "C" void normals_of(const u32* w, i64 n, float* out) {
  for (i64 i = 0; i < 2 * n; ++i) normal_pair(w[2 * i], w[2 * i + 1], out + 2 * i, out + 2 * i + 1);
}
extern "C" void permuted_of(const u32* w, i64 n, u32* out) {
  for (i64 i = 0; i < n; ++i) {
    Words words = {{w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]}};
    for (u32 place = 0; place < 4096; ++place) out[4096 * i + place] = permuted(place, words);
  }
}
extern "C" u32 column_of(u32 word, i64 slot, i64 dim, i64 nonzeros) {
  return sparse_column(word, slot, dim, nonzeros);
}
extern "C" u32 bit_of(const u32* w, u32 column) { return bit(w, column); }
"""


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("header")
    source = folder / "door.cpp"
    source.write_text(DOOR, encoding="utf-8")
    return compiled(source, folder / "door.so", f"-I{KERNELS}")


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.mark.parametrize("kind", ["sparse", "rademacher", "gaussian", "hadamard"])
def test_the_header_draws_the_words_of_the_reference(header: ctypes.CDLL, kind: str) -> None:
    rng, n = stream(4), 500
    index = rng.integers(2**50, size=n, dtype=np.uint64)
    index[:4] = [0, 2**32 - 1, 2**32, 2**50]
    part = rng.integers(2**16, size=n, dtype=np.uint32)
    for seed, checkpoint in ((0, 0), (2**63 - 1, 2**32 - 1), (SEED, CHECKPOINT)):
        got = np.empty((n, 4), dtype=np.uint32)
        code = KIND_CODES[kind]
        header.words_of(
            pointer(index),
            pointer(part),
            ctypes.c_int(code),
            ctypes.c_uint64(seed),
            ctypes.c_uint32(checkpoint),
            ctypes.c_int64(n),
            pointer(got),
        )
        want = words(index, part, kind=code, seed=seed, checkpoint=checkpoint)
        np.testing.assert_array_equal(got, want)


def test_the_header_makes_the_normals_of_the_reference(header: ctypes.CDLL) -> None:
    drawn = stream(5).integers(2**32, size=(20_000, 4), dtype=np.uint32)
    drawn[0] = [0, 0, 2**32 - 1, 2**32 - 1]
    got = np.empty(drawn.shape, dtype=np.float32)
    header.normals_of(pointer(drawn), ctypes.c_int64(len(drawn)), pointer(got))
    np.testing.assert_array_equal(got, normals(drawn))


def test_the_header_permutes_as_the_reference(header: ctypes.CDLL) -> None:
    drawn = stream(6).integers(2**32, size=(20, 4), dtype=np.uint32)
    got = np.empty((20, 4096), dtype=np.uint32)
    header.permuted_of(pointer(drawn), ctypes.c_int64(20), pointer(got))
    np.testing.assert_array_equal(got, permuted(np.arange(4096), drawn[:, None, :]))


def test_the_header_chooses_columns_and_signs_as_the_reference(header: ctypes.CDLL) -> None:
    nonzeros = 6
    header.column_of.argtypes = [ctypes.c_uint32, *[ctypes.c_int64] * 3]
    header.column_of.restype = header.bit_of.restype = ctypes.c_uint32
    for dim in (1000, 2**31 - 1):
        columns, signs = entries(0, 50, dim=dim, nonzeros=nonzeros, **KEY)
        for slot in range(nonzeros):
            drawn = words(np.arange(50, dtype=np.uint64), slot // 4, kind=0, **KEY)
            word = drawn[:, slot % 4]
            got = [header.column_of(int(w), slot, dim, nonzeros) for w in word]
            np.testing.assert_array_equal(got, columns[:, slot])
            np.testing.assert_array_equal(1 - 2 * (word & 1).astype(int), signs[:, slot])
    four = np.array([1, 2**31, 0, 6], dtype=np.uint32)
    assert [c for c in range(128) if header.bit_of(pointer(four), ctypes.c_uint32(c))] == [
        *(0, 63, 97, 98)
    ]


# --- the kernels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_every_kernel_compiles_for_a_gpu(file: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc to compile for a GPU")
    command = [nvcc, "-std=c++17", "-arch=sm_90", "-cubin", "-Werror=all-warnings"]
    command += ["-o", str(tmp_path / "kernel.cubin"), str(KERNELS / f"{file}.cu")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kernel.cubin").stat().st_size > 0


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Launch], None]:
    folder = tmp_path_factory.mktemp("kernels")
    libraries = {
        file: compiled(
            KERNELS / f"{file}.cu", folder / f"{file}.so", "-include", str(SHIM), f"-I{KERNELS}"
        )
        for file in FILES
    }

    def launch(request: Launch) -> None:
        library = libraries[request.file]
        values = [v if isinstance(v, int) else v.data_ptr() for v in request.arguments]
        arguments = (ctypes.c_longlong * 12)(*values)
        address = ctypes.cast(getattr(library, request.kernel), ctypes.c_void_p)
        assert request.shared <= launches.SHARED_BYTES
        assert library.launch(address, *request.grid, THREADS, request.shared, arguments) == 0

    return launch


@pytest.mark.parametrize(("kind", "nonzeros"), KINDS)
@pytest.mark.parametrize(("rows", "p", "dim", "offset"), SHAPES)
@pytest.mark.parametrize("deterministic", [True, False])
def test_every_kernel_on_the_host_equals_the_reference(
    on_host: Callable[[Launch], None],
    kind: str,
    nonzeros: int,
    rows: int,
    p: int,
    dim: int,
    offset: int,
    deterministic: bool,
) -> None:
    block = torch.from_numpy(stream(2).standard_normal((rows, p)))
    options = {"kind": kind, "nonzeros": nonzeros, "offset": offset, **KEY}
    want = sketch_reference(block.numpy(), dim=dim, **options)
    scale = Projection(kind=kind, dim=dim, nonzeros=nonzeros).scale
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        out = torch.ones(rows, dim, dtype=dtype)
        launches.add_sketch(block.to(dtype), out, on_host, deterministic=deterministic, **options)
        np.testing.assert_allclose(
            (out.numpy() - 1.0) * scale, want, rtol=tolerance, atol=tolerance * want.std()
        )


@pytest.mark.parametrize("kind", ["sparse", "hadamard"])
def test_wide_sketches_are_cut_in_tiles_of_columns(
    on_host: Callable[[Launch], None], kind: str
) -> None:
    rows, p, dim = 3, 600, 9001
    block = torch.from_numpy(stream(3).standard_normal((rows, p)))
    out = torch.zeros(rows, dim, dtype=torch.float64)
    grids = []

    def launch(request: Launch) -> None:
        grids.append(request.grid)
        on_host(request)

    launches.add_sketch(block, out, launch, kind=kind, nonzeros=1, offset=50, **KEY)
    assert max(grid[2] for grid in grids) > 1
    want = sketch_reference(block.numpy(), kind=kind, dim=dim, offset=50, **KEY)
    got = out.numpy() * Projection(kind=kind, dim=dim).scale
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_a_block_with_strides_is_read_in_place(on_host: Callable[[Launch], None]) -> None:
    wide = torch.from_numpy(stream(3).standard_normal((4, 900)))
    for block in (wide[:, 100:700], wide.T.contiguous().T[:, :600], wide[::2, :600]):
        out = torch.zeros(len(block), 64, dtype=torch.float64)
        launches.add_sketch(block, out, on_host, kind="hadamard", nonzeros=1, offset=0, **KEY)
        want = sketch_reference(block.numpy(), kind="hadamard", dim=64, **KEY)
        np.testing.assert_allclose(out.numpy() / 8, want, rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "nonzeros"), KINDS)
def test_kernels_on_a_gpu_equal_the_reference_and_repeat(kind: str, nonzeros: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("cupy")
    from attribution.projection import cuda

    for rows, p, dim, offset in (*SHAPES, (70, 40_000, 4099, 5), (3, 9000, 20_000, 0)):
        block = torch.from_numpy(stream(2).standard_normal((rows, p)))
        options = {"kind": kind, "nonzeros": nonzeros, "offset": offset, **KEY}
        want = sketch_reference(block.numpy(), dim=dim, **options)
        scale = Projection(kind=kind, dim=dim, nonzeros=nonzeros).scale
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
            found = []
            for deterministic in (True, True, False):
                out = torch.zeros(rows, dim, dtype=dtype, device="cuda")
                cuda.add_sketch(
                    block.to("cuda", dtype), out, deterministic=deterministic, **options
                )
                found.append(out.cpu().numpy() * scale)
                np.testing.assert_allclose(
                    found[-1], want, rtol=tolerance, atol=tolerance * want.std()
                )
            np.testing.assert_array_equal(found[0], found[1])
