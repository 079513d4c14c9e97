"""The random projections on a CPU: Numba draws and adds, Torch multiplies the dense ones.

Random bits are drawn once for a range of parameters and used for all rows of the batch. Threads
come from Python, for Numba's own pool must not be entered from two threads at once, and flows run
tasks in threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from attribution.projection import cpu_kernels
from attribution.projection.cpu_kernels import LANES, TOGETHER
from attribution.projection.reference import BLOCK

# Columns and signs of one chunk (8 bytes an entry) stay in the second-level cache.
SPARSE_CHUNK = 1 << 15
# Numbers of a dense matrix that exist at a time: 32 MiB in float32. To 4096 columns the rademacher
# kind takes 1.5 times the plain product; at 1 << 21 it took 2.3 times (2 threads, torch 2.13).
DENSE_CHUNK = 1 << 23
# Below this many numbers a thread takes longer to wake than to finish.
SMALL = 1 << 18


def add_sketch(
    gradients: Tensor,
    out: Tensor,
    *,
    kind: str,
    nonzeros: int,
    offset: int,
    seed: int,
    checkpoint: int,
) -> None:
    """Add the sketch of a block of gradients to out, without the projection's scale.

    Args:
        gradients: [B, entries], float32 or float64, on the CPU.
        out: [B, dim], contiguous, of the same type; written in place.
        kind: One of `reference.KIND_CODES`.
        nonzeros: Entries that a parameter has in the sparse projection.
        offset: Parameter index of the block's first column.
        seed: 0 <= seed < 2**63.
        checkpoint: Index of the checkpoint.
    """
    gradients = gradients.contiguous()
    threads = max(1, torch.get_num_threads())
    with ThreadPoolExecutor(threads) as pool:  # it starts no thread before it is given work
        if kind == "sparse":
            _sparse(pool, gradients, out, nonzeros, offset, seed, checkpoint)
        elif kind == "hadamard":
            _hadamard(pool, gradients, out, offset, seed, checkpoint)
        else:
            fill = cpu_kernels.fill_signs if kind == "rademacher" else cpu_kernels.fill_normals
            _dense(pool, fill, gradients, out, offset, seed, checkpoint)


def _sparse(
    pool: ThreadPoolExecutor,
    gradients: Tensor,
    out: Tensor,
    nonzeros: int,
    offset: int,
    seed: int,
    checkpoint: int,
) -> None:
    (n_rows, n_parameters), dim = gradients.shape, out.shape[1]
    source, target = gradients.numpy(), out.numpy()
    step = max(1, SPARSE_CHUNK // nonzeros)
    # Unsigned columns: Numba then has no negative index to allow for (0.60 -> 0.50 ns an entry).
    columns = np.empty((min(step, n_parameters), nonzeros), dtype=np.uint32)
    signs = np.empty(columns.shape, dtype=target.dtype)
    for start in range(0, n_parameters, step):
        count = min(step, n_parameters - start)
        drawn = (columns[:count], signs[:count])

        def draw(
            first: int, last: int, start: int = start, drawn: tuple[np.ndarray, ...] = drawn
        ) -> None:
            part = (array[first:last] for array in drawn)
            cpu_kernels.draw_sparse(offset + start + first, seed, checkpoint, dim, *part)

        def scatter(
            first: int, last: int, start: int = start, drawn: tuple[np.ndarray, ...] = drawn
        ) -> None:
            cpu_kernels.scatter(first, last, source, start, *drawn, target)

        small = n_rows * count < SMALL
        _in_threads(pool, draw, count, unit=1, small=small)
        _in_threads(pool, scatter, n_rows, unit=TOGETHER, small=small)


def _dense(
    pool: ThreadPoolExecutor,
    fill: Callable[..., None],
    gradients: Tensor,
    out: Tensor,
    offset: int,
    seed: int,
    checkpoint: int,
) -> None:
    n_parameters, dim = gradients.shape[1], out.shape[1]
    step = min(n_parameters, max(1, DENSE_CHUNK // dim))
    matrix = torch.empty(step, dim, dtype=out.dtype)
    numbers = matrix.numpy()
    for start in range(0, n_parameters, step):
        count = min(step, n_parameters - start)

        def draw(first: int, last: int, start: int = start) -> None:
            fill(first, last, offset + start, seed, checkpoint, numbers)

        _in_threads(pool, draw, count, unit=1, small=count * dim < SMALL)
        out.addmm_(gradients[:, start : start + count], matrix[:count])


def _hadamard(
    pool: ThreadPoolExecutor,
    gradients: Tensor,
    out: Tensor,
    offset: int,
    seed: int,
    checkpoint: int,
) -> None:
    (n_rows, n_parameters), dim = gradients.shape, out.shape[1]
    source, target = gradients.numpy(), out.numpy()
    at_once = max(1, SPARSE_CHUNK * 4 // max(BLOCK, dim))
    place_signs = np.empty((at_once, BLOCK), dtype=target.dtype)
    rows = np.empty((at_once, dim), dtype=np.uint32)
    column_signs = np.empty((at_once, dim), dtype=target.dtype)
    start = 0
    while start < n_parameters:
        block, shift = divmod(offset + start, BLOCK)
        stop = min(n_parameters, start + at_once * BLOCK - shift)
        count = -(-(stop - start + shift) // BLOCK)
        drawn = (place_signs[:count], rows[:count], column_signs[:count])
        cpu_kernels.draw_hadamard(block, seed, checkpoint, *drawn)
        span = (start, stop, shift)

        def transform(
            first: int,
            last: int,
            span: tuple[int, int, int] = span,
            drawn: tuple[np.ndarray, ...] = drawn,
        ) -> None:
            cpu_kernels.transform(first, last, source, *span, *drawn, target)

        _in_threads(pool, transform, n_rows, unit=LANES, small=n_rows * (stop - start) < SMALL)
        start = stop


def _in_threads(
    pool: ThreadPoolExecutor, work: Callable[[int, int], None], n: int, *, unit: int, small: bool
) -> None:
    """Call work(first, last) for shares of range(n) that begin at multiples of unit."""
    shares = 1 if small else max(1, min(torch.get_num_threads(), n // unit))
    bounds = [unit * (n * share // (shares * unit)) for share in range(shares)] + [n]
    if shares == 1:
        work(0, n)
        return
    jobs = [pool.submit(work, first, last) for first, last in pairwise(bounds)]
    for job in jobs:
        job.result()
