from types import SimpleNamespace

import numpy as np
import pytest

from attribution.statistics import coverage
from optimize.aim import aimed_subsets
from optimize.averaged import MeanDatamodel
from optimize.bent import LEAST, BentDatamodel, bend
from optimize.surrogate import calibrate
from schemas.errors import ShapeError

N_TRAIN, N_QUERY = 150, 8


class World:
    """Outputs that bend: a sum of effects, saturated, with seed noise and lack of fit."""

    def __init__(self, key: int, *, bends: bool = True) -> None:
        self.rng = np.random.default_rng(key)
        effects = self.rng.standard_normal(N_TRAIN) + 0.3
        effects[:15] -= 4  # a tenth of the rows harms
        self.effects = effects / N_TRAIN
        self.tau = self.effects + 0.4 / N_TRAIN * self.rng.standard_normal((N_QUERY, N_TRAIN))
        self.lack, self.noise, self.bends = 0.03, 0.05, bends

    def truth(self, masks: np.ndarray) -> np.ndarray:
        """Expected mean output [M]: what a line misses grows with its distance."""
        line = 2 * masks @ self.effects
        return 3 * (np.tanh(line) if self.bends else line) + 0.5 * masks.mean(axis=1)

    def outputs(self, masks: np.ndarray, models: int = 1) -> np.ndarray:
        """Mean of some models of each subset, the same error on all queries: [M, n_query]."""
        spread = np.sqrt(self.lack**2 + self.noise**2 / models)
        error = spread * self.rng.standard_normal(len(masks))
        each = 0.2 * np.arange(N_QUERY) - 0.1 * (N_QUERY - 1)
        return (self.truth(masks) + error)[:, None] + each

    def random(self, count: int, share: float) -> np.ndarray:
        order = np.argsort(self.rng.random((count, N_TRAIN)), axis=1)
        return order < round(share * N_TRAIN)

    def bank(self, count: int = 40) -> SimpleNamespace:
        distinct = np.concatenate([self.random(count, 0.5), self.random(count, 0.9)])
        return SimpleNamespace(masks=distinct, outputs=self.outputs(distinct), alpha=None)

    def surrogates(self, aimed: int = 36) -> tuple[MeanDatamodel, BentDatamodel, np.ndarray]:
        """The line, the bent one, and the choices of six sizes."""
        whole = calibrate(self.tau, self.bank())
        found = aimed_subsets(whole, aimed, crossed=False, seed=3)
        rows = SimpleNamespace(masks=found.masks, outputs=self.outputs(found.masks), alpha=None)
        line = whole.averaged()
        rank = np.argsort(np.argsort(-line.weights[0]))
        sizes = np.linspace(0.55, 0.95, 6) * N_TRAIN
        return line, bend(line, rows), rank < sizes[:, None]


def test_a_bent_surrogate_covers_choices_that_a_line_misses() -> None:
    hits: dict[str, list[float]] = {"line": [], "bent": []}
    errors: dict[str, list[float]] = {"line": [], "bent": []}
    for key in range(8):
        world = World(key)
        line, bent, choices = world.surrogates()
        everything = np.ones_like(choices)
        seen = world.outputs(choices, models=10).mean(axis=1, keepdims=True)
        seen = seen - world.outputs(everything[:1], models=10).mean()
        for name, surrogate in (("line", line), ("bent", bent)):
            mean, sd = surrogate.predict_change(everything, choices, seeds=10)
            hits[name].append(coverage(*surrogate.interval(mean, sd), seen))
            errors[name].append(float(np.abs(mean - seen).mean()))
    assert np.mean(hits["bent"]) > 0.85
    assert np.mean(hits["line"]) < 0.6
    assert np.mean(errors["bent"]) < 0.4 * np.mean(errors["line"])


