import numpy as np
import pytest

from attribution.bank import RetrainBank
from optimize import calibrate, spread_of
from optimize.averaged import MeanDatamodel
from optimize.intervals import noise_of_change
from optimize.spread import Spread


def surrogate(n_query: int, seed: int = 0) -> MeanDatamodel:
    """The mean output of a linear world, from 60 subsets of two sizes."""
    rng = np.random.default_rng(seed)
    n, subsets = 120, 60
    tau = 0.05 * (rng.standard_normal((n_query, n)) + rng.standard_normal(n))
    beta = tau + 0.05 * rng.standard_normal((n_query, n))
    sizes = np.tile([n // 2, n * 9 // 10], subsets // 2)
    masks = np.array([rng.permutation(n) < size for size in sizes])
    noise = 0.2 * (rng.standard_normal((subsets, n_query)) + rng.standard_normal((subsets, 1)))
    bank = RetrainBank(masks=masks, outputs=masks @ beta.T + noise, seeds=np.arange(subsets))
    return calibrate(tau, bank).averaged()


def posterior_sd(mean: MeanDatamodel, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    noise = noise_of_change(mean.residual_sd, mean.lack_of_fit_sd, None)
    return np.sqrt(mean.predict_change(before, after)[1][:, 0] ** 2 - noise)


def choices(n: int, weights: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    random = [rng.permutation(n) < size for size in (n // 3, n // 2, n - 5)]
    best = np.argsort(np.argsort(-weights)) < n * 4 // 5
    return np.array([*random, best])


def test_the_sd_of_one_output_is_that_of_its_surrogate() -> None:
    mean = surrogate(1)
    before = np.ones(120, dtype=bool)
    after = choices(120, mean.weights[0])
    form = spread_of(mean, before)
    found = [form.sd(each) for each in after]
    np.testing.assert_allclose(found, posterior_sd(mean, before, after), rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_sd_of_a_mean_of_outputs_is_near_that_of_its_surrogate(seed: int) -> None:
    mean = surrogate(25, seed)
    before = np.ones(120, dtype=bool)
    after = choices(120, mean.weights[0])
    form = spread_of(mean, before)
    found = np.array([form.sd(each) for each in after])
    ratio = found / posterior_sd(mean, before, after)
    assert (ratio > 0.8).all()
    assert (ratio < 1.05).all()


def test_the_slope_is_the_derivative_of_the_sd() -> None:
    mean = surrogate(5)
    form = spread_of(mean, np.ones(120, dtype=bool))
    rng = np.random.default_rng(0)
    at, way = rng.random(120), rng.standard_normal(120)
    step = 1e-5
    numeric = (form.sd(at + step * way) - form.sd(at - step * way)) / (2 * step)
    sd, slope = form.slope(at)
    assert sd == form.sd(at)
    assert slope @ way == pytest.approx(numeric, rel=1e-6)


def test_the_sd_is_convex_and_nothing_at_the_reference() -> None:
    form = spread_of(surrogate(5), np.ones(120, dtype=bool))
    rng = np.random.default_rng(0)
    for _ in range(50):
        first, second = rng.random((2, 120)) < 0.5
        middle = (first.astype(float) + second) / 2
        assert form.sd(middle) <= (form.sd(first) + form.sd(second)) / 2 + 1e-12
    assert form.sd(np.ones(120)) == 0
    assert (form.slope(np.ones(120))[1] == 0).all()


def test_a_constant_variance_is_there_whatever_is_chosen() -> None:
    form = Spread(
        reference=np.zeros(3),
        diagonal=np.ones(3),
        explained=np.zeros((0, 3)),
        added=np.zeros((0, 3)),
        constant=4.0,
    )
    assert form.sd(np.zeros(3)) == 2
    assert form.sd(np.ones(3)) == pytest.approx(np.sqrt(7))
