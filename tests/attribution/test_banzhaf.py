import numpy as np
import pytest
from torch import nn

from attribution import RetrainBank, attribute, train_bank
from attribution.bank import draw_masks
from attribution.streams import stream
from attribution.training import Recipe
from attribution.valuation import banzhaf_values, bernoulli_masks
from attribution.valuation.banzhaf import check_bernoulli
from schemas.errors import ShapeError
from tests.attribution.games import by_definition, random_utility, smooth_utility

N, M = 30, 3


def every_mask(n: int) -> np.ndarray:
    return (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(bool)


def rows(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((n, 2), dtype=np.float32), np.zeros(n, dtype=np.int64)


def from_bank(bank: RetrainBank | None, n: int = N, **options: object) -> np.ndarray:
    net = nn.Linear(2, 2)
    return attribute(
        "banzhaf", net, [net.state_dict()], train=rows(n), queries=rows(M), bank=bank, **options
    )


def test_reused_samples_of_every_coalition_are_the_exact_values() -> None:
    utility, masks = random_utility(7, columns=M), every_mask(7)
    values, errors = banzhaf_values(masks, utility(masks))
    np.testing.assert_allclose(values, by_definition(utility, 7, "banzhaf"), rtol=1e-9, atol=1e-12)
    assert (errors > 0).all()


def test_standard_errors_are_those_of_two_means() -> None:
    masks = bernoulli_masks(N, 200, seed=1)[0]
    outputs = stream(2).standard_normal((200, M)) + 1e4
    values, errors = banzhaf_values(masks, outputs)
    for player in (0, 11):
        sides = outputs[masks[:, player]], outputs[~masks[:, player]]
        means = [side.mean(axis=0) for side in sides]
        variances = [side.var(axis=0, ddof=1) / len(side) for side in sides]
        np.testing.assert_allclose(values[:, player], means[0] - means[1], rtol=1e-7)
        np.testing.assert_allclose(errors[:, player], np.sqrt(sum(variances)), rtol=1e-7)


def test_additive_players_are_found_within_their_errors() -> None:
    worth = stream(3).standard_normal(N)
    distances = []
    for seed in range(40):
        masks = bernoulli_masks(N, 120, seed=seed)[0]
        values, errors = banzhaf_values(masks, (masks @ worth)[:, None])
        distances.append((values[0] - worth) / errors[0])
    z = np.stack(distances)
    assert 0.9 < np.sqrt((z**2).mean()) < 1.1
    assert 0.93 < (np.abs(z) < 2).mean() < 0.97


def test_seeds_of_one_mask_are_averaged_first() -> None:
    masks, seeds, alpha = bernoulli_masks(N, 120, seeds_per_mask=3, seed=4)
    outputs = stream(5).standard_normal((120, M))
    got = banzhaf_values(masks, outputs)
    want = banzhaf_values(masks[::3], outputs.reshape(40, 3, M).mean(axis=1))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    assert len(set(seeds.tolist())) == 120
    assert (alpha == 0.5).all()


def test_masks_hold_each_row_half_of_the_time_and_are_never_empty() -> None:
    masks, seeds, _ = bernoulli_masks(N, 1_000, seed=0)
    assert np.abs(masks.mean(axis=0) - 0.5).max() < 4.5 * 0.5 / np.sqrt(1_000)
    assert 0.8 < masks.sum(axis=1).var() / (N / 4) < 1.2
    more, more_seeds, _ = bernoulli_masks(N, 1_010, seed=0)
    np.testing.assert_array_equal(more[:1_000], masks)
    np.testing.assert_array_equal(more_seeds[:1_000], seeds)
    assert not np.array_equal(bernoulli_masks(N, 1_000, seed=1)[0], masks)
    assert bernoulli_masks(2, 200, seed=0)[0].any(axis=1).all()


@pytest.mark.parametrize("alpha", [[0.5], [0.3, 0.7], [0.9]])
def test_a_bank_of_fixed_sizes_is_refused_for_it_would_be_biased(alpha: list[float]) -> None:
    utility = smooth_utility(N, columns=M)
    masks = draw_masks(N, 100, alpha, 1, seed=0)[0]
    with pytest.raises(ShapeError, match=r"hold .* of 30 rows; drawn with probability 1/2"):
        banzhaf_values(masks, utility(masks))
    with pytest.raises(ShapeError, match="bernoulli_masks"):
        from_bank(RetrainBank(masks=masks, outputs=utility(masks), seeds=np.arange(100)))


def test_masks_that_were_rightly_drawn_are_never_refused() -> None:
    for n in (5, 50, 400):
        for seed in range(30):
            masks = bernoulli_masks(n, 30, seed=seed)[0]
            check_bernoulli(masks)
            check_bernoulli(masks[:2])  # two sizes may well be alike


def test_the_estimator_reads_the_bank_only() -> None:
    utility = smooth_utility(N, columns=M)
    masks = bernoulli_masks(N, 150, seed=7)[0]
    bank = RetrainBank(masks=masks, outputs=utility(masks), seeds=np.arange(150))
    scores = from_bank(bank)
    values, errors = banzhaf_values(masks, bank.outputs)
    np.testing.assert_allclose(scores, values, rtol=1e-5, atol=1e-7)
    assert scores.dtype == np.float32
    assert scores.record["masks"] == 150
    middle = np.median(np.median(errors, axis=1))
    np.testing.assert_allclose(scores.record["standard_error"], middle, rtol=1e-9)
    blocks: list[np.ndarray] = []
    from_bank(bank, out=lambda _, block: blocks.append(block))
    np.testing.assert_array_equal(np.concatenate(blocks), scores)


def test_models_retrained_on_half_of_the_rows_tell_what_rows_are_worth() -> None:
    draw = stream(8)
    inputs = draw.standard_normal((20, 4)).astype(np.float32)
    targets = (inputs[:, 0] > 0).astype(np.int64)
    targets[:4] = 1 - targets[:4]
    queries = draw.standard_normal((40, 4)).astype(np.float32)
    masks, seeds, alpha = bernoulli_masks(20, 300, seed=9)
    bank = train_bank(
        nn.Linear(4, 2),
        (inputs, targets),
        queries=(queries, (queries[:, 0] > 0).astype(np.int64)),
        masks=masks,
        seeds=seeds,
        alpha=alpha,
        training=Recipe(epochs=5, lr=0.2, batch_size=20),
        device="cpu",
    )
    values = banzhaf_values(bank.masks, bank.outputs)[0].mean(axis=0)
    assert values[:4].mean() < 0 < values[4:].mean()


@pytest.mark.parametrize(
    ("masks", "outputs", "message"),
    [
        (np.ones((4, 2)), np.ones((4, 1)), "bool"),
        (np.ones((4, 2), dtype=bool), np.ones((3, 1)), "for 4 masks"),
        (np.ones((4, 2), dtype=bool), np.full((4, 1), np.nan), "finite"),
        (np.array([[True], [False]]), np.ones((2, 1)), "player 0 is in 1 of 2"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    masks: np.ndarray, outputs: np.ndarray, message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        banzhaf_values(masks, outputs)


def test_without_its_bank_the_estimator_says_what_it_needs() -> None:
    with pytest.raises(ShapeError, match="give bank="):
        from_bank(None)
    masks = bernoulli_masks(N, 50, seed=0)[0]
    bank = RetrainBank(masks=masks, outputs=np.ones((50, M)), seeds=np.arange(50))
    with pytest.raises(ShapeError, match="30 rows and 3 queries; asked are 20 and 3"):
        from_bank(bank, n=20)
    with pytest.raises(ShapeError, match="multiple"):
        bernoulli_masks(N, 10, seeds_per_mask=3)
