"""Slices against random rows, near-duplicates against all pairs, wrong labels against the truth."""

import itertools

import numpy as np
import pytest

from attribution.duplicates import groups_of, near_duplicates
from attribution.mislabels import (
    confident_errors,
    memorisation,
    out_of_bag,
    wrong_label_probability,
)
from attribution.slices import matched_rows, slice_test
from attribution.statistics import auroc
from attribution.streams import stream
from schemas.errors import ShapeError


def test_expectation_and_spread_are_those_of_all_equally_many_rows_of_the_strata() -> None:
    rng = stream(0, "labels", 1)
    effects, strata = rng.standard_normal(9), np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    member = np.array([1, 1, 0, 0, 1, 0, 0, 0, 0], dtype=bool)
    sums = [
        effects[list(pair)].sum() + effects[4 + one]
        for pair in itertools.combinations(range(4), 2)
        for one in range(5)
    ]
    found = slice_test(effects, member[None], strata=strata, permutations=200)
    assert found.expected[0] == pytest.approx(np.mean(sums))
    assert found.spread[0] == pytest.approx(np.std(sums))
    assert found.effect[0] == pytest.approx(effects[member].sum())
    assert found.standing[0] == pytest.approx((found.effect - found.expected)[0] / np.std(sums))


def test_the_p_value_of_one_slice_is_its_share_of_all_permutations() -> None:
    effects = np.array([3.0, -1.0, 0.5, 2.0, -4.0, 0.2, 1.0])
    member = np.array([0, 1, 0, 0, 1, 0, 0], dtype=bool)
    sums = [effects[list(pair)].sum() for pair in itertools.combinations(range(7), 2)]
    found = slice_test(effects, member[None], permutations=4_000)
    assert found.p_low[0] == pytest.approx(
        np.mean(np.array(sums) <= effects[member].sum()), abs=0.01
    )
    assert found.p_high[0] == pytest.approx(1.0, abs=1e-3)


def test_the_best_of_many_random_slices_is_surprising_as_rarely_as_it_says() -> None:
    rng = stream(3, "labels", 1)
    surprises = 0
    for trial in range(120):
        effects = rng.standard_t(3, 200) + np.repeat([0.0, 5.0], 100)
        members = rng.random((25, 200)) < 0.1
        strata = np.repeat([0, 1], 100)
        found = slice_test(effects, members, strata=strata, permutations=199, seed=trial)
        surprises += found.p_low.min() <= 0.05
    # Binomial(120, 0.05) exceeds 14 once in 500.
    assert surprises <= 14


def test_a_harmful_slice_stands_out_and_a_whole_class_does_not() -> None:
    rng = stream(4, "labels", 1)
    strata = np.repeat([0, 1, 2], 60)
    effects = np.array([1.0, -1.0, 0.0])[strata] + 0.5 * rng.standard_normal(180)
    planted = np.zeros(180, dtype=bool)
    planted[60:75] = True
    effects[planted] -= 0.8
    others = rng.random((20, 180)) < 0.15
    found = slice_test(effects, np.vstack([planted, strata == 1, others]), strata=strata)
    assert found.p_low[0] < 0.01
    assert found.standing[1] == 0.0
    assert found.p_low[1] > 0.9
    assert found.p_low[2:].min() > 0.05
    # Against any random rows, a rival class would be to blame for what classes do.
    assert slice_test(effects, (strata == 1)[None]).p_low[0] < 0.01


def test_slices_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="one of each"):
        slice_test(np.zeros(4), np.ones((2, 5), dtype=bool))
    with pytest.raises(ShapeError, match="no row"):
        slice_test(np.zeros(4), np.zeros((2, 4), dtype=bool))


def test_matched_rows_are_as_many_of_each_class() -> None:
    strata = np.repeat([0, 1, 2], (5, 50, 20))
    member = np.zeros(75, dtype=bool)
    member[[0, 1, 2, 3, 4, 10, 11]] = True
    drawn = [matched_rows(member, strata, stream(0, "arms", number)) for number in range(20)]
    counts = np.array([np.bincount(strata[rows], minlength=3) for rows in drawn])
    assert (counts == [5, 2, 0]).all()
    assert len({rows.tobytes() for rows in drawn}) > 1


def test_near_duplicates_are_the_pairs_of_high_cosine_and_what_they_link() -> None:
    rng = stream(1, "labels", 6)
    features = 5 + rng.standard_normal((60, 4, 3))
    features[40] = features[3]
    features[41] = 5 + 1.5 * (features[3] - 5) + 1e-3 * rng.standard_normal((4, 3))
    features[50] = features[22] + 1e-4
    labels = near_duplicates(features, threshold=0.995)
    flat = features.reshape(60, -1) - features.reshape(60, -1).mean(axis=0)
    cosines = (flat @ flat.T) / np.outer(np.linalg.norm(flat, axis=1), np.linalg.norm(flat, axis=1))
    linked = cosines >= 0.995
    assert ((labels[:, None] == labels[None, :]) >= linked).all()
    assert [group.tolist() for group in groups_of(labels)] == [[3, 40, 41], [22, 50]]
    assert labels[0] == 0
    assert labels.max() == 56


def test_copies_of_a_constant_row_are_found_and_blocks_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = stream(2, "labels", 6).standard_normal((50, 6))
    features[[9, 19, 29]] = 0.0
    features[[5, 45]] = 2.0
    whole = near_duplicates(features, centred=False)
    monkeypatch.setattr("attribution.duplicates._BLOCK", 7)
    np.testing.assert_array_equal(near_duplicates(features, centred=False), whole)
    assert [group.tolist() for group in groups_of(whole)] == [[9, 19, 29], [5, 45]]
    with pytest.raises(ShapeError, match="give a cosine"):
        near_duplicates(features, threshold=0.0)


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
