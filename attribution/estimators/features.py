"""Features of examples at one checkpoint: sketched gradients, residuals and curvatures.

phi_i = P^T grad f(z_i) is [n, k]; Q_i = -dl/df and R_i = d2l/df2 are [n], for the training loss l
as a function of the task's own output. Features of training rows are always of the task's output
(margin, or prediction); features of queries may be of any output. Training features may carry what
the multi-class Gauss-Newton matrix has beyond sum_i R_i phi_i phi_i^T.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attribution.estimators.gaussnewton import GGN_CLASSES, rest_of_curvature
from attribution.gradients import BLOCK_ENTRIES, PerExampleGradients
from attribution.outputs import OutputLike, Task, output_name, tangent, task_output
from attribution.projection import Projection, fingerprint_of, sketch
from attribution.rows import Rows
from schemas.errors import DataError, ShapeError

# Largest number of gradient entries that a batch may hold at once (1 GiB of float32).
BATCH_ENTRIES = 2**28
# Bytes that a batch may take while it is featurised.
MEMORY = 2**30


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of n rows at one checkpoint. Arrays are taken as they are, read-only ones copied.

    Attributes:
        sketch: [n, k].
        residual: Q [n].
        curvature: R [n].
        fingerprint: The projection's; features meet only where it is equal.
        rest: F [rows, k], where the Gauss-Newton matrix is Phi^T diag(R) Phi + F^T F; or None.
        rest_gram: F^T F itself [k, k], where F would have more rows than columns; or None.

    Raises:
        ShapeError: The shapes do not fit.
        DataError: A value is NaN or infinite; the message names the row.
    """

    sketch: Tensor
    residual: Tensor
    curvature: Tensor
    fingerprint: str
    rest: Tensor | None = None
    rest_gram: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("sketch", "residual", "curvature"):
            object.__setattr__(self, name, _floating(getattr(self, name)))
        n = len(self.sketch)
        if self.sketch.ndim != 2 or self.residual.shape != (n,) or self.curvature.shape != (n,):
            raise ShapeError(
                f"features have shapes {tuple(self.sketch.shape)}, {tuple(self.residual.shape)} "
                f"and {tuple(self.curvature.shape)}; expected [n, k], [n] and [n]"
            )
        for name in ("sketch", "residual", "curvature"):
            bad = ~torch.isfinite(getattr(self, name))
            if bool(bad.any()):
                row = int(bad.nonzero()[0, 0])
                raise DataError(
                    f"the {name} of row {row} (counted from 0) is NaN or infinite; the model "
                    "overflows on it: look at the row, or train the checkpoint again"
                )
        for extra in (self.rest, self.rest_gram):
            if extra is not None and (extra.ndim != 2 or extra.shape[1] != self.width):
                raise ShapeError(
                    f"the rest of the curvature has shape {tuple(extra.shape)}; expected "
                    f"{self.width} columns"
                )
            if extra is not None and not bool(torch.isfinite(extra).all()):
                raise DataError(
                    "the Gauss-Newton matrix holds NaN or infinity; the model overflows on a "
                    "training row: train the checkpoint again"
                )

    def __len__(self) -> int:
        return len(self.sketch)

    @property
    def width(self) -> int:
        """Columns k of the sketch."""
        return self.sketch.shape[1]

    def to(self, device: str) -> "Features":
        """The same features on a device."""
        if self.sketch.device.type == device:
            return self
        return Features(
            sketch=self.sketch.to(device),
            residual=self.residual.to(device),
            curvature=self.curvature.to(device),
            fingerprint=self.fingerprint,
            rest=None if self.rest is None else self.rest.to(device),
            rest_gram=None if self.rest_gram is None else self.rest_gram.to(device),
        )


