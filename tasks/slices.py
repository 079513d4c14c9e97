"""Slices of the training rows: what metadata, classes, copies and doubtful labels name beforehand.

A slice is named by what no effect on the query decided, so that the null of random slices holds.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from store.datasets import StoredDataset

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

# Numbers that a column may hold before they are cut at their quartiles.
MOST_NUMBERS = 12
# Slices beyond this are left out, the smallest first: the more looks, the less can be said.
MOST_SLICES = 500


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice:
    """Some training rows and what they have in common.

    Attributes:
        name: As in "source = 'scan-b' and class '3'".
        kind: metadata, class, copies or labels.
        member: Bool [n_train].
    """

    name: str
    kind: str
    member: BoolArray

    @property
    def size(self) -> int:
        """Its rows."""
        return int(self.member.sum())


def columns_of(dataset: StoredDataset) -> dict[str, list[str]]:
    """Every metadata column of the training rows as text; numbers of many values as quartiles."""
    rows = dataset.examples.filter(pl.col("split") == "train").sort("example_id")
    entries = [json.loads(text) if text else {} for text in rows["metadata"].to_list()]
    names = dict.fromkeys(name for entry in entries for name in entry)
    return {name: _texts([entry.get(name) for entry in entries]) for name in names}


def classes_of(dataset: StoredDataset) -> list[str] | None:
    """The label of each training row, or None where there are no classes."""
    if not dataset.classes:
        return None
    return [dataset.classes[place] for place in dataset.train.targets.tolist()]


def slices_of(
    columns: Mapping[str, list[str]],
    classes: list[str] | None,
    further: Mapping[str, tuple[str, BoolArray]],
    *,
    smallest: int,
) -> list[Slice]:
    """Every slice of at least `smallest` rows that leaves as many, each set of rows once.

    Args:
        columns: `columns_of` the data.
        classes: `classes_of` it; each value is also taken within each class.
        further: Rows found otherwise by name: their kind, and bool [n_train].
        smallest: Fewest rows of a slice, and fewest rows that it leaves.
    """
    found: dict[bytes, Slice] = {}
    for each in _named(columns, classes, further):
        rest = len(each.member) - each.size
        if each.size >= smallest and rest >= smallest:
            found.setdefault(each.member.tobytes(), each)
    return sorted(found.values(), key=lambda each: -each.size)[:MOST_SLICES]


def _named(
    columns: Mapping[str, list[str]],
    classes: list[str] | None,
    further: Mapping[str, tuple[str, BoolArray]],
) -> Iterator[Slice]:
    labels = np.array(classes) if classes else None
    if labels is not None:
        for label in np.unique(labels):
            yield Slice(name=f"class '{label}'", kind="class", member=labels == label)
    for column, texts in columns.items():
        values = np.array(texts)
        for value in np.unique(values):
            if value:
                yield from _whole_and_parts(
                    f"{column} = '{value}'", "metadata", values == value, labels
                )
    for name, (kind, member) in further.items():
        yield from _whole_and_parts(name, kind, member, labels)


def _whole_and_parts(
    name: str, kind: str, member: BoolArray, labels: NDArray[np.str_] | None
) -> Iterator[Slice]:
    yield Slice(name=name, kind=kind, member=member)
    if labels is not None:
        for label in np.unique(labels[member]):
            part = member & (labels == label)
            yield Slice(name=f"{name} and class '{label}'", kind=kind, member=part)


def _texts(values: list[Any]) -> list[str]:
    numbers = [value for value in values if _is_number(value)]
    known = [value for value in values if value is not None]
    if numbers and len(numbers) == len(known) and len(set(numbers)) > MOST_NUMBERS:
        return _quartiles(values, numbers)
    return ["" if value is None else _text(value) for value in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _quartiles(values: list[Any], numbers: list[float]) -> list[str]:
    cuts = np.quantile(numbers, (0.25, 0.5, 0.75))
    edges = [f"{edge:g}" for edge in (min(numbers), *cuts, max(numbers))]
    names = [f"{low} to {high}" for low, high in itertools.pairwise(edges)]
    places = [None if value is None else int(np.searchsorted(cuts, value)) for value in values]
    return ["" if place is None else names[place] for place in places]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
