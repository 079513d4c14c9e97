import numpy as np
import pytest
import torch
from torch import nn

from attribution import attribute
from attribution.streams import stream
from attribution.valuation import Utility, correct, knn_shapley
from schemas.errors import RecipeError, ShapeError
from tests.attribution.games import by_definition

D, CLASSES = 3, 3


def data(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = stream(seed)
    return draw.standard_normal((n, D)).astype(np.float32), draw.integers(0, CLASSES, n)


def vote(train: tuple[np.ndarray, np.ndarray], query: np.ndarray, label: int, k: int) -> Utility:
    """Share of correct labels among the k nearest rows of each coalition, over k."""

    def utility(masks: np.ndarray) -> np.ndarray:
        shares = []
        for mask in masks:
            held = np.flatnonzero(mask)
            far = ((train[0][held].astype(np.float64) - query) ** 2).sum(axis=1)
            nearest = held[np.argsort(far, kind="stable")[:k]]
            shares.append((train[1][nearest] == label).sum() / k)
        return np.array(shares)

    return utility


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def states(count: int) -> list[dict[str, torch.Tensor]]:
    made = []
    with torch.random.fork_rng():
        for seed in range(count):
            torch.manual_seed(seed)
            made.append(net().state_dict())
    return made


def hidden(state: dict[str, torch.Tensor], inputs: np.ndarray) -> np.ndarray:
    first = torch.from_numpy(inputs) @ state["0.weight"].T + state["0.bias"]
    return first.tanh().numpy()


@pytest.mark.parametrize("k", [1, 2, 3, 7, 9])
def test_values_are_those_of_every_coalition(k: int) -> None:
    train, (queries, labels) = data(7, 1), data(4, 2)
    got = knn_shapley(*train, queries, labels, k=k)
    want = [
        by_definition(vote(train, query, label, k), 7, "shapley")
        for query, label in zip(queries, labels, strict=True)
    ]
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_rows_at_one_distance_keep_their_order() -> None:
    train = np.zeros((5, D), dtype=np.float32), np.array([0, 1, 0, 0, 1])
    got = knn_shapley(*train, np.ones((1, D)), np.array([0]), k=2)
    want = by_definition(vote(train, np.ones(D), 0, 2), 5, "shapley")
    np.testing.assert_allclose(got[0], want, rtol=1e-9, atol=1e-12)


def test_values_add_up_to_the_share_of_neighbours_that_are_right() -> None:
    train, (queries, labels) = data(200, 3), data(50, 4)
    values = knn_shapley(*train, queries, labels, k=5)
    everyone = np.ones((1, 200), dtype=bool)
    shares = [
        vote(train, query, label, 5)(everyone)[0]
        for query, label in zip(queries, labels, strict=True)
    ]
    np.testing.assert_allclose(values.sum(axis=1), shares, atol=1e-12)


def test_a_common_offset_changes_nothing() -> None:
    train, (queries, labels) = data(40, 5), data(6, 6)
    want = knn_shapley(*train, queries, labels)
    offset = np.float64(1e7)
    moved = knn_shapley(
        train[0].astype(np.float64) + offset, train[1], queries.astype(np.float64) + offset, labels
    )
    np.testing.assert_allclose(moved, want, atol=1e-12)


def test_the_estimator_measures_distance_in_the_last_hidden_layer() -> None:
    train, queries = data(30, 7), data(5, 8)
    checkpoints = states(2)
    scores = attribute("knn_shapley", net(), checkpoints, train=train, queries=queries, k=3)
    each = [
        knn_shapley(hidden(state, train[0]), train[1], hidden(state, queries[0]), queries[1], k=3)
        for state in checkpoints
    ]
    np.testing.assert_allclose(scores, np.mean(each, axis=0), rtol=1e-5, atol=1e-7)
    assert scores.shape == (5, 30)
    assert "3 nearest" in scores.record["unit"]
    small = attribute(
        "knn_shapley", net(), checkpoints, train=train, queries=queries, k=3, batch_size=4
    )
    np.testing.assert_allclose(small, scores, atol=1e-6)


def test_a_linear_model_measures_distance_in_its_inputs() -> None:
    train, queries = data(30, 7), data(5, 8)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(D, CLASSES))
    given = {"train": train, "queries": queries}
    scores = attribute("knn_shapley", linear, [linear.state_dict()], **given)
    want = knn_shapley(*train, *queries)
    np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-8)
    features = attribute("knn_shapley", net(), states(1), features=(train[0], queries[0]), **given)
    np.testing.assert_array_equal(features, scores)
    assert features.record["options"]["features"] == "given"


def test_a_row_that_helps_lowers_the_loss() -> None:
    train, queries = data(30, 7), data(5, 8)
    margin, loss = (
        attribute("knn_shapley", net(), states(1), train=train, queries=queries, output=output)
        for output in ("margin", "loss")
    )
    np.testing.assert_array_equal(loss, -np.asarray(margin))


def test_wrong_labels_are_worth_less() -> None:
    draw = stream(9)
    centres = 3 * np.eye(D)
    labels, asked = draw.integers(0, CLASSES, 120), draw.integers(0, CLASSES, 60)
    features = centres[labels] + draw.standard_normal((120, D))
    wrong = labels.copy()
    wrong[:12] = (labels[:12] + 1) % CLASSES
    worth = knn_shapley(features, wrong, centres[asked] + draw.standard_normal((60, D)), asked)
    mean = worth.mean(axis=0)
    assert mean[:12].mean() < 0 < mean[12:].mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "at least one neighbour"),
        ({"features": np.ones((5, 2))}, "2 columns and query features 3"),
        ({"features": np.full((5, D), np.inf)}, "row 0 are NaN"),
        ({"features": np.ones(5)}, r"give \[n, d\]"),
        ({"targets": np.ones(4, dtype=int)}, "one class index for each row"),
        ({"targets": np.ones(5)}, "class indices"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    (features, targets), (queries, labels) = data(5, 1), data(2, 2)
    given = {"features": features, "targets": targets, "k": 2} | change
    with pytest.raises(ShapeError, match=message):
        knn_shapley(given["features"], given["targets"], queries, labels, k=given["k"])  # type: ignore[arg-type]


def test_the_estimator_refuses_what_has_no_correct_label() -> None:
    train, queries = data(10, 1), data(3, 2)
    with pytest.raises(ShapeError, match="the task is regression"):
        attribute(
            "knn_shapley",
            nn.Linear(D, 1),
            [nn.Linear(D, 1).state_dict()],
            train=(train[0], train[1].astype(np.float32)),
            queries=(queries[0], queries[1].astype(np.float32)),
        )
    given = {"train": train, "queries": queries}
    with pytest.raises(ShapeError, match="name an output"):
        attribute("knn_shapley", net(), states(1), output=correct, **given)
    conv = nn.Sequential(nn.Unflatten(1, (1, D)), nn.Conv1d(1, CLASSES, D), nn.Flatten())
    with pytest.raises(RecipeError, match="calls no linear layer"):
        attribute("knn_shapley", conv, [conv.state_dict()], **given)
    named = attribute("knn_shapley", conv, [conv.state_dict()], layer="2", **given)
    assert named.record["options"]["features"] == "2"
