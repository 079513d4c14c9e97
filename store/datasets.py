"""A data set on disk: inputs as one array, everything else as one row an example.

Rows are kept as (train by ascending id, then test by ascending id), so that either side is a
slice of the memory-mapped inputs. Nothing here knows where the rows came from.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.dataset import DatasetFacts
from schemas.errors import CorruptArtifact, DataError, QueryError
from store.connect import lock_down, registered, run, run_guarded, scratch

TRAIN, TEST = "train", "test"
_INPUTS, _TARGETS, _EXAMPLES, _FACTS = (
    "inputs.npy",
    "targets.npy",
    "examples.parquet",
    "dataset.json",
)
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """Some rows of a data set, aligned.

    Attributes:
        example_ids: int64 [n].
        inputs: float32 [n, ...] or int64 tokens [n, T]; a view of the file where the rows are
            contiguous.
        targets: int64 class indices or float32 values [n], as the model is to see them; or the
            next tokens int64 [n, T].
        true_targets: The same before any label was corrupted.
    """

    example_ids: Array
    inputs: Array
    targets: Array
    true_targets: Array

    def __len__(self) -> int:
        return len(self.example_ids)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredDataset:
    """A data set that was read back; all arrays have one entry a row, train before test.

    Attributes:
        example_ids: int64 [n].
        split: "train" or "test" [n].
        inputs: float32 [n, ...] or int64 tokens [n, T], memory-mapped and read-only.
        targets: int64 class indices 0..K-1 or float32 values [n], or next tokens int64 [n, T].
        true_targets: The same before corruption.
        hashes: Digest of each row's content [n].
        classes: Class names by index; empty for a regression.
        facts: What the data set says of itself.
        examples: The rows of the published `examples` table, without dataset_id; `true_target` is
            null where no label is known to be wrong.
    """

    example_ids: Array
    split: Array
    inputs: Array
    targets: Array
    true_targets: Array
    hashes: tuple[str, ...]
    classes: tuple[str, ...]
    facts: DatasetFacts
    examples: pl.DataFrame

    @property
    def train(self) -> Examples:
        """The training rows, by ascending id: column i of every mask and score."""
        return self._rows(slice(0, self.facts.n_train))

    @property
    def test(self) -> Examples:
        """The test rows, by ascending id."""
        return self._rows(slice(self.facts.n_train, None))

    def subset(self, example_ids: npt.ArrayLike) -> Examples:
        """The rows of these ids, in the order of the ids.

        Raises:
            DataError: An id is not in the data set.
        """
        return self._rows(self.positions(example_ids))

    def positions(self, example_ids: npt.ArrayLike) -> Array:
        """Where these ids are among all rows (train rows come first): int64 [len(ids)].

        Raises:
            DataError: An id is not in the data set.
        """
        wanted = np.asarray(example_ids, dtype=np.int64)
        order = np.argsort(self.example_ids, kind="stable")
        found = np.searchsorted(self.example_ids, wanted, sorter=order)
        rows = order[np.minimum(found, len(order) - 1)]
        missing = self.example_ids[rows] != wanted
        if missing.any():
            raise DataError(f"example {wanted[missing][0]} is not in this data set")
        return rows

    def _rows(self, rows: slice | Array) -> Examples:
        return Examples(
            example_ids=self.example_ids[rows],
            inputs=self.inputs[rows],
            targets=self.targets[rows],
            true_targets=self.true_targets[rows],
        )


def write_dataset(
    folder: Path,
    *,
    example_ids: npt.ArrayLike,
    split: Sequence[str] | Array,
    inputs: Array,
    targets: npt.ArrayLike,
    hashes: Sequence[str],
    facts: DatasetFacts,
    true_targets: npt.ArrayLike | None = None,
    source_ids: Sequence[str | None] | None = None,
    metadata: Sequence[str | None] | None = None,
) -> None:
    """Write a data set into a folder (a draft's path); rows may come in any order.

    Args:
        folder: An existing folder.
        example_ids: Unique integers [n] that fit 32 bits.
        split: "train" or "test" [n].
        inputs: Numbers [n, ...]; stored in the type that the facts name.
        targets: Class indices into `facts.classes`, or values for a regression [n]; next tokens
            [n, T] for a language task.
        hashes: Digest of each row's content [n].
        facts: What the data set says of itself; its counts must be those of the rows.
        true_targets: The targets before corruption; the same as `targets` by default.
        source_ids: The source's own text ids.
        metadata: A JSON object a row, as text.

    Raises:
        DataError: Ids repeat, lengths differ, an unknown split, or targets outside the classes.
    """
    ids = np.asarray(example_ids, dtype=np.int64)
    sides = np.asarray(split, dtype=str)
    dtype = np.float32 if facts.task == "regression" else np.int64
    seen = np.asarray(targets, dtype=dtype)
    truth = seen if true_targets is None else np.asarray(true_targets, dtype=dtype)
    n = len(ids)
    columns = {"split": sides, "inputs": inputs, "targets": seen, "true_targets": truth}
    for name, column in {**columns, "hashes": hashes}.items():
        if len(column) != n:
            raise DataError(f"{name} has {len(column)} rows and example_ids has {n}")
    _check_rows(ids, sides, seen, truth, facts)
    order = np.lexsort((ids, sides == TEST))
    np.save(folder / _INPUTS, np.ascontiguousarray(inputs[order], dtype=facts.input_dtype))
    np.save(folder / _TARGETS, np.stack([seen[order], truth[order]]))
    frame = pl.DataFrame(
        {
            "example_id": ids.astype(np.int32),
            "split": sides.tolist(),
            "target": _names(seen, facts.classes),
            "true_target": _names(truth, facts.classes),
            "content_hash": list(hashes),
            "source_id": list(source_ids) if source_ids is not None else [None] * n,
            "metadata": list(metadata) if metadata is not None else [None] * n,
        },
        schema_overrides={"source_id": pl.String, "metadata": pl.String},
    )
    frame[order.tolist()].write_parquet(folder / _EXAMPLES)
    (folder / _FACTS).write_text(facts.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_dataset(folder: Path) -> StoredDataset:
    """Read a data set back; the inputs stay on disk until they are touched.

    Raises:
        CorruptArtifact: A file is missing or cannot be read.
    """
    try:
        facts = DatasetFacts.model_validate_json((folder / _FACTS).read_text(encoding="utf-8"))
        inputs = np.load(folder / _INPUTS, mmap_mode="r")
        targets = np.load(folder / _TARGETS)
        examples = pl.read_parquet(folder / _EXAMPLES)
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise CorruptArtifact(
            f"the data set in {folder} cannot be read ({str(error).splitlines()[0]}); "
            "run `winnow run SPEC --refresh data` to rebuild it"
        ) from error
    if not facts.n_corrupted:
        # Where no label is known to be wrong, nobody knows which are true.
        examples = examples.with_columns(true_target=pl.lit(None, dtype=pl.String))
    return StoredDataset(
        example_ids=examples["example_id"].cast(pl.Int64).to_numpy(),
        split=examples["split"].to_numpy().astype(str),
        inputs=inputs,
        targets=targets[0],
        true_targets=targets[1],
        hashes=tuple(examples["content_hash"]),
        classes=facts.classes,
        facts=facts,
        examples=examples,
    )


def select_ids(dataset: StoredDataset | pl.DataFrame, sql: str, *, name: str = "set") -> Array:
    """Run the SQL of a set of examples: int64 ids, in the order that the SQL gives.

    The SQL sees one table, `examples` (example_id, split, target, true_target, content_hash,
    source_id, metadata as JSON), in a database of its own without files, network or settings.

    Args:
        dataset: The data set, or its rows as a frame.
        sql: One SELECT that returns a column example_id.
        name: The set's name, for errors.

    Raises:
        QueryError: The SQL cannot run or does more than read; the column is missing; ids are
            none, NULL, repeated, or of no example. One line that begins with the set's name.
    """
    examples = dataset if isinstance(dataset, pl.DataFrame) else dataset.examples
    with contextlib.closing(scratch()) as connection:
        with registered(connection, incoming=examples):
            run(connection, "CREATE TABLE examples AS FROM incoming")
        if "metadata" in examples.columns:
            run(connection, "ALTER TABLE examples ALTER metadata TYPE JSON")
        lock_down(connection)
        result = run_guarded(connection, sql, name=name)
    if result.columns.count("example_id") != 1:
        columns = ", ".join(result.columns)
        raise QueryError(f"{name}: the columns are {columns}; return one column example_id")
    column = result.columns.index("example_id")
    ids = [row[column] for row in result.rows]
    if not ids:
        raise QueryError(f"{name}: no example matches; loosen the WHERE clause")
    known = set(examples["example_id"].to_list())
    unknown = next((value for value in ids if value not in known), None)
    if unknown is not None or None in ids:
        raise QueryError(f"{name}: example_id {unknown} is not an example of this data set")
    array = np.asarray(ids, dtype=np.int64)
    values, counts = np.unique(array, return_counts=True)
    if len(values) < len(array):
        repeated = values[counts.argmax()]
        raise QueryError(f"{name}: example_id {repeated} comes back twice; add DISTINCT")
    return array


def _check_rows(ids: Array, sides: Array, seen: Array, truth: Array, facts: DatasetFacts) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        raise DataError(f"example id {values[counts.argmax()]} occurs twice; ids must be unique")
    if len(ids) and (values[0] < 0 or values[-1] > np.iinfo(np.int32).max):
        raise DataError("example ids must be between 0 and 2147483647")
    unknown = set(sides.tolist()) - {TRAIN, TEST}
    if unknown:
        raise DataError(f"split {sorted(unknown)[0]!r} is unknown; say 'train' or 'test'")
    found = (int((sides == TRAIN).sum()), int((sides == TEST).sum()))
    if found != (facts.n_train, facts.n_test):
        raise DataError(
            f"there are {found[0]} train and {found[1]} test rows, "
            f"and the facts say {facts.n_train} and {facts.n_test}"
        )
    if facts.classes:
        for labels in (seen, truth):
            if len(labels) and (labels.min() < 0 or labels.max() >= len(facts.classes)):
                raise DataError(f"class indices must be between 0 and {len(facts.classes) - 1}")
    elif facts.task == "language":
        if seen.ndim != 2 or seen.max(initial=0) >= facts.n_tokens:
            raise DataError(f"next tokens must be [n, T] and below {facts.n_tokens}")
    elif not (np.isfinite(seen).all() and np.isfinite(truth).all()):
        raise DataError("targets must be finite numbers")


def _names(targets: Array, classes: tuple[str, ...]) -> list[str]:
    if classes:
        return [classes[index] for index in targets.tolist()]
    if targets.ndim > 1:  # a text predicts itself
        return ["text"] * len(targets)
    return [str(value) for value in targets]
