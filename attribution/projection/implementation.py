"""Which code sketches on a device: all of them make the same matrix, and a record says which ran.

- "numba": the CPU.
- "cupy": the kernels of `kernels/`.
- "torch (why not cupy)": plain Torch operations on the GPU, where CuPy is missing or the sketch
  is wider than a kernel takes.
"""

from collections.abc import Callable
from functools import lru_cache

import torch

from attribution.projection.kinds import Projection, ProjectionKind
from attribution.projection.launches import SPARSE_WIDEST


def sketch_implementation(device: str | torch.device, projection: Projection | None = None) -> str:
    """Name of the code that sketches on a device, for records.

    Args:
        device: "cpu" or "cuda".
        projection: What the sketch looks like; sparse, 2048 wide, by default.
    """
    projection = projection or Projection()
    if projection.kind in (ProjectionKind.NONE, ProjectionKind.FACTORED):
        return "torch"
    if torch.device(device).type == "cpu":
        return "numba"
    reason = _why_not_kernels(projection)
    return f"torch ({reason})" if reason else "cupy"


def adder(device: torch.device, projection: Projection) -> Callable[..., None]:
    """The `add_sketch` that `sketch_implementation` names."""
    if device.type == "cpu":
        from attribution.projection.cpu import add_sketch
    elif _why_not_kernels(projection):
        from attribution.projection.device import add_sketch
    else:
        from attribution.projection.cuda import add_sketch
    return add_sketch


def _why_not_kernels(projection: Projection) -> str:
    if projection.kind == ProjectionKind.SPARSE and projection.dim > SPARSE_WIDEST:
        return f"sparse sketches wider than {SPARSE_WIDEST} have no kernel"
    return _why_not_cupy()


@lru_cache
def _why_not_cupy() -> str:
    try:
        from attribution.projection.cuda import problem
    except ImportError as error:
        return f"CuPy cannot be imported: {str(error).strip().splitlines()[0]}"
    return problem()
