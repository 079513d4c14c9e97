from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from attribution.bank import RetrainBank
from attribution.statistics import coverage
from optimize.surrogate import calibrate
from schemas.errors import ShapeError


def subsets(rng: np.random.Generator, models: int, n_train: int, share: float) -> np.ndarray:
    return np.argsort(rng.random((models, n_train)), axis=1) < round(share * n_train)


def world(
    key: int,
    *,
    shares: tuple[float, ...] = (0.5, 0.9),
    models: int = 30,
    seeds: int = 1,
    n_train: int = 80,
    n_query: int = 6,
    scale: float = 2.5,
    size_effect: float = 0.03,
    noise: float = 0.0,
    lack: float = 0.0,
) -> tuple[np.ndarray, SimpleNamespace]:
    """Outputs that are b + a sum(tau) + c |S|, plus noise per subset and per seed."""
    rng = np.random.default_rng(key)
    tau = rng.standard_normal((n_query, n_train))
    distinct = np.concatenate([subsets(rng, models, n_train, share) for share in shares])
    truth = 1.5 + scale * distinct @ tau.T + size_effect * distinct.sum(axis=1)[:, None]
    truth = truth + lack * rng.standard_normal(truth.shape)
    masks = np.repeat(distinct, seeds, axis=0)
    outputs = np.repeat(truth, seeds, axis=0)
    outputs = outputs + noise * rng.standard_normal(outputs.shape)
    return tau, SimpleNamespace(masks=masks, outputs=outputs, alpha=None)


def test_linear_outputs_are_recovered_exactly() -> None:
    tau, bank = world(0)
    model = calibrate(tau, bank)
    np.testing.assert_allclose(model.scale, 2.5)
    np.testing.assert_allclose(model.size_effect, 0.03)
    np.testing.assert_allclose(model.intercept, 1.5)
    np.testing.assert_allclose(model.residual_sd, 0, atol=1e-10)
    np.testing.assert_allclose(model.weights, 2.5 * tau + 0.03)
    fresh = np.random.default_rng(1).random((5, 80)) < 0.7
    mean, sd = model.predict(fresh)
    np.testing.assert_allclose(mean, 1.5 + fresh @ model.weights.T)
    np.testing.assert_allclose(sd, 0, atol=1e-9)
    assert model.dof.tolist() == [57] * 6
    assert model.identifies_size


def test_a_bank_of_one_size_has_no_size_effect() -> None:
    tau, bank = world(1, shares=(0.5,))
    model = calibrate(tau, bank)
    np.testing.assert_array_equal(model.size_effect, 0)
    np.testing.assert_allclose(model.intercept, 1.5 + 0.03 * 40)
    assert not model.identifies_size
    assert model.sizes == (40, 40)


def test_what_a_bank_of_one_size_cannot_say_has_an_infinite_error() -> None:
    tau, bank = world(2, shares=(0.5,), noise=0.1)
    model = calibrate(tau, bank)
    everything, half = np.ones(80, dtype=bool), bank.masks[0]
    assert np.isinf(model.predict(everything)[1]).all()
    assert np.isinf(model.predict_change(half, everything)[1]).all()
    assert np.isfinite(model.predict_change(half, bank.masks[1])[1]).all()


