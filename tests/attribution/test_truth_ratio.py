import numpy as np
import pytest

from attribution.streams import Purpose, stream
from attribution.truth_ratio import forget_quality, model_utility, truth_ratio
from schemas.errors import ShapeError


def test_the_truth_ratio_is_one_where_all_answers_are_alike_and_small_where_one_is_known() -> None:
    assert truth_ratio([-2.0], [[-2.0, -2.0]]) == pytest.approx([1.0])
    wrong = np.log([[0.1, 0.3]])
    assert truth_ratio(np.log([0.8]), wrong) == pytest.approx([0.25])


def test_forget_quality_tells_one_distribution_from_another() -> None:
    generator = stream(0, Purpose.FORGET)
    values = generator.lognormal(size=(3, 300))
    assert forget_quality(values[0], values[1]) > 0.05
    assert forget_quality(values[0], 2 * values[2]) < 1e-6


def test_utility_is_a_harmonic_mean_that_a_lost_part_takes_to_zero() -> None:
    assert model_utility([0.5, 1.0]) == pytest.approx(2 / 3)
    assert model_utility([0.5, 0.0]) == 0.0


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="several"):
        truth_ratio([0.0, 0.0], [[0.0]])
    with pytest.raises(ShapeError, match="infinite"):
        truth_ratio([-np.inf], [[0.0]])
    with pytest.raises(ShapeError, match="none negative"):
        model_utility([])
