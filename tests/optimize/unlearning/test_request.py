import numpy as np
import pytest

from optimize.unlearning import Cost, forget_rows
from schemas.errors import ShapeError


def test_rows_and_masks_mean_the_same() -> None:
    mask = np.array([False, True, False, True])
    np.testing.assert_array_equal(forget_rows([3, 1], 4), forget_rows(mask, 4))


@pytest.mark.parametrize(
    ("forget", "message"),
    [
        ([], "is empty"),
        (np.zeros(4, dtype=bool), "is empty"),
        ([1, 4], "row 4 is to be forgotten and is not in the training set"),
        ([-1], "row -1"),
        ([1, 1, 2], "names 1 rows twice"),
        ([0, 1, 2, 3], "whole training set"),
        ([[1]], "shape"),
        ([1.0], "float64"),
    ],
)
def test_a_forget_set_that_makes_no_sense_is_refused(forget: object, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        forget_rows(forget, 4)  # type: ignore[arg-type]


def test_cost_is_relative_to_retraining_on_what_stays() -> None:
    cost = Cost(scoring=100.0, teacher=50.0, tuning=250.0)
    assert cost.examples == 400
    assert cost.share(100, 20) == pytest.approx(0.2)
