from typing import Any

import numpy as np
import pytest
import torch

from attribution.bank import RetrainBank, draw_masks, train_bank, train_bank_models
from attribution.models import build
from attribution.outputs import evaluate
from attribution.training import Recipe, train_one_reference
from schemas.errors import ShapeError

RNG = np.random.default_rng(1)
N, Q = 40, 6
INPUTS = RNG.normal(size=(N + Q, 5)).astype(np.float32)
LABELS = (INPUTS[:, 0] > 0).astype(np.int64) + (INPUTS[:, 1] > 0)
RECIPE = Recipe(epochs=3, batch_size=8)


def make_bank(models: int = 24, alpha: tuple[float, ...] = (0.5, 0.8), seeds: int = 2) -> Any:
    masks, numbers, shares = draw_masks(N, models, alpha, seeds, seed=3)
    outputs = RNG.normal(size=(models, Q))
    return RetrainBank(masks=masks, outputs=outputs, seeds=numbers, alpha=shares)


def test_masks_have_the_asked_size_and_repeat_with_other_seeds() -> None:
    masks, seeds, alpha = draw_masks(N, 24, [0.5, 0.81], 3, seed=0)
    assert masks.shape == (24, N)
    assert masks.dtype == np.bool_
    np.testing.assert_array_equal(masks.sum(1), np.where(alpha == 0.5, 20, 32))
    assert (alpha == 0.5).sum() == 12
    assert len(np.unique(seeds)) == 24
    np.testing.assert_array_equal(masks[0::3], masks[1::3])
    np.testing.assert_array_equal(masks[0::3], masks[2::3])
    assert len(np.unique(masks, axis=0)) == 8


def test_a_larger_bank_begins_with_the_smaller_one() -> None:
    small, large = (draw_masks(N, models, [0.5, 0.9], 2, seed=4) for models in (12, 40))
    for one, two in zip(small, large, strict=True):
        np.testing.assert_array_equal(one, two[:12])
    other = draw_masks(N, 12, [0.5, 0.9], 2, seed=5)[0]
    assert (other != small[0]).any()


def test_masks_cover_every_row_alike() -> None:
    masks, _, _ = draw_masks(30, 2_000, [0.3], 1, seed=0)
    # s.d. of a mean of 2,000 draws with p = 0.3 is 0.0102.
    assert np.abs(masks.mean(0) - 0.3).max() < 0.045


@pytest.mark.parametrize(
    ("models", "alpha", "repeats"), [(7, [0.5], 2), (8, [0.001], 2), (8, [1.5], 2), (8, [], 2)]
)
def test_impossible_draws_are_refused(models: int, alpha: list[float], repeats: int) -> None:
    with pytest.raises(ShapeError):
        draw_masks(N, models, alpha, repeats, seed=0)


def test_a_split_shares_no_mask_and_keeps_the_mix_of_sizes() -> None:
    bank = make_bank(48)
    one, two = bank.split(0.5, seed=0)
    assert len(one) + len(two) == 48
    assert not {m.tobytes() for m in one.masks} & {m.tobytes() for m in two.masks}
    for part in (one, two):
        assert (part.alpha == 0.5).sum() == (part.alpha == 0.8).sum() == 12
        assert all(len(rows) == 2 for rows in part.distinct())
    again = bank.split(0.5, seed=0)[0]
    np.testing.assert_array_equal(again.masks, one.masks)
    assert (bank.split(0.5, seed=1)[0].masks != one.masks).any()


def test_a_split_without_alpha_keeps_the_mix_of_sizes_too() -> None:
    bank = make_bank(48)
    plain = RetrainBank(masks=bank.masks, outputs=bank.outputs, seeds=bank.seeds)
    one, _ = plain.split(0.25, seed=0)
    assert sorted(np.unique(one.masks.sum(1), return_counts=True)[1]) == [6, 6]


def test_a_split_that_leaves_nothing_is_refused() -> None:
    bank = make_bank(4, (0.5,))
    with pytest.raises(ShapeError, match="leaves one side empty"):
        bank.split(0.05, seed=0)
    with pytest.raises(ShapeError, match="between 0 and 1"):
        bank.split(1.0, seed=0)


def test_distinct_groups_rows_that_share_a_mask() -> None:
    masks = np.eye(3, dtype=bool)[[0, 2, 0, 1, 2]]
    bank = RetrainBank(masks=masks, outputs=np.zeros((5, 1)), seeds=np.arange(5))
    assert [rows.tolist() for rows in bank.distinct()] == [[0, 2], [1, 4], [3]]


