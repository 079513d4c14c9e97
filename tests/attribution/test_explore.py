"""Components, clusters and comparisons of scores find what was planted, and match slow truths."""

import numpy as np
import pytest
from scipy import stats
from sklearn.decomposition import PCA

from attribution.clusters import cluster, traits
from attribution.difference import difference
from attribution.explore import opposites, principal_components
from attribution.streams import stream
from schemas.errors import ShapeError


def noisy(rank: int, shape: tuple[int, int], seed: int = 0, noise: float = 0.1) -> np.ndarray:
    """Scores of some rank and noise, about a mean that is not 0."""
    rng = stream(seed, "labels", 7)
    left, right = rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, shape[1]))
    left *= np.arange(rank, 0, -1)
    return 3 + left @ right + noise * rng.standard_normal(shape)


def test_components_are_those_of_scikit_learn_up_to_sign() -> None:
    tau = noisy(4, (40, 150))
    found = principal_components(tau, 4)
    truth = PCA(n_components=4, svd_solver="full").fit(tau)
    np.testing.assert_allclose(found.values, truth.singular_values_, rtol=1e-10)
    np.testing.assert_allclose(found.explained, truth.explained_variance_ratio_, rtol=1e-10)
    cosines = np.abs((found.directions * truth.components_).sum(axis=1))
    np.testing.assert_allclose(cosines, 1.0, atol=1e-10)
    np.testing.assert_allclose(found.loadings, (tau - tau.mean(axis=0)) @ found.directions.T)


def test_all_components_give_the_scores_back() -> None:
    tau = noisy(3, (12, 30))
    found = principal_components(tau, 12)
    np.testing.assert_allclose(found.centre + found.loadings @ found.directions, tau, atol=1e-9)
    assert found.explained.sum() == pytest.approx(1.0)


def test_the_random_range_finds_the_exact_components_in_blocks() -> None:
    tau = noisy(5, (700, 300)).astype(np.float32)
    exact, random = (principal_components(tau, 5, exact=each) for each in (True, False))
    np.testing.assert_allclose(random.values, exact.values, rtol=1e-6)
    np.testing.assert_allclose(random.directions, exact.directions, atol=1e-5)
    again = principal_components(tau, 5, exact=False)
    np.testing.assert_array_equal(again.directions, random.directions)


def test_the_sign_of_a_component_does_not_hang_on_the_order_of_queries() -> None:
    tau = noisy(3, (30, 60))
    turned = principal_components(tau[::-1], 3)
    np.testing.assert_allclose(turned.directions, principal_components(tau, 3).directions)
    largest = np.abs(turned.directions).argmax(axis=1)
    assert (turned.directions[np.arange(3), largest] > 0).all()


def test_the_rows_at_one_end_raise_the_queries_at_that_end() -> None:
    tau = 0.01 * stream(0, "labels", 1).standard_normal((20, 100))
    tau[:5, 10:20] += 1.0
    tau[5:10, 10:20] -= 1.0
    found = principal_components(tau, 2)
    assert set(found.rows(0, 10).high) == set(range(10, 20))
    assert set(found.queries(0, 5).high) == set(range(5))
    assert set(found.queries(0, 5).low) == set(range(5, 10))


def test_components_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ShapeError, match="no more components"):
        principal_components(np.zeros((3, 5)), 4)
    with pytest.raises(ShapeError, match="only finite"):
        principal_components(np.full((3, 5), np.nan), 1)


