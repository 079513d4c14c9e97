import numpy as np
import pytest

from attribution.bank import RetrainBank, draw_masks
from attribution.streams import Purpose, stream
from optimize.unlearning import removal_slopes
from schemas.errors import ShapeError

N_TRAIN, N_QUERY = 80, 6


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
