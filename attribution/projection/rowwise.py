"""The sparse projection of a model's gradients on a CPU, a few rows at a time.

Columns and signs are drawn once for all batches of a model. The gradient of a Linear with one
position is never written down; those of other weights are, for as few rows as fit a cache.
The result is that of the block by block path, up to the order of its sums.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.gradients import GradientBlocks
from attribution.projection.cpu_kernels import draw_sparse, scatter
from attribution.projection.kinds import Projection, ProjectionKind
from attribution.projection.outer_kernels import LANES, add_outer

# Entries of drawn columns and signs that are kept, 8 bytes each: 128 MiB at most.
MOST_DRAWN = 2**24
# Entries that are written down at a time: memory that is used again costs no page faults.
CHUNK = 2**21
# Parameters whose columns and signs stay in the second-level cache for all rows of a chunk.
STEP = 2**15
# Below this many numbers a thread takes longer to wake than to finish.
SMALL = 2**18


def suits(blocks: Any, projection: Projection, p: int) -> bool:
    """Whether this path can do it."""
    return (
        isinstance(blocks, GradientBlocks)
        and projection.kind == ProjectionKind.SPARSE
        and blocks.device.type == "cpu"
        and p * projection.nonzeros <= MOST_DRAWN
    )


def sparse_sketch(
    blocks: GradientBlocks, projection: Projection, *, seed: int, checkpoint: int, p: int
) -> Tensor:
    """The sketch [B, dim], float32, or float64 where the gradients are."""
    kind = torch.float64 if blocks.dtype == torch.float64 else torch.float32
    out = torch.zeros(blocks.n_rows, projection.dim, dtype=kind)
    columns, signs = _drawn(blocks, projection, seed, checkpoint, p, out.numpy().dtype)
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        for name, offset in zip(blocks.layout.names, blocks.layout.offsets, strict=True):
            pair = blocks.single(name) if projection.nonzeros == 1 else None
            if pair is not None:
                left, right = (side.to(kind).contiguous().numpy() for side in pair)
                size = left.shape[1] * right.shape[1]
                span = slice(offset, offset + size)
                drawn = (columns[span, 0], signs[span, 0])

                def fused(
                    first: int, last: int, given: tuple[Any, ...] = (left, right, *drawn)
                ) -> None:
                    add_outer(first, last, *given, out.numpy())

                _in_threads(pool, fused, blocks.n_rows, unit=LANES, work=size * blocks.n_rows)
                continue
            for rows in _row_chunks(blocks, name):
                for start, block in blocks.rows(rows).parameter(name):
                    _scatter(pool, block.to(kind), columns, signs, start, out[rows])
    return out if projection.scale == 1.0 else out * projection.scale


def _row_chunks(blocks: GradientBlocks, name: str) -> list[slice]:
    step = max(1, CHUNK // max(1, blocks.entries(name)))
    return [slice(low, min(low + step, blocks.n_rows)) for low in range(0, blocks.n_rows, step)]


def _scatter(
    pool: ThreadPoolExecutor,
    block: Tensor,
    columns: NDArray[np.uint32],
    signs: NDArray[Any],
    start: int,
    out: Tensor,
) -> None:
    values, target = block.contiguous().numpy(), out.numpy()
    n_rows, n_entries = values.shape

    def work(first: int, last: int) -> None:
        for low in range(0, n_entries, STEP):
            span = slice(start + low, start + min(low + STEP, n_entries))
            scatter(first, last, values, low, columns[span], signs[span], target)

    _in_threads(pool, work, n_rows, unit=2, work=values.size)


def _drawn(
    blocks: GradientBlocks,
    projection: Projection,
    seed: int,
    checkpoint: int,
    p: int,
    dtype: np.dtype[Any],
) -> tuple[NDArray[np.uint32], NDArray[Any]]:
    key = ("sparse", projection.dim, projection.nonzeros, seed, checkpoint, dtype.str)
    if key not in blocks.memo:
        for old in [k for k in blocks.memo if isinstance(k, tuple) and k[0] == "sparse"]:
            del blocks.memo[old]  # one checkpoint's worth is enough
        columns = np.empty((p, projection.nonzeros), dtype=np.uint32)
        signs = np.empty(columns.shape, dtype=dtype)
        draw_sparse(0, seed, checkpoint, projection.dim, columns, signs)
        blocks.memo[key] = columns, signs
    columns, signs = blocks.memo[key]
    return columns, signs


def _in_threads(
    pool: ThreadPoolExecutor, call: Callable[[int, int], None], n: int, *, unit: int, work: int
) -> None:
    """call(first, last) for shares of range(n) that begin at multiples of unit."""
    shares = 1 if work < SMALL else max(1, min(torch.get_num_threads(), math.ceil(n / unit)))
    bounds = [min(n, unit * math.ceil(n * share / (shares * unit))) for share in range(shares)]
    if shares == 1:
        call(0, n)
        return
    for job in [pool.submit(call, *pair) for pair in pairwise([*bounds, n])]:
        job.result()
