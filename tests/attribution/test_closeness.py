from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from attribution.closeness import BINS, closeness, klom, klom_null, u_lira
from attribution.streams import Purpose, stream
from schemas.errors import ShapeError


def normal(models: int, points: int, *, key: int, mean: float = 0.0, sd: float = 1.0) -> np.ndarray:
    return stream(key, Purpose.FORGET).normal(mean, sd, (models, points))


def test_klom_is_the_divergence_of_the_two_histograms() -> None:
    ours, theirs = normal(50, 7, key=0), normal(60, 7, key=1, mean=0.5)
    found = klom(ours, theirs)
    for point in range(7):
        a, b = ours[:, point], theirs[:, point]
        edges = np.linspace(min(a.min(), b.min()), max(a.max(), b.max()), BINS + 1)
        # The slow truth: count by comparison, the last bin closed.
        inside = [
            [
                np.mean((side >= low) & ((side < high) | ((side <= high) & (place == BINS - 1))))
                for place, (low, high) in enumerate(pairwise(edges))
            ]
            for side in (a, b)
        ]
        total = sum(p * np.log(p / max(q, 1e-5)) for p, q in zip(*inside, strict=True) if p > 0)
        assert found[point] == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize(
    ("models", "mean", "p95"), [(100, 0.33, 0.65), (200, 0.14, 0.28), (1000, 0.023, 0.040)]
)
def test_equal_normals_reach_the_known_floor(models: int, mean: float, p95: float) -> None:
    values = klom(normal(models, 1_000, key=2), normal(models, 1_000, key=3))
    assert values.mean() == pytest.approx(mean, rel=0.1)
    assert np.quantile(values, 0.95) == pytest.approx(p95, rel=0.15)


def test_the_direction_is_unlearned_against_oracle() -> None:
    narrow, wide = normal(2_000, 40, key=4), normal(2_000, 40, key=5, sd=2.0)
    # Closed form: log 2 + 1/8 - 1/2 = 0.32 one way, -log 2 + 2 - 1/2 = 0.81 the other.
    assert klom(narrow, wide).mean() == pytest.approx(0.32, abs=0.03)
    assert klom(wide, narrow).mean() == pytest.approx(0.81, abs=0.1)
    # With a hundred models a side the floor, and bins that no oracle reaches, come on top.
    narrow, wide = normal(100, 1_000, key=4), normal(100, 1_000, key=5, sd=2.0)
    assert klom(narrow, wide).mean() == pytest.approx(0.43, abs=0.04)
    assert klom(wide, narrow).mean() == pytest.approx(1.59, abs=0.08)


def test_far_apart_distributions_saturate_and_equal_constants_are_zero() -> None:
    assert klom(np.zeros((5, 2)), np.ones((5, 2))) == pytest.approx(np.log(1e5))
    assert klom(np.ones((5, 2)), np.ones((9, 2))) == pytest.approx(0.0, abs=1e-12)
    assert klom(np.full((5, 1), 1e6), np.full((5, 1), 101.0)) == pytest.approx(0.0, abs=1e-12)


def test_the_largest_margin_is_counted() -> None:
    ours = np.array([[0.0], [1.0]])
    theirs = np.array([[0.0], [0.0]])
    assert klom(ours, theirs)[0] == pytest.approx(0.5 * np.log(0.5) + 0.5 * np.log(0.5e5))


def test_oracles_are_at_the_null_and_an_untouched_model_is_far_from_it() -> None:
    oracle = normal(200, 300, key=6)
    groups = {"forget": np.arange(100), "retain": np.arange(300) >= 100}
    same = closeness(normal(100, 300, key=7), oracle, groups=groups)
    untouched = normal(100, 300, key=8)
    untouched[:, :100] += 3.0
    far = closeness(untouched, oracle, groups=groups)
    assert same["forget"].models == 100
    assert same["forget"].points == 100
    assert same["forget"].mean == pytest.approx(same["forget"].null_mean, rel=0.15)
    assert same["retain"].p95 == pytest.approx(same["retain"].null_p95, rel=0.15)
    assert same["forget"].null_mean == pytest.approx(0.33, rel=0.15)
    assert far["forget"].mean > 8 * far["forget"].null_mean
    assert far["retain"].mean == pytest.approx(far["retain"].null_mean, rel=0.15)


def test_percentiles_are_averaged_over_splits_and_not_taken_of_their_average() -> None:
    null = klom_null(normal(100, 200, key=9), splits=6)
    assert null.shape == (6, 200)
    of_splits = np.mean([np.quantile(one, 0.95) for one in null])
    assert of_splits > 1.2 * np.quantile(null.mean(axis=0), 0.95)


def test_membership_of_oracles_is_a_coin_toss() -> None:
    found = u_lira(normal(100, 100, key=10), normal(100, 100, key=11))
    assert found.accuracy == pytest.approx(0.5, abs=0.01)
    assert found.per_model.shape == (100,)


def test_membership_of_shifted_normals_has_the_accuracy_of_the_best_test() -> None:
    found = u_lira(normal(200, 100, key=12, mean=2.0), normal(200, 100, key=13))
    assert found.accuracy == pytest.approx(stats.norm.cdf(1.0), abs=0.01)
    apart = u_lira(normal(50, 20, key=14, mean=90.0), normal(50, 20, key=15))
    assert apart.accuracy == 1.0


def test_one_model_that_gives_itself_away_shows_in_the_spread() -> None:
    ours = normal(40, 200, key=16)
    ours[0] += 50.0
    found = u_lira(ours, normal(40, 200, key=17))
    assert found.sd > 0.01


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[models, points\]"):
        klom(np.zeros((3, 4)), np.zeros((3, 5)))
    with pytest.raises(ShapeError, match="NaN"):
        klom(np.full((3, 4), np.nan), np.zeros((3, 4)))
    with pytest.raises(ShapeError, match="four oracles"):
        klom_null(np.zeros((3, 4)))
    with pytest.raises(ShapeError, match="fewer than two shadows"):
        u_lira(np.zeros((2, 4)), np.zeros((2, 4)), folds=2)
    with pytest.raises(ShapeError, match="group 'forget'"):
        closeness(np.zeros((4, 4)), np.zeros((4, 4)), groups={"forget": [4]})
    with pytest.raises(ShapeError, match="names no points"):
        closeness(np.zeros((4, 4)), np.zeros((4, 4)), groups={"forget": []})
