"""Rows as a source gave them, and what is refused of them whatever the source.

Sound rows are finite float32 inputs or token numbers, one target for each, and unique ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import DataError
from schemas.recipe import TextSpec

LARGEST_ID = 2**31 - 1  # example_id is an INTEGER in the ledger


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows as their source gave them, in its order.

    Attributes:
        inputs: float32 [n, ...], finite, unscaled; or int64 [n, T], the tokens of texts.
        targets: [n] of text, integers, floats or booleans; of texts that predict themselves
            int64 [n, T], the next tokens.
        true_targets: Classes [n] that are known to be right, of the type of the targets, or None.
        ids: Integer ids [n], or None where row numbers (from 0) are to be the ids.
        source_ids: Ids that are text, [n], or None.
        metadata: One mapping per row, or None.
        split: The declared side of each row as text, [n], or None.
        features: Names of the columns of inputs [n, d], or empty.
        scalable: bool [d], the columns that may be standardised; None where none may.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]
    true_targets: NDArray[Any] | None = None
    ids: NDArray[np.int64] | None = None
    source_ids: tuple[str, ...] | None = None
    metadata: tuple[Mapping[str, Any], ...] | None = None
    split: tuple[str, ...] | None = None
    features: tuple[str, ...] = ()
    scalable: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def example_ids(self) -> NDArray[np.int64]:
        """The ids that the examples get, int64 [n]."""
        return np.arange(len(self), dtype=np.int64) if self.ids is None else self.ids

    def row(self, index: int) -> str:
        """Name a row for a message: its number from 1, and its id where it has one."""
        if self.source_ids is not None:
            return f"row {index + 1} (id {self.source_ids[index]})"
        return f"row {index + 1} (id {self.example_ids[index]})"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a table mean what; every other column is a feature."""

    target: str | None = None
    true_target: str | None = None
    text: TextSpec | None = None
    id: str | None = None
    split: str | None = None
    metadata: tuple[str, ...] = ()


def check_rows(rows: Rows) -> None:
    """Refuse no rows, features that are not finite, missing targets, and bad or repeated ids.

    Raises:
        DataError: Names the first bad row, and the column where there is one.
    """
    if not len(rows):
        raise DataError("data.source has no rows; give it at least one row for each side")
    _check_finite(rows)
    if rows.targets.dtype.kind == "f" and not np.isfinite(rows.targets).all():
        first = int(np.flatnonzero(~np.isfinite(rows.targets))[0])
        raise DataError(
            f"{rows.row(first)} has target {rows.targets[first]}; remove the row or fill it in"
        )
    if rows.source_ids is not None:
        _check_unique(rows.source_ids)
    if rows.ids is not None:
        _check_unique(rows.ids.tolist())
        outside = np.flatnonzero((rows.ids < 0) | (rows.ids > LARGEST_ID))
        if len(outside):
            raise DataError(
                f"{rows.row(int(outside[0]))}: integer ids must lie in 0..{LARGEST_ID}; "
                "make the id column text to keep them as they are"
            )


def to_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Contiguous float32; what does not fit becomes infinite, which `check_rows` refuses."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32)


def _check_finite(rows: Rows) -> None:
    flat = rows.inputs.reshape(len(rows), -1)
    if not flat.shape[1]:
        raise DataError(f"inputs have shape {rows.inputs.shape}: there are no features")
    # Block by block: the mask of a large set would be as large as a quarter of the set.
    step = max(1, 2**24 // flat.shape[1])
    for start in range(0, len(flat), step):
        bad = np.argwhere(~np.isfinite(flat[start : start + step]))
        if len(bad):
            index, position = int(bad[0, 0]) + start, int(bad[0, 1])
            place = np.unravel_index(position, rows.inputs.shape[1:])
            column = repr(rows.features[position]) if rows.features else [int(i) for i in place]
            raise DataError(
                f"{rows.row(index)} has {flat[index, position]} in feature {column}; "
                "fill it in or remove the row"
            )


def _check_unique(ids: Sequence[Any]) -> None:
    seen: dict[Any, int] = {}
    if len(set(ids)) == len(ids):
        return
    for index, value in enumerate(ids):
        if value in seen:
            raise DataError(
                f"rows {seen[value] + 1} and {index + 1} share the id {value}; "
                "ids must be unique, or leave data.id out"
            )
        seen[value] = index
