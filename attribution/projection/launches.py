"""Which CUDA kernels a sketch launches, with which grids, and how its sums are put together.

Nothing here knows CuPy: `cuda` launches on a GPU, and a test launches the same kernels, compiled
for the host. The geometry is a function of the sizes alone, never of the GPU, so that
deterministic sums are the same on every model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.projection.reference import BLOCK

THREADS = 256
# Bytes of shared memory that every GPU since compute capability 8.0 gives to one thread block.
SHARED_BYTES = 99 * 1024
# Thread blocks that keep a large GPU busy, and what their partial sums may take.
BUSY = 1024
PARTIAL_BYTES = 256 * 2**20
# As in the kernels.
SPARSE_ENTRIES, SPARSE_ROWS = 2048, 4
SPARSE_WIDEST = 2**20 - 1
DENSE_ROWS, DENSE_COLUMNS, DENSE_DEPTH, DENSE_SPAN = 64, 128, 16, 256
HADAMARD_ROWS, HADAMARD_PITCH = 2, BLOCK + BLOCK // 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One launch of a kernel: tensors go as pointers, numbers as 64-bit integers.

    Args:
        file: Stem of the .cu file.
        kernel: Name of the function in it.
        grid: Thread blocks along x, y and z, each of 256 threads.
        shared: Bytes of dynamic shared memory.
        arguments: Of the kernel, in order.
    """

    file: str
    kernel: str
    grid: tuple[int, int, int]
    shared: int
    arguments: tuple[Tensor | int, ...]


Launcher = Callable[[Launch], None]


def add_sketch(
    gradients: Tensor,
    out: Tensor,
    launch: Launcher,
    *,
    kind: str,
    nonzeros: int,
    offset: int,
    seed: int,
    checkpoint: int,
    deterministic: bool = True,
) -> None:
    """Add the sketch of a block [B, entries] to out [B, dim], without the projection's scale.

    Args:
        gradients: float32 or float64.
        out: Contiguous, of the same type and device; written in place.
        launch: Runs a kernel, in the order of the calls.
        kind: One of `reference.KIND_CODES`.
        nonzeros: Entries that a parameter has in the sparse projection.
        offset: Parameter index of the block's first column.
        seed: 0 <= seed < 2**63.
        checkpoint: Index of the checkpoint.
        deterministic: Sum in a fixed order, through up to 256 MiB of partial sums; else slices of
            the parameters are added by atomics, in the order they come.
    """
    if gradients.stride(1) != 1:
        gradients = gradients.contiguous()
    key = (seed, checkpoint)
    if kind == "sparse":
        plan = _sparse(gradients, out, launch, nonzeros, offset, key, deterministic)
    elif kind == "hadamard":
        plan = _hadamard(gradients, out, offset, key, deterministic)
    else:
        plan = _dense(kind, gradients, out, offset, key, deterministic)
    make, slices = plan
    if not deterministic:
        launch(make(out))
        return
    partial = torch.empty((slices, *out.shape), dtype=out.dtype, device=out.device)
    launch(make(partial))
    numbers = out.numel()
    launch(
        Launch(
            file="sums",
            kernel=f"merge_{_type(out)}",
            grid=(min(-(-numbers // THREADS), 4 * BUSY), 1, 1),
            shared=0,
            arguments=(partial, out, slices, numbers),
        )
    )


Plan = tuple[Callable[[Tensor], Launch], int]


def _sparse(
    gradients: Tensor,
    out: Tensor,
    launch: Launcher,
    nonzeros: int,
    offset: int,
    key: tuple[int, int],
    deterministic: bool,
) -> Plan:
    (n_rows, count), dim, size = gradients.shape, out.shape[1], out.element_size()
    parameters = SPARSE_ENTRIES // nonzeros
    chunks = -(-count // parameters)
    keys = torch.empty(chunks * SPARSE_ENTRIES, dtype=torch.int32, device=out.device)
    launch(
        Launch(
            file="sparse",
            kernel="sparse_plan",
            grid=(chunks, 1, 1),
            shared=SPARSE_ENTRIES * 4,
            arguments=(keys, count, offset, dim, nonzeros, *key),
        )
    )
    values = parameters * SPARSE_ROWS * size
    tile = min(dim, (SHARED_BYTES - values) // (SPARSE_ROWS * size))
    rows, columns = -(-n_rows // SPARSE_ROWS), -(-dim // tile)
    each, slices = _slices(chunks, rows * columns, out)
    sizes = (gradients.stride(0), n_rows, count, dim, nonzeros, each, tile, int(deterministic))

    def make(target: Tensor) -> Launch:
        return Launch(
            file="sparse",
            kernel=f"sparse_apply_{_type(out)}",
            grid=(rows, slices, columns),
            shared=tile * SPARSE_ROWS * size + values,
            arguments=(keys, gradients, target, *sizes),
        )

    return make, slices


def _dense(
    kind: str,
    gradients: Tensor,
    out: Tensor,
    offset: int,
    key: tuple[int, int],
    deterministic: bool,
) -> Plan:
    (n_rows, count), dim, size = gradients.shape, out.shape[1], out.element_size()
    rows, columns = -(-n_rows // DENSE_ROWS), -(-dim // DENSE_COLUMNS)
    each, slices = _slices(-(-count // DENSE_SPAN), rows * columns, out)
    numbers = DENSE_DEPTH * (DENSE_ROWS + 1 + DENSE_COLUMNS)
    sizes = (gradients.stride(0), n_rows, count, offset, dim, *key, each, int(deterministic))

    def make(target: Tensor) -> Launch:
        return Launch(
            file="dense",
            kernel=f"{kind}_{_type(out)}",
            grid=(columns, rows, slices),
            shared=numbers * size + DENSE_SPAN * 16,
            arguments=(gradients, target, *sizes),
        )

    return make, slices


def _hadamard(
    gradients: Tensor, out: Tensor, offset: int, key: tuple[int, int], deterministic: bool
) -> Plan:
    (n_rows, count), dim, size = gradients.shape, out.shape[1], out.element_size()
    fixed = HADAMARD_ROWS * HADAMARD_PITCH * size + BLOCK // 8
    # A column takes a sum for each row and one bit; tiles are whole words of signs.
    room = (SHARED_BYTES - fixed) * 8 // (8 * HADAMARD_ROWS * size + 1) // 128 * 128
    tile = min(-(-dim // 128) * 128, room)
    rows, columns = -(-n_rows // HADAMARD_ROWS), -(-dim // tile)
    blocks = (offset + count - 1) // BLOCK + 1 - offset // BLOCK
    each, slices = _slices(blocks, rows * columns, out)
    sizes = (gradients.stride(0), n_rows, count, offset, dim, *key, each, tile, int(deterministic))

    def make(target: Tensor) -> Launch:
        return Launch(
            file="hadamard",
            kernel=f"hadamard_{_type(out)}",
            grid=(rows, slices, columns),
            shared=fixed + HADAMARD_ROWS * tile * size + tile // 8,
            arguments=(gradients, target, *sizes),
        )

    return make, slices


def _slices(units: int, others: int, out: Tensor) -> tuple[int, int]:
    """Units of parameters in a slice, and slices, for that many thread blocks along other axes."""
    room = max(1, PARTIAL_BYTES // (out.numel() * out.element_size()))
    wanted = max(1, min(units, -(-BUSY // others), room))
    each = -(-units // wanted)
    return each, -(-units // each)


def _type(out: Tensor) -> str:
    return "double" if out.dtype == torch.float64 else "float"
