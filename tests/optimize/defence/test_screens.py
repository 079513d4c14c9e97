from collections.abc import Callable

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from attribution.api import Scores
from optimize.defence.judge import judge_screens, suspects
from optimize.defence.screens import (
    disagreeing,
    far_from_centre,
    far_from_neighbours,
    harmful,
    lossy,
    memorised,
    residual,
    spectral,
)
from schemas.errors import ShapeError

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 700)
FEATURES = RNG.standard_normal((700, 6)) + 4 * np.eye(6)[LABELS]


def test_signs_follow_the_output() -> None:
    tau = np.array([[1.0, -2.0], [3.0, 0.0]])
    assert harmful(tau).tolist() == [-2.0, 1.0]
    assert harmful(tau, output="loss").tolist() == [2.0, -1.0]
    assert harmful(Scores(tau, {"output": "loss"})).tolist() == [2.0, -1.0]
    assert memorised([0.1, 5.0]).tolist() == [0.1, 5.0]
    assert memorised([-0.1, -5.0], output="loss").tolist() == [0.1, 5.0]


def test_harm_within_a_class_is_measured_in_its_own_spread() -> None:
    harm = np.concatenate([RNG.standard_normal(500), 10 + 3 * RNG.standard_normal(500)])
    found = harmful(-harm[None], labels=np.repeat([0, 1], 500))
    for part in (found[:500], found[500:]):
        assert np.median(part) == pytest.approx(0, abs=1e-12)
        assert np.std(part) == pytest.approx(1, abs=0.1)


def test_losses_are_averaged_over_the_models_that_count() -> None:
    losses = [[1.0, np.nan, 3.0], [3.0, 5.0, np.nan]]
    assert lossy(losses).tolist() == [2.0, 5.0, 3.0]
    assert lossy([1.0, 2.0]).tolist() == [1.0, 2.0]
    with pytest.raises(ShapeError, match="row 1 has no finite loss"):
        lossy([[1.0, np.nan]])


def test_spectral_and_residual_are_those_of_principal_components() -> None:
    found, left = spectral(FEATURES, LABELS, components=2), residual(FEATURES, LABELS, energy=0.8)
    for label in range(3):
        rows = FEATURES[label == LABELS]
        pca = PCA().fit(rows)
        parts = pca.transform(rows)
        np.testing.assert_allclose(found[label == LABELS], (parts[:, :2] ** 2).sum(axis=1))
        kept = int(np.searchsorted(np.cumsum(pca.explained_variance_ratio_), 0.8)) + 1
        want = np.linalg.norm(parts[:, kept:], axis=1)
        np.testing.assert_allclose(left[label == LABELS], want, atol=1e-9)


def test_distances_are_those_of_scikit_learn() -> None:
    centre, near = far_from_centre(FEATURES, LABELS), far_from_neighbours(FEATURES, LABELS, k=4)
    for label in range(3):
        rows = FEATURES[label == LABELS]
        want = np.linalg.norm(rows - rows.mean(axis=0), axis=1)
        np.testing.assert_allclose(centre[label == LABELS], want)
        distances, _ = NearestNeighbors(n_neighbors=5).fit(rows).kneighbors(rows)
        want = distances[:, 1:].mean(axis=1)
        np.testing.assert_allclose(near[label == LABELS], want, rtol=1e-6)
    _, order = NearestNeighbors(n_neighbors=11).fit(FEATURES).kneighbors(FEATURES)
    share = (LABELS[order[:, 1:]] != LABELS[:, None]).mean(axis=1)
    found = disagreeing(FEATURES, LABELS, k=10)
    assert ((found >= share) & (found < share + 1 / 10)).all()


@pytest.mark.parametrize("screen", [spectral, residual, far_from_centre, disagreeing])
def test_suspicion_belongs_to_the_row_wherever_it_stands(screen: Callable) -> None:
    order = np.random.default_rng(1).permutation(700)
    moved = screen(FEATURES[order], LABELS[order])
    np.testing.assert_allclose(moved, screen(FEATURES, LABELS)[order], atol=1e-8)


def test_a_row_alone_in_its_class_is_infinitely_far_from_its_neighbours() -> None:
    found = far_from_neighbours(np.eye(3), [0, 0, 1])
    assert found.tolist() == [pytest.approx(2**0.5), pytest.approx(2**0.5), np.inf]
    judged = judge_screens({"knn": found}, [False, False, True])
    assert judged["knn"].recall == 1


def test_recall_counts_planted_rows_among_the_most_suspicious_and_shares_ties() -> None:
    planted = np.array([True, True, False, False, False])
    found = judge_screens(
        {"sure": [5, 4, 3, 2, 1], "half": [5, 1, 4, 3, 2], "flat": [0, 0, 0, 0, 0]}, planted
    )
    assert [one.recall for one in found.values()] == [1.0, 0.5, pytest.approx(2 / 5)]
    assert [one.auroc for one in found.values()] == [1.0, 0.5, 0.5]
    assert found["flat"].average_precision == pytest.approx(0.4)
    assert judge_screens({"half": [5, 1, 4, 3, 2]}, planted, budget=5)["half"].recall == 1
    assert suspects([1.0, 3.0, 3.0, 2.0], 2).tolist() == [False, True, True, False]


def test_harm_and_self_influence_find_wrong_labels_as_scikit_learn_says() -> None:
    wrong = RNG.random(50) < 0.2
    suspicion = {
        "harm": harmful(RNG.standard_normal((7, 50)) - wrong),
        "self-influence": memorised(RNG.random(50) + wrong),
    }
    for name, found in judge_screens(suspicion, wrong).items():
        assert found.auroc == pytest.approx(roc_auc_score(wrong, suspicion[name]))
        want = average_precision_score(wrong, suspicion[name])
        assert found.average_precision == pytest.approx(want)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: harmful(np.ones(3)), "give \\[n_query, n_train\\]"),
        (lambda: memorised([1.0, np.nan]), "one finite number"),
        (lambda: spectral(FEATURES, LABELS[:5]), "one class index each"),
        (lambda: spectral(np.full((2, 2), np.nan), [0, 1]), "row 0 are not finite"),
        (lambda: far_from_neighbours(FEATURES, LABELS, k=0), "k is 0"),
        (lambda: disagreeing(FEATURES[:1], LABELS[:1]), "two rows or more"),
        (lambda: judge_screens({"a": [np.nan, 1.0]}, [True, False]), "holds NaN"),
        (lambda: suspects([1.0], 2), "budget is 2 for 1 rows"),
    ],
)
def test_what_cannot_be_screened_is_refused(call: Callable, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        call()
