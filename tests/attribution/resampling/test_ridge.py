import numpy as np
import pytest

from attribution.estimators.resampling import fit_datamodel
from attribution.estimators.resampling import ridge as module
from attribution.estimators.resampling.design import Design
from attribution.estimators.resampling.ridge import GRID, Spectrum
from tests.attribution.resampling.truth import bank, free_columns, ridge, standardised

SHAPES = {
    "fewer masks than rows": {"n": 30, "subsets": 18},
    "more masks than rows": {"n": 12, "subsets": 40},
    "two sizes": {"n": 16, "subsets": 36, "alpha": (0.5, 0.75), "size_effect": 0.7},
    "masks that share rows": {"n": 20, "subsets": 14, "seeds": 3},
    "all of it": {"n": 10, "subsets": 16, "seeds": 2, "alpha": (0.4, 0.8), "size_effect": -1.0},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_errors_of_left_out_masks_are_those_of_explicit_refits(shape: dict[str, int]) -> None:
    masks, outputs, _, _ = bank(m=3, **shape)
    spectrum = Spectrum.of(Design.of(masks, outputs))
    grid = (0.05, 1.0, 30.0)
    x, sigma = standardised(masks)
    want = np.zeros((len(grid), 3))
    for place, rho in enumerate(grid):
        unit = (x**2).sum() / min(x.shape)
        for mask in np.unique(masks, axis=0):
            inside = (masks == mask).all(axis=1)
            free, weights = ridge(masks[~inside], outputs[~inside], rho * unit * sigma**2)
            known = free_columns(masks)[inside] @ free + masks[inside] @ weights
            want[place] += ((outputs[inside] - known) ** 2).sum(axis=0) / len(masks)
    np.testing.assert_allclose(spectrum.errors(grid), want, rtol=1e-8)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_weights_solve_the_normal_equations(shape: dict[str, int]) -> None:
    masks, outputs, _, _ = bank(m=3, **shape)
    fitted = fit_datamodel(masks, outputs, penalty="ridge", strength=[0.1, 1.0, 10.0])
    x, sigma = standardised(masks)
    for query, rho in enumerate((0.1, 1.0, 10.0)):
        penalty = rho * (x**2).sum() / min(x.shape) * sigma**2
        free, weights = ridge(masks, outputs[:, query : query + 1], penalty)
        np.testing.assert_allclose(fitted.weights[query], weights[:, 0], rtol=1e-7, atol=1e-9)
        want = (free_columns(masks) @ free + masks @ weights)[:, 0]
        np.testing.assert_allclose(fitted.predict(masks)[:, query], want, rtol=1e-8)


def test_the_strength_of_each_query_has_the_least_error_on_left_out_masks() -> None:
    masks, outputs, _, _ = bank(40, 60, 4, noise=2.0)
    errors = Spectrum.of(Design.of(masks, outputs)).errors()
    fitted = fit_datamodel(masks, outputs, penalty="ridge")
    np.testing.assert_array_equal(fitted.strengths, np.array(GRID)[errors.argmin(axis=0)])
    np.testing.assert_allclose(fitted.unexplained, errors.min(axis=0) / outputs.var(axis=0))


def test_blocks_of_any_size_give_the_same_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, outputs, _, _ = bank(12, 30, 2, seeds=2)
    want = Spectrum.of(Design.of(masks, outputs)).errors()
    monkeypatch.setattr("attribution.estimators.resampling.design.BLOCK_ENTRIES", 40)
    np.testing.assert_allclose(Spectrum.of(Design.of(masks, outputs)).errors(), want, rtol=1e-10)


def test_a_mask_that_alone_shows_a_size_is_not_predicted_without_it() -> None:
    masks, outputs, _, _ = bank(14, 12, 2)
    masks = np.vstack([masks, np.ones(14, dtype=bool)])
    outputs = np.vstack([outputs, [[100.0, -100.0]]])
    errors = Spectrum.of(Design.of(masks, outputs)).errors([1.0])
    assert module.ALONE < 1e-6
    assert (errors < 10 * outputs[:-1].var(axis=0)).all()