def test_a_subset_keeps_rows_together() -> None:
    bank = make_bank()
    part = bank.subset([5, 1])
    np.testing.assert_array_equal(part.outputs, bank.outputs[[5, 1]])
    np.testing.assert_array_equal(part.seeds, bank.seeds[[5, 1]])
    np.testing.assert_array_equal(bank.subset(bank.alpha == 0.8).alpha, 0.8)
    for wrong in ([], [99], np.ones(3, dtype=bool)):
        with pytest.raises(ShapeError):
            bank.subset(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"masks": np.ones((4, N))},
        {"masks": np.ones(N, dtype=bool)},
        {"masks": np.zeros((4, N), dtype=bool)},
        {"outputs": np.zeros((3, Q))},
        {"outputs": np.full((4, Q), np.nan)},
        {"outputs": np.full((4, Q), 1e300)},
        {"seeds": np.arange(3)},
        {"seeds": np.arange(4) / 2},
        {"alpha": np.ones(5)},
        {"kinds": np.array(["a"])},
    ],
)
def test_a_bank_refuses_arrays_that_do_not_fit(wrong: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "masks": np.ones((4, N), dtype=bool),
        "outputs": np.zeros((4, Q)),
        "seeds": np.arange(4),
    }
    RetrainBank(**good)
    with pytest.raises(ShapeError):
        RetrainBank(**good | wrong)


@pytest.mark.parametrize("output", ["margin", "loss"])
def test_a_trained_bank_holds_what_each_model_alone_says(output: str) -> None:
    masks, seeds, alpha = draw_masks(N, 6, [0.5, 0.8], 1, seed=0)
    model = build("mlp", (5,), 3, hidden=[8])
    bank = train_bank(
        model,
        (INPUTS[:N], LABELS[:N]),
        queries=(INPUTS[N:], LABELS[N:]),
        masks=masks,
        seeds=seeds,
        training=RECIPE,
        output=output,
        alpha=alpha,
        device="cpu",
    )
    assert bank.output == output
    assert bank.outputs.dtype == np.float32
    queries, targets = torch.from_numpy(INPUTS[N:]), torch.from_numpy(LABELS[N:])
    for row in range(6):
        state, _ = train_one_reference(
            model,
            (INPUTS[:N], LABELS[:N]),
            mask=masks[row],
            seed=int(seeds[row]),
            training=RECIPE,
        )
        model.load_state_dict(state)
        want = evaluate(output, model(queries), targets).detach().numpy()
        np.testing.assert_allclose(bank.outputs[row], want, rtol=1e-4, atol=1e-5)


def test_a_bank_of_regressions_holds_predictions() -> None:
    masks, seeds, _ = draw_masks(N, 4, [0.5], 2, seed=0)
    numbers = INPUTS[:, :1] * 2
    bank = train_bank(
        build("linear", (5,), 1),
        (INPUTS[:N], numbers[:N]),
        queries=(INPUTS[N:], numbers[N:]),
        masks=masks,
        seeds=seeds,
        training=Recipe(epochs=200, batch_size=20, weight_decay=0.0),
        device="cpu",
    )
    assert bank.output == "prediction"
    np.testing.assert_allclose(bank.outputs, np.repeat(numbers[N:].T, 4, axis=0), atol=0.02)


def test_the_lower_level_keeps_models_and_logits() -> None:
    masks, seeds, _ = draw_masks(N, 4, [0.5], 2, seed=0)
    trained, logits = train_bank_models(
        build("linear", (5,), 3),
        (INPUTS[:N], LABELS[:N]),
        eval_inputs=INPUTS,
        masks=masks,
        seeds=seeds,
        training=RECIPE,
        device="cpu",
    )
    assert logits.shape == (4, N + Q, 3)
    assert logits.dtype == np.float32
    assert trained.losses.shape == (4,)
    assert trained.states["1.weight"].shape == (4, 3, 5)


def test_more_of_a_class_raises_its_margins() -> None:
    """A planted effect: models that saw ten times more of a class favour it."""
    labels = np.repeat([0, 1], N // 2)
    inputs = RNG.normal(size=(N, 5)).astype(np.float32)
    masks = np.ones((8, N), dtype=bool)
    masks[:4, 2 : N // 2] = False
    masks[4:, N // 2 + 2 :] = False
    bank = train_bank(
        build("linear", (5,), 2),
        (inputs, labels),
        queries=(inputs[:4] * 0, np.zeros(4, dtype=np.int64)),
        masks=masks,
        seeds=list(range(8)),
        training=RECIPE,
        device="cpu",
    )
    assert bank.outputs[:4].max() < 0 < bank.outputs[4:].min()
