import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from attribution.bank import RetrainBank
from attribution.bootstrap import resampled_ranks
from attribution.evaluate import alpha_rows, lds, lds_gain, mask_groups, subset_sums
from attribution.statistics import (
    anova_reliability,
    auroc,
    average_precision,
    calibration_line,
    coverage,
    mean_interval,
    spearman_columns,
    welch_interval,
)
from schemas.errors import ShapeError


def fixed_size_masks(rng: np.random.Generator, models: int, n_train: int, size: int) -> np.ndarray:
    return np.argsort(rng.random((models, n_train)), axis=1) < size


def linear_world(
    key: int,
    *,
    models: int = 40,
    seeds: int = 2,
    n_train: int = 60,
    n_query: int = 30,
    noise: float = 4.0,
    share: float = 0.5,
) -> tuple[np.ndarray, SimpleNamespace]:
    """Scores that are exactly the effects, and a bank whose outputs add seed noise to them."""
    rng = np.random.default_rng(key)
    tau = rng.standard_normal((n_query, n_train))
    masks = np.repeat(fixed_size_masks(rng, models, n_train, round(share * n_train)), seeds, axis=0)
    outputs = masks @ tau.T + noise * rng.standard_normal((len(masks), n_query))
    alpha = np.full(len(masks), share)
    return tau, SimpleNamespace(masks=masks, outputs=outputs, alpha=alpha, output="margin")


def merged(*banks: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(
        masks=np.concatenate([bank.masks for bank in banks]),
        outputs=np.concatenate([bank.outputs for bank in banks]),
        alpha=np.concatenate([bank.alpha for bank in banks]),
        output="margin",
    )


def test_each_query_is_scipys_spearman_of_seed_averaged_outputs() -> None:
    tau, bank = linear_world(0, models=25, seeds=3)
    scores = tau + np.random.default_rng(1).standard_normal(tau.shape)
    averaged = bank.outputs.reshape(25, 3, -1).mean(axis=1)
    predicted = bank.masks[::3] @ scores.T
    want = [stats.spearmanr(predicted[:, q], averaged[:, q]).statistic for q in range(len(scores))]
    np.testing.assert_allclose(lds(scores, bank).per_query, want, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), min_size=3, max_size=30).filter(
        lambda pairs: all(len(set(column)) > 1 for column in zip(*pairs, strict=True))
    )
)
def test_spearman_of_tied_values_is_scipys(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array(column, dtype=float)[:, None] for column in zip(*pairs, strict=True))
    want = stats.spearmanr(a[:, 0], b[:, 0]).statistic
    np.testing.assert_allclose(spearman_columns(a, b), [want], rtol=0, atol=1e-12)


def test_lds_is_not_one_correlation_over_the_flattened_matrix() -> None:
    """Trap 22: outputs that differ between queries make the flattened correlation look perfect."""
    rng = np.random.default_rng(2)
    tau, bank = linear_world(2, n_query=20)
    levels = 1_000.0 * np.arange(20)
    bank.outputs = rng.standard_normal(bank.outputs.shape) + levels
    scores = rng.standard_normal(tau.shape) + levels[:, None]
    flattened = stats.spearmanr((bank.masks @ scores.T).ravel(), bank.outputs.ravel()).statistic
    assert flattened > 0.99
    assert abs(lds(scores, bank).mean) < 0.15


def test_the_order_of_a_banks_rows_does_not_matter() -> None:
    tau, bank = linear_world(3)
    order = np.random.default_rng(0).permutation(len(bank.masks))
    shuffled = SimpleNamespace(
        masks=bank.masks[order],
        outputs=bank.outputs[order],
        alpha=bank.alpha[order],
        output="margin",
    )
    one, other = lds(tau, bank), lds(tau, shuffled)
    np.testing.assert_allclose(one.per_query, other.per_query, atol=1e-12)
    assert one.ceiling == pytest.approx(other.ceiling, abs=1e-12)


def test_rescaling_scores_or_shifting_outputs_changes_nothing() -> None:
    tau, bank = linear_world(4)
    moved = SimpleNamespace(**{**vars(bank), "outputs": 3 * bank.outputs - 7})
    np.testing.assert_allclose(lds(1e-6 * tau, moved).per_query, lds(tau, bank).per_query)


