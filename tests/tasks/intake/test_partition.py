import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.errors import DataError
from tasks.intake.partition import (
    check_sides,
    corrupt_labels,
    declared_split,
    encode_targets,
    input_hashes,
    keyed_split,
    row_hashes,
    uniforms,
)


def some_inputs(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, 3), dtype=np.float32)


def test_hashes_are_pinned() -> None:
    """A changed hash would move rows across the split: raise DATA_VERSION and this together."""
    hashes = input_hashes(np.asarray([[0.0, 1.5], [-0.0, 1.5]], dtype=np.float32))
    assert hashes[0].hex()[:16] == "c812078fef71d1e3"
    assert hashes[0] == hashes[1]
    assert uniforms(7, "split", hashes)[0] == 0.17150524378783838


def test_the_shape_is_part_of_the_hash_and_memory_layout_is_not() -> None:
    flat = some_inputs(4)
    assert input_hashes(flat) != input_hashes(flat.reshape(4, 3, 1))
    assert input_hashes(flat) == input_hashes(np.asfortranarray(flat))


def test_numbers_are_uniform_and_differ_by_seed_and_purpose() -> None:
    hashes = input_hashes(some_inputs(4000))
    draws = uniforms(0, "split", hashes)
    assert 0 <= draws.min() < draws.max() < 1
    # 4000 draws: mean 0.5 +- 0.0046 (one sd), each decile 400 +- 19.
    assert abs(draws.mean() - 0.5) < 0.02
    assert np.abs(np.histogram(draws, bins=10, range=(0, 1))[0] - 400).max() < 100
    for other in (uniforms(1, "split", hashes), uniforms(0, "corrupt", hashes)):
        assert abs(np.corrcoef(draws, other)[0, 1]) < 0.08


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 60), extra=st.integers(1, 60), seed=st.integers(0, 2**40))
def test_appended_rows_move_no_others(n: int, extra: int, seed: int) -> None:
    inputs = some_inputs(n + extra)
    before = keyed_split(input_hashes(inputs[:n]), seed=seed, test_fraction=0.3)
    after = keyed_split(input_hashes(inputs), seed=seed, test_fraction=0.3)
    np.testing.assert_array_equal(after[:n], before)


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(40)), fraction=st.floats(0, 0.9), seed=st.integers(0, 99))
def test_order_changes_neither_side_nor_label(order: list[int], fraction: float, seed: int) -> None:
    inputs, labels = some_inputs(40), np.arange(40) % 4

    def assign(rows: list[int]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        hashes = input_hashes(inputs[rows])
        train = ~keyed_split(hashes, seed=seed, test_fraction=0.25)
        names = [str(label) for label in labels[rows]]
        keys = row_hashes(hashes, names)
        return train, corrupt_labels(
            labels[rows], train, keys, n_classes=4, fraction=fraction, seed=seed
        )

    train, corrupted = assign(list(range(40)))
    train_permuted, corrupted_permuted = assign(order)
    np.testing.assert_array_equal(train_permuted, train[order])
    np.testing.assert_array_equal(corrupted_permuted, corrupted[order])
    changed = corrupted != labels
    assert changed.sum() == round(fraction * train.sum())
    assert not (changed & ~train).any()


def test_duplicates_stay_on_one_side() -> None:
    inputs = np.repeat(some_inputs(50), 2, axis=0)
    test = keyed_split(input_hashes(inputs), seed=3, test_fraction=0.5)
    np.testing.assert_array_equal(test[::2], test[1::2])
    assert 10 < test[::2].sum() < 40


def test_new_labels_are_uniform_over_the_other_classes() -> None:
    n = 6000
    labels = np.zeros(n, dtype=np.int64) + 1
    keys = input_hashes(some_inputs(n))
    train = np.ones(n, dtype=bool)
    new = corrupt_labels(labels, train, keys, n_classes=4, fraction=0.5, seed=0)
    counts = np.bincount(new[new != 1], minlength=4)
    assert counts.sum() == 3000
    assert counts[1] == 0
    assert np.abs(counts[[0, 2, 3]] - 1000).max() < 120  # sd 26
    assert (labels == 1).all()


@pytest.mark.parametrize(
    ("targets", "task", "found", "classes", "encoded"),
    [
        (["c10", "c2", "c2"], "auto", "classification", ("c2", "c10"), [1, 0, 0]),
        ([10, 2, 2], "auto", "classification", ("2", "10"), [1, 0, 0]),
        ([1.0, 0.0, 1.0], "auto", "classification", ("0", "1"), [1, 0, 1]),
        ([1.5, 0.0, 1.0], "auto", "regression", (), [1.5, 0, 1]),
        (list(np.arange(21.0)), "auto", "regression", (), list(np.arange(21.0))),
        ([3, 4, 5], "regression", "regression", (), [3, 4, 5]),
        ([True, False], "auto", "classification", ("false", "true"), [1, 0]),
        (["b", "B", "a"], "auto", "classification", ("B", "a", "b"), [2, 0, 1]),
    ],
)
def test_targets_tell_their_task(
    targets: list[object], task: str, found: str, classes: tuple[str, ...], encoded: list[float]
) -> None:
    got = encode_targets(np.asarray(targets), task)
    assert got[0] == found
    assert got[2] == classes
    assert got[1].tolist() == encoded
    assert got[1].dtype == (np.int64 if classes else np.float32)


def test_targets_that_do_not_fit_the_task_are_refused() -> None:
    with pytest.raises(DataError, match="row 1 has the target 'a', which is text"):
        encode_targets(np.asarray(["a", "b"]), "regression")
    with pytest.raises(DataError, match=r"row 2 has the target 0\.5, which is no class"):
        encode_targets(np.asarray([1.0, 0.5]), "classification")
    with pytest.raises(DataError, match=r"row 1: target 1e\+300 does not fit"):
        encode_targets(np.asarray([1e300, 0.5]), "regression")


def test_a_declared_split_says_train_or_test() -> None:
    assert declared_split(["train", "test"]).tolist() == [False, True]
    with pytest.raises(DataError, match=r"holds 'val' in row 2; .* and says train, val, test"):
        declared_split(["train", "val", "test"])


def test_sides_and_classes_must_have_rows() -> None:
    labels = np.asarray([0, 1, 1, 2])
    with pytest.raises(DataError, match=r"1 of 3 classes have no training rows \('c'\)"):
        check_sides(labels, np.asarray([True, True, True, False]), ("a", "b", "c"))
    with pytest.raises(DataError, match="4 training and 0 test rows"):
        check_sides(labels, np.ones(4, dtype=bool), ("a", "b", "c"))
    with pytest.raises(DataError, match="all 4 rows have the class 'a'"):
        check_sides(labels * 0, np.asarray([True, True, True, False]), ("a",))
    check_sides(labels.astype(np.float32), np.asarray([True, True, True, False]), ())
