"""Metadata columns of the training rows: sources, licences, costs."""

import json
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.errors import DataError, NotFound
from schemas.frozen import nearest
from store.datasets import StoredDataset


def metadata_column(dataset: StoredDataset, column: str, *, asker: str) -> list[Any]:
    """A metadata column of the training rows, None where a row has no value.

    Args:
        dataset: The rows.
        column: Its name.
        asker: Who wants it, for errors: "problem 'clean'".

    Raises:
        NotFound: The rows have no such column.
    """
    rows = dataset.examples.filter(pl.col("split") == "train").sort("example_id")
    metadata: list[dict[str, Any]] = [
        json.loads(text) if text else {} for text in rows["metadata"].to_list()
    ]
    known = set().union(*metadata)
    if column not in known:
        hint = nearest(column, known) or "; name the column in data.metadata"
        raise NotFound(f"{asker}: there is no metadata column '{column}'{hint}")
    values = [entry.get(column) for entry in metadata]
    return [None if value == "" else value for value in values]


def as_text(value: Any) -> str:
    """A value of metadata as a spec and a table write it."""
    return value if isinstance(value, str) else json.dumps(value)


def texts(dataset: StoredDataset, column: str, *, asker: str, advice: str) -> list[str]:
    """A column of which every training row has a value, as text.

    Raises:
        NotFound: The rows have no such column.
        DataError: Some training row has no value.
    """
    values = metadata_column(dataset, column, asker=asker)
    _refuse_lacking(dataset, values, column, asker=asker, advice=advice)
    return [as_text(value) for value in values]


def numbers(dataset: StoredDataset, column: str, *, asker: str) -> NDArray[np.float64]:
    """A column of numbers, 0 or more, one for each training row: float64 [n_train].

    Raises:
        NotFound: The rows have no such column.
        DataError: Some training row has no number, or a negative one.
    """
    values = metadata_column(dataset, column, asker=asker)
    _refuse_lacking(dataset, values, column, asker=asker, advice="give each a number")
    found = np.empty(len(values))
    for row, value in enumerate(values):
        try:
            found[row] = float(value)
        except (TypeError, ValueError):
            found[row] = np.nan
        if not 0 <= found[row] < np.inf:
            example = dataset.train.example_ids[row]
            raise DataError(
                f"{asker}: '{column}' of example {example} is '{as_text(value)}'; give a "
                "number, 0 or more"
            )
    return found


def _refuse_lacking(
    dataset: StoredDataset, values: list[Any], column: str, *, asker: str, advice: str
) -> None:
    if lacking := [row for row, value in enumerate(values) if value is None]:
        raise DataError(
            f"{asker}: {len(lacking)} training rows have no '{column}', example "
            f"{dataset.train.example_ids[lacking[0]]} among them; {advice}"
        )
