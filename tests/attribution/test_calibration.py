from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from attribution.calibration import calibration_report
from schemas.errors import ShapeError


@dataclass
class Linear:
    """Predicts scale x (sum of effects) with a spread of its own."""

    tau: np.ndarray
    sd: float
    scale: float = 1.0

    def predict_change(self, before, after):  # type: ignore[no-untyped-def]
        mean = self.scale * (after.astype(float) - before) @ self.tau.T
        return mean, np.full(mean.shape, self.sd)

    def interval(self, mean, sd, *, confidence):  # type: ignore[no-untyped-def]
        reach = stats.norm.ppf((1 + confidence) / 2) * sd
        return mean - reach, mean + reach


def world(key: int, masks: int = 60, noise: float = 2.0) -> tuple[np.ndarray, SimpleNamespace]:
    rng = np.random.default_rng(key)
    tau = rng.standard_normal((10, 80))
    chosen = np.repeat(np.argsort(rng.random((masks, 80)), axis=1) < 40, 2, axis=0)
    outputs = chosen @ tau.T + noise * rng.standard_normal((len(chosen), 10))
    return tau, SimpleNamespace(masks=chosen, outputs=outputs, alpha=None)


def test_the_true_effects_have_slope_one_and_cover_what_they_say() -> None:
    tau, bank = world(0, masks=400)
    report = calibration_report(Linear(tau, sd=2 * np.sqrt(2)), bank)
    assert report.slope_interval[0] < 1 < report.slope_interval[1]
    assert report.intercept == pytest.approx(0, abs=0.2)
    assert report.coverage == pytest.approx(0.9, abs=0.03)
    assert report.n_pairs == 200


def test_predictions_that_are_half_as_large_have_slope_two() -> None:
    tau, bank = world(1)
    assert calibration_report(Linear(tau, 1.0, scale=0.5), bank).slope == pytest.approx(2, abs=0.1)


def test_intervals_that_are_too_narrow_are_found_out() -> None:
    tau, bank = world(2)
    report = calibration_report(Linear(tau, sd=1.0), bank)
    assert report.coverage_interval[1] < 0.9


def test_the_slopes_interval_holds_one_as_often_as_it_says() -> None:
    inside = 0
    for key in range(200):
        tau, bank = world(key, masks=40)
        low, high = calibration_report(Linear(tau, 1.0), bank, seed=key).slope_interval
        inside += low <= 1 <= high
    assert 0.90 <= inside / 200 <= 0.99


def test_the_line_is_scipys_on_the_pairs() -> None:
    tau, bank = world(3)
    seen: list[np.ndarray] = []

    class Watching(Linear):
        def predict_change(self, before, after):  # type: ignore[no-untyped-def]
            seen.extend((before, after))
            return super().predict_change(before, after)

    report = calibration_report(Watching(tau, 1.0), bank)
    rows = [{mask.tobytes(): row for row, mask in reversed(list(enumerate(bank.masks)))}]
    before, after = ([rows[0][mask.tobytes()] for mask in part] for part in seen)
    assert not set(before) & set(after)
    predicted = (seen[1].astype(float) - seen[0]) @ tau.T
    observed = bank.outputs[after] - bank.outputs[before]
    want = stats.linregress(predicted.ravel(), observed.ravel())
    assert report.slope == pytest.approx(want.slope)
    assert report.intercept == pytest.approx(want.intercept)


def test_too_few_pairs_and_constant_predictions_are_refused() -> None:
    tau, bank = world(4, masks=5)
    with pytest.raises(ShapeError, match="make 2 pairs"):
        calibration_report(Linear(tau, 1.0), bank)
    tau, bank = world(5)
    with pytest.raises(ShapeError, match="all predicted changes are alike"):
        calibration_report(Linear(0 * tau, 1.0), bank)
