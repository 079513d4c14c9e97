import itertools

import numpy as np
import pytest
from torch import nn

from attribution.models import build
from attribution.training import Recipe
from optimize.defence.partition import Partition, count_votes, partition, train_votes
from schemas.errors import ShapeError
from tests.attribution.linear_problem import D, K, rows

RECIPE = Recipe(lr=0.1, epochs=3, batch_size=8)


def winner(votes: tuple[int, ...], n_classes: int) -> int:
    counts = [votes.count(c) for c in range(n_classes)]
    return counts.index(max(counts))


def radius_by_enumeration(votes: list[int], n_classes: int, shifts: list[int]) -> int:
    """The largest r such that no r cells, their models voting as they like, change the class."""
    total, own = len(votes), winner(tuple(votes), n_classes)
    for r in range(1, total + 1):
        for cells in itertools.combinations(range(total), r):
            touched = sorted({(cell + shift) % total for cell in cells for shift in shifts})
            for said in itertools.product(range(n_classes), repeat=len(touched)):
                changed = list(votes)
                for model, vote in zip(touched, said, strict=True):
                    changed[model] = vote
                if winner(tuple(changed), n_classes) != own:
                    return r - 1
    return total


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_radius_of_partition_aggregation_is_that_of_brute_force(n_classes: int) -> None:
    every = list(itertools.product(range(n_classes), repeat=5))
    found = count_votes(np.array(every).T, n_classes)
    for votes, own, radius in zip(every, found.classes, found.radii, strict=True):
        assert own == winner(votes, n_classes)
        assert radius == radius_by_enumeration(list(votes), n_classes, [0])


@pytest.mark.parametrize("shifts", [[0, 1], [0, 2], [1, 4]])
def test_the_radius_of_finite_aggregation_never_exceeds_that_of_brute_force(
    shifts: list[int],
) -> None:
    rng = np.random.default_rng(0)
    predictions = rng.choice(3, (6, 40), p=[0.7, 0.2, 0.1])
    found = count_votes(predictions, 3, shifts)
    exact = [radius_by_enumeration(votes.tolist(), 3, shifts) for votes in predictions.T]
    assert (found.radii <= exact).all()
    assert (found.radii == exact).mean() > 0.5


def test_an_even_vote_goes_to_the_lower_class_and_unvoted_classes_are_rivals() -> None:
    found = count_votes(np.array([[0, 1], [1, 1], [0, 1], [1, 1]]), 3)
    assert found.classes.tolist() == [0, 1]
    # 2 : 2 holds by the tie alone; 4 : 0 against class 0 loses the tie after two changed votes.
    assert found.radii.tolist() == [0, 1]


def test_a_row_reaches_as_many_models_as_the_spread_wherever_it_stands() -> None:
    inputs, labels = rows(80, 3)
    for spread in (1, 3):
        dealt = partition((inputs, labels), 4, spread=spread)
        assert dealt.n_models == 4 * spread
        assert (dealt.masks.sum(axis=0) == spread).all()
        order = np.random.default_rng(0).permutation(80)
        again = partition((inputs[order], labels[order]), 4, spread=spread)
        np.testing.assert_array_equal(again.cells, dealt.cells[order])
        np.testing.assert_array_equal(inputs[order][again.order], inputs[dealt.order])
    flipped = partition((inputs, (labels + 1) % K), 4)
    np.testing.assert_array_equal(flipped.cells, partition((inputs, labels), 4).cells)
    hashed = partition((inputs, labels), 4, hash_labels=True)
    assert (hashed.cells != flipped.cells).any()


@pytest.mark.parametrize("spread", [1, 2])
@pytest.mark.parametrize("kind", ["compiled", "alone"])
def test_changed_rows_leave_the_other_models_bit_for_bit_and_the_certified_classes(
    spread: int, kind: str
) -> None:
    """Rows are removed, relabelled and inserted; no certificate may be broken by it."""
    inputs, labels = rows(120, 4)
    queries = rows(40, 5)[0]
    relu, gelu = (
        build("mlp", (D,), K, hidden=[6]),
        build("mlp", (D,), K, hidden=[6], activation="gelu"),
    )
    model: nn.Module = relu if kind == "compiled" else gelu

    def votes(train: tuple) -> tuple[Partition, object]:
        dealt = partition(train, 7, spread=spread)
        return dealt, train_votes(model, train, dealt, queries, RECIPE, n_classes=K, device="cpu")

    dealt, before = votes((inputs, labels))
    rng = np.random.default_rng(1)
    for r in (1, 2):
        gone = rng.choice(120, r, replace=False)
        extra = rng.standard_normal((1, D)).astype(np.float32) * 5
        changed = np.delete(inputs, gone, axis=0), np.delete(labels, gone)
        touched = set(dealt.cells[gone].tolist())
        if r == 2:
            changed = np.concatenate([changed[0], extra]), np.append(changed[1], 0)
            touched.add(int(partition((extra, np.zeros(1, int)), 7, spread=spread).cells[0]))
        reached = {(cell + shift) % dealt.n_models for cell in touched for shift in dealt.shifts}
        _, after = votes(changed)
        others = [number for number in range(dealt.n_models) if number not in reached]
        np.testing.assert_array_equal(after.predictions[others], before.predictions[others])
        safe = before.radii >= len(touched)
        np.testing.assert_array_equal(after.classes[safe], before.classes[safe])


def test_a_model_without_rows_votes_for_the_lowest_class() -> None:
    inputs, labels = rows(6, 6)
    dealt = partition((inputs, labels), 40)
    empty = ~dealt.masks.any(axis=1)
    found = train_votes(
        build("mlp", (D,), K, hidden=[4]),
        (inputs, labels),
        dealt,
        rows(5, 7)[0],
        RECIPE,
        n_classes=K,
    )
    assert empty.sum() >= 34
    assert (found.predictions[empty] == 0).all()


def test_certified_accuracy_falls_from_accuracy_to_nothing() -> None:
    predictions = np.array([[0, 0, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]])
    found = count_votes(predictions, 2)
    curve = found.certified_accuracy([0, 0, 0])
    assert found.classes.tolist() == [0, 0, 1]
    assert found.radii.tolist() == [2, 0, 1]
    np.testing.assert_allclose(curve, [2 / 3, 1 / 3, 1 / 3, 0])


def test_votes_and_partitions_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"classes 0\.\.1"):
        count_votes(np.array([[2]]), 2)
    with pytest.raises(ShapeError, match="1 or more of all"):
        partition(rows(5, 0), 0)
    dealt = partition(rows(5, 0), 2)
    with pytest.raises(ShapeError, match="5 rows were dealt and 4 are given"):
        train_votes(nn.Linear(D, K), rows(4, 0), dealt, rows(2, 1)[0], RECIPE, n_classes=K)
