import numpy as np
import pytest
from scipy.stats import binom
from sklearn.neighbors import KNeighborsClassifier

from optimize.defence.arrivals import mutual_support, neighbourhood, standing
from schemas.errors import ShapeError


def place_by_hand(trusted: np.ndarray, incoming: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    places = []
    for row in range(incoming.shape[1]):
        above, compared = 0, 0
        for other in range(trusted.shape[1]):
            models = np.flatnonzero(left_out[:, other])
            if len(models):
                compared += 1
                above += trusted[models, other].mean() >= incoming[models, row].mean()
        places.append((1 + above) / (1 + compared))
    return np.array(places)


def test_a_place_is_what_counting_model_by_model_says() -> None:
    rng = np.random.default_rng(0)
    trusted, incoming = rng.standard_normal((6, 40)), rng.standard_normal((6, 9))
    left_out = rng.random((6, 40)) < 0.5
    left_out[:, 3] = False
    trusted[~left_out] = np.nan  # what a model trained on is never read
    found = standing(trusted, incoming, left_out)
    np.testing.assert_allclose(found.places, place_by_hand(trusted, incoming, left_out))
    assert found.n_trusted == np.count_nonzero(left_out.any(axis=0)) < 40
    np.testing.assert_allclose(found.values, incoming.mean(axis=0))


def regressions(rng: np.random.Generator, n: int, new: int) -> tuple[np.ndarray, ...]:
    """Squared errors of least squares on halves of n rows: 12 models of 10 features each."""
    inputs, targets = rng.standard_normal((n + new, 10)), rng.standard_normal(n + new)
    left_out = np.array([rng.permutation(n) < n // 2 for _ in range(12)])
    errors = np.empty((12, n + new))
    for model, out in enumerate(left_out):
        own = np.flatnonzero(~out)
        fit = np.linalg.lstsq(inputs[own], targets[own])[0]
        errors[model] = (inputs @ fit - targets) ** 2
    return errors[:, :n], errors[:, n:], left_out


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.2])
def test_of_good_rows_the_declared_share_is_held_up(rate: float) -> None:
    """Each new row counts once: over data sets that are drawn anew the draws are independent."""
    rng = np.random.default_rng(1)
    held, naive = 0, 0
    for _ in range(1_500):
        trusted, incoming, left_out = regressions(rng, 60, 1)
        held += standing(trusted, incoming, left_out).places[0] <= rate
        naive += standing(trusted, incoming).places[0] <= rate
    expected = np.floor(rate * 61) / 61  # places are multiples of 1/61
    low, high = binom.ppf([0.0005, 0.9995], 1_500, expected)
    assert low <= held <= high
    # With 3 rows for each feature a model of them flatters its own rows; such thresholds hold
    # up good rows more often than declared.
    assert naive > high


def test_a_row_that_no_trusted_row_equals_has_the_lowest_place_there_is() -> None:
    found = standing(np.arange(99.0), np.array([1_000.0, -1.0, 98.0]))
    np.testing.assert_allclose(found.places, [0.01, 1.0, 0.02])


@pytest.mark.parametrize(
    ("trusted", "incoming", "left_out", "message"),
    [
        (np.ones((2, 3)), np.ones((3, 1)), None, "one row of each for every model"),
        (np.ones((1, 2)), np.ones((1, 1)), np.zeros((1, 2), bool), "every trusted row"),
        (np.array([[np.nan, 1.0]]), np.ones((1, 1)), None, "NaN"),
    ],
)
def test_what_cannot_be_placed_is_refused(
    trusted: np.ndarray, incoming: np.ndarray, left_out: np.ndarray | None, message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        standing(trusted, incoming, left_out)


def test_neighbours_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    known, labels = rng.standard_normal((80, 3)), rng.integers(0, 3, 80)
    new, claimed = rng.standard_normal((20, 3)), rng.integers(0, 3, 20)
    found = neighbourhood(known, labels, new, claimed, k=7)
    theirs = KNeighborsClassifier(7).fit(known, labels)
    np.testing.assert_array_equal(found.nearest, theirs.kneighbors(new)[1])
    other = 1 - theirs.predict_proba(new)[np.arange(20), claimed]
    assert (found.suspicion >= other - 1e-12).all()
    assert (found.suspicion < other + 1 / 7).all()


def test_a_trusted_row_is_no_neighbour_of_itself() -> None:
    rng = np.random.default_rng(3)
    known, labels = rng.standard_normal((30, 2)), rng.integers(0, 2, 30)
    found = neighbourhood(known, labels, k=4)
    assert (found.nearest != np.arange(30)[:, None]).all()
    one_out = [
        neighbourhood(
            np.delete(known, row, 0), np.delete(labels, row), known[[row]], labels[[row]], k=4
        ).suspicion[0]
        for row in range(30)
    ]
    np.testing.assert_allclose(found.suspicion, one_out)


def test_mutual_support_is_that_of_a_loop_within_each_group() -> None:
    rng = np.random.default_rng(4)
    left, right = rng.standard_normal((2, 10, 3))
    (found,) = [mutual_support(left, right, size=10, top=3)]
    effects = left @ right.T
    for row in range(10):
        pairs = [(effects[row, x] + effects[x, row]) / 2 for x in range(10) if x != row]
        assert found[row] == pytest.approx(np.mean(sorted(pairs)[-3:]))


def test_groups_of_one_size_keep_the_level_whatever_the_number_of_rows() -> None:
    """The mean of the largest of many effects grows with their number, by groups it does not."""
    rng = np.random.default_rng(5)
    many = rng.standard_normal((1_010, 20))
    few = rng.standard_normal((50, 20))
    by_groups = [mutual_support(rows, rows, size=50).mean() for rows in (many, few)]
    assert by_groups[0] == pytest.approx(by_groups[1], rel=0.1)
    assert mutual_support(many, many, size=1_010).mean() > 1.3 * by_groups[0]


def test_rows_that_share_a_direction_support_each_other() -> None:
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((200, 40))
    rows[:10] += 4 * rng.standard_normal(40) / np.sqrt(40) * np.sqrt(10)
    found = mutual_support(rows, rows, size=200)
    assert set(np.argsort(-found)[:10]) == set(range(10))
