import re

import numpy as np
import pytest

from attribution.streams import stream
from attribution.valuation import Game, Sources, Utility, Values, value
from attribution.valuation.permutations import permutation_values
from attribution.valuation.sampling import Moments
from attribution.valuation.semivalues import beta_size_weights
from schemas.errors import NotFound, ShapeError
from tests.attribution.games import by_definition, random_utility, smooth_utility

N = 6
METHODS = ("shapley", "beta", "banzhaf", "leave_one_out")


def table_of(masks: np.ndarray) -> np.ndarray:
    return masks.sum(axis=1)


@pytest.mark.parametrize("method", ["shapley", "beta", "banzhaf"])
def test_exact_values_are_the_definition(method: str) -> None:
    utility = random_utility(N)
    found = value(utility, N, method=method, shape=(4, 2))
    np.testing.assert_allclose(
        found.values, by_definition(utility, N, method, (4, 2)), rtol=1e-10, atol=1e-12
    )
    assert found.values.shape == (2, N)
    assert found.n_evaluations == 2**N
    assert found.converged
    assert not found.standard_errors.any()
    assert "exact, from 64 new evaluations" in found.sentence
    assert found.sentence.startswith("Beta(4, 2)") == (method == "beta")


def test_leave_one_out_takes_a_player_from_everyone() -> None:
    utility = random_utility(20, columns=1)
    found = value(utility, 20, method="leave_one_out")
    everyone = np.ones((1, 20), dtype=bool)
    for player in (0, 7, 19):
        without = everyone.copy()
        without[0, player] = False
        np.testing.assert_allclose(
            found.values[0, player], (utility(everyone) - utility(without))[0, 0], rtol=1e-12
        )
    assert found.n_evaluations == 21


