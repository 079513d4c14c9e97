import numpy as np
import pytest

from attribution.bank import RetrainBank, draw_masks
from attribution.streams import Purpose, stream
from optimize import calibrate
from optimize.unlearning import removal_scale, removal_slopes
from schemas.errors import ShapeError

N_TRAIN, N_QUERY = 80, 6


def simulated(slope: float, size_effect: float) -> tuple[np.ndarray, RetrainBank]:
    draw = stream(0, Purpose.FORGET)
    tau = draw.standard_normal((N_QUERY, N_TRAIN))
    masks, seeds, alpha = draw_masks(N_TRAIN, 120, [0.8, 0.9, 0.95], 1, 3)
    outputs = 5 + masks @ (slope * tau + size_effect).T
    outputs += 0.05 * draw.standard_normal(outputs.shape)
    return tau, RetrainBank(masks=masks, outputs=outputs, seeds=seeds, alpha=alpha)


def test_the_planted_slope_and_size_effect_come_back_and_so_does_the_change() -> None:
    tau, bank = simulated(2.5, -0.3)
    forget = [1, 5, 9, 60]
    found = removal_scale(calibrate(tau, bank), forget)
    assert found.slope == pytest.approx(2.5, rel=0.02)
    assert found.size_effect == pytest.approx(0.3, rel=0.1)
    truth = -(2.5 * tau - 0.3)[:, forget].sum(axis=1)
    np.testing.assert_allclose(found.change, truth, atol=0.2)
    assert (np.abs(found.change - truth) < 4 * found.sd).all()


def test_queries_whose_scores_say_little_do_not_sway_the_pooled_slope() -> None:
    tau, bank = simulated(2.0, 0.0)
    outputs = bank.outputs.copy()
    outputs[:, 0] = stream(1, Purpose.FORGET).standard_normal(len(outputs))
    tau = tau.copy()
    tau[0] *= 1e-3
    spoiled = RetrainBank(masks=bank.masks, outputs=outputs, seeds=bank.seeds, alpha=bank.alpha)
    found = removal_scale(calibrate(tau, spoiled), [0])
    assert found.slope == pytest.approx(2.0, rel=0.02)


def test_a_forget_set_outside_the_rows_is_refused() -> None:
    tau, bank = simulated(2.0, 0.0)
    with pytest.raises(ShapeError, match="row 80"):
        removal_scale(calibrate(tau, bank), [80])


def test_rows_that_go_have_a_slope_of_their_own() -> None:
    draw = stream(2, Purpose.FORGET)
    tau = draw.standard_normal((N_QUERY, N_TRAIN))
    rows = np.arange(N_QUERY) * 7
    tau[np.arange(N_QUERY), rows] += 10
    masks, seeds, alpha = draw_masks(N_TRAIN, 200, [0.8, 0.9], 1, 4)
    whole = draw.standard_normal(N_QUERY)
    change = -(~masks).astype(float) @ (tau - tau.mean(axis=1, keepdims=True)).T
    outputs = whole + np.where(masks[:, rows], 3.0, 4.0) * change
    outputs += 0.1 * draw.standard_normal(outputs.shape)
    bank = RetrainBank(masks=masks, outputs=outputs, seeds=seeds, alpha=alpha)
    found = removal_slopes(change, bank, rows=rows, whole=whole)
    assert (found.kept, found.forgotten) == pytest.approx((3.0, 4.0), rel=0.01)
    assert sum(found.pairs) == 200 * N_QUERY
    with pytest.raises(ShapeError, match="do not fit"):
        removal_slopes(change[:2], bank, rows=rows, whole=whole)
    having = masks[:, rows].all(axis=1)
    with pytest.raises(ShapeError, match="drops some"):
        removal_slopes(change[having], bank.subset(having), rows=rows, whole=whole)
