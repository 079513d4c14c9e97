"""The dual formulas against dense Bayesian regression on the weights themselves."""

from types import SimpleNamespace

import numpy as np
import pytest

import optimize.posterior
from optimize.posterior import Points, gram
from optimize.surrogate import LinearDatamodel, calibrate

N_TRAIN, N_QUERY = 14, 3


def bank_of(
    key: int, *, shares: tuple[float, ...], models: int = 12
) -> tuple[np.ndarray, SimpleNamespace]:
    """Scores, and retrained subsets whose outputs follow them loosely."""
    rng = np.random.default_rng(key)
    tau = rng.standard_normal((N_QUERY, N_TRAIN))
    order = np.argsort(rng.random((models, N_TRAIN)), axis=1)
    masks = order < np.round(np.resize(shares, models) * N_TRAIN)[:, None]
    beta = 1.7 * tau + 0.4 * rng.standard_normal(tau.shape) + 0.2
    outputs = 2 + masks @ beta.T + 0.5 * rng.standard_normal((models, N_QUERY))
    return tau, SimpleNamespace(masks=masks, outputs=outputs, alpha=None)


class Dense:
    """beta = a tau + c + sqrt(s^2 D) z by generalised least squares on [1, size, sum of scores].

    Written out with covariances of size n: cov(y) = s^2 X D X' + sigma^2 V, flat coefficients.
    """

    def __init__(self, model: LinearDatamodel, query: int, masks: np.ndarray, y: np.ndarray):
        self.s2 = float(model.prior_sd[query] ** 2)
        self.sigma2 = float(model.residual_sd[query] ** 2)
        tau = model.tau[query].astype(float)
        self.centre = masks.mean(axis=0)
        x = masks - self.centre
        self.spread = np.diag(np.abs(tau) / np.abs(tau).mean())
        parts = [np.ones(N_TRAIN)] if model.identifies_size else []
        self.basis = np.stack([*parts, tau], axis=1)  # beta = basis @ (c, a) + noise
        f = np.column_stack([np.ones(len(x)), x @ self.basis])
        cov = self.s2 * x @ self.spread @ x.T + self.sigma2 * np.eye(len(x))
        inverse = np.linalg.inv(cov)
        self.coefficient_cov = np.linalg.inv(f.T @ inverse @ f)
        self.coefficients = self.coefficient_cov @ f.T @ inverse @ y
        gain = self.s2 * self.spread @ x.T @ inverse
        # Everything that is linear in the unknowns (b, c, a, z): mean and covariance of beta.
        lift = np.column_stack([np.zeros(N_TRAIN), self.basis]) - gain @ f
        self.beta = self.basis @ self.coefficients[1:] + gain @ (y - f @ self.coefficients)
        self.cov = (
            self.s2 * self.spread
            - gain @ (self.s2 * x @ self.spread)
            + lift @ self.coefficient_cov @ lift.T
        )
        self.cross = lift @ self.coefficient_cov[:, 0]

    def predict(self, mask: np.ndarray) -> tuple[float, float]:
        x = mask - self.centre
        variance = x @ self.cov @ x + 2 * x @ self.cross + self.coefficient_cov[0, 0]
        return float(self.coefficients[0] + x @ self.beta), float(variance + self.sigma2)

    def change(self, moved: np.ndarray) -> tuple[float, float]:
        return float(moved @ self.beta), float(moved @ self.cov @ moved + 2 * self.sigma2)


@pytest.mark.parametrize("rho", [0.3, 3.0, np.inf])
@pytest.mark.parametrize("shares", [(0.5,), (0.4, 0.8)])
def test_predictions_are_those_of_dense_bayesian_regression(
    shares: tuple[float, ...], rho: float
) -> None:
    tau, bank = bank_of(0, shares=shares)
    model = calibrate(tau, bank, rho=rho)
    assert not model.dropped.any()
    rng = np.random.default_rng(1)
    fresh = rng.permuted(bank.masks[:6], axis=1) if len(shares) == 1 else rng.random((6, 14)) < 0.6
    mean, sd = model.predict(fresh)
    change, change_sd = model.predict_change(fresh[:3], fresh[3:])
    for query in range(N_QUERY):
        dense = Dense(model, query, bank.masks, bank.outputs[:, query])
        np.testing.assert_allclose(model.weights[query], dense.beta, rtol=1e-8, atol=1e-9)
        for row, mask in enumerate(fresh):
            want, variance = dense.predict(mask.astype(float))
            assert mean[row, query] == pytest.approx(want, rel=1e-8)
            assert sd[row, query] ** 2 == pytest.approx(variance, rel=1e-8)
        for row in range(3):
            want, variance = dense.change(fresh[row + 3].astype(float) - fresh[row])
            assert change[row, query] == pytest.approx(want, rel=1e-8)
            assert change_sd[row, query] ** 2 == pytest.approx(variance, rel=1e-8)


