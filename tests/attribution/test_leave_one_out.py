import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from attribution import attribute
from attribution.leave_one_out import loo_correlation
from attribution.linear_fit import linear_layer
from attribution.models import build
from attribution.training import Recipe, train_models
from schemas.errors import RecipeError, ShapeError
from tests.attribution.linear_problem import DECAY, D, K, M, N, leave_one_out, retraining


def test_exact_effects_are_those_of_sklearns_refits() -> None:
    found = loo_correlation(leave_one_out(), retraining())
    np.testing.assert_allclose(found.effects, leave_one_out(), rtol=0, atol=2e-5)
    assert found.exact
    assert found.reliability == 1


def test_exact_leave_one_out_scores_correlate_perfectly_and_their_negative_does_not() -> None:
    assert loo_correlation(leave_one_out(), retraining()).mean == pytest.approx(1.0, abs=1e-3)
    assert loo_correlation(-leave_one_out(), retraining()).mean == pytest.approx(-1.0, abs=1e-3)


def test_a_regressions_effects_are_those_of_the_closed_form() -> None:
    draw = np.random.default_rng(3)
    inputs, queries = draw.standard_normal((30, 3)), draw.standard_normal((5, 3))
    targets = inputs @ [1.0, -2.0, 0.5] + draw.standard_normal(30)
    found = loo_correlation(
        np.zeros((5, 30)),
        retraining(
            model=nn.Sequential(nn.Flatten(), nn.Linear(3, 1)),
            train=(inputs.astype(np.float32), targets.astype(np.float32)),
            queries=(queries.astype(np.float32), np.zeros(5, dtype=np.float32)),
        ),
        rows=np.arange(0, 30, 3),
    )

    def fitted(rows: NDArray[np.intp]) -> NDArray[np.float64]:
        x = np.hstack([inputs[rows], np.ones((len(rows), 1))])
        gram = 2 * x.T @ x + len(rows) * DECAY * np.eye(4)
        theta = np.linalg.solve(gram, 2 * x.T @ targets[rows])
        return np.hstack([queries, np.ones((5, 1))]) @ theta

    everything = np.arange(30)
    want = [fitted(everything) - fitted(np.delete(everything, row)) for row in range(0, 30, 3)]
    np.testing.assert_allclose(found.effects, np.transpose(want), atol=1e-5)


@pytest.mark.parametrize(
    ("method", "options", "least"),
    [
        ("alo", {"weight_decay": DECAY, "penalise_bias": True}, 0.998),
        ("alo", {"weight_decay": DECAY, "penalise_bias": True, "steps": 2}, 0.9999),
        ("jackknife", {"weight_decay": DECAY, "penalise_bias": True}, 0.98),
        ("influence", {"solver": "exact", "damping": 1e-2}, 0.95),
    ],
)
def test_estimators_for_linear_models_come_close(
    method: str, options: dict[str, object], least: float
) -> None:
    problem = retraining()
    masks = np.ones((1, N), dtype=bool)
    trained = train_models(
        problem.model, problem.train, masks=masks, seeds=[0], training=problem.training
    )
    scores = attribute(
        method,
        problem.model,
        [trained.state(0)],
        train=problem.train,
        queries=problem.queries,
        **options,
    )
    assert loo_correlation(scores, problem).mean > least


def test_only_a_single_linear_layer_counts_as_convex() -> None:
    vector = torch.Size([4])
    assert linear_layer(build("linear", (8, 8), 10), torch.Size([8, 8])) is not None
    assert linear_layer(build("mlp", (4,), 10, hidden=[4]), vector) is None
    assert linear_layer(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), vector) is None
    assert linear_layer(nn.Sequential(nn.Linear(4, 2), nn.Softmax(dim=1)), vector) is None

    class Squared(nn.Linear):
        def forward(self, inputs):  # type: ignore[no-untyped-def]
            return super().forward(inputs) ** 2

    assert linear_layer(Squared(4, 2), vector) is None


def test_a_forced_network_says_how_little_of_it_is_the_rows_doing() -> None:
    net = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, K))
    problem = retraining(model=net, training=Recipe(lr=0.1, epochs=3, batch_size=10))
    found = loo_correlation(leave_one_out(), problem, rows=np.arange(12), force=True)
    assert not found.exact
    assert found.effects.shape == (M, 12)
    assert found.reliability is not None
    assert found.reliability < 0.5


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(weight_decay=0.0), "weight_decay is 0"),
        (Recipe(optimizer="adamw"), "weight decay of adamw"),
    ],
)
def test_recipes_without_a_unique_minimum_are_refused(recipe: Recipe, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        loo_correlation(leave_one_out(), retraining(training=recipe))


def test_scores_of_other_rows_and_too_few_rows_are_refused() -> None:
    with pytest.raises(ShapeError, match="8 queries and 60 training rows"):
        loo_correlation(leave_one_out().T, retraining())
    with pytest.raises(ShapeError, match="needs three"):
        loo_correlation(leave_one_out(), retraining(), rows=[1, 2])
