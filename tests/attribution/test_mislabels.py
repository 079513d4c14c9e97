import numpy as np
import pytest

from attribution.mislabels import (
    confident_errors,
    memorisation,
    out_of_bag,
    wrong_label_probability,
)
from attribution.statistics import auroc
from attribution.streams import stream
from schemas.errors import ShapeError


def test_wrong_labels_get_the_probability_of_their_kind() -> None:
    rng = stream(6, "labels", 2)
    wrong = rng.random(2_000) < 0.12
    suspicion = np.where(wrong, rng.normal(2.5, 1.0, 2_000), rng.normal(0, 0.6, 2_000))
    found = wrong_label_probability(suspicion)
    assert found.separated
    assert found.share == pytest.approx(0.12, abs=0.03)
    # Of the rows said to be wrong with some probability, so many are.
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.01)):
        said = (found.probability >= low) & (found.probability < high)
        assert wrong[said].mean() == pytest.approx(found.probability[said].mean(), abs=0.12)
    order = np.argsort(suspicion)
    assert (np.diff(found.probability[order]) >= 0).all()


def test_suspicion_of_one_kind_accuses_nobody() -> None:
    plain = wrong_label_probability(stream(7, "labels", 2).standard_normal(1_000))
    assert not plain.separated
    assert not plain.probability.any()
    assert not wrong_label_probability(np.ones(20)).separated
    # Heavy tails are two normals for BIC, one within the other: no kind of their own.
    assert not wrong_label_probability(stream(7, "labels", 3).standard_t(3, 1_000)).separated
    with pytest.raises(ShapeError, match="ten or more"):
        wrong_label_probability(np.arange(5.0))


def test_the_unit_of_suspicion_does_not_matter() -> None:
    rng = stream(8, "labels", 2)
    suspicion = np.concatenate([rng.standard_normal(500), rng.normal(6, 1, 60)])
    first, second = (wrong_label_probability(each) for each in (suspicion, 3e-4 * suspicion + 9))
    np.testing.assert_allclose(second.probability, first.probability, atol=1e-6)


def test_out_of_bag_and_memorising_are_plain_means_over_models() -> None:
    rng = stream(9, "labels", 2)
    masks, values = rng.random((12, 7)) < 0.5, rng.standard_normal((12, 7, 3))
    masks[0], masks[1] = True, False
    unseen = out_of_bag(values, masks)
    for row in range(7):
        np.testing.assert_allclose(unseen[row], values[~masks[:, row], row].mean(axis=0))
    gained = memorisation(values[..., 0], masks)
    truth = [
        values[masks[:, row], row, 0].mean() - values[~masks[:, row], row, 0].mean()
        for row in range(7)
    ]
    np.testing.assert_allclose(gained, truth)
    with pytest.raises(ShapeError, match="every model saw row 0"):
        out_of_bag(values, np.ones_like(masks))


def test_confident_learning_counts_rows_by_the_means_of_their_classes() -> None:
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.55, 0.45], [0.05, 0.95]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    # Means of the own class: 0: (0.9 + 0.6 + 0.2)/3, 1: (0.7 + 0.45 + 0.95)/3 = 0.7. Row 2 counts
    # as 1, row 4 reaches neither 0.567 nor 0.7 and counts as none.
    assert confident_errors(p, labels).tolist() == [False, False, True, False, False, False]
    with pytest.raises(ShapeError, match="between 0 and 1"):
        confident_errors(p, labels + 1)


def test_confident_learning_finds_flipped_labels() -> None:
    rng = stream(10, "labels", 2)
    truth = rng.integers(3, size=600)
    p = rng.dirichlet([0.6] * 3, 600)
    p = 0.4 * p + 0.6 * np.eye(3)[truth]
    wrong = rng.random(600) < 0.1
    labels = np.where(wrong, (truth + 1) % 3, truth)
    found = confident_errors(p, labels)
    assert auroc(found.astype(float), wrong) > 0.75
    assert wrong[found].mean() > 0.9
