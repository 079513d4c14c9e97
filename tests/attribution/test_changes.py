"""Predicted changes of single queries against simulated retrainings of known expectation."""

import numpy as np
import pytest

from attribution.changes import agreement
from schemas.errors import ShapeError


def groups(
    rng: np.random.Generator, change: np.ndarray, *, noise: float, models: int
) -> tuple[np.ndarray, np.ndarray]:
    base = rng.normal(size=len(change))
    before = base + noise * rng.normal(size=(models, len(change)))
    return before, base + change + noise * rng.normal(size=(models, len(change)))


def test_a_perfect_prediction_correlates_as_much_as_the_ceiling_allows() -> None:
    rng = np.random.default_rng(0)
    change = rng.normal(size=4_000)
    for noise in (0.5, 2.0, 5.0):
        found = agreement(change, *groups(rng, change, noise=noise, models=10))
        # Reliability of a difference of two means of ten.
        expected = 1 / np.sqrt(1 + 2 * noise**2 / 10)
        assert found.ceiling == pytest.approx(expected, abs=0.03)
        assert found.correlation == pytest.approx(found.ceiling, abs=0.03)
        assert found.slope_interval[0] < 1 < found.slope_interval[1]
        assert found.error < found.error_unchanged


def test_predictions_of_half_the_size_have_slope_two() -> None:
    rng = np.random.default_rng(1)
    change = rng.normal(size=2_000)
    found = agreement(change / 2, *groups(rng, change, noise=0.1, models=5))
    assert found.slope == pytest.approx(2, abs=0.02)
    assert found.error == pytest.approx(0.5, abs=0.03)
    assert found.error_unchanged == pytest.approx(1, abs=0.05)


def test_where_nothing_but_noise_changes_there_is_no_ceiling() -> None:
    rng = np.random.default_rng(2)
    same = np.zeros(300)
    seen = [agreement(same, *groups(rng, same, noise=1.0, models=4)) for _ in range(40)]
    # The variance of pure noise is over-estimated as often as under-estimated.
    assert 8 < sum(np.isnan(each.ceiling) for each in seen) < 32
    assert all(np.isnan(each.correlation) and np.isnan(each.slope) for each in seen)


def test_one_model_a_side_or_other_queries_are_refused() -> None:
    with pytest.raises(ShapeError, match="noise takes two"):
        agreement([0.0, 1.0], np.zeros((1, 2)), np.zeros((3, 2)))
    with pytest.raises(ShapeError, match=r"\[q\]"):
        agreement([0.0, 1.0], np.zeros((2, 2)), np.zeros((3, 3)))
