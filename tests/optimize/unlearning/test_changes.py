"""Changes brought to size: closed form, planted slopes under noise, coverage, what is refused."""

from typing import Any

import numpy as np
import pytest

from attribution.bank import RetrainBank
from optimize.unlearning import RemovalChange, removal_change
from schemas.errors import ShapeError

SLOPE, SIZE, GONE = 1.5, -0.004, 12
N_TRAIN, SUBSETS, CHECKPOINTS, QUERIES = 100, 24, 3, 60


def planted(
    seed: int, *, blur: float = 0.0, noise: float = 0.0, repeats: int = 2, sizes: tuple[int, ...]
) -> tuple[Any, RetrainBank, Any, Any]:
    """Predictions, a bank, the asked predictions, and the change that they stand for."""
    draw = np.random.default_rng(seed)
    masks = np.ones((SUBSETS, N_TRAIN), dtype=bool)
    for row, mask in enumerate(masks):
        mask[draw.permutation(N_TRAIN)[: sizes[row % len(sizes)]]] = False
    # Each row's own effect on each query, and what one checkpoint makes of a sum of them.
    effects = draw.standard_normal((N_TRAIN, QUERIES)) / 10
    removals = np.concatenate([~masks, np.arange(N_TRAIN)[None] < GONE])
    true = removals @ effects
    seen = true[:, None] + blur * draw.standard_normal((len(true), CHECKPOINTS, QUERIES))
    change = SLOPE * true + SIZE * removals.sum(axis=1, keepdims=True)
    outputs = 2.0 + np.repeat(change[:-1], repeats, axis=0)
    outputs += noise * draw.standard_normal((len(outputs), 1))
    bank = RetrainBank(
        masks=np.repeat(masks, repeats, axis=0),
        outputs=outputs.astype(np.float32),
        seeds=np.arange(len(outputs)),
    )
    return np.repeat(seen[:-1], repeats, axis=0), bank, seen[-1], change[-1]


def sized(seed: int, **options: Any) -> tuple[RemovalChange, Any]:
    predicted, bank, asked, change = planted(seed, **{"sizes": (5, 20)} | options)
    return removal_change(predicted, bank, asked=asked, gone=GONE, seeds=1_000_000), change


def test_exact_predictions_give_the_planted_change() -> None:
    found, change = sized(0)
    assert (found.slope, found.size_effect) == pytest.approx((SLOPE, SIZE), abs=1e-4)
    np.testing.assert_allclose(found.change, change, atol=1e-4)
    assert found.reliability == pytest.approx(1)
    assert found.mean_sd == pytest.approx(0, abs=1e-4)
    assert found.subsets == SUBSETS


def test_the_noise_of_checkpoints_does_not_flatten_the_slope() -> None:
    found = [sized(seed, blur=0.3)[0] for seed in range(20)]
    slopes = np.array([each.slope for each in found])
    plain = slopes * [each.reliability for each in found]
    assert slopes.mean() == pytest.approx(SLOPE, rel=0.05)
    assert plain.mean() < 0.95 * SLOPE


def test_shrunken_predictions_have_slope_one() -> None:
    pairs = [sized(seed, blur=0.4) for seed in range(40)]
    said, true = (
        np.concatenate([each - each.mean() for each in part])
        for part in zip(*((found.change, change) for found, change in pairs), strict=True)
    )
    assert said @ true / (said @ said) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("repeats", [1, 2])
def test_intervals_of_the_mean_hold_it_as_often_as_they_say(repeats: int) -> None:
    inside = []
    for seed in range(100):
        found, change = sized(seed, blur=0.3, noise=0.3, repeats=repeats)
        low, high = found.interval(confidence=0.9)
        inside.append(low <= change.mean() <= high)
    assert np.mean(inside) > 0.87


def test_a_bank_of_one_size_does_not_know_how_surely() -> None:
    found, _ = sized(0, sizes=(10,))
    assert found.size_effect == 0
    assert np.isinf(found.sd).all()
    assert np.isinf(found.mean_sd)


def test_a_removal_that_reaches_further_is_less_sure() -> None:
    predicted, bank, asked, _ = planted(3, blur=0.3, noise=0.3, sizes=(5, 20))
    near, far = (
        removal_change(predicted, bank, asked=times * asked, gone=GONE) for times in (1.0, 5.0)
    )
    assert far.reach == pytest.approx(5 * near.reach)
    assert far.mean_sd > near.mean_sd
    assert (far.sd > near.sd).all()


def test_models_of_one_subset_count_as_one() -> None:
    predicted, bank, asked, _ = planted(1, blur=0.3, noise=0.3, sizes=(5, 20))
    order = np.random.default_rng(0).permutation(len(bank))
    first = removal_change(predicted, bank, asked=asked, gone=GONE)
    again = removal_change(predicted[order], bank.subset(order), asked=asked, gone=GONE)
    np.testing.assert_allclose(first.change, again.change)
    assert first.mean_sd == pytest.approx(again.mean_sd)


def test_what_does_not_fit_is_refused() -> None:
    predicted, bank, asked, _ = planted(0, sizes=(5, 20))
    with pytest.raises(ShapeError, match="do not fit bank outputs"):
        removal_change(predicted, bank, asked=asked[:, :-1], gone=GONE)
    few = np.arange(6)
    with pytest.raises(ShapeError, match="3 distinct subsets"):
        removal_change(predicted[few], bank.subset(few), asked=asked, gone=GONE)