def textbook(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> tuple[float, float, float]:
    """Prediction of a new row, its leverage and the residual sd, by the normal equations."""
    gram = np.linalg.inv(x.T @ x)
    beta = gram @ x.T @ y
    sd = np.sqrt(((y - x @ beta) ** 2).sum() / (len(x) - x.shape[1]))
    return float(new @ beta), float(new @ gram @ new), float(sd)


def test_means_and_errors_are_those_of_textbook_regression() -> None:
    tau, bank = world(3, noise=3.0)
    model = calibrate(tau, bank)
    fresh = np.random.default_rng(2).random((4, 80)) < 0.8
    mean, sd = model.predict(fresh)
    change, change_sd = model.predict_change(fresh[:2], fresh[2:])
    columns = lambda masks, q: np.stack(  # noqa: E731
        [np.ones(len(masks)), masks.sum(axis=1), masks @ tau[q]], axis=1
    )
    for q in range(6):
        x, new = columns(bank.masks, q), columns(fresh, q)
        for m in range(4):
            want, leverage, spread = textbook(x, bank.outputs[:, q], new[m])
            assert mean[m, q] == pytest.approx(want)
            assert sd[m, q] == pytest.approx(spread * np.sqrt(1 + leverage))
        for m in range(2):
            want, leverage, spread = textbook(x, bank.outputs[:, q], new[m + 2] - new[m])
            assert change[m, q] == pytest.approx(want)
            assert change_sd[m, q] == pytest.approx(spread * np.sqrt(2 + leverage))
    low, high = model.interval(mean, sd, confidence=0.9)
    np.testing.assert_allclose((high - low) / 2, stats.t.ppf(0.95, 57) * sd)


def test_a_retrain_bank_is_calibrated_and_other_outputs_are_refused() -> None:
    tau, made = world(3, noise=3.0)
    bank = RetrainBank(masks=made.masks, outputs=made.outputs, seeds=np.arange(60))
    model = calibrate(tau, bank)
    np.testing.assert_allclose(model.scale, calibrate(tau, made).scale, rtol=1e-5)
    np.testing.assert_allclose(model.averaged([1]).weights[0], model.weights[1])

    class Scored(np.ndarray):
        record: dict[str, str]

    scores = tau.view(Scored)
    scores.record = {"output": "loss"}
    with pytest.raises(ShapeError, match="'loss' and the bank holds 'margin'"):
        calibrate(scores, bank)


def test_a_row_of_no_weight_is_not_there_and_a_heavy_one_is_followed() -> None:
    tau, bank = world(4, noise=2.0)
    without = calibrate(tau, bank, weights=np.arange(60) < 40)
    short = SimpleNamespace(masks=bank.masks[:40], outputs=bank.outputs[:40], alpha=None)
    np.testing.assert_allclose(without.weights, calibrate(tau, short).weights)
    np.testing.assert_allclose(without.residual_sd, calibrate(tau, short).residual_sd)
    small = bank.masks.sum(axis=1) < 50
    bank.outputs[small] *= 2
    leaning = calibrate(tau, bank, weights=np.where(small, 100.0, 1.0))
    only = calibrate(tau, bank, weights=small)
    np.testing.assert_allclose(leaning.scale, only.scale, rtol=0.1)


def test_many_models_of_one_subset_weigh_little_more_than_one() -> None:
    """Their lack of fit is one draw; without lack of fit each counts in full."""
    for lack, bounds in ((4.0, (0.85, 1.0)), (0.0, (0.0, 0.3))):
        tau, bank = world(13, models=40, seeds=2, noise=2.0, lack=lack)
        times = np.where(np.arange(160) < 2, 10, 1)
        again = SimpleNamespace(
            masks=np.repeat(bank.masks, times, axis=0),
            outputs=np.repeat(bank.outputs, times, axis=0),
            alpha=None,
        )
        rng = np.random.default_rng(14)
        again.outputs = again.outputs + 0.2 * rng.standard_normal(again.outputs.shape)
        relative = calibrate(tau, again).subsets.variances
        ratio = relative[0] / relative[1]
        assert bounds[0] <= ratio <= bounds[1]


def test_a_negative_scale_is_dropped_and_reported() -> None:
    tau, bank = world(5, noise=0.1)
    tau[2] *= -1
    model = calibrate(tau, bank)
    assert model.dropped.tolist() == [False, False, True, False, False, False]
    assert model.scale[2] == 0
    assert model.dof[2] == 58
    # With the prior alone, what is left is a line through the sizes.
    alone = calibrate(tau, bank, rho=np.inf)
    line = stats.linregress(bank.masks.sum(axis=1), bank.outputs[:, 2])
    np.testing.assert_allclose(alone.weights[2], line.slope)
    assert alone.intercept[2] == pytest.approx(line.intercept)


@pytest.mark.parametrize("shares", [(0.5,), (0.5, 0.9)])
def test_scores_that_do_not_vary_are_dropped_without_nan(shares: tuple[float, ...]) -> None:
    tau, bank = world(6, shares=shares, noise=1.0)
    tau[0], tau[1] = 0.0, 0.1
    model = calibrate(tau, bank)
    assert model.dropped[:2].all()
    mean, sd = model.predict(bank.masks)
    assert np.isfinite(mean).all()
    assert np.isfinite(sd).all()


@pytest.mark.parametrize("magnitude", [1e-12, 1e12])
def test_the_unit_of_the_scores_does_not_matter(magnitude: float) -> None:
    tau, bank = world(7, noise=1.0)
    plain, scaled = calibrate(tau, bank), calibrate(magnitude * tau, bank)
    np.testing.assert_allclose(scaled.weights, plain.weights, rtol=1e-6)
    np.testing.assert_allclose(scaled.predict(bank.masks)[1], plain.predict(bank.masks)[1])


def test_too_few_retrainings_are_refused_with_the_number_needed() -> None:
    tau, bank = world(8, shares=(0.5,), models=2, seeds=5)
    with pytest.raises(ShapeError, match=r"2 distinct subsets; .* at least 3"):
        calibrate(tau, bank)
    tau, bank = world(8, shares=(0.5, 0.9, 0.7), models=1)
    with pytest.raises(ShapeError, match="at least 4"):
        calibrate(tau, bank)


def test_arrays_that_do_not_fit_are_refused() -> None:
    tau, bank = world(9)
    with pytest.raises(ShapeError, match="6 queries and 80 training rows"):
        calibrate(tau.T, bank)
    with pytest.raises(ShapeError, match="weights have shape"):
        calibrate(tau, bank, weights=[1.0])
    with pytest.raises(ShapeError, match="give bool"):
        calibrate(tau, bank).predict(np.ones(80))
    bank.outputs[3, 1] = np.nan
    with pytest.raises(ShapeError, match="row 3 and query 1 is nan"):
        calibrate(tau, bank)


def test_the_effects_of_a_mean_are_the_mean_of_the_effects() -> None:
    tau, bank, _ = deviating(10, models=60, noise=1.0)
    model = calibrate(tau, bank)
    fresh = np.random.default_rng(0).random((4, 80)) < 0.6
    rows = model.averaged([0, 2])
    np.testing.assert_allclose(rows.weights[0], model.weights[[0, 2]].mean(axis=0))
    mean, change = model.predict(fresh)[0], model.predict_change(fresh[:2], fresh[2:])[0]
    np.testing.assert_allclose(rows.predict(fresh)[0][:, 0], mean[:, [0, 2]].mean(axis=1))
    found = rows.predict_change(fresh[:2], fresh[2:])[0]
    np.testing.assert_allclose(found[:, 0], change[:, [0, 2]].mean(axis=1))
    for same in (np.eye(6)[[0, 2]].sum(axis=0), np.isin(np.arange(6), [0, 2])):
        np.testing.assert_allclose(model.averaged(same).weights, rows.weights)
    for bad in ([6], [-1], [1.0, 2.0], np.zeros(6), -np.ones(6)):
        with pytest.raises(ShapeError, match="quer"):
            model.averaged(bad)


def test_the_mean_of_one_query_is_that_query() -> None:
    tau, bank, _ = deviating(11, models=60, noise=1.0)
    model, fresh = calibrate(tau, bank), np.random.default_rng(1).random((4, 80)) < 0.6
    alone = model.averaged([3])
    np.testing.assert_allclose(alone.predict(fresh)[0][:, 0], model.predict(fresh)[0][:, 3])
    np.testing.assert_allclose(alone.predict(fresh)[1][:, 0], model.predict(fresh)[1][:, 3])
    assert alone.error[0] == pytest.approx(model.error[3])
    everything = np.ones(80, dtype=bool)
    assert np.isfinite(alone.predict_change(fresh[0], everything)[1]).all()
    one_size = SimpleNamespace(masks=bank.masks[:30], outputs=bank.outputs[:30], alpha=None)
    known = calibrate(tau, one_size).averaged()
    assert np.isinf(known.predict_change(fresh[0], everything)[1]).all()


@pytest.mark.parametrize("shared", [0.0, 3.0])
def test_intervals_of_a_mean_cover_nine_in_ten_whether_or_not_errors_are_shared(
    shared: float,
) -> None:
    """One model makes the errors of all queries: `shared` is the part they have in common."""
    inside_one, inside_change = [], []
    for key in range(60):
        tau, bank, beta = deviating(4_000 + key, models=40, noise=2.0, n_query=8, spread=0.5)
        rng = np.random.default_rng(5_000 + key)
        bank.outputs += shared * rng.standard_normal((40, 1))
        mean = calibrate(tau, bank).averaged()
        fresh = rng.random((12, 80)) < 0.6
        seen = 1.5 + fresh @ beta.mean(axis=0) + shared * rng.standard_normal(12)
        seen = (seen + 2.0 / np.sqrt(8) * rng.standard_normal(12))[:, None]
        inside_one.append(coverage(*mean.interval(*mean.predict(fresh)), seen))
        change = mean.predict_change(fresh[:6], fresh[6:])
        inside_change.append(coverage(*mean.interval(*change), seen[6:] - seen[:6]))
    assert 0.86 <= np.mean(inside_one) <= 0.94
    assert 0.86 <= np.mean(inside_change) <= 0.94


def test_seeds_of_a_mean_average_its_own_seed_noise() -> None:
    """Shared seed noise 3, shared lack of fit 4, nothing of a query's own."""
    tau, bank = world(19, models=400, seeds=2)
    rng = np.random.default_rng(20)
    bank.outputs += 4.0 * np.repeat(rng.standard_normal((800, 1)), 2, axis=0)
    bank.outputs += 3.0 * rng.standard_normal((1600, 1))
    mean = calibrate(tau, bank).averaged()
    np.testing.assert_allclose(mean.residual_sd, 5.0, rtol=0.08)
    np.testing.assert_allclose(mean.lack_of_fit_sd, 4.0, rtol=0.12)
    many = mean.predict_change(bank.masks[0], bank.masks[2], seeds=9)[1]
    np.testing.assert_allclose(many, np.sqrt(2 * (16 + 1)), rtol=0.12)


def test_more_seeds_average_seed_noise_away_and_not_lack_of_fit() -> None:
    tau, bank = world(11, models=400, seeds=2, noise=3.0, lack=4.0, n_query=4)
    model = calibrate(tau, bank)
    np.testing.assert_allclose(model.residual_sd, 5.0, rtol=0.08)
    np.testing.assert_allclose(model.lack_of_fit_sd, 4.0, rtol=0.12)
    one = model.predict_change(bank.masks[0], bank.masks[2])[1]
    many = model.predict_change(bank.masks[0], bank.masks[2], seeds=9)[1]
    np.testing.assert_allclose(one, np.sqrt(2) * 5, rtol=0.1)
    np.testing.assert_allclose(many, np.sqrt(2 * (16 + 1)), rtol=0.12)


def test_seeds_change_nothing_where_no_subset_was_trained_twice() -> None:
    tau, bank = world(12, noise=3.0)
    model = calibrate(tau, bank)
    one = model.predict_change(bank.masks[0], bank.masks[1])[1]
    many = model.predict_change(bank.masks[0], bank.masks[1], seeds=5)[1]
    np.testing.assert_allclose(one, many)
    with pytest.raises(ShapeError, match="seeds is 0"):
        model.predict_change(bank.masks[0], bank.masks[1], seeds=0)


def test_a_bank_that_holds_only_noise_returns_the_prior() -> None:
    """Outputs are the scaled scores and noise: no row deviates, so none may be moved far."""
    kept, closer = 0, []
    for key in range(12):
        tau, bank = world(100 + key, shares=(0.5,), models=40, noise=6.0, n_query=30)
        model, prior = calibrate(tau, bank), calibrate(tau, bank, rho=np.inf)
        kept += model.rho >= 10
        far = np.linalg.norm(model.weights - prior.weights) / np.linalg.norm(prior.weights)
        closer.append(far)
        assert model.error.mean() <= 1.02 * prior.error.mean()
    assert kept >= 11
    assert np.median(closer) < 0.05


def test_what_the_bank_knows_beyond_the_scores_is_learned() -> None:
    """Effects are a tau plus deviations of variance |tau|; the truth is known."""
    tau, bank, beta = deviating(15, models=300, noise=1.0)
    model, prior = calibrate(tau, bank), calibrate(tau, bank, rho=np.inf)
    error = np.linalg.norm(model.weights - beta)
    assert error < 0.75 * np.linalg.norm(prior.weights - beta)
    assert model.error.mean() < 0.75 * prior.error.mean()
    found = model.diagnostics()
    assert found["prior_error"] == pytest.approx(prior.error.mean())
    assert found["explained"] == pytest.approx(1 - model.error.mean())
    np.testing.assert_allclose(model.prior_sd, 1.5, rtol=0.35)


def deviating(
    key: int, *, models: int, noise: float, n_train: int = 80, n_query: int = 6, spread: float = 1.5
) -> tuple[np.ndarray, SimpleNamespace, np.ndarray]:
    """A world drawn from the model itself: tau, a bank of two sizes, the true effects."""
    rng = np.random.default_rng(key)
    tau = rng.standard_normal((n_query, n_train))
    size = np.abs(tau) / np.abs(tau).mean(axis=1, keepdims=True)
    beta = 2.5 * tau + 0.03 + spread * np.sqrt(size) * rng.standard_normal(tau.shape)
    masks = np.concatenate([subsets(rng, models // 2, n_train, share) for share in (0.5, 0.7)])
    outputs = 1.5 + masks @ beta.T + noise * rng.standard_normal((len(masks), n_query))
    return tau, SimpleNamespace(masks=masks, outputs=outputs, alpha=None), beta


def test_the_order_of_the_rows_does_not_matter() -> None:
    tau, bank, _ = deviating(16, models=40, noise=1.0)
    order = np.random.default_rng(17).permutation(40)
    shuffled = SimpleNamespace(masks=bank.masks[order], outputs=bank.outputs[order], alpha=None)
    one, other = calibrate(tau, bank), calibrate(tau, shuffled)
    np.testing.assert_allclose(other.weights, one.weights, atol=1e-10)
    np.testing.assert_allclose(other.predict(bank.masks)[1], one.predict(bank.masks)[1])


def test_a_ratio_can_be_given() -> None:
    tau, bank, _ = deviating(18, models=60, noise=1.0)
    model = calibrate(tau, bank, rho=2.5)
    assert model.rho == 2.5
    assert model.rhos == (2.5, np.inf)
    with pytest.raises(ShapeError, match="rho is 0"):
        calibrate(tau, bank, rho=0)


@pytest.mark.parametrize("models", [25, 60])
def test_intervals_of_effects_drawn_from_the_prior_cover_nine_in_ten(models: int) -> None:
    """New subsets, and changes between them, one retraining each."""
    inside_one, inside_change = [], []
    for key in range(25):
        tau, bank, beta = deviating(2_000 + key, models=models, noise=3.0, n_query=12)
        model = calibrate(tau, bank)
        rng = np.random.default_rng(3_000 + key)
        fresh = rng.random((12, 80)) < 0.6
        seen = 1.5 + fresh @ beta.T + 3.0 * rng.standard_normal((12, 12))
        inside_one.append(coverage(*model.interval(*model.predict(fresh)), seen))
        change = model.predict_change(fresh[:6], fresh[6:])
        inside_change.append(coverage(*model.interval(*change), seen[6:] - seen[:6]))
    assert 0.88 <= np.mean(inside_one) <= 0.92
    assert 0.88 <= np.mean(inside_change) <= 0.92


@pytest.mark.parametrize("seeds", [1, 2])
def test_ninety_percent_intervals_cover_nine_in_ten(seeds: int) -> None:
    """Few subsets and lack of fit shared by a subset's seeds; new subsets, one retraining each."""
    inside_one, inside_change = [], []
    for key in range(40):
        rng = np.random.default_rng(1_000 + key)
        tau, bank = world(key, models=7, seeds=seeds, n_train=40, n_query=12, noise=2.0, lack=2.0)
        model = calibrate(tau, bank)
        fresh = rng.random((8, 40)) < 0.95
        truth = 1.5 + 2.5 * fresh @ tau.T + 0.03 * fresh.sum(axis=1)[:, None]
        seen = truth + np.sqrt(8) * rng.standard_normal(truth.shape)
        inside_one.append(coverage(*model.interval(*model.predict(fresh)), seen))
        change = model.predict_change(fresh[:4], fresh[4:])
        inside_change.append(coverage(*model.interval(*change), seen[4:] - seen[:4]))
    assert 0.87 <= np.mean(inside_one) <= 0.94
    assert 0.87 <= np.mean(inside_change) <= 0.94
