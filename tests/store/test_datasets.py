"""A data set comes back as it was written, in the promised order, and its sets are plain SQL."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from schemas.dataset import DatasetFacts
from schemas.errors import CorruptArtifact, DataError, QueryError
from store.datasets import StoredDataset, load_dataset, select_ids, write_dataset

IDS = np.array([7, 3, 11, 5, 2, 13])
SPLIT = ["test", "train", "train", "test", "train", "train"]
INPUTS = IDS[:, None, None] * np.ones((1, 2, 3), dtype=np.float64)
TARGETS = np.array([0, 1, 2, 0, 1, 2])


def facts(**changes: Any) -> DatasetFacts:
    values: dict[str, Any] = {
        "dataset_id": "d1",
        "task": "classification",
        "n_train": 4,
        "n_test": 2,
        "classes": ("ant", "bee", "cat"),
        "input_shape": (2, 3),
        "input_dtype": "float32",
        "n_corrupted": 0,
        "source_digest": "s1",
    }
    return DatasetFacts(**(values | changes))


def write(folder: Path, **changes: Any) -> None:
    values: dict[str, Any] = {
        "example_ids": IDS,
        "split": SPLIT,
        "inputs": INPUTS,
        "targets": TARGETS,
        "hashes": [f"h{i}" for i in IDS],
        "metadata": ['{"site": "a"}', None, '{"site": "b"}', None, None, None],
        "facts": facts(),
    }
    write_dataset(folder, **(values | changes))


@pytest.fixture
def dataset(tmp_path: Path) -> StoredDataset:
    write(tmp_path)
    return load_dataset(tmp_path)


def test_rows_come_back_train_first_and_by_ascending_id(dataset: StoredDataset) -> None:
    assert dataset.example_ids.tolist() == [2, 3, 11, 13, 5, 7]
    assert dataset.train.example_ids.tolist() == [2, 3, 11, 13]
    assert dataset.test.example_ids.tolist() == [5, 7]
    assert dataset.train.targets.tolist() == [1, 1, 2, 2]
    assert dataset.hashes == ("h2", "h3", "h11", "h13", "h5", "h7")
    assert dataset.classes == ("ant", "bee", "cat")
    assert dataset.split.tolist() == ["train"] * 4 + ["test"] * 2
    np.testing.assert_array_equal(dataset.inputs[:, 0, 0], dataset.example_ids)
    assert len(dataset.train) == 4


def test_each_side_is_a_view_of_the_file(dataset: StoredDataset) -> None:
    assert isinstance(dataset.inputs, np.memmap)
    assert dataset.inputs.dtype == np.float32
    assert np.shares_memory(dataset.train.inputs, dataset.inputs)
    assert not dataset.inputs.flags.writeable


def test_a_subset_keeps_the_order_of_the_ids(dataset: StoredDataset) -> None:
    subset = dataset.subset([13, 5, 2])
    assert subset.example_ids.tolist() == [13, 5, 2]
    np.testing.assert_array_equal(subset.inputs[:, 0, 0], [13, 5, 2])
    with pytest.raises(DataError, match="example 99 is not in this data set"):
        dataset.positions([2, 99])


def test_the_order_of_the_written_rows_does_not_matter(tmp_path: Path) -> None:
    order = np.array([4, 2, 0, 5, 1, 3])
    for name, rows in (("one", np.arange(6)), ("two", order)):
        (tmp_path / name).mkdir()
        write(
            tmp_path / name,
            example_ids=IDS[rows],
            split=[SPLIT[i] for i in rows],
            inputs=INPUTS[rows],
            targets=TARGETS[rows],
            hashes=[f"h{i}" for i in IDS[rows]],
            metadata=None,
        )
    for file in ("inputs.npy", "targets.npy", "examples.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_true_targets_are_kept_beside(tmp_path: Path) -> None:
    truth = TARGETS.copy()
    truth[1] = 0
    write(tmp_path, true_targets=truth, facts=facts(n_corrupted=1))
    dataset = load_dataset(tmp_path)
    assert dataset.train.targets.tolist() == [1, 1, 2, 2]
    assert dataset.train.true_targets.tolist() == [1, 0, 2, 2]
    changed = dataset.examples.filter(pl.col("target") != pl.col("true_target"))
    assert changed["true_target"].to_list() == ["ant"]


def test_of_labels_that_nobody_changed_the_true_ones_are_unknown(dataset: StoredDataset) -> None:
    assert dataset.examples["true_target"].null_count() == len(dataset.examples) == 6
    assert dataset.examples["target"].null_count() == 0
    np.testing.assert_array_equal(dataset.true_targets, dataset.targets)


def test_a_regression_keeps_its_values(tmp_path: Path) -> None:
    values = np.linspace(0.1, 0.6, 6)
    write(tmp_path, targets=values, facts=facts(task="regression", classes=()))
    dataset = load_dataset(tmp_path)
    assert dataset.targets.dtype == np.float32
    np.testing.assert_allclose(dataset.subset(IDS).targets, values, rtol=1e-6)
    assert dataset.examples["target"].cast(pl.Float32).to_list() == dataset.targets.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"example_ids": [1, 1, 2, 3, 4, 5]}, "example id 1 occurs twice"),
        ({"example_ids": [-1, 1, 2, 3, 4, 5]}, "between 0 and 2147483647"),
        ({"split": ["train"] * 5 + ["valid"]}, "split 'valid' is unknown"),
        ({"split": ["train"] * 6}, "6 train and 0 test rows, and the facts say 4 and 2"),
        ({"targets": [0, 1, 2, 3, 0, 1]}, "class indices must be between 0 and 2"),
        ({"targets": [0, 1]}, "targets has 2 rows and example_ids has 6"),
        ({"hashes": ["a"]}, "hashes has 1 rows"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_says_how_to_rebuild(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "inputs.npy").unlink()
    with pytest.raises(CorruptArtifact, match=r"winnow run SPEC --refresh data"):
        load_dataset(tmp_path)


def test_a_set_comes_back_in_the_order_of_its_sql(dataset: StoredDataset) -> None:
    sql = "SELECT example_id FROM examples WHERE split = 'train' ORDER BY example_id DESC"
    assert select_ids(dataset, sql).tolist() == [13, 11, 3, 2]
    assert select_ids(dataset.examples, sql).dtype == np.int64
    assert select_ids(dataset, "SELECT *, 1 AS one FROM examples ORDER BY 1").shape == (6,)


def test_a_set_may_ask_for_metadata(dataset: StoredDataset) -> None:
    sql = "FROM examples SELECT example_id WHERE metadata->>'site' = 'b'"
    assert select_ids(dataset, sql).tolist() == [11]


def test_a_large_set_keeps_its_order() -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"example_id": rng.permutation(300_000).astype(np.int32)})
    ids = select_ids(frame, "SELECT example_id FROM examples ORDER BY hash(example_id)")
    again = select_ids(frame.sort("example_id"), "FROM examples ORDER BY hash(example_id)")
    np.testing.assert_array_equal(ids, again)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT target, split FROM examples", "the columns are target, split; return one column"),
        ("SELECT example_id FROM examples WHERE false", "no example matches"),
        ("SELECT 4 AS example_id", "example_id 4 is not an example"),
        ("SELECT NULL AS example_id", "example_id None is not an example"),
        ("SELECT unnest([2, 3, 2]) AS example_id", "example_id 2 comes back twice"),
        ("SELECT exampel_id FROM examples", "exampel_id"),
        ("SELEC example_id FROM examples", "syntax error"),
        ("SELECT 2 AS example_id; SELECT 3", "found 2 statements"),
        ("", "found 0 statements"),
        ("DROP TABLE examples", "DROP is not allowed"),
        ("DELETE FROM examples", "DELETE is not allowed"),
        ("INSERT INTO examples (example_id) VALUES (1)", "INSERT is not allowed"),
        ("CREATE TABLE t (i INTEGER)", "CREATE is not allowed"),
        ("COPY examples TO 'out.csv'", "COPY is not allowed"),
        ("ATTACH 'other.duckdb'", "ATTACH is not allowed"),
        ("SET enable_external_access = true", "SET is not allowed"),
        ("PRAGMA version", "PRAGMA is not allowed"),
        ("SELECT * FROM read_csv('/etc/passwd')", "disabled by configuration"),
        ("SELECT * FROM '/etc/passwd'", "does not exist"),
        ("SELECT content FROM read_text('/etc/passwd')", "disabled by configuration"),
        ("SELECT * FROM dataset", "does not exist"),
        ("SELECT error('a\nb')", "a b"),
    ],
)
def test_a_wrong_set_is_one_line_with_its_name(
    dataset: StoredDataset, sql: str, message: str
) -> None:
    with pytest.raises(QueryError, match=message) as caught:
        select_ids(dataset, sql, name="sets.queries")
    assert str(caught.value).startswith("sets.queries: ")
    assert "\n" not in str(caught.value)
