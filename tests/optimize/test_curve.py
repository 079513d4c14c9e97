from types import SimpleNamespace

import numpy as np
import pytest

from optimize.aim import aimed_subsets
from optimize.bent import bend
from optimize.curve import Family, SizeCurve, best_rows, size_curve, size_grid
from optimize.surrogate import calibrate
from schemas.errors import ShapeError
from tests.optimize.test_bent import N_TRAIN, World


def linear(key: int, harmful: int = 30) -> tuple[np.ndarray, Family]:
    """Effects of which some harm, and their surrogate, which has nothing left to learn."""
    rng = np.random.default_rng(key)
    effects = np.abs(rng.standard_normal(100)) + 0.1
    effects[:harmful] *= -1
    tau = np.stack([effects, 1.3 * effects])
    masks = rng.random((60, 100)) < rng.choice([0.4, 0.8], size=(60, 1))
    bank = SimpleNamespace(masks=masks, outputs=masks @ tau.T, alpha=None)
    return effects, Family(calibrate(tau, bank).averaged(), best_rows(effects))


def test_the_best_size_leaves_out_exactly_what_harms() -> None:
    effects, family = linear(0)
    curve = size_curve([family], range(1, 101))
    assert curve.best_size == 70
    kept = np.sort(effects)[::-1]
    np.testing.assert_allclose(np.diff(curve.output), 1.15 * kept[1:], atol=1e-8)
    np.testing.assert_allclose(curve.change[-1], 0, atol=1e-6)
    np.testing.assert_allclose(curve.change[69, 0], 1.15 * np.abs(effects[:30]).sum())
    np.testing.assert_allclose(curve.lost[:, 0], curve.output[69] - curve.output, atol=1e-8)
    assert (curve.lost[:, 1] <= curve.lost[:, 0] + 1e-9).all()


def test_a_loss_should_fall() -> None:
    effects, family = linear(1)
    flipped = Family(family.surrogate, best_rows(-effects))
    curve = size_curve([flipped], range(10, 101, 5), rising=False)
    assert curve.best_size == 30
    assert (curve.lost[:, 0] >= 0).all()
    assert (curve.lost[:, 1] <= curve.lost[:, 2]).all()


def test_a_curve_tells_whether_any_size_beats_all_rows() -> None:
    _, family = linear(4)
    assert size_curve([family], range(40, 101, 5)).beats_all
    assert not size_curve([family], range(5, 20, 5)).beats_all
    effects, family = linear(5, harmful=0)
    assert not size_curve([family], range(50, 101, 5)).beats_all
    falling = Family(family.surrogate, best_rows(-effects))
    assert size_curve([falling], range(50, 100, 5), rising=False).beats_all


def test_families_are_averaged() -> None:
    first, second = linear(2)[1], linear(3, harmful=20)[1]
    sizes = range(20, 101, 10)
    both = size_curve([first, second], sizes)
    alone = [size_curve([family], sizes) for family in (first, second)]
    np.testing.assert_allclose(both.output, (alone[0].output + alone[1].output) / 2)
    np.testing.assert_allclose(both.change, (alone[0].change + alone[1].change) / 2)


def test_the_crossed_curve_finds_the_best_size_of_a_bent_world() -> None:
    found, best, lost = [], [], []
    for key in range(4):
        world = World(key)
        surrogate = calibrate(world.tau, world.bank())
        aimed = aimed_subsets(surrogate, 48, seed=3)
        seen, families = world.outputs(aimed.masks), []
        for half in (0, 1):
            rows = aimed.unseen_by(1 - half)
            observed = SimpleNamespace(masks=aimed.masks[rows], outputs=seen[rows], alpha=None)
            bent = bend(surrogate.averaged(aimed.queries[1 - half]), observed)
            families.append(Family(bent, best_rows(aimed.utilities[half])))
        curve = size_curve(families, size_grid(75, N_TRAIN), seeds=10)
        choose = best_rows(surrogate.averaged().weights[0])
        truth = world.truth(np.stack([choose(size) for size in curve.sizes.tolist()]))
        found.append(curve.best_size)
        best.append(int(curve.sizes[truth.argmax()]))
        lost.append((truth.max() - truth[curve.best]) / np.ptp(truth))
    assert np.abs(np.subtract(found, best)).mean() < 0.15 * N_TRAIN
    assert np.mean(lost) < 0.1


def test_enough_is_the_smallest_size_that_may_lose_nothing() -> None:
    curve = SizeCurve(
        sizes=np.array([10, 20, 30, 40]),
        output=np.array([1.0, 1.8, 2.0, 1.9]),
        change=np.zeros((4, 3)),
        lost=np.array([[1, 0.5, 1.5], [0.2, -0.1, 0.5], [0, 0, 0], [0.1, 0.05, 0.2]]),
        best=2,
    )
    assert (curve.best_size, curve.enough) == (30, 20)


def test_a_grid_has_both_ends_and_no_size_twice() -> None:
    assert size_grid(5, 9) == [5, 6, 7, 8, 9]
    grid = size_grid(628, 1257)
    assert (grid[0], grid[-1], len(grid)) == (628, 1257, 21)
    with pytest.raises(ShapeError, match="least"):
        size_grid(0, 5)


def test_sizes_must_ascend() -> None:
    _, family = linear(4)
    for sizes in ([], [5, 5], [7, 3]):
        with pytest.raises(ShapeError, match="ascending"):
            size_curve([family], sizes)
    with pytest.raises(ShapeError, match="family"):
        size_curve([], [5])
