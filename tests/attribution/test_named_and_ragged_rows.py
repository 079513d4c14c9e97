"""Training on mappings of inputs and on Datasets: the same models as from plain arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attribution import attribute, lds
from attribution.bank import draw_masks, train_bank
from attribution.models import build
from attribution.outputs import UNASKED
from attribution.removal import removal_curve
from attribution.retraining import Retraining
from attribution.rows import Rows
from attribution.streams import stream
from attribution.training import Recipe, TrainingPath, train_models, train_one_reference
from attribution.training.weighted import WeightedRun
from schemas.errors import RecipeError, ShapeError

RECIPE = Recipe(lr=0.05, momentum=0.9, weight_decay=0.01, epochs=10, batch_size=16)
N, M = 90, 12
NOISE = stream(21).standard_normal((N + M, 8)).astype(np.float32)
LABELS = (NOISE[:, 0] + NOISE[:, 4] + 0.5 * NOISE[:, 1] > 0).astype(np.int64)
MASKS = stream(22).random((5, N)) < 0.7
SEEDS = (3, 1, 4, 1, 5)


class Towers(nn.Module):
    """Two inputs by keyword, a layer for each, and a head on both."""

    def __init__(self, *, drop: float = 0.0) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 12), nn.Linear(3, 12)
        self.drop, self.head = nn.Dropout(drop), nn.Linear(12, 2)
        if not drop:
            self.drop = nn.Identity()

    def forward(self, *, left: Tensor, right: Tensor) -> Tensor:
        return self.head(self.drop(torch.tanh(self.left(left) + self.right(right))))


class Items:
    """A map-style data set of what a list holds."""

    def __init__(self, items: list[tuple[Any, Any]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        return self.items[row]


def named(values: np.ndarray) -> dict[str, np.ndarray]:
    return {"left": values[:, :5], "right": values[:, 5:]}


TRAIN, QUERIES = (named(NOISE[:N]), LABELS[:N]), (named(NOISE[N:]), LABELS[N:])


def items_of(data: tuple[dict[str, np.ndarray], np.ndarray]) -> Items:
    inputs, labels = data
    return Items(
        [
            ({name: values[row] for name, values in inputs.items()}, int(label))
            for row, label in enumerate(labels)
        ]
    )


@pytest.mark.parametrize(("drop", "path"), [(0.0, TrainingPath.VMAP), (0.3, TrainingPath.LOOP)])
def test_many_models_of_named_inputs_equal_each_trained_alone(
    drop: float, path: TrainingPath
) -> None:
    def model() -> nn.Module:
        return Towers(drop=drop)

    found = train_models(model, TRAIN, masks=MASKS, seeds=SEEDS, training=RECIPE)
    assert found.path is path
    for place, (mask, seed) in enumerate(zip(MASKS, SEEDS, strict=True)):
        want, losses = train_one_reference(model, TRAIN, mask=mask, seed=seed, training=RECIPE)
        for name, value in found.state(place).items():
            torch.testing.assert_close(value, want[name], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.history[place], losses, rtol=1e-4)


def test_a_dataset_of_mappings_trains_the_same_models() -> None:
    options: dict[str, Any] = {"masks": MASKS, "seeds": SEEDS, "training": RECIPE}
    want = train_models(Towers, TRAIN, **options)
    got = train_models(Towers, items_of(TRAIN), **options)
    for name, value in want.states.items():
        torch.testing.assert_close(got.states[name], value, rtol=0, atol=0)


def test_a_differentiated_run_of_named_inputs_ends_where_training_does() -> None:
    seed = SEEDS[0]
    run = WeightedRun(Towers, items_of(TRAIN), training=RECIPE, seed=seed, mask=MASKS[0])
    want, _ = train_one_reference(Towers, TRAIN, mask=MASKS[0], seed=seed, training=RECIPE)
    for name, value in run.named(run.end().params).items():
        torch.testing.assert_close(value.detach(), want[name], rtol=1e-4, atol=1e-5)


def test_metagradients_of_named_inputs_are_those_of_a_run_with_other_weights() -> None:
    small = Recipe(lr=0.05, momentum=0.9, epochs=2, batch_size=30)
    options: dict[str, Any] = {"training": small, "dtype": torch.float64}
    asked = (named(NOISE[N : N + 1]), LABELS[N : N + 1])
    scores = attribute(
        "metagradient", Towers(), None, train=items_of(TRAIN), queries=asked, seed=7, **options
    )

    def margin(row: int, step: float) -> float:
        weights = np.ones(N)
        weights[row] += step
        run = WeightedRun(Towers, TRAIN, seed=7, weights=weights, **options)
        inputs = {name: torch.from_numpy(values).double() for name, values in asked[0].items()}
        logits = run.logits(run.end().params, inputs)[0]
        own = int(asked[1][0])
        return float(logits[own] - logits[1 - own])

    for row in (0, 17, 60):
        want = (margin(row, 1e-5) - margin(row, -1e-5)) / 2e-5
        assert scores[0, row] == pytest.approx(want, rel=1e-4, abs=1e-7)


def test_texts_of_several_lengths_train_as_if_padded_by_hand() -> None:
    lengths = stream(23).integers(1, 9, N)
    texts = [stream(24, row).integers(1, 30, length) for row, length in enumerate(lengths)]
    padded = np.zeros((N, lengths.max()), dtype=np.int64)
    for row, text in enumerate(texts):
        padded[row, : len(text)] = text
    labels = np.array([int(text.mean() > 15) for text in texts])
    ragged = Items([(text.tolist(), label) for text, label in zip(texts, labels, strict=True)])
    model = build("bag", (int(lengths.max()),), 2, vocabulary=30, width=6, hidden=[5])
    options: dict[str, Any] = {"masks": MASKS, "seeds": SEEDS, "training": RECIPE}
    want = train_models(model, (padded, labels), **options)
    got = train_models(model, ragged, **options)
    for name, value in want.states.items():
        torch.testing.assert_close(got.states[name], value, rtol=0, atol=0)
    # Features pad each batch to its own longest text: a model that skips padding cannot tell.
    states = [want.state(0)]
    scores = [
        attribute("gradcos", model, states, train=train, queries=train, batch_size=size)
        for train, size in (((padded, labels), 90), (ragged, 7))
    ]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-3, atol=1e-5)


def test_documents_of_several_lengths_ask_for_no_token_after_their_end() -> None:
    documents = Items([([4, 2, 7], [2, 7, 1]), ([5], [3]), ([6, 6], [6, 2])])
    inputs, targets = Rows(documents, "train").whole()
    assert inputs.tolist() == [[4, 2, 7], [5, 0, 0], [6, 6, 0]]
    assert targets.tolist() == [[2, 7, 1], [3, UNASKED, UNASKED], [6, 2, UNASKED]]
    assert [value.tolist() for value in Rows(documents, "train").batch(1, 2)] == [[[5]], [[3]]]


def test_a_bank_trak_and_lds_agree_on_a_model_of_two_inputs() -> None:
    train, queries = items_of(TRAIN), items_of(QUERIES)
    masks, seeds, alpha = draw_masks(N, 120, [0.5], 2, 0)
    options: dict[str, Any] = {"seeds": seeds, "training": RECIPE, "alpha": alpha}
    bank = train_bank(Towers, train, queries=queries, masks=masks, **options)
    tune, judge = bank.split(0.3, seed=0)
    whole = np.ones((5, N), dtype=bool)
    trained = train_models(Towers, train, masks=whole, seeds=range(5), training=RECIPE)
    states = [trained.state(number) for number in range(5)]
    scores = attribute("trak", Towers(), states, train=train, queries=queries, bank=tune)
    found = lds(scores, judge)
    assert found.interval[0] > 0.3
    # What LDS says of many subsets, removal shows of a few rows.
    retraining = Retraining(model=Towers, train=train, queries=queries, training=RECIPE)
    curve = removal_curve(scores, retraining, sizes=[8])
    assert curve.helpful[0].interval[1] < 0 < curve.harmful[0].interval[0]


def test_a_folder_knows_retrainings_by_all_their_inputs(tmp_path: Path) -> None:
    options: dict[str, Any] = {"masks": MASKS, "seeds": SEEDS, "training": RECIPE}
    want = train_bank(Towers, TRAIN, queries=QUERIES, **options)
    for train in (TRAIN, items_of(TRAIN)):
        got = train_bank(Towers, train, queries=QUERIES, folder=tmp_path, **options)
        np.testing.assert_allclose(got.outputs, want.outputs, rtol=1e-4, atol=1e-5)
    assert len(list(tmp_path.iterdir())) == len({int(mask.sum()) for mask in MASKS})
    changed = {**TRAIN[0], "right": TRAIN[0]["right"] + 1}
    other = train_bank(Towers, (changed, TRAIN[1]), queries=QUERIES, folder=tmp_path, **options)
    assert not np.allclose(other.outputs, want.outputs)


def test_rows_that_cannot_be_put_together_are_refused() -> None:
    options: dict[str, Any] = {"masks": MASKS[:1, :2], "seeds": [0], "training": RECIPE}
    uneven = Items([(np.ones(3, dtype=np.float32), 0), (np.ones(4, dtype=np.float32), 1)])
    with pytest.raises(ShapeError, match=r"rows 0 and 1 have shapes \(3,\) and \(4,\)"):
        train_models(build("linear", (3,), 2), uneven, **options)
    with pytest.raises(ShapeError, match="differ in length"):
        train_models(Towers, ({"left": NOISE[:2], "right": NOISE[:3]}, LABELS[:2]), **options)
    with pytest.raises(RecipeError, match=r"left of shape \(5,\).*middle"):
        train_models(
            Towers, ({"left": NOISE[:2, :5], "middle": NOISE[:2, 5:]}, LABELS[:2]), **options
        )