def test_constant_scores_score_zero_and_not_nan() -> None:
    tau, bank = linear_world(5)
    scores = tau.copy()
    scores[0], scores[1] = 0.1, 0.0
    result = lds(scores, bank)
    assert result.per_query[0] == 0
    assert result.per_query[1] == 0
    assert np.isfinite(result.mean)
    assert np.isfinite(result.interval).all()


def test_outputs_that_never_vary_score_zero() -> None:
    tau, bank = linear_world(6)
    bank.outputs[:, 3] = 2.5
    result = lds(tau, bank)
    assert result.per_query[3] == 0
    assert result.ceiling is not None


def test_several_shares_are_scored_apart_and_averaged() -> None:
    tau, half = linear_world(7, share=0.5)
    _, most = linear_world(7, share=0.9)
    half.outputs = half.masks @ tau.T
    rng = np.random.default_rng(0)
    most.outputs = 50 + rng.standard_normal(most.outputs.shape)
    result = lds(tau, merged(half, most))
    assert list(result.by_alpha) == [0.5, 0.9]
    assert result.by_alpha[0.5].mean == pytest.approx(1.0)
    assert abs(result.by_alpha[0.9].mean) < 0.2
    assert result.mean == pytest.approx((result.by_alpha[0.5].mean + result.by_alpha[0.9].mean) / 2)
    assert result.by_alpha[0.9].interval == lds(tau, most).by_alpha[0.9].interval
    assert result.n_masks == 80


def test_a_bank_that_does_not_name_its_shares_is_grouped_by_subset_size() -> None:
    _, half = linear_world(8, share=0.5)
    _, most = linear_world(8, share=0.9)
    bank = merged(half, most)
    bank.alpha = None
    assert [alpha for alpha, _ in alpha_rows(bank)] == [0.5, 0.9]
    bank.masks = np.random.default_rng(0).random(bank.masks.shape) < 0.5
    assert len(list(alpha_rows(bank))) == 1


def test_the_same_seed_gives_the_same_interval() -> None:
    tau, bank = linear_world(9)
    assert lds(tau, bank, seed=1).interval == lds(tau, bank, seed=1).interval
    assert lds(tau, bank, seed=1).interval != lds(tau, bank, seed=2).interval


def test_bootstrap_ranks_are_those_of_the_written_out_resample() -> None:
    rng = np.random.default_rng(10)
    values = rng.integers(0, 5, (9, 1)).astype(float)
    counts = rng.multinomial(9, np.full(9, 1 / 9), size=4)
    ranks = resampled_ranks(values, counts.astype(np.float32))[:, 0] / 2
    for row, count in zip(ranks, counts, strict=True):
        written = np.repeat(np.arange(9), count)
        want = stats.rankdata(values[written, 0])
        np.testing.assert_allclose(row[written], want - want.mean())


@pytest.mark.slow
@pytest.mark.parametrize(("models", "n_query"), [(40, 30), (60, 60)])
def test_the_interval_covers_the_truth_as_often_as_it_says(models: int, n_query: int) -> None:
    """The truth is the estimates' own mean here, and in closed form in benchmarks.lds_coverage."""
    results = []
    for key in range(200):
        rng = np.random.default_rng(10_000 + key)
        tau, bank = linear_world(key, models=models, n_query=n_query, noise=6.0)
        scores = tau + rng.uniform(0.3, 2, (n_query, 1)) * rng.standard_normal(tau.shape)
        results.append(lds(scores, bank, resamples=300))
    truth = np.mean([result.mean for result in results])
    low, high = np.transpose([result.interval for result in results])
    covered = coverage(low, high, truth)
    assert 0.91 <= covered <= 0.985


def test_a_gain_is_the_difference_and_its_interval_is_that_of_pairs() -> None:
    tau, bank = linear_world(25, models=60, n_query=40)
    rng = np.random.default_rng(0)
    worse = tau + rng.standard_normal(tau.shape)
    slightly = worse + 0.3 * rng.standard_normal(tau.shape)
    better, other = lds(worse, bank), lds(slightly, bank)
    gain, low, _ = lds_gain(worse, slightly, bank)
    assert gain == pytest.approx(better.mean - other.mean, abs=1e-12)
    assert low > 0
    assert better.interval[0] < other.interval[1]
    assert lds_gain(tau, tau, bank) == (0, 0, 0)


