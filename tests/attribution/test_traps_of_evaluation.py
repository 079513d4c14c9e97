"""Mistakes of evaluation that were really made; the number is the trap's place in the list."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from torch import nn

from attribution.api import Scores
from attribution.evaluate import lds
from attribution.leave_one_out import loo_correlation
from attribution.retraining import Retraining
from attribution.sanity import cluster_scores
from attribution.training import Recipe, train_one_reference
from schemas.errors import RecipeError, ShapeError
from tests.attribution.linear_problem import D, K, M, N, leave_one_out, retraining


def bank_of(
    tau: np.ndarray, masks: int, seeds: int, noise: float, level: np.ndarray | float = 0.0
) -> SimpleNamespace:
    rng = np.random.default_rng(0)
    n = tau.shape[1]
    chosen = np.repeat(np.argsort(rng.random((masks, n)), axis=1) < n // 2, seeds, axis=0)
    outputs = chosen @ tau.T + noise * rng.standard_normal((len(chosen), len(tau))) + level
    return SimpleNamespace(masks=chosen, outputs=outputs, alpha=None, output="margin")


def test_trap_22_lds_is_a_mean_over_queries_and_not_one_flattened_correlation() -> None:
    tau = np.random.default_rng(1).standard_normal((10, 40))
    level = 100.0 * np.arange(10)
    bank = bank_of(0 * tau, 30, 2, noise=1.0, level=level)
    useless = tau + level[:, None]
    sums = bank.masks @ useless.T
    assert stats.spearmanr(sums.ravel(), bank.outputs.ravel()).statistic > 0.9
    each = [stats.spearmanr(sums[::2, q], m).statistic for q, m in enumerate(_means(bank).T)]
    found = lds(useless, bank)
    np.testing.assert_allclose(found.per_query, each, atol=1e-12)
    assert found.interval[0] < 0 < found.interval[1]


def test_trap_22_subset_shares_are_not_mixed_and_outputs_are_not_confused() -> None:
    rng = np.random.default_rng(2)
    few, many = (np.argsort(rng.random((30, 40)), axis=1) < size for size in (10, 30))
    masks = np.concatenate([few, many])
    outputs = 3 * masks.sum(axis=1, keepdims=True) + rng.standard_normal((60, 5))
    bank = SimpleNamespace(masks=masks, outputs=outputs, alpha=None, output="loss")
    ones = 1 + 0.01 * rng.standard_normal((5, 40))
    flattened = stats.spearmanr(masks @ ones[0], outputs[:, 0]).statistic
    assert flattened > 0.6
    assert abs(lds(ones, bank).mean) < 0.2
    with pytest.raises(ShapeError, match="'margin' and the bank holds 'loss'"):
        lds(Scores(ones, {"output": "margin"}), bank)


@pytest.mark.parametrize(("noise", "seeds"), [(2.0, 2), (6.0, 2), (6.0, 5)])
def test_trap_23_a_perfect_attributor_reaches_the_ceiling_and_not_one(
    noise: float, seeds: int
) -> None:
    tau = np.random.default_rng(3).standard_normal((50, 60))
    found = lds(tau, bank_of(tau, 300, seeds, noise), resamples=0)
    assert found.ceiling is not None
    assert found.mean == pytest.approx(found.ceiling, abs=0.02)
    assert found.mean < 0.97


def test_trap_23_queries_share_the_masks_so_more_queries_do_not_narrow_the_interval_alike() -> None:
    rng = np.random.default_rng(4)
    common, own = rng.standard_normal((1, 60)), rng.standard_normal((200, 60))
    tau = common + 0.3 * own
    scores = tau + (rng.standard_normal((1, 60)) + 0.3 * rng.standard_normal((200, 60)))
    bank = bank_of(tau, 40, 2, noise=1.0)
    low, high = lds(scores, bank).interval
    over_queries_only = 2 * 1.96 * lds(scores, bank).per_query.std(ddof=1) / np.sqrt(200)
    assert high - low > 3 * over_queries_only


def test_trap_24_a_trained_model_is_drawn_anew_before_it_is_retrained() -> None:
    problem = retraining(seeds=1, training=Recipe(epochs=2, batch_size=20))
    trained = nn.Linear(D, K, bias=False)
    with np.errstate(all="ignore"):
        nn.init.constant_(trained.weight, 1e6)
    mask = np.arange(N) < N // 2
    ours = retraining(model=trained, seeds=1, training=problem.training).on(mask[None])
    state, _ = train_one_reference(
        problem.model,
        problem.train,
        mask=mask,
        seed=int(ours.bank.seeds[0]),
        training=problem.training,
    )
    want = np.asarray(problem.queries[0]) @ state["weight"].numpy().T
    np.testing.assert_allclose(ours.logits[0, 0], want, atol=1e-4)


def test_trap_25_leave_one_out_of_a_network_is_refused_with_the_reason() -> None:
    net = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, K))
    with pytest.raises(RecipeError, match=r"another seed does.*use lds or removal_curve"):
        loo_correlation(np.zeros((M, N)), retraining(model=net))


def test_trap_30_copies_split_their_credit_and_a_cluster_gets_it_back() -> None:
    """A row planted four times: one copy's removal does little, and clusters say what all do."""
    problem = retraining()
    row = int(np.argmax(np.abs(leave_one_out()).mean(axis=0)))
    inputs, targets = problem.train
    train = np.concatenate([inputs, inputs[[row] * 3]]), np.append(targets, targets[[row] * 3])
    planted = Retraining(
        model=problem.model,
        train=train,
        queries=problem.queries,
        training=Recipe(lr=0.5, momentum=0.9, weight_decay=0.05, epochs=150, batch_size=N + 3),
        seeds=1,
        device="cpu",
    )
    copies = np.array([row, N, N + 1, N + 2])
    effects = loo_correlation(np.zeros((M, N + 3)), planted).effects
    clusters = np.append(np.arange(N), [row] * 3)
    found = planted.on(planted.without([[], [row], copies]))
    whole, one_less, none = found.outputs[:, 0]
    removed_one, removed_all = whole - one_less, whole - none
    np.testing.assert_allclose(effects[:, copies], effects[:, [row] * 4], atol=1e-9)
    assert np.abs(removed_one).mean() < 0.4 * np.abs(removed_all).mean()
    together = cluster_scores(effects, clusters)[:, row]
    error = np.abs(together - removed_all).mean()
    assert error < 0.5 * np.abs(effects[:, row] - removed_all).mean()
    assert np.corrcoef(together, removed_all)[0, 1] > 0.95


def _means(bank: SimpleNamespace) -> np.ndarray:
    return bank.outputs.reshape(-1, 2, bank.outputs.shape[1]).mean(axis=1)