@pytest.mark.parametrize("rho", [0.3, 3.0, np.inf])
@pytest.mark.parametrize("shares", [(0.5,), (0.4, 0.8)])
def test_the_error_without_a_mask_is_that_of_a_fit_without_it(
    shares: tuple[float, ...], rho: float
) -> None:
    """Slope, intercept and size effect are fitted anew; models of one subset leave together."""
    tau, bank = bank_of(2, shares=shares)
    twice = SimpleNamespace(
        masks=np.repeat(bank.masks, 2, axis=0),
        outputs=np.repeat(bank.outputs, 2, axis=0)
        + 0.3 * np.random.default_rng(3).standard_normal((24, N_QUERY)),
        alpha=None,
    )
    for rows in (bank, twice):
        model = calibrate(tau, rows, rho=rho)
        means = rows.outputs if rows is bank else rows.outputs.reshape(12, 2, -1).mean(axis=1)
        for query in range(N_QUERY):
            kappa = float(model.chosen.kappa[query])
            errors = [
                refitted_error(model, query, bank.masks, means[:, query], kappa, left_out=place)
                for place in range(12)
            ]
            want = np.mean(np.square(errors)) / means[:, query].var()
            assert model.error[query] == pytest.approx(want, rel=1e-8)


def refitted_error(
    model: LinearDatamodel,
    query: int,
    masks: np.ndarray,
    y: np.ndarray,
    kappa: float,
    *,
    left_out: int,
) -> float:
    tau = model.tau[query].astype(float)
    x = masks - masks.mean(axis=0)
    columns = [np.ones(len(x)), x @ tau] + ([x.sum(axis=1)] if model.identifies_size else [])
    f = np.stack(columns, axis=1)
    kernel = kappa * (x * np.abs(tau) / np.abs(tau).mean()) @ x.T
    kept = np.arange(len(x)) != left_out
    inverse = np.linalg.inv(np.eye(kept.sum()) + kernel[np.ix_(kept, kept)])
    coefficients = np.linalg.solve(f[kept].T @ inverse @ f[kept], f[kept].T @ inverse @ y[kept])
    residual = y[kept] - f[kept] @ coefficients
    predicted = f[left_out] @ coefficients + kernel[left_out, kept] @ inverse @ residual
    return float(y[left_out] - predicted)


def test_products_do_not_care_where_they_are_cut_and_hardly_about_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(4)
    masks, diagonal = rng.random((9, 500)) < 0.5, rng.random(500)
    points = Points(masks, masks.mean(axis=0))
    moved = Points(masks[:4].astype(np.int8) - masks[4:8].astype(np.int8), None)
    x = masks - masks.mean(axis=0)
    want, crossed = (x * diagonal) @ x.T, (x * diagonal) @ moved.rows.T
    np.testing.assert_allclose(gram(points, points, diagonal), want, atol=1e-11)
    np.testing.assert_allclose(gram(points, moved, diagonal), crossed, atol=1e-11)
    monkeypatch.setattr(optimize.posterior, "_BLOCK", 7)
    monkeypatch.setattr(optimize.posterior, "_EXACT", 0)
    np.testing.assert_allclose(gram(points, points, diagonal), want, atol=1e-6 * np.trace(want))
    np.testing.assert_allclose(points.dot(diagonal[:, None])[:, 0], x @ diagonal)
    np.testing.assert_allclose(points.spread(np.ones((9, 1)))[:, 0], x.sum(axis=0), atol=1e-12)


def test_single_precision_moves_weights_by_less_than_a_thousandth_of_their_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tau, bank = bank_of(5, shares=(0.4, 0.8))
    exact = calibrate(tau, bank, rho=0.3)
    monkeypatch.setattr(optimize.posterior, "_EXACT", 0)
    single = calibrate(tau, bank, rho=0.3)
    moved = np.abs(single.weights - exact.weights).max()
    assert 0 < moved < 1e-3 * exact.prior_sd.min()
