"""Rows that join the training set, against models that were fitted with them."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit

from attribution.estimators.additions import Additions, additions
from attribution.estimators.features import Features
from schemas.errors import ShapeError


def features(inputs: np.ndarray, residual: np.ndarray, curvature: np.ndarray) -> Features:
    return Features(
        sketch=torch.from_numpy(inputs),
        residual=torch.from_numpy(residual),
        curvature=torch.from_numpy(curvature),
        fingerprint="exact",
    )


@pytest.fixture
def ridge() -> tuple[Additions, Features, np.ndarray]:
    """Six new rows of a ridge regression, four queries, and how refitting moves those."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.standard_normal((40, 5)), rng.standard_normal(40)
    new, said = 3 * rng.standard_normal((6, 5)), 5 * rng.standard_normal(6)
    asked = rng.standard_normal((4, 5))
    penalty = 0.7 * np.trace(inputs.T @ inputs) / 5

    def fit(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.linalg.solve(rows.T @ rows + penalty * np.eye(5), rows.T @ values)

    before = fit(inputs, targets)
    moved = [
        asked @ (fit(np.vstack([inputs, row]), np.append(targets, value)) - before)
        for row, value in zip(new, said, strict=True)
    ]
    made = additions(
        features(inputs, targets - inputs @ before, np.ones(40)),
        features(new, said - new @ before, np.ones(6)),
        damping=0.7,
        task="regression",
    )
    return made, features(asked, np.zeros(4), np.ones(4)), np.array(moved).T


def test_a_row_that_joins_a_ridge_regression_moves_it_as_refitting_does(
    ridge: tuple[Additions, Features, np.ndarray],
) -> None:
    made, queries, moved = ridge
    np.testing.assert_allclose(made.effects(queries), moved, rtol=1e-9)


def test_rows_that_join_a_ridge_regression_together_move_it_as_refitting_does() -> None:
    rng = np.random.default_rng(3)
    inputs, targets = rng.standard_normal((40, 5)), rng.standard_normal(40)
    new, said = rng.standard_normal((12, 5)), 5 * rng.standard_normal(12)
    asked, join = rng.standard_normal((4, 5)), np.arange(12) % 3 != 0
    penalty = 0.7 * np.trace(inputs.T @ inputs) / 5

    def fit(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.linalg.solve(rows.T @ rows + penalty * np.eye(5), rows.T @ values)

    before = fit(inputs, targets)
    after = fit(np.vstack([inputs, new[join]]), np.concatenate([targets, said[join]]))
    made = additions(
        features(inputs, targets - inputs @ before, np.ones(40)),
        features(new, said - new @ before, np.ones(12)),
        damping=0.7,
        task="regression",
    )
    queries = features(asked, np.zeros(4), np.ones(4))
    np.testing.assert_allclose(made.together(join, queries), asked @ (after - before), rtol=1e-9)


def test_wrong_rows_that_join_a_logistic_regression_do_less_together_than_each_alone() -> None:
    """Against refitting with all of them; their effects added up are more than twice too large."""
    rng = np.random.default_rng(4)
    inputs = rng.standard_normal((120, 4))
    labels = np.where(inputs @ np.ones(4) + rng.logistic(size=120) > 0, 1.0, -1.0)
    new, asked = rng.standard_normal((40, 4)), rng.standard_normal((6, 4))
    wrong = -np.sign(new @ np.ones(4))

    def fit(rows: np.ndarray, signs: np.ndarray) -> np.ndarray:
        def loss(w: np.ndarray) -> float:
            return float(np.logaddexp(0, -signs * (rows @ w)).sum() + 0.5 * w @ w)

        return minimize(loss, np.zeros(4), tol=1e-12).x

    before = fit(inputs, labels)
    moved = asked @ (fit(np.vstack([inputs, new]), np.append(labels, wrong)) - before)

    def seen(rows: np.ndarray, signs: np.ndarray) -> Features:
        p = expit(signs * (rows @ before))
        return features(signs[:, None] * rows, 1 - p, p * (1 - p))

    trained = seen(inputs, labels)
    unit = float((trained.curvature * (trained.sketch**2).sum(1)).sum()) / 4
    made = additions(trained, seen(new, wrong), damping=1.0 / unit)
    queries = features(asked, np.zeros(6), np.ones(6))
    together = made.together(np.ones(40, dtype=bool), queries)
    added = made.effects(queries).sum(axis=1)
    assert np.abs(together - moved).max() < 0.45 * np.abs(moved).max()
    assert np.abs(added - moved).max() > np.abs(moved).max()


def test_one_row_together_is_that_row_alone() -> None:
    rng = np.random.default_rng(5)
    p = rng.uniform(0.001, 0.999, 8)
    trained = features(rng.standard_normal((50, 6)), np.full(50, 0.3), np.full(50, 0.21))
    made = additions(trained, features(3 * rng.standard_normal((8, 6)), 1 - p, p * (1 - p)))
    queries = features(rng.standard_normal((3, 6)), np.zeros(3), np.ones(3))
    for row in range(8):
        one = made.together(np.arange(8) == row, queries)
        np.testing.assert_allclose(one, made.effects(queries)[:, row], rtol=1e-6)


def test_a_row_s_own_effect_is_its_effect_on_itself(
    ridge: tuple[Additions, Features, np.ndarray],
) -> None:
    made, _, _ = ridge
    itself = features(made.sketch.numpy(), np.zeros(6), np.ones(6))
    np.testing.assert_allclose(made.own(), np.abs(np.diag(made.effects(itself))), rtol=1e-9)


def test_what_rows_do_to_each_other_is_symmetric(
    ridge: tuple[Additions, Features, np.ndarray],
) -> None:
    left, right = ridge[0].weighed()
    np.testing.assert_allclose(left @ right.T, right @ left.T, rtol=1e-9)


@pytest.mark.parametrize("new", [[2.5, 2.5, 2.5, 2.5], [2.5, -2.5, 2.5, -2.5]])
def test_a_step_ends_nearer_to_a_refitted_logistic_regression_than_newton_s(
    new: list[float],
) -> None:
    """A row where the model is sure of the other label, and one where it is in doubt."""
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((60, 4))
    labels = np.where(inputs @ np.ones(4) + rng.logistic(size=60) > 0, 1.0, -1.0)
    row, asked = np.array([new]), rng.standard_normal((5, 4))

    def fit(rows: np.ndarray, signs: np.ndarray) -> np.ndarray:
        def loss(w: np.ndarray) -> float:
            return float(np.logaddexp(0, -signs * (rows @ w)).sum() + 0.1 * w @ w)

        return minimize(loss, np.zeros(4), tol=1e-12).x

    before = fit(inputs, labels)
    moved = asked @ (fit(np.vstack([inputs, row]), np.append(labels, -1.0)) - before)

    def seen(rows: np.ndarray, signs: np.ndarray) -> Features:
        p = expit(signs * (rows @ before))
        return features(signs[:, None] * rows, 1 - p, p * (1 - p))

    trained = seen(inputs, labels)
    unit = float((trained.curvature * (trained.sketch**2).sum(1)).sum()) / 4
    form = {"damping": 0.2 / unit}
    queries = features(asked, np.zeros(5), np.ones(5))
    ours, newton = (
        additions(trained, seen(row, np.array([-1.0])), task=task, **form).effects(queries)[:, 0]
        for task in ("classification", "regression")
    )
    assert np.abs(ours - moved).max() < 0.5 * np.abs(moved).max()
    assert np.abs(ours - moved).max() < np.abs(newton - moved).max()


def test_the_gain_is_the_residual_where_the_step_ends() -> None:
    rng = np.random.default_rng(2)
    p = rng.uniform(0.001, 0.999, 30)
    trained = features(rng.standard_normal((50, 6)), np.full(50, 0.3), np.full(50, 0.21))
    made = additions(trained, features(rng.standard_normal((30, 6)), 1 - p, p * (1 - p)))
    leverage = (made.sketch * made.solved).sum(dim=1).numpy()
    gain = made.gain.numpy()
    np.testing.assert_allclose(gain, expit(-(np.log(p / (1 - p)) + leverage * gain)), rtol=1e-9)


def test_features_of_another_projection_are_refused(
    ridge: tuple[Additions, Features, np.ndarray],
) -> None:
    queries = ridge[1]
    other = Features(
        sketch=queries.sketch,
        residual=queries.residual,
        curvature=queries.curvature,
        fingerprint="another",
    )
    with pytest.raises(ShapeError, match="same projection"):
        additions(queries, other)
