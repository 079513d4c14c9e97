import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso as Reference

from attribution.estimators.resampling import fit_datamodel
from attribution.estimators.resampling import lasso as module
from attribution.estimators.resampling.design import Design
from attribution.estimators.resampling.lasso import PATH, Lasso, lasso_errors, mask_folds
from schemas.errors import WinnowError
from tests.attribution.resampling.truth import bank, free_columns, standardised

SHAPES = {
    "fewer masks than rows": {"n": 40, "subsets": 25},
    "more masks than rows": {"n": 15, "subsets": 60},
    "two sizes": {"n": 20, "subsets": 50, "alpha": (0.5, 0.75), "size_effect": 0.7},
    "masks that share rows": {"n": 30, "subsets": 20, "seeds": 3},
}


def reference(masks: np.ndarray, outputs: np.ndarray, strength: float) -> np.ndarray:
    """Standardised weights [n] of one query by scikit-learn."""
    x, _ = standardised(masks)
    free = free_columns(masks)
    y = outputs - free @ np.linalg.lstsq(free, outputs, rcond=None)[0]
    alpha = strength * np.abs(x.T @ y / len(y)).max()
    return Reference(alpha=alpha, fit_intercept=False, tol=1e-12, max_iter=10**6).fit(x, y).coef_


@pytest.fixture(params=["gram", "columns"])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the Gram matrix is held, or the columns of the masks."""
    if request.param == "columns":
        monkeypatch.setattr(module, "holds_gram", lambda _: False)
    return str(request.param)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_weights_are_scikit_learns(shape: dict[str, int], held: str) -> None:
    masks, outputs, _, _ = bank(m=3, **shape)
    strengths = [0.7, 0.2, 0.03]
    assert Lasso.of(Design.of(masks, outputs)).is_gram == (held == "gram")
    fitted = fit_datamodel(masks, outputs, penalty="lasso", strength=strengths)
    _, sigma = standardised(masks)
    for query, strength in enumerate(strengths):
        want = reference(masks, outputs[:, query], strength)
        np.testing.assert_allclose(fitted.weights[query] * sigma, want, atol=1e-6)
        np.testing.assert_array_equal(fitted.weights[query] == 0, np.abs(want) < 1e-9)


@pytest.mark.parametrize("name", ["fewer masks than rows", "two sizes"])
def test_all_queries_together_by_products_of_matrices_come_to_the_same(
    name: str, held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks, outputs, _, _ = bank(m=3, **SHAPES[name])
    monkeypatch.setattr(module, "PATH", tuple(np.geomspace(1, 0.2, 6)))
    problem = Lasso.of(Design.of(masks, outputs))
    strengths = np.array([0.7, 0.5, 0.25])
    want = problem.weights(strengths)
    errors = lasso_errors(problem.design)
    monkeypatch.setattr(Lasso, "_descend", Lasso._descend_together)
    torch.testing.assert_close(problem.weights(strengths), want, rtol=0.0, atol=1e-5)
    got = lasso_errors(problem.design)
    both = np.isfinite(errors) & np.isfinite(got)
    assert both.any(axis=0).all()
    np.testing.assert_allclose(got[both], errors[both], rtol=1e-2)


def test_the_errors_of_held_out_masks_are_those_of_explicit_refits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE", len(PATH))
    shape = {"alpha": (0.5, 0.75), "seeds": 2, "size_effect": 0.5, "noise": 0.5}
    masks, outputs, _, _ = bank(12, 30, 2, **shape)
    design = Design.of(masks, outputs)
    masks, outputs = masks[design.order], outputs[design.order]
    fold = mask_folds(design, 5, seed=0)
    errors = lasso_errors(design, seed=0)
    x, _ = standardised(masks)
    free = free_columns(masks)
    y = outputs - free @ np.linalg.lstsq(free, outputs, rcond=None)[0]
    unit = np.abs(x.T @ y / len(y)).max(axis=0)
    for level in (3, 9, 14):
        want = np.zeros(2)
        for number in range(5):
            rest, out = fold != number, fold == number
            own, sigma = standardised(masks[rest])
            columns = free_columns(masks[rest])
            for query in range(2):
                left = outputs[rest, query]
                left = left - columns @ np.linalg.lstsq(columns, left, rcond=None)[0]
                largest = np.abs(own.T @ left / len(left)).max()
                weights = reference(
                    masks[rest], outputs[rest, query], PATH[level] * unit[query] / largest
                )
                weights = weights / sigma
                level_of = np.linalg.lstsq(
                    columns, outputs[rest, query] - masks[rest] @ weights, rcond=None
                )[0]
                known = free_columns(masks)[out] @ level_of + masks[out] @ weights
                want[query] += ((outputs[out, query] - known) ** 2).sum() / len(masks)
        np.testing.assert_allclose(errors[level], want, rtol=1e-3)


def test_masks_are_never_parted_by_folds_and_sizes_are_dealt_evenly() -> None:
    masks, outputs, _, _ = bank(30, 40, 1, seeds=3, alpha=(0.5, 0.8))
    design = Design.of(masks, outputs)
    fold = mask_folds(design, 5, seed=3)
    for group in np.unique(design.group):
        assert len(set(fold[design.group == group])) == 1
    sizes = masks[design.order].sum(axis=1)
    for size in np.unique(sizes):
        assert np.bincount(fold[sizes == size]).tolist() == [12] * 5
    assert (mask_folds(design, 5, seed=3) == fold).all()
    assert (mask_folds(design, 5, seed=4) != fold).any()


def test_planted_weights_are_found_among_many_rows() -> None:
    draw = np.random.default_rng(5)
    masks = draw.permuted(np.tile(np.arange(300) < 150, (900, 1)), axis=1)
    weights = np.zeros((6, 300))
    for query in range(6):
        weights[query, draw.permutation(300)[:8]] = draw.choice([-1.0, 1.0], 8)
    outputs = masks @ weights.T + 0.5 * draw.standard_normal((900, 6))
    fitted = fit_datamodel(masks, outputs)
    planted = weights != 0
    assert (np.sign(fitted.weights[planted]) == weights[planted]).all()
    assert np.abs(fitted.weights[planted]).min() > 5 * np.abs(fitted.weights[~planted]).max()
    assert np.corrcoef(fitted.weights.ravel(), weights.ravel())[0, 1] > 0.99
    # What is left is the noise: 0.25 of an output that varies by 8 / 4 + 0.25.
    np.testing.assert_allclose(fitted.unexplained, 0.25 / 2.25, rtol=0.35)


def test_outputs_of_pure_noise_promise_nothing() -> None:
    masks, _, _, _ = bank(60, 100, 1)
    outputs = np.random.default_rng(8).standard_normal((100, 20))
    assert fit_datamodel(masks, outputs).unexplained.mean() > 0.93


def test_a_path_that_does_not_converge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, outputs, _, _ = bank(20, 30, 2)
    problem = Lasso.of(Design.of(masks, outputs))
    monkeypatch.setattr("attribution.estimators.resampling.proximal.MOST_STEPS", 2)
    monkeypatch.setattr(Lasso, "_descend", Lasso._descend_together)
    with pytest.raises(WinnowError, match="did not converge"):
        problem.weights(np.array([0.01, 0.01]))
