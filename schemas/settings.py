"""Where it runs and what is kept: the tables ``[store]``, ``[compute]`` and ``[tracking]``.

No artifact's key holds any of these: another machine, runner or server asks the same question.
"""

from typing import Annotated, Literal

from pydantic import Field

from schemas.frozen import MEMORY, Frozen

BYTES_OF_UNIT = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}


class StoreSpec(Frozen):
    """``[store]``: what the ledger keeps."""

    max_rows: Annotated[int, Field(gt=0)] = 50_000_000
    """Scores kept as rows; above it, the largest of each query (50 million are 213 MB)."""
    publish: bool = True
    """Write a snapshot that anyone may open, after each commit."""


class ComputeSpec(Frozen):
    """``[compute]``: where it runs; it never changes a result, so no artifact depends on it."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """'auto' takes CUDA where there is one, and records what it took."""
    runner: Literal["threads", "dask", "ray"] = "threads"
    """Prefect's task runner."""
    workers: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    """Tasks that run at the same time."""
    memory: Annotated[str, Field(pattern=MEMORY)] | None = None
    """Bound on what one task holds, as in '4 GiB'; without one, the device's free memory."""

    @property
    def memory_bytes(self) -> int | None:
        """`memory` in bytes."""
        if self.memory is None:
            return None
        unit = self.memory.lstrip("0123456789. ")
        return int(float(self.memory.removesuffix(unit)) * BYTES_OF_UNIT[unit])


class TrackingSpec(Frozen):
    """``[tracking]``: where MLflow is."""

    uri: str | None = None
    """MLflow tracking URI; without one, the workspace's own."""