def test_beta_of_one_and_one_is_shapley() -> None:
    utility = random_utility(N)
    shapley = value(utility, N).values
    np.testing.assert_allclose(value(utility, N, method="beta", shape=(1, 1)).values, shapley)
    sampled = [
        value(utility, N, method=method, shape=(1, 1), exact=False, draws=80)
        for method in ("shapley", "beta")
    ]
    np.testing.assert_allclose(sampled[0].values, sampled[1].values, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("exact", [True, False])
def test_only_shapley_values_are_efficient(exact: bool) -> None:
    utility = random_utility(N)
    masks = np.stack([np.ones(N, dtype=bool), np.zeros(N, dtype=bool)])
    whole, nothing = utility(masks)
    for method in METHODS:
        total = value(utility, N, method=method, exact=exact, draws=200).values.sum(axis=1)
        assert np.allclose(total, whole - nothing) == (method == "shapley")


@pytest.mark.parametrize("method", METHODS)
def test_duplicates_are_worth_the_same_and_null_players_nothing(method: str) -> None:
    inner = random_utility(N)

    def utility(masks: np.ndarray) -> np.ndarray:
        twins, null = masks[:, N - 1] | masks[:, N], masks[:, :N].copy()
        null[:, N - 1] = twins
        return inner(null)  # player N is a twin of N - 1, player N + 1 is never looked at

    found = value(utility, N + 2, method=method).values
    np.testing.assert_allclose(found[:, N - 1], found[:, N], atol=1e-12)
    np.testing.assert_allclose(found[:, N + 1], 0, atol=1e-12)
    if method in ("shapley", "beta"):
        sampled = value(utility, N + 2, method=method, exact=False, draws=80).values
        assert not sampled[:, N + 1].any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exact", [True, False])
def test_values_are_linear_in_the_utility(method: str, exact: bool) -> None:
    one, other = random_utility(N, seed=1), random_utility(N, seed=2)

    def worth(utility: Utility) -> np.ndarray:
        return value(utility, N, method=method, exact=exact, draws=80, tolerance=0).values

    both = worth(lambda masks: 2 * np.asarray(one(masks)) - 3 * np.asarray(other(masks)))
    np.testing.assert_allclose(both, 2 * worth(one) - 3 * worth(other), atol=1e-10)


@pytest.mark.parametrize("method", ["shapley", "beta", "banzhaf"])
@pytest.mark.parametrize("make", [random_utility, smooth_utility])
def test_sampled_values_lie_within_their_standard_errors_as_often_as_they_should(
    method: str, make: object
) -> None:
    n = 9
    game = Game(make(n), n)  # type: ignore[operator]
    truth = value(game, n, method=method, shape=(4, 1)).values
    distances = []
    for seed in range(60):
        found = value(
            game, n, method=method, shape=(4, 1), exact=False, draws=320, tolerance=0, seed=seed
        )
        distances.append((found.values - truth) / found.standard_errors)
    z = np.stack(distances)
    assert abs(z.mean()) < 0.25
    assert 0.85 < np.sqrt((z**2).mean()) < 1.2
    assert 0.90 < (np.abs(z) < 2).mean() < 0.99  # 0.95 expected


def test_sampling_stops_when_the_errors_are_small_and_says_when_they_are_not() -> None:
    utility = smooth_utility(15, columns=1)
    loose = value(utility, 15, tolerance=0.2, seed=3)
    tight = value(utility, 15, tolerance=0.02, draws=80, seed=3)
    assert loose.converged
    assert not tight.converged
    assert "within the 20.0% asked" in loose.sentence
    assert "allow more draws" in tight.sentence
    noise, size = (np.sqrt((part**2).mean()) for part in (loose.standard_errors, loose.values))
    assert noise <= 0.2 * size
    nothing = value(lambda masks: np.zeros(len(masks)), 15)
    assert nothing.converged
    assert not nothing.values.any()


def test_draws_are_a_function_of_the_seed_and_their_number() -> None:
    utility = smooth_utility(14)

    def sampled(at_once: int, seed: int, method: str = "shapley") -> Values:
        return value(utility, 14, method=method, draws=96, at_once=at_once, tolerance=0, seed=seed)

    for method in ("shapley", "banzhaf"):
        want = sampled(32, 5, method)
        for at_once in (1, 24, 96):
            got = sampled(at_once, 5, method)
            np.testing.assert_allclose(got.values, want.values, rtol=1e-10, atol=1e-14)
            np.testing.assert_allclose(got.standard_errors, want.standard_errors, rtol=1e-8)
        assert not np.allclose(sampled(32, 6, method).values, want.values)


def test_truncation_saves_evaluations_and_moves_values_by_less_than_it_may() -> None:
    utility = smooth_utility(16, columns=1)
    whole = float(utility(np.ones((1, 16), dtype=bool))[0, 0])
    full = value(utility, 16, draws=160, tolerance=0)
    cut = value(utility, 16, draws=160, tolerance=0, truncation=0.1)
    assert cut.n_evaluations < full.n_evaluations
    assert np.abs(cut.values - full.values).max() <= 0.1 * whole
    assert ((full.values - cut.values) >= -1e-12).all()  # gains that were counted as 0
    share = re.search(r"truncated after (\d+)% of", cut.sentence)
    assert share is not None
    assert 0 < int(share.group(1)) < 100
    assert "truncation's bias" in cut.sentence
    assert "truncated" not in full.sentence
    assert "asked" not in full.sentence  # all draws were asked for, and made


def test_rotated_and_reversed_permutations_lower_the_errors_at_equal_cost() -> None:
    game = Game(smooth_utility(10, columns=1), 10)
    weights = beta_size_weights(10, (1, 1))
    errors = [
        permutation_values(game, weights, draws=640, tolerance=0, rotations=rotations).errors.mean()
        for rotations in (1, 4)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_the_sizes_of_coalitions_weigh_one_in_all() -> None:
    for n, shape in ((1, (1, 1)), (7, (16, 1)), (3_000, (1, 16)), (3_000, (0.5, 0.5))):
        weights = beta_size_weights(n, shape)
        np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-9)
    np.testing.assert_allclose(beta_size_weights(5, (1, 1)), 0.2)
    early = beta_size_weights(50, (16, 1))
    assert early[:10].sum() > 0.9


def test_moments_of_batches_are_those_of_all_draws() -> None:
    draws = stream(0).standard_normal((31, 2, 3)) + 1e6
    moments = Moments()
    for start, stop in ((0, 1), (1, 7), (7, 31)):
        moments.add(draws[start:stop])
    np.testing.assert_allclose(moments.mean, draws.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(
        moments.standard_error(), draws.std(axis=0, ddof=1) / np.sqrt(31), rtol=1e-6
    )


def test_no_coalition_is_evaluated_twice() -> None:
    seen: list[bytes] = []

    def utility(masks: np.ndarray) -> np.ndarray:
        seen.extend(mask.tobytes() for mask in masks)
        return table_of(masks)

    game = Game(utility, 5)
    sampled = value(game, 5, exact=False, draws=80)
    exact = value(game, 5)
    assert len(seen) == len(set(seen)) == 2**5
    assert sampled.n_evaluations + exact.n_evaluations == 2**5
    np.testing.assert_allclose(sampled.values, np.ones(5))
    assert sampled.values.shape == (5,)
    assert game(np.zeros((3, 5), dtype=bool)).shape == (3,)


def test_sources_are_the_game_of_grouped_players() -> None:
    rows = random_utility(8)
    labels = np.array(["b", "a", "b", "c", "a", "b", "c", "c"])
    sources = Sources(labels)
    assert list(sources.names) == ["a", "b", "c"]
    assert list(sources.sizes) == [2, 3, 3]

    def grouped(masks: np.ndarray) -> np.ndarray:
        chosen = [[masks[k, "abc".index(label)] for label in labels] for k in range(len(masks))]
        return np.asarray(rows(np.array(chosen)))

    for method in METHODS:
        got = value(sources.game(rows), len(sources), method=method).values
        np.testing.assert_allclose(got, value(grouped, 3, method=method).values, rtol=1e-12)
    game = Game(rows, 8)
    value(sources.game(game), 3)
    assert game.n_evaluations == 2**3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "shapely"}, NotFound, "choose one of shapley"),
        ({"n_players": 13, "exact": True}, ShapeError, "8,192 evaluations"),
        ({"n_players": 0}, ShapeError, "0 players"),
        ({"method": "beta", "shape": (0, 1)}, ShapeError, "two positive numbers"),
        ({"exact": False, "draws": 8}, ShapeError, "at least 20 draws"),
        ({"exact": False, "at_once": 0}, ShapeError, "at_once 0"),
        ({"exact": False, "tolerance": -1}, ShapeError, "tolerance is -1"),
        ({"exact": False, "truncation": 1}, ShapeError, "truncation is 1"),
        ({"exact": False, "method": "banzhaf", "truncation": 0.1}, ShapeError, "not truncated"),
        ({"utility": lambda masks: np.full(len(masks), np.nan)}, ShapeError, "finite for every"),
        ({"utility": np.sum}, ShapeError, r"shape \(\) for 32"),
        ({"utility": Game(table_of, 4)}, ShapeError, "4 players and n_players is 5"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    given: dict[str, object] = {"utility": table_of, "n_players": 5} | change
    with pytest.raises(error, match=message):
        value(**given)  # type: ignore[arg-type]


def test_games_and_sources_refuse_what_is_not_theirs() -> None:
    game = Game(table_of, 4)
    for masks in (np.ones((2, 3), dtype=bool), np.ones((2, 4)), np.ones(4, dtype=bool)):
        with pytest.raises(ShapeError, match=r"give bool \[B, 4\]"):
            game(masks)
    with pytest.raises(ShapeError, match="no coalition"):
        game(np.ones((0, 4), dtype=bool))
    with pytest.raises(ShapeError, match="one label for each row"):
        Sources([])
    with pytest.raises(ShapeError, match="3 rows and the game has 4"):
        Sources([0, 1, 1]).game(game)
    with pytest.raises(ShapeError, match="rotations"):
        permutation_values(game, np.full(4, 0.25), rotations=0)
    widths = iter((1, 2))
    growing = Game(lambda masks: np.ones((len(masks), next(widths))), 2)
    growing(np.zeros((1, 2), dtype=bool))
    with pytest.raises(ShapeError, match="2 columns after 1"):
        growing(np.ones((1, 2), dtype=bool))
