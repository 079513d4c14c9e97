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
    np.testing.assert_allclose(model.averaged([1]).scale, model.scale[1])

    class Scored(np.ndarray):
        record: dict[str, str]

    scores = tau.view(Scored)
    scores.record = {"output": "loss"}
    with pytest.raises(ShapeError, match="'loss' and the bank holds 'margin'"):
        calibrate(scores, bank)


def test_row_weights_count_like_repeated_rows() -> None:
    tau, bank = world(4, noise=2.0)
    times = np.tile([1, 3], 30)
    repeated = SimpleNamespace(
        masks=np.repeat(bank.masks, times, axis=0),
        outputs=np.repeat(bank.outputs, times, axis=0),
        alpha=None,
    )
    weighted, longhand = calibrate(tau, bank, weights=times), calibrate(tau, repeated)
    np.testing.assert_allclose(weighted.scale, longhand.scale)
    np.testing.assert_allclose(weighted.size_effect, longhand.size_effect)
    without = calibrate(tau, bank, weights=np.arange(60) < 40)
    short = SimpleNamespace(masks=bank.masks[:40], outputs=bank.outputs[:40], alpha=None)
    np.testing.assert_allclose(without.residual_sd, calibrate(tau, short).residual_sd)


def test_a_negative_scale_is_dropped_and_reported() -> None:
    tau, bank = world(5, noise=0.1)
    tau[2] *= -1
    model = calibrate(tau, bank)
    assert model.dropped.tolist() == [False, False, True, False, False, False]
    assert model.scale[2] == 0
    assert model.dof[2] == 58
    size = bank.masks.sum(axis=1)
    line = stats.linregress(size, bank.outputs[:, 2])
    assert model.size_effect[2] == pytest.approx(line.slope)
    assert model.intercept[2] == pytest.approx(line.intercept)


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


def test_the_surrogate_of_a_mean_is_fitted_to_the_averaged_rows() -> None:
    tau, bank = world(10, noise=2.0)
    bank.outputs += 5 * np.random.default_rng(0).standard_normal((60, 1))
    model = calibrate(tau, bank)
    mean = model.averaged()
    direct = calibrate(
        tau.mean(axis=0)[None],
        SimpleNamespace(masks=bank.masks, outputs=bank.outputs.mean(axis=1)[:, None], alpha=None),
    )
    np.testing.assert_allclose(mean.scale, direct.scale)
    np.testing.assert_allclose(mean.residual_sd, direct.residual_sd)
    # Errors of queries correlate: as if independent they would average to a third of this.
    independent = np.sqrt((model.residual_sd**2).sum()) / 6
    assert mean.residual_sd[0] > 2 * independent
    rows = model.averaged([0, 2])
    np.testing.assert_allclose(rows.scale, model.averaged(np.eye(6)[[0, 2]].sum(axis=0)).scale)
    mask = np.array([True, False, True, False, False, False])
    np.testing.assert_allclose(rows.scale, model.averaged(mask).scale)
    for bad in ([6], [-1], [1.0, 2.0], np.zeros(6), -np.ones(6)):
        with pytest.raises(ShapeError, match="quer"):
            model.averaged(bad)


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


@pytest.mark.parametrize("seeds", [1, 2])
def test_ninety_percent_intervals_cover_nine_in_ten(seeds: int) -> None:
    """Few subsets and lack of fit shared by a subset's seeds; new subsets, one retraining each."""
    inside_one, inside_change = [], []
    for key in range(60):
        rng = np.random.default_rng(1_000 + key)
        tau, bank = world(key, models=7, seeds=seeds, n_train=40, n_query=20, noise=2.0, lack=2.0)
        model = calibrate(tau, bank)
        fresh = rng.random((8, 40)) < 0.95
        truth = 1.5 + 2.5 * fresh @ tau.T + 0.03 * fresh.sum(axis=1)[:, None]
        seen = truth + np.sqrt(8) * rng.standard_normal(truth.shape)
        inside_one.append(coverage(*model.interval(*model.predict(fresh)), seen))
        change = model.predict_change(fresh[:4], fresh[4:])
        inside_change.append(coverage(*model.interval(*change), seen[4:] - seen[:4]))
    assert 0.87 <= np.mean(inside_one) <= 0.94
    assert 0.87 <= np.mean(inside_change) <= 0.94
