from itertools import combinations

import numpy as np
import pytest

from attribution.estimators.resampling import empirical_influence
from schemas.errors import ShapeError
from tests.attribution.resampling.truth import bank


def test_scores_and_errors_are_those_of_two_means() -> None:
    masks, outputs, _, _ = bank(24, 40, 3)
    scores, errors = empirical_influence(masks, outputs)
    for row in range(24):
        inside, outside = outputs[masks[:, row]], outputs[~masks[:, row]]
        np.testing.assert_allclose(scores[:, row], inside.mean(0) - outside.mean(0), rtol=1e-10)
        want = inside.var(0, ddof=1) / len(inside) + outside.var(0, ddof=1) / len(outside)
        np.testing.assert_allclose(errors[:, row], np.sqrt(want), rtol=1e-10)


def test_seeds_of_one_mask_are_one_draw() -> None:
    masks, outputs, _, _ = bank(24, 30, 2, seeds=3)
    means = outputs.reshape(30, 3, 2).mean(axis=1)
    for got, want in zip(
        empirical_influence(masks, outputs), empirical_influence(masks[::3], means), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-10)


def test_several_shares_give_the_regression_on_a_row_with_a_mean_for_each_share() -> None:
    masks, outputs, _, share = bank(24, 60, 2, alpha=(0.3, 0.8), size_effect=2.0)
    scores, _ = empirical_influence(masks, outputs, alpha=share)
    columns = np.stack([share == 0.3, share == 0.8], axis=1).astype(float)
    for row in range(24):
        design = np.column_stack([masks[:, row], columns])
        want = np.linalg.lstsq(design, outputs, rcond=None)[0][0]
        np.testing.assert_allclose(scores[:, row], want, rtol=1e-9)
    np.testing.assert_allclose(empirical_influence(masks, outputs)[0], scores)


def test_a_linear_output_over_all_masks_of_one_size_gives_its_weights_less_their_mean() -> None:
    n, size = 8, 3
    masks = np.zeros((56, n), dtype=bool)
    for place, chosen in enumerate(combinations(range(n), size)):
        masks[place, list(chosen)] = True
    weights = np.random.default_rng(0).standard_normal((4, n))
    scores, _ = empirical_influence(masks, 1.5 + masks @ weights.T)
    want = (weights - weights.mean(axis=1, keepdims=True)) * n / (n - 1)
    np.testing.assert_allclose(scores, want, rtol=1e-10)


def test_the_standard_error_is_the_spread_over_banks() -> None:
    repeats = 400
    found = np.empty((repeats, 2, 3, 12))
    weights = np.random.default_rng(1).standard_normal((3, 12))
    for repeat in range(repeats):
        draw = np.random.default_rng([2, repeat])
        masks = np.concatenate(
            [draw.permuted(np.tile(np.arange(12) < k, (40, 1)), axis=1) for k in (4, 8)]
        )
        noise = draw.standard_normal((len(masks), 3)) * np.where(masks[:, :1], 3.0, 0.5)
        found[repeat] = empirical_influence(masks, masks @ weights.T + noise)
    spread = found[:, 0].std(axis=0, ddof=1)
    promised = np.sqrt((found[:, 1] ** 2).mean(axis=0))
    # A spread over 400 banks is known to 3.5 %; masks of a fixed size are drawn without
    # replacement, which takes a little from the error.
    np.testing.assert_allclose(promised / spread, 1.0, atol=0.15)
    assert abs(float((promised / spread).mean()) - 1) < 0.05


def test_rows_that_no_mask_tells_apart_have_score_zero_and_an_infinite_error() -> None:
    masks, outputs, _, _ = bank(24, 20, 2)
    masks[:, 0], masks[:, 1] = True, False
    masks[:, 2] = np.arange(20) == 3
    scores, errors = empirical_influence(masks, outputs, alpha=np.full(20, 0.5))
    assert (scores[:, :2] == 0).all()
    assert np.isinf(errors[:, :3]).all()
    np.testing.assert_allclose(scores[:, 2], outputs[3] - np.delete(outputs, 3, 0).mean(0))
    assert np.isfinite(errors[:, 3:]).all()


def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, outputs, _, _ = bank(9, 40, 3)
    want = empirical_influence(masks, outputs)
    monkeypatch.setattr("attribution.estimators.resampling.empirical.BLOCK_ENTRIES", 30)
    np.testing.assert_allclose(empirical_influence(masks, outputs), want, rtol=1e-10)


def test_what_does_not_fit_is_refused() -> None:
    masks, outputs, _, _ = bank(7, 20, 2)
    with pytest.raises(ShapeError, match="alpha has shape"):
        empirical_influence(masks, outputs, alpha=[0.5])
    with pytest.raises(ShapeError, match="give bool"):
        empirical_influence(masks.astype(float), outputs)
    outputs[4, 1] = np.nan
    with pytest.raises(ShapeError, match="row 4 and query 1 is nan"):
        empirical_influence(masks, outputs)
