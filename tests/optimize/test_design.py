from types import SimpleNamespace

import numpy as np
import pytest

from optimize.design import bought, next_masks
from optimize.posterior import Points, Posterior, gram, gram_diagonal
from optimize.surrogate import calibrate
from schemas.errors import ShapeError

N_TRAIN = 60


def surrogate_and_truth(models: int = 40, sizes: tuple[int, ...] = (30,)):
    rng = np.random.default_rng(0)
    tau = rng.standard_normal((4, N_TRAIN))
    beta = 2 * tau + 1.5 * np.sqrt(np.abs(tau)) * rng.standard_normal(tau.shape)
    order = np.argsort(rng.random((models, N_TRAIN)), axis=1)
    masks = order < np.resize(sizes, models)[:, None]
    outputs = masks @ beta.T + rng.standard_normal((models, 4))
    bank = SimpleNamespace(masks=masks, outputs=outputs, alpha=None)
    return calibrate(tau, bank, rho=1.0), beta


@pytest.mark.parametrize("sizes", [(30,), (20, 40)])
def test_the_promised_variance_is_that_of_a_bank_with_the_new_masks(
    sizes: tuple[int, ...],
) -> None:
    model, _ = surrogate_and_truth(sizes=sizes)
    decision = np.zeros((1, N_TRAIN), dtype=np.int8)
    decision[0, :5], decision[0, 5:10] = 1, -1
    plan = next_masks(model, 3, targets=decision, queries=[2], candidates=40)
    promised = [plan.before, *plan.after]
    diagonal, kappa = model.prior_variances(2), float(model.chosen.kappa[2])
    tau = model.tau[2]
    for trained, want in enumerate(promised):
        masks = np.concatenate([model.subsets.points.rows, plan.masks[:trained]])
        bank = Points(masks, masks.mean(axis=0))
        size = masks.sum(axis=1, keepdims=True).astype(float)
        shared = (
            [np.ones_like(size), size - size.mean()] if len(sizes) > 1 else [np.ones_like(size)]
        )
        columns = np.column_stack([*shared, bank.dot(tau[:, None])])
        moved = Points(decision, None)
        own = [0.0] * len(shared) + [float(decision[0] @ tau)]
        posterior = Posterior.of(gram(bank, bank, diagonal), np.ones(len(masks)), columns, kappa)
        explained, added = posterior.parts(gram(bank, moved, diagonal), np.array([own]))
        free = kappa * gram_diagonal(moved, diagonal)[0]
        assert want == pytest.approx(free - (explained**2).sum() + (added**2).sum(), rel=1e-6)


def test_chosen_masks_promise_more_than_random_ones_and_keep_the_promise() -> None:
    model, beta = surrogate_and_truth()
    decision = np.zeros((1, N_TRAIN), dtype=np.int8)
    worst = np.argsort(model.tau.mean(axis=0))
    decision[0, worst[-8:]], decision[0, worst[:8]] = 1, -1
    plan = next_masks(model, 10, targets=decision, seed=1)
    assert (np.diff(plan.after) < 0).all()
    assert plan.before - plan.after[-1] > 1.5 * (plan.before - plan.random[-1])
    rng = np.random.default_rng(2)
    rows = np.concatenate([model.bank.masks, plan.masks])
    outputs = np.concatenate(
        [model.bank.outputs, plan.masks @ beta.T + rng.standard_normal((10, 4))]
    )
    larger = SimpleNamespace(masks=rows, outputs=outputs, alpha=None)
    found = bought(model, calibrate(model.tau, larger, rho=1.0), decision)
    assert found.sd[1] < found.sd[0]
    assert found.error[0] == pytest.approx(model.error.mean())


def test_the_seed_names_the_choice_and_masks_have_the_banks_sizes() -> None:
    model, _ = surrogate_and_truth(sizes=(20, 40))
    one, same, other = (next_masks(model, 4, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.masks, same.masks)
    assert not np.array_equal(one.masks, other.masks)
    assert set(one.masks.sum(axis=1)) <= {20, 40}
    assert len(np.unique(one.masks, axis=0)) == 4


def test_what_cannot_be_planned_is_refused() -> None:
    model, _ = surrogate_and_truth()
    with pytest.raises(ShapeError, match="9 subsets are wanted of 8"):
        next_masks(model, 9, candidates=8)
    with pytest.raises(ShapeError, match="subsets of 30 rows only"):
        next_masks(model, 1, targets=np.ones((1, N_TRAIN), dtype=bool))
    with pytest.raises(ShapeError, match="give bool"):
        next_masks(model, 1, targets=np.ones((1, 3)))