def test_the_interval_of_a_gain_holds_none_as_often_as_it_says() -> None:
    inside = 0
    for key in range(150):
        tau, bank = linear_world(key, models=30, n_query=15)
        rng = np.random.default_rng(20_000 + key)
        one, two = (tau + rng.standard_normal(tau.shape) for _ in range(2))
        _, low, high = lds_gain(one, two, bank, resamples=200, seed=key)
        inside += low <= 0 <= high
    assert 0.90 <= inside / 150 <= 0.99


@pytest.mark.parametrize("seeds", [2, 5])
@pytest.mark.parametrize("noise", [2.0, 6.0])
def test_a_perfect_method_scores_the_ceiling(seeds: int, noise: float) -> None:
    tau, bank = linear_world(11, models=300, seeds=seeds, n_query=60, noise=noise)
    result = lds(tau, bank, resamples=0)
    assert result.ceiling is not None
    assert result.mean == pytest.approx(result.ceiling, abs=0.02)
    assert result.relative == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(
    ("reliability", "seeds", "published"),
    [(0.1, 1, 0.30), (0.5, 1, 0.69), (0.9, 1, 0.94), (0.1, 5, 0.58), (0.5, 5, 0.90)],
)
def test_the_ceiling_formula_gives_the_values_known_for_a_perfect_attributor(
    reliability: float, seeds: int, published: float
) -> None:
    """Trap 23: with noisy retraining a perfect attributor is far from an LDS of 1."""
    of_mean = seeds * reliability / (1 + (seeds - 1) * reliability)
    assert 6 / np.pi * np.arcsin(np.sqrt(of_mean) / 2) == pytest.approx(published, abs=0.02)


def test_reliability_is_the_anova_one_and_not_the_raw_share_of_variance() -> None:
    """The raw share of the variance of subset means would say 0.70 where the truth is 0.40."""
    rng = np.random.default_rng(12)
    group = np.repeat(np.arange(400), 2)
    outputs = np.sqrt(0.4) * rng.standard_normal((400, 50))[group]
    outputs += np.sqrt(0.6) * rng.standard_normal((800, 50))
    of_mean = anova_reliability(outputs, group)
    assert of_mean is not None
    single = of_mean / (2 - of_mean)
    assert single.mean() == pytest.approx(0.40, abs=0.02)


def test_reliability_of_unequal_numbers_of_seeds_lies_between_those_of_equal_ones() -> None:
    rng = np.random.default_rng(13)
    group = np.repeat(np.arange(600), np.tile([2, 4], 300))
    outputs = rng.standard_normal((600, 40))[group] + rng.standard_normal((len(group), 40))
    of_mean = anova_reliability(outputs, group)
    assert of_mean is not None
    assert 2 / 3 < of_mean.mean() < 4 / 5


def test_one_seed_a_subset_has_no_ceiling_and_says_why() -> None:
    tau, bank = linear_world(14, seeds=1)
    result = lds(tau, bank)
    assert result.ceiling is None
    assert result.relative is None
    assert "one seed" in result.ceiling_note
    assert result.n_seeds == 1


def test_outputs_of_pure_seed_noise_have_a_low_ceiling() -> None:
    tau, bank = linear_world(15)
    rng = np.random.default_rng(0)
    bank.outputs = np.tile(rng.standard_normal(bank.outputs.shape[1]), (len(bank.outputs), 1))
    bank.outputs[::2] += 1
    result = lds(tau, bank)
    assert result.ceiling == 0
    assert result.relative is None
    assert "seeds" in result.ceiling_note


def test_a_retrain_bank_and_its_evaluating_part_are_scored() -> None:
    tau, made = linear_world(16, models=60)
    bank = RetrainBank(
        masks=made.masks, outputs=made.outputs, seeds=np.arange(120), alpha=made.alpha
    )
    whole = lds(tau, bank)
    np.testing.assert_allclose(whole.per_query, lds(tau, made).per_query, atol=1e-3)
    _, evaluating = bank.split(0.5, seed=0)
    part = lds(tau, evaluating)
    assert part.n_masks == 30
    assert part.n_seeds == 2
    assert part.mean == pytest.approx(whole.mean, abs=0.1)


def test_the_null_spread_is_that_of_one_query() -> None:
    tau, bank = linear_world(16, models=50)
    assert lds(tau, bank).null_sd == pytest.approx(1 / 7)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused_with_their_place(bad: float) -> None:
    tau, bank = linear_world(17)
    tau[3, 7] = bad
    with pytest.raises(ShapeError, match="query 3 and training row 7"):
        lds(tau, bank)