def test_where_outputs_are_linear_bending_does_no_harm() -> None:
    errors: list[tuple[float, float]] = []
    for key in range(4):
        world = World(key, bends=False)
        line, bent, choices = world.surrogates()
        everything = np.ones_like(choices)
        seen = (world.truth(choices) - world.truth(everything))[:, None]
        straight, _ = line.predict_change(everything, choices)
        mean, sd = bent.predict_change(everything, choices)
        errors.append((np.abs(mean - seen).mean(), np.abs(straight - seen).mean()))
        assert coverage(*bent.interval(mean, sd), seen) == 1
    bent_error, line_error = np.mean(errors, axis=0)
    assert bent_error < line_error + 0.02


def test_random_subsets_are_predicted_as_well_as_by_the_line() -> None:
    world = World(1)
    line, bent, _ = world.surrogates()
    fresh = np.concatenate([world.random(60, 0.5), world.random(60, 0.9)])
    seen = world.outputs(fresh).mean(axis=1, keepdims=True)
    mean, sd = bent.predict(fresh)
    assert coverage(*bent.interval(mean, sd), seen) > 0.85
    worse = np.abs(mean - seen).mean() / np.abs(line.predict(fresh)[0] - seen).mean()
    assert worse < 1.05
    np.testing.assert_allclose(bent.expect(fresh), mean)


def test_a_change_is_the_difference_of_two_predictions() -> None:
    _, bent, choices = World(2).surrogates()
    before, after = np.roll(choices, 1, axis=0), choices
    mean, _ = bent.predict_change(before, after)
    np.testing.assert_allclose(mean, bent.expect(after) - bent.expect(before), atol=1e-9)
    back, _ = bent.predict_change(after, before)
    np.testing.assert_allclose(back, -mean, atol=1e-9)
    nothing, sd = bent.predict_change(after, after, seeds=10)
    np.testing.assert_allclose(nothing, 0, atol=1e-12)
    assert (sd > 0).all()


def test_many_pairs_are_predicted_as_each_alone() -> None:
    world = World(3)
    _, bent, _ = world.surrogates()
    before, after = world.random(70, 0.6), world.random(70, 0.8)
    mean, sd = bent.predict_change(before, after, seeds=4)
    for row in (0, 31, 32, 69):
        one, own = bent.predict_change(before[row], after[row], seeds=4)
        np.testing.assert_allclose((one[0, 0], own[0, 0]), (mean[row, 0], sd[row, 0]), rtol=1e-6)


def test_intervals_widen_beyond_what_was_retrained() -> None:
    world = World(4)
    whole = calibrate(world.tau, world.bank())
    line = whole.averaged()
    rank = np.argsort(np.argsort(-line.weights[0]))
    near = np.stack([rank < size for size in (150, 148, 146, 144, 142, 140, 138)])
    rows = SimpleNamespace(masks=near, outputs=world.outputs(near), alpha=None)
    bent = bend(line, rows)
    _, sd = bent.predict(np.stack([rank < 140, rank < 110, rank < 75]))
    assert sd[0] < sd[1] < sd[2]


def test_more_models_a_side_average_seed_noise_and_not_lack_of_fit() -> None:
    world = World(5)
    bank = world.bank()
    twice = SimpleNamespace(
        masks=np.repeat(bank.masks, 2, axis=0),
        outputs=np.repeat(bank.outputs, 2, axis=0)
        + 0.2 * world.rng.standard_normal((2 * len(bank.masks), 1)),
        alpha=None,
    )
    whole = calibrate(world.tau, twice)
    found = aimed_subsets(whole, 24, seed=3)
    rows = SimpleNamespace(masks=found.masks, outputs=world.outputs(found.masks), alpha=None)
    bent = bend(whole.averaged(), rows)
    assert bent.seed_variance == pytest.approx(0.04, rel=0.4)
    pair = found.masks[:1], found.masks[1:2]
    once, many = (bent.predict_change(*pair, seeds=seeds)[1] ** 2 for seeds in (1, 10**6))
    np.testing.assert_allclose(once - many, 2 * bent.seed_variance, rtol=1e-4)
    assert (many >= 2 * bent.lack_of_fit_sd**2).all()


