"""The one door to CuPy: it compiles the kernels of `kernels/` and launches them on Torch's stream.

Torch and CuPy share memory by DLPack; nothing goes through the host, and nothing waits for the
GPU. Importing this module imports CuPy.
"""

import hashlib
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cupy
import torch
from torch import Tensor

from attribution.projection import launches
from attribution.projection.launches import THREADS, Launch

KERNELS = Path(__file__).parent / "kernels"
# What a thread block may use without asking.
FREE_SHARED_BYTES = 48 * 1024


def problem() -> str:
    """What keeps CuPy from compiling and running kernels here; empty if nothing does."""
    if not cupy.cuda.is_available():
        return "CuPy finds no CUDA device"
    try:
        cupy.cuda.nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        return f"CuPy cannot load NVRTC: {str(error).strip().splitlines()[0]}"
    return ""


def add_sketch(
    gradients: Tensor,
    out: Tensor,
    *,
    kind: str,
    nonzeros: int,
    offset: int,
    seed: int,
    checkpoint: int,
    deterministic: bool = True,
) -> None:
    """`launches.add_sketch` for tensors on a CUDA device."""
    index = out.device.index
    stream = cupy.cuda.Stream.from_external(torch.cuda.current_stream(out.device))
    with cupy.cuda.Device(index), stream:
        launches.add_sketch(
            gradients,
            out,
            partial(_launch, index),
            kind=kind,
            nonzeros=nonzeros,
            offset=offset,
            seed=seed,
            checkpoint=checkpoint,
            deterministic=deterministic,
        )


def _launch(device: int, launch: Launch) -> None:
    function = _kernel(launch.file, launch.kernel, device)
    if launch.shared > FREE_SHARED_BYTES:
        function.max_dynamic_shared_size_bytes = launch.shared
    arguments = tuple(
        cupy.from_dlpack(value) if isinstance(value, Tensor) else cupy.int64(value)
        for value in launch.arguments
    )
    function(launch.grid, (THREADS, 1, 1), arguments, shared_mem=launch.shared)


@lru_cache
def _kernel(file: str, kernel: str, device: int) -> Any:  # noqa: ARG001 - attributes are a device's
    return _module(file).get_function(kernel)


@lru_cache
def _module(file: str) -> Any:
    # CuPy caches binaries by source and options; headers are in neither, so their digest is.
    headers = b"".join(path.read_bytes() for path in sorted(KERNELS.glob("*.cuh")))
    digest = hashlib.sha256(headers).hexdigest()[:16]
    return cupy.RawModule(
        code=(KERNELS / f"{file}.cu").read_text(encoding="utf-8"),
        options=("-std=c++17", f"-I{KERNELS}", f"-DWINNOW_HEADERS=0x{digest}ull"),
    )
