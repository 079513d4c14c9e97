"""A batch of new rows, read and encoded as the trusted data were.

What encodes is fixed by the trusted rows: the order of the features, the mean and scale of the
training rows, the classes. A batch teaches the encoding nothing, so a row's numbers do not depend
on what it came with.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.errors import DataError
from schemas.frozen import nearest
from tasks.blueprint import Blueprint
from tasks.ingest import SCALING_FILE, columns_of, standardised
from tasks.intake import partition
from tasks.intake.rows import Rows, check_rows
from tasks.intake.sources import read_rows
from tasks.intake.tables import read_frame, rows_of

KINDS = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
# The target of a row whose label is none of the classes.
UNKNOWN = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """New rows, in the order of their file.

    Attributes:
        path: The file.
        digest: Sha256 of its bytes.
        frame: Its columns as they were read.
        inputs: As the model is to see them, [n, ...].
        targets: Class indices int64, `UNKNOWN` where a label is none of the classes; or float32
            values; or next tokens int64 [n, T].
        labels: The targets as text; empty for texts that predict themselves.
        hashes: Sha256 of each raw input, hex [n].
    """

    path: Path
    digest: str
    frame: pl.DataFrame
    inputs: NDArray[Any]
    targets: NDArray[Any]
    labels: tuple[str, ...]
    hashes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Bool [n], rows that can be trained on: all but those of an unknown label."""
        if self.targets.ndim > 1 or self.targets.dtype.kind != "i":
            return np.ones(len(self), dtype=bool)
        return np.asarray(self.targets != UNKNOWN)


def batch_digest(path: Path) -> str:
    """Sha256 of a file, which names the batch in it.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError(f"batch {path}: {reason}; name a csv, parquet or jsonl file") from error


def read_batch(plan: Blueprint, path: Path) -> Batch:
    """Read a batch and encode it as the trusted rows are.

    Raises:
        DataError: The file is of another kind, empty or changed meanwhile; columns are missing, new
            or of another type; or a cell cannot be used. The message names row and column.
    """
    digest = batch_digest(path)
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"batch {path} ends in {path.suffix!r}; give {', '.join(KINDS)}")
    frame = read_frame(kind, path)
    if not frame.height:
        raise DataError(f"batch {path} has no rows; there is nothing to screen")
    rows = _ordered(plan, _rows(plan, frame, path), path)
    if batch_digest(path) != digest:
        raise DataError(f"batch {path} changed while it was read; move files in when complete")
    targets, labels = _targets(plan, rows, path)
    return Batch(
        path=path,
        digest=digest,
        frame=frame,
        inputs=_inputs(plan, rows, path),
        targets=targets,
        labels=labels,
        hashes=tuple(each.hex() for each in partition.input_hashes(rows.inputs)),
    )


def _rows(plan: Blueprint, frame: pl.DataFrame, path: Path) -> Rows:
    data = plan.spec.data
    columns = replace(columns_of(data), split=None, true_target=None)
    if columns.id not in frame.columns:  # a batch may leave out what names and splits rows
        columns = replace(columns, id=None)
    if data.split is not None and data.split in frame.columns:
        frame = frame.drop(data.split)
    if data.true_target is not None and data.true_target in frame.columns:
        frame = frame.drop(data.true_target)
    rows = rows_of(frame, columns, path)
    check_rows(rows)
    return rows


def _ordered(plan: Blueprint, rows: Rows, path: Path) -> Rows:
    """The rows with their features in the order of the trusted rows'."""
    if plan.spec.data.text is not None:
        return rows
    wanted = _features(plan)
    missing = [name for name in wanted if name not in rows.features]
    extra = [name for name in rows.features if name not in wanted]
    if missing:
        hint = nearest(missing[0], extra)
        more = f" ({len(missing)} such columns)" if len(missing) > 1 else ""
        raise DataError(
            f"batch {path} lacks the feature {missing[0]!r}{more} that the data have"
            f"{hint or '; give every column of ' + plan.spec.data.source}"
        )
    if extra:
        raise DataError(
            f"batch {path} has a column {extra[0]!r} that the data have not; remove it, or name it "
            "in data.metadata"
        )
    order = [rows.features.index(name) for name in wanted]
    inputs = np.ascontiguousarray(rows.inputs[:, order])
    return replace(rows, inputs=inputs, features=tuple(wanted), scalable=None)


def _features(plan: Blueprint) -> list[str]:
    scaling = _scaling(plan)
    if scaling is not None:
        return list(scaling["features"])
    # Nothing was standardised, so only the source itself tells the order.
    data = plan.spec.data
    return list(read_rows(data.source, plan.loaded.source_path, columns_of(data)).features)


def _scaling(plan: Blueprint) -> dict[str, Any] | None:
    path = plan.artifacts.folder(plan.data.manifest) / SCALING_FILE
    if not path.exists():
        return None
    scaling: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return scaling


def _inputs(plan: Blueprint, rows: Rows, path: Path) -> NDArray[Any]:
    facts, scaling = plan.dataset.facts, _scaling(plan)
    if rows.inputs.shape[1:] != facts.input_shape:
        raise DataError(
            f"batch {path} has inputs of shape {rows.inputs.shape[1:]} and the data "
            f"{facts.input_shape}; lists must be as long as theirs"
        )
    return rows.inputs if scaling is None else standardised(rows.inputs, scaling)


def _targets(plan: Blueprint, rows: Rows, path: Path) -> tuple[NDArray[Any], tuple[str, ...]]:
    facts, given = plan.dataset.facts, rows.targets
    if facts.task == "language":
        return given.astype(np.int64), ()
    if facts.task == "regression":
        try:
            _, numbers, _ = partition.encode_targets(given, "regression")
        except DataError as error:
            raise DataError(f"batch {path}: {error}") from error
        return numbers, tuple(f"{value:g}" for value in given.tolist())
    labels = tuple(_class_name(value) for value in given.tolist())
    number = {name: place for place, name in enumerate(facts.classes)}
    return np.array([number.get(label, UNKNOWN) for label in labels], dtype=np.int64), labels


def _class_name(value: str | float | bool) -> str:
    """What a class is called, whether it was written as text, a number or a boolean."""
    if isinstance(value, bool):
        return "true" if value else "false"
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole else str(value)
