"""Thinned scores are the strongest ones, and nothing but the scores decides which."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ShapeError
from store.segments import kept_per_query, thin, write_segment


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 12), k=st.integers(1, 14))
def test_thinning_keeps_what_a_stable_sort_would(seed: int, n: int, k: int) -> None:
    # Few distinct values, so that ties at the edge are common.
    block = np.random.default_rng(seed).integers(-3, 4, size=(4, n)).astype(np.float32)
    expected = np.zeros(block.shape, dtype=bool)
    for row, values in enumerate(block):
        expected[row, np.argsort(-np.abs(values), kind="stable")[:k]] = True
    np.testing.assert_array_equal(thin(block, k), expected)


@pytest.mark.parametrize(
    ("n_query", "n_train", "max_rows", "kept"),
    [(10, 100, 1_000, 100), (10, 100, 999, 99), (10, 100, 5, 1), (1, 7, 100, 7)],
)
def test_as_many_are_kept_as_fit(n_query: int, n_train: int, max_rows: int, kept: int) -> None:
    assert kept_per_query(n_query, n_train, max_rows) == kept


def test_a_segment_holds_the_rows_in_query_order(tmp_path: Path) -> None:
    block = np.array([[0.5, -2.0, 1.0], [3.0, 0.1, -0.2]], dtype=np.float32)
    path = tmp_path / "0.parquet"
    ids = {"query_ids": np.array([9, 4]), "train_ids": np.array([1, 5, 7])}
    assert write_segment(path, block, **ids, keep=2) == 4
    frame = pl.read_parquet(path)
    assert frame.schema == {"query_id": pl.Int32, "train_id": pl.Int32, "score": pl.Float32}
    assert frame["query_id"].to_list() == [9, 9, 4, 4]
    assert frame["train_id"].to_list() == [5, 7, 1, 7]
    np.testing.assert_array_equal(frame["score"].to_numpy(), block[[0, 0, 1, 1], [1, 2, 0, 2]])
    assert write_segment(path, block, **ids) == 6


def test_scores_that_are_not_numbers_are_refused_with_their_query(tmp_path: Path) -> None:
    block = np.array([[0.0, 1.0], [np.nan, 1.0]], dtype=np.float32)
    ids = {"query_ids": np.array([9, 4]), "train_ids": np.array([1, 5])}
    with pytest.raises(ShapeError, match="scores of query 4 are NaN or infinite"):
        write_segment(tmp_path / "0.parquet", block, **ids)
    with pytest.raises(ShapeError, match=r"shape \(2, 1\)"):
        write_segment(tmp_path / "0.parquet", block[:, :1], **ids)
    assert list(tmp_path.iterdir()) == []