def test_sizes_are_known_even_where_the_bank_has_one() -> None:
    world = World(6)
    half = world.random(60, 0.5)
    bank = SimpleNamespace(masks=half, outputs=world.outputs(half), alpha=None)
    whole = calibrate(world.tau, bank)
    found = aimed_subsets(whole, 36, seed=3)
    rows = SimpleNamespace(masks=found.masks, outputs=world.outputs(found.masks), alpha=None)
    line = whole.averaged()
    rank = np.argsort(np.argsort(-line.weights[0]))
    choice = rank < 130
    assert np.isinf(line.predict_change(np.ones_like(choice), choice)[1])
    bent = bend(line, rows)
    mean, sd = bent.predict_change(np.ones_like(choice), choice)
    seen = world.truth(choice[None]) - world.truth(np.ones((1, N_TRAIN), dtype=bool))
    assert abs(mean[0, 0] - seen[0]) < 3 * sd[0, 0] < 2


def test_aimed_subsets_lean_towards_the_choice_at_all_sizes() -> None:
    world = World(7)
    whole = calibrate(world.tau, world.bank())
    found = aimed_subsets(whole, 36, seed=1)
    sizes = found.masks.sum(axis=1)
    assert sizes.min() >= 75
    assert np.count_nonzero(found.masks.all(axis=1)) >= 6
    assert np.diff(np.sort(sizes[sizes < N_TRAIN])).max() < 15
    centred = whole.averaged().weights[0] - whole.averaged().weights[0].mean()
    usual = (whole.bank.masks @ centred).std()
    lift = found.masks @ centred / usual
    assert (lift[sizes < 0.9 * N_TRAIN] > 2).mean() > 0.8
    again = aimed_subsets(whole, 36, seed=1)
    np.testing.assert_array_equal(again.masks, found.masks)
    assert (aimed_subsets(whole, 36, seed=2).masks != found.masks).any()


def test_a_loss_is_aimed_the_other_way() -> None:
    world = World(8)
    bank = world.bank()
    falls = SimpleNamespace(masks=bank.masks, outputs=-bank.outputs, alpha=None)
    up = aimed_subsets(calibrate(world.tau, bank), 12, seed=1)
    down = aimed_subsets(calibrate(-world.tau, falls), 12, rising=False, seed=1)
    np.testing.assert_array_equal(up.masks, down.masks)


def test_no_half_of_the_queries_sees_what_it_ranked() -> None:
    world = World(9)
    whole = calibrate(world.tau, world.bank())
    found = aimed_subsets(whole, 48, seed=1)
    assert not (found.queries[0] & found.queries[1]).any()
    assert found.queries.any(axis=0).all()
    for half in (0, 1):
        rows = found.unseen_by(half)
        assert found.masks[rows].all(axis=1).sum() == found.masks.all(axis=1).sum()
        others = rows & ~found.masks.all(axis=1)
        assert others.sum() == 10
        assert (found.half[others] == 1 - half).all()


def test_what_cannot_bend_is_refused() -> None:
    world = World(10)
    line = calibrate(world.tau, world.bank()).averaged()
    few = world.random(LEAST - 1, 0.7)
    rows = SimpleNamespace(masks=few, outputs=world.outputs(few), alpha=None)
    with pytest.raises(ShapeError, match=f"{LEAST} or more"):
        bend(line, rows)
    with pytest.raises(ShapeError, match="aimed outputs"):
        bend(line, SimpleNamespace(masks=few, outputs=np.zeros((2, 2)), alpha=None))
    with pytest.raises(ShapeError, match="1 or more"):
        aimed_subsets(line.parent, 0)
    with pytest.raises(ShapeError, match="two"):
        aimed_subsets(line.parent, 10, queries=[0])
    with pytest.raises(ShapeError, match="smallest"):
        aimed_subsets(line.parent, 10, smallest=0.0)
    _, bent, choices = world.surrogates()
    with pytest.raises(ShapeError, match="seeds"):
        bent.predict_change(choices, choices, seeds=0)
