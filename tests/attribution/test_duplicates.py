import numpy as np
import pytest

from attribution import duplicates
from attribution.duplicates import groups_of, near_duplicates, same_content
from attribution.streams import stream
from schemas.errors import ShapeError


def connected(features: np.ndarray, threshold: float) -> np.ndarray:
    """Groups by looking at every pair until nothing changes."""
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    alike = units @ units.T >= threshold
    group = np.arange(len(units))
    for _ in range(len(units)):
        group = np.array([group[row].min() for row in alike])
    return np.unique(group, return_inverse=True)[1]


def crowd(seed: int) -> np.ndarray:
    """Rows about 30 centres, whose cosines spread about 0.9."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((30, 8))[rng.integers(0, 30, 120)] + 0.2 * rng.standard_normal(
        (120, 8)
    )


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_what_chains_of_near_pairs_connect(seed: int) -> None:
    features = crowd(seed)
    found = near_duplicates(features, 0.95, centred=False)
    np.testing.assert_array_equal(found, connected(features, 0.95))
    assert 1 < len(np.unique(found)) < 120


@pytest.mark.parametrize(("block", "pairs"), [(1, 1), (7, 10), (50, 3), (2_048, 1 << 20)])
def test_groups_do_not_depend_on_where_the_rows_are_cut(
    monkeypatch: pytest.MonkeyPatch, block: int, pairs: int
) -> None:
    features = crowd(0)
    want = near_duplicates(features, 0.9)
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    monkeypatch.setattr(duplicates, "_PAIRS", pairs)
    np.testing.assert_array_equal(near_duplicates(features, 0.9), want)


def test_groups_are_numbered_in_the_order_of_their_first_rows() -> None:
    assert same_content([[2, 1], [0, 0], [2, 1], [5, 5], [0, 0]]).tolist() == [0, 1, 0, 2, 1]
    assert near_duplicates([[0, 1], [1, 0], [0, 2], [1, 1]], 1.0, centred=False).tolist() == [
        0,
        1,
        0,
        2,
    ]


def test_identical_rows_are_found_by_both() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 33))[rng.integers(0, 50, 400)]
    np.testing.assert_array_equal(same_content(rows), near_duplicates(rows, 1.0))


def test_content_is_of_values_whatever_the_shape() -> None:
    pictures = np.zeros((3, 1, 2, 2), dtype=np.float32)
    pictures[1] = -0.0
    pictures[2, 0, 1, 1] = 1
    assert same_content(pictures).tolist() == [0, 0, 1]
    assert same_content(np.array(["a", "b", "a"])).tolist() == [0, 1, 0]


def test_rows_of_zeros_are_copies_of_each_other_and_like_no_other() -> None:
    rows = np.zeros((4, 2))
    rows[1] = 1.0
    assert near_duplicates(rows, 0.5, centred=False).tolist() == [0, 1, 0, 0]


def test_what_has_no_cosines_is_refused() -> None:
    with pytest.raises(ShapeError, match="NaN or infinite"):
        near_duplicates([[np.nan, 1.0]], 0.9)
    with pytest.raises(ShapeError, match="give numbers"):
        near_duplicates([1.0, 2.0], 0.9)
    with pytest.raises(ShapeError, match="threshold is 0"):
        near_duplicates([[1.0, 2.0]], 0)
    with pytest.raises(ShapeError, match="give numbers"):
        same_content([object()])


def test_near_duplicates_are_the_pairs_of_high_cosine_and_what_they_link() -> None:
    rng = stream(1, "labels", 6)
    features = 5 + rng.standard_normal((60, 4, 3))
    features[40] = features[3]
    features[41] = 5 + 1.5 * (features[3] - 5) + 1e-3 * rng.standard_normal((4, 3))
    features[50] = features[22] + 1e-4
    labels = near_duplicates(features, threshold=0.995)
    flat = features.reshape(60, -1) - features.reshape(60, -1).mean(axis=0)
    cosines = (flat @ flat.T) / np.outer(np.linalg.norm(flat, axis=1), np.linalg.norm(flat, axis=1))
    linked = cosines >= 0.995
    assert ((labels[:, None] == labels[None, :]) >= linked).all()
    assert [group.tolist() for group in groups_of(labels)] == [[3, 40, 41], [22, 50]]
    assert labels[0] == 0
    assert labels.max() == 56


def test_copies_of_a_constant_row_are_found_and_blocks_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = stream(2, "labels", 6).standard_normal((50, 6))
    features[[9, 19, 29]] = 0.0
    features[[5, 45]] = 2.0
    whole = near_duplicates(features, centred=False)
    monkeypatch.setattr("attribution.duplicates._BLOCK", 7)
    np.testing.assert_array_equal(near_duplicates(features, centred=False), whole)
    assert [group.tolist() for group in groups_of(whole)] == [[9, 19, 29], [5, 45]]
    with pytest.raises(ShapeError, match="give a cosine"):
        near_duplicates(features, threshold=0.0)