def planted(lengths: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points along three directions in eight dimensions, of very different lengths."""
    rng = stream(seed, "labels", 3)
    truth = np.repeat(np.arange(3), (40, 25, 15))
    centres = np.eye(8)[:3] + 0.3 * np.eye(8)[3:6]
    points = centres[truth] + 0.15 * rng.standard_normal((80, 8))
    return points * np.exp(lengths * rng.standard_normal(80))[:, None], truth


def test_clusters_are_the_planted_directions_whatever_the_lengths() -> None:
    points, truth = planted(1.0)
    found = cluster(points, 3)
    np.testing.assert_array_equal(found.labels, truth)  # the largest first, as planted
    np.testing.assert_array_equal(found.sizes, (40, 25, 15))
    assert found.cohesion > 0.9
    scaled = cluster(points * 7.5, 3)
    np.testing.assert_array_equal(scaled.labels, found.labels)


def test_clustering_is_as_good_as_the_best_of_all_assignments_of_few_points() -> None:
    points = stream(2, "labels", 5).standard_normal((9, 2))

    def reach(code: int) -> float:
        side = np.array([code >> bit & 1 for bit in range(9)], dtype=bool)
        # The best centre of a group points along its sum, and reaches that far.
        return sum(float(np.linalg.norm(points[group].sum(axis=0))) for group in (side, ~side))

    best = max(reach(code) for code in range(2**9))
    found = cluster(points, 2, restarts=30)
    total = np.linalg.norm(points, axis=1).sum()
    assert found.cohesion * total == pytest.approx(best)


def test_points_at_the_origin_belong_to_no_cluster() -> None:
    points, _ = planted(0.0)
    points[3] = 0
    found = cluster(points, 3)
    assert found.labels[3] == -1
    assert found.sizes.sum() == 79
    assert 3 not in found.exemplars(0, 100)
    with pytest.raises(ShapeError, match="ask for 1 to 79"):
        cluster(points, 80)


def test_a_trait_is_the_value_that_a_cluster_has_more_often_than_chance() -> None:
    labels = np.repeat([0, 1, -1], (20, 30, 50))
    source = np.array(["b"] * 18 + ["a"] * 82)
    columns = {"source": source, "day": np.resize(["mon", "tue"], 100)}
    found = traits(labels, columns)
    (trait,) = found[0]
    assert (trait.column, trait.value, trait.inside, trait.members) == ("source", "b", 18, 20)
    assert trait.lift == pytest.approx(0.9 / 0.18)
    # 8 tests: two clusters, two columns, two values; this one has the least p-value.
    assert trait.p_value == pytest.approx(8 * stats.hypergeom(100, 18, 20).sf(17))
    assert [each.value for each in found[1]] == ["a"]


def test_labels_at_random_have_no_trait_in_nineteen_of_twenty_draws() -> None:
    columns = {"of": np.resize([f"v{number}" for number in range(6)], 300)}
    wrong = sum(
        any(traits(stream(seed, "labels", 9).integers(4, size=300), columns).values())
        for seed in range(100)
    )
    assert wrong <= 10


def test_opposites_are_the_rows_that_help_one_group_and_hurt_the_other() -> None:
    tau = 0.05 * stream(1, "labels", 2).standard_normal((10, 50))
    tau[:4, [7, 8]] += 1.0
    tau[4:, [7, 8]] -= 10.0  # the second group moves more, and counts no more
    tau[:4, 20] += 5.0  # helps the first only
    found = opposites(tau, np.arange(4), np.arange(4, 10), count=2)
    assert set(found.rows) == {7, 8}
    assert (found.first > 0).all()
    assert (found.second < 0).all()
    everyone = opposites(tau, np.arange(4), np.arange(4, 10), count=50)
    assert (everyone.first > 0).all()
    assert (everyone.second < 0).all()
    with pytest.raises(ShapeError, match="two groups"):
        opposites(tau, [], [1])


def test_recipes_that_differ_by_a_feature_are_told_apart_by_its_rows() -> None:
    rng = stream(4, "labels", 4)
    shared = rng.standard_normal((60, 200))
    feature = np.zeros(200)
    feature[:12] = 1.0
    first = shared + 3 * rng.standard_normal((60, 1)) * feature
    found = difference(first, 2.5 * shared, 2)
    assert set(found.first.components.rows(0, 12).high) == set(range(12))
    assert found.first.own[0] > 5 * found.first.others[0]
    assert (found.agreement < 0.999).any()
    # What a recipe shares with itself leaves nothing over.
    alike = difference(shared, 4 * shared, 1)
    np.testing.assert_allclose(alike.agreement, 1.0)
    assert alike.first.components.values[0] < 1e-12


def test_the_residual_of_a_query_is_at_right_angles_to_the_other_recipe() -> None:
    rng = stream(5, "labels", 4)
    first, second = rng.standard_normal((2, 6, 9))
    found = difference(first, second, 6).first.components
    residual = found.loadings @ found.directions
    np.testing.assert_allclose((residual * second).sum(axis=1), 0.0, atol=1e-12)
    with pytest.raises(ShapeError, match="same queries"):
        difference(first, second[:5])
