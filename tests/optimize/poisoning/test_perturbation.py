import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from attribution.estimators.features import featurize
from attribution.estimators.shortcuts import parameter_directions
from attribution.models import build
from attribution.projection import Projection
from attribution.training import train_models
from optimize.poisoning.effects import target_vectors
from optimize.poisoning.perturbation import Perturbed, match_gradients, perturb
from schemas.errors import ShapeError
from tests.attribution.linear_problem import DECAY, D, K, M, N, refit, retraining, rows


@pytest.fixture(scope="module")
def fitted() -> dict:
    """A logistic regression at its minimum, and the direction that raises the mean margin."""
    fixed, exact = retraining(), Projection(kind="none")
    trained = train_models(
        fixed.model, fixed.train, masks=np.ones((1, N), bool), seeds=[0], training=fixed.training
    )
    states = [dict(trained.state(0))]
    own, asked = (
        [
            featurize(
                fixed.model,
                states[0],
                rows(*source),
                output="margin",
                task="classification",
                projection=exact,
            )
        ]
        for source in ((N, 1), (M, 2))
    )
    vectors = target_vectors(own, asked, np.full(M, 1 / M))
    directions = parameter_directions(
        fixed.model, states, rows(N, 1)[0], vectors, train=own, projection=exact
    )
    return {"model": fixed.model, "states": states, "directions": directions}


def attacked(fitted: dict, radius: float, **options: object) -> Perturbed:
    inputs, labels = rows(N, 1)
    return perturb(
        fitted["model"],
        fitted["states"],
        (inputs[:12], labels[:12]),
        fitted["directions"],
        radius=radius,
        **options,
    )


def test_moved_inputs_stay_in_the_ball_and_in_the_valid_range(fitted: dict) -> None:
    inputs = rows(N, 1)[0][:12]
    low, high = inputs.min() - 0.1, inputs.max() + 0.1
    found = attacked(fitted, 0.4, low=low, high=high)
    assert np.abs(found.inputs - inputs).max() <= 0.4 + 1e-6
    assert found.inputs.min() >= low
    assert found.inputs.max() <= high
    assert (found.after <= found.before).all()
    assert found.after.sum() < found.before.sum()


def test_a_small_step_follows_the_gradient_of_the_effect(fitted: dict) -> None:
    """By central differences of the effect, whose gradient's L1 norm a sign step gains."""
    radius = 1e-3
    inputs, labels = rows(N, 1)
    weight = fitted["states"][0]["weight"].double().numpy()
    direction = fitted["directions"][0].double().reshape(K, D).numpy()

    def effect(x: np.ndarray, label: int) -> float:
        logits = weight @ x
        chances = np.exp(logits - np.logaddexp.reduce(logits))
        pulls = direction @ x
        return float(pulls[label] - chances @ pulls)

    found = attacked(fitted, radius, steps=5)
    for row in range(12):
        x = inputs[row].astype(np.float64)
        slope = [
            (effect(x + 1e-5 * unit, labels[row]) - effect(x - 1e-5 * unit, labels[row])) / 2e-5
            for unit in np.eye(D)
        ]
        assert found.before[row] == pytest.approx(effect(x, labels[row]), rel=1e-3, abs=1e-5)
        gained = found.before[row] - found.after[row]
        assert gained == pytest.approx(radius * np.abs(slope).sum(), rel=0.05, abs=1e-6)


def test_moved_inputs_lower_the_targets_after_refitting(fitted: dict) -> None:
    """All rows moved down and up: the refitted margins part in the predicted direction."""
    inputs, labels = rows(N, 1)
    everything = (fitted["model"], fitted["states"], (inputs, labels), fitted["directions"])
    margins = {}
    for better in (1, -1):
        moved = perturb(*everything, radius=0.3, better=better).inputs
        model = LogisticRegression(
            C=1 / (N * DECAY), fit_intercept=False, tol=1e-10, solver="newton-cholesky"
        ).fit(moved.astype(np.float64), labels)
        queries, own = rows(M, 2)
        logits, mine = queries.astype(np.float64) @ model.coef_.T, np.eye(K, dtype=bool)[own]
        other = np.logaddexp.reduce(np.where(mine, -np.inf, logits), axis=1)
        margins[better] = (logits[mine] - other).mean()
    clean = refit(np.ones(N, bool)).mean()
    assert margins[1] < clean < margins[-1]


def test_matched_gradients_point_closer_to_the_target_within_the_ball() -> None:
    inputs, labels = rows(N, 1)
    targets, model = rows(M, 2)[0][:2], build("mlp", (D,), K, hidden=[8])
    states = [dict(model.state_dict())]
    chosen = np.flatnonzero(labels == 1)[:6]
    found = match_gradients(
        model, states, (inputs[chosen], labels[chosen]), (targets, 1), radius=0.5, steps=40
    )
    assert found.alignment > found.before
    assert np.abs(found.inputs - inputs[chosen]).max() <= 0.5 + 1e-6
    again = match_gradients(
        model, states, (inputs[chosen], labels[chosen]), (targets, 1), radius=0.5, steps=40
    )
    np.testing.assert_array_equal(found.inputs, again.inputs)
    net = build("mlp", (D,), K, hidden=[8])
    net.load_state_dict(states[0])

    def gradient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        loss = torch.nn.functional.cross_entropy(
            net(torch.as_tensor(x)), torch.as_tensor(y), reduction="sum"
        )
        return np.concatenate(
            [part.flatten().numpy() for part in torch.autograd.grad(loss, list(net.parameters()))]
        )

    poison, goal = gradient(found.inputs, labels[chosen]), gradient(targets, np.array([1, 1]))
    cosine = poison @ goal / np.linalg.norm(poison) / np.linalg.norm(goal)
    assert found.alignment == pytest.approx(float(cosine), abs=1e-5)


def test_what_cannot_be_perturbed_is_refused(fitted: dict) -> None:
    with pytest.raises(ShapeError, match="must be positive"):
        attacked(fitted, 0.0)
    with pytest.raises(ShapeError, match="outside the valid range"):
        attacked(fitted, 0.1, low=5.0)