def test_scores_of_other_rows_are_refused() -> None:
    tau, bank = linear_world(18)
    with pytest.raises(ShapeError, match="30 queries and 60 training rows"):
        lds(tau.T, bank)


def test_scores_of_another_output_than_the_banks_are_refused() -> None:
    """Trap 22: the same output must be scored and retrained, or a sign may be wrong."""
    tau, bank = linear_world(19)
    bank.output = "loss"

    class Scored(np.ndarray):
        record: dict[str, str]

    scores = tau.view(Scored)
    scores.record = {"output": "margin"}
    with pytest.raises(ShapeError, match="'margin' and the bank holds 'loss'"):
        lds(scores, bank)


def test_too_few_subsets_are_refused_with_the_number_needed() -> None:
    tau, bank = linear_world(20, models=2)
    with pytest.raises(ShapeError, match="has 2 distinct subsets"):
        lds(tau, bank)


def test_sums_over_subsets_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(21)
    masks, scores = rng.random((7, 11)) < 0.5, rng.standard_normal((5, 11))
    want = [[scores[q][mask].sum() for q in range(5)] for mask in masks]
    np.testing.assert_allclose(subset_sums(masks, scores, block=2), want, atol=1e-12)


def test_groups_of_equal_masks_are_numbered_by_first_appearance() -> None:
    masks = np.array([[1, 0, 1], [0, 1, 1], [1, 0, 1], [0, 0, 1]], dtype=bool)
    group, first = mask_groups(masks)
    assert group.tolist() == [0, 1, 0, 2]
    assert first.tolist() == [0, 1, 3]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40).filter(
        lambda rows: len({label for _, label in rows}) == 2
    )
)
def test_ranking_quality_is_sklearns_with_ties(rows: list[tuple[int, bool]]) -> None:
    scores, labels = (np.array(column) for column in zip(*rows, strict=True))
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    want = average_precision_score(labels, scores)
    assert average_precision(scores, labels) == pytest.approx(want, abs=1e-12)


def test_ranking_quality_needs_both_kinds_of_label() -> None:
    for measure in (auroc, average_precision):
        with pytest.raises(ShapeError, match="both kinds"):
            measure([1.0, 2.0], [True, True])
        with pytest.raises(ShapeError, match="finite"):
            measure([1.0, math.nan], [True, False])


def test_mean_interval_is_students() -> None:
    values = np.random.default_rng(22).standard_normal(9)
    want = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    np.testing.assert_allclose(
        mean_interval(values, confidence=0.9), (values.mean(), *want), atol=1e-12
    )


def test_welch_interval_is_scipys() -> None:
    rng = np.random.default_rng(23)
    a, b = rng.standard_normal(5), 3 * rng.standard_normal(8) + 1
    want = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(welch_interval(a, b), (a.mean() - b.mean(), *want), atol=1e-12)


def test_a_single_value_has_no_interval_and_equal_values_have_an_empty_one() -> None:
    mean, low, high = mean_interval([2.0])
    assert mean == 2
    assert math.isnan(low)
    assert math.isnan(high)
    assert math.isnan(welch_interval([1.0], [2.0, 3.0])[1])
    assert welch_interval([1.0, 1.0], [2.0, 2.0]) == (-1.0, -1.0, -1.0)
    with pytest.raises(ShapeError, match="finite"):
        mean_interval([])


def test_the_calibration_line_is_scipys() -> None:
    rng = np.random.default_rng(24)
    predicted = rng.standard_normal(30)
    observed = 0.5 * predicted + 1 + 0.1 * rng.standard_normal(30)
    want = stats.linregress(predicted, observed)
    line = calibration_line(predicted, observed)
    assert line.slope == pytest.approx(want.slope)
    assert line.intercept == pytest.approx(want.intercept)
    assert line.correlation == pytest.approx(want.rvalue)
    half = stats.t.ppf(0.975, 28) * want.stderr
    np.testing.assert_allclose(line.slope_interval, (want.slope - half, want.slope + half))
    with pytest.raises(ShapeError, match="alike"):
        calibration_line([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    with pytest.raises(ShapeError, match="three pairs"):
        calibration_line([1.0, 2.0], [1.0, 2.0])