def featurize(
    model: nn.Module,
    state: Mapping[str, Any] | None,
    rows: Any,
    *,
    output: OutputLike,
    task: str,
    projection: Projection | None = None,
    seed: int = 0,
    checkpoint: int = 0,
    device: str = "cpu",
    batch_size: int | str = "auto",
    dtype: torch.dtype | str = torch.float32,
    memory: int | None = None,
    name: str = "rows",
    ggn: bool = False,
    ggn_classes: int = GGN_CLASSES,
) -> Features:
    """Features of all rows at one checkpoint.

    Args:
        model: Maps rows to logits [n, K]; it is copied, put in eval mode and given the state.
        state: The checkpoint's state dict, or None for the model's own weights.
        rows: (inputs, targets), or a map-style Dataset of such pairs.
        output: For training rows the task's own ("margin", "prediction"); for queries any.
        task: "classification" or "regression".
        projection: What the sketch looks like; sparse, 2048 wide, by default.
        seed: Seed of the projection.
        checkpoint: Index of the checkpoint; each has a projection of its own.
        device: "cpu" or "cuda".
        batch_size: Rows at a time, or "auto": as many as 1 GiB of gradients allows, at most 256.
        dtype: Type of weights, activations and gradients: float32, float64, or bfloat16, whose
            sums and sketches are float32.
        memory: Bytes that a batch may take, about, 1 GiB by default; batches are made smaller
            where they would not fit.
        name: What messages call the rows.
        ggn: Also find what curvature "ggn" needs; for training rows.
        ggn_classes: Classes of each row that it takes, one pass each: those that matter most for
            the row, besides its own; K - 1 or more are all.
    """
    projection = projection or Projection()
    source = rows if isinstance(rows, Rows) else Rows(rows, name)
    dtype = floating_type(dtype)
    owner = PerExampleGradients(model, state, output=output, device=device, dtype=dtype)
    n_parameters = owner.layout.size
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    sketches = torch.empty(len(source), projection.width(n_parameters), dtype=wide, device=device)
    residual = torch.empty(len(source), dtype=wide, device=device)
    curvature = torch.empty(len(source), dtype=wide, device=device)
    size, n_outputs, matrix_name = batch_rows(batch_size, n_parameters), 0, ""
    memory = memory or MEMORY
    size = min(size, max(1, memory // max(1, owner.row_bytes(*source.batch(0, 1)))))
    limit = max(1, min(BLOCK_ENTRIES, memory // 4 // dtype.itemsize))
    for positions, inputs, targets in source.batches(size):
        batch = owner.run(inputs, targets)
        blocks: Any = batch.blocks(limit)
        key: dict[str, Any] = {"seed": seed, "checkpoint": checkpoint, "p": n_parameters}
        sketches[positions] = sketch(blocks, projection, **key)
        matrix_name = fingerprint_of(blocks, projection, **key)
        if targets.is_floating_point():
            targets = targets.to(wide)
        residual[positions], curvature[positions] = tangent(task, batch.logits, targets.to(device))
        n_outputs = batch.logits.shape[-1]
    rest, is_gram = None, False
    if ggn and Task(task) is Task.LANGUAGE:
        raise ShapeError("curvature 'ggn' needs one prediction a row; say 'logistic' for documents")
    if ggn:
        rest, is_gram = rest_of_curvature(
            model,
            state,
            source,
            n_outputs=n_outputs,
            classes=ggn_classes,
            projection=projection,
            seed=seed,
            checkpoint=checkpoint,
            device=device,
            batch_size=size,
            dtype=dtype,
        )
    return Features(
        sketch=sketches,
        residual=residual,
        curvature=curvature,
        fingerprint=matrix_name,
        rest=None if is_gram else rest,
        rest_gram=rest if is_gram else None,
    )


def floating_type(dtype: torch.dtype | str) -> torch.dtype:
    """A floating type by itself or by its name.

    Raises:
        ShapeError: It is none of float32, float64 and bfloat16.
    """
    known = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
    found = known.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in known.values():
        raise ShapeError(f"dtype is {dtype!r}; give one of {', '.join(known)}")
    return found


def batch_rows(batch_size: int | str, n_parameters: int) -> int:
    """How many rows to take at a time.

    Raises:
        ShapeError: It is neither "auto" nor 1 or more.
    """
    if batch_size == "auto":
        return max(1, min(256, BATCH_ENTRIES // max(1, n_parameters)))
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ShapeError(f"batch_size is {batch_size!r}; give 1 or more, or 'auto'")
    return batch_size


def check_features(train: Features, queries: Features) -> None:
    """Refuse features that do not belong together.

    Raises:
        ShapeError: They were made with different projections, or have different widths.
    """
    if train.fingerprint != queries.fingerprint:
        raise ShapeError(
            f"train features are {train.fingerprint} and query features {queries.fingerprint}; "
            "sketch both with the same projection, seed and checkpoint"
        )
    if train.width != queries.width:
        raise ShapeError(
            f"train features have {train.width} columns and query features {queries.width}"
        )


def own_output(output: OutputLike, task: str) -> bool:
    """Whether query features of this output may also serve as training features."""
    return isinstance(output, str) and output_name(output) == task_output(task)


def _floating(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    array = np.asarray(values)
    # Torch warns about read-only arrays, such as memory maps.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
