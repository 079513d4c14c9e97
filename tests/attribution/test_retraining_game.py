import numpy as np
import pytest
import torch
from torch import nn

from attribution.models import mlp
from attribution.outputs import evaluate
from attribution.streams import Purpose, stream
from attribution.training import Recipe, train_models, train_one_reference
from attribution.valuation import Game, Sources, correct, retraining_game, value
from schemas.errors import ShapeError
from tests.attribution.games import by_definition

N, M, D = 5, 3, 2
RECIPE = Recipe(epochs=4, lr=0.3, batch_size=2)


def data(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = stream(seed)
    return draw.standard_normal((n, D)).astype(np.float32), draw.integers(0, 2, n)


TRAIN, QUERIES = data(N, 1), data(M, 2)


def model() -> nn.Module:
    return nn.Linear(D, 2)


def game(**options: object) -> Game:
    given = {"queries": QUERIES, "training": RECIPE, "device": "cpu"} | options
    return retraining_game(model(), TRAIN, **given)  # type: ignore[arg-type]


def training_seed(seed: int, repeat: int) -> int:
    return int(stream(seed, Purpose.SEEDS, repeat).integers(2**62))


def by_hand(masks: np.ndarray, seed: int) -> np.ndarray:
    """Margins of models that the plain loop trains one after the other."""
    found = []
    for mask in masks:
        if mask.any():
            state, _ = train_one_reference(model(), TRAIN, mask=mask, seed=seed, training=RECIPE)
        else:
            # What a training starts from: the snapshot before the first epoch.
            started = train_models(
                model(),
                TRAIN,
                masks=np.ones((1, N), dtype=bool),
                seeds=[seed],
                training=RECIPE,
                snapshot_epochs=[0],
                device="cpu",
            )
            state = {name: values[0] for name, values in started.snapshots[0].items()}
        net = model()
        net.load_state_dict(state)
        with torch.no_grad():
            logits = net(torch.from_numpy(QUERIES[0]))
        found.append(evaluate("margin", logits, torch.from_numpy(QUERIES[1])).numpy())
    return np.stack(found)


def test_values_of_retraining_are_those_of_models_trained_one_by_one() -> None:
    seed = training_seed(3, 0)
    found = value(game(seed=3), N)
    alone = Game(lambda masks: by_hand(masks, seed), N)  # trains each of the 32 once
    want = by_definition(alone, N, "shapley")
    np.testing.assert_allclose(found.values, want, rtol=1e-4, atol=1e-5)
    assert found.values.shape == (M, N)
    assert found.n_evaluations == 2**N


def test_no_data_is_the_untrained_model() -> None:
    nobody = np.zeros((1, N), dtype=bool)
    np.testing.assert_allclose(
        game(seed=4)(nobody), by_hand(nobody, training_seed(4, 0)), rtol=1e-5
    )
    deep = retraining_game(
        mlp((D,), 2, hidden=[4]), TRAIN, queries=QUERIES, training=RECIPE, device="cpu"
    )
    assert np.isfinite(deep(nobody)).all()


def test_seeds_are_averaged_and_rows_never_trained_twice() -> None:
    masks = stream(5).integers(2, size=(6, N)).astype(bool)
    several = game(seeds=3, seed=6)
    each = [by_hand(masks, training_seed(6, repeat)) for repeat in range(3)]
    np.testing.assert_allclose(several(masks), np.mean(each, axis=0), rtol=1e-4, atol=1e-5)
    before = several.n_evaluations
    np.testing.assert_array_equal(several(masks[::-1]), several(masks)[::-1])
    assert several.n_evaluations == before == len(np.unique(masks, axis=0))


def test_a_weighted_sum_of_queries_has_the_weighted_values() -> None:
    weights = np.array([0.5, 0.25, -1.0])
    one, all_of_them = value(game(aggregate=weights), N), value(game(), N)
    np.testing.assert_allclose(one.values, weights @ all_of_them.values, atol=1e-6)
    assert one.values.shape == (N,)


def test_accuracy_is_an_output_and_sources_are_players() -> None:
    accuracy = game(output=correct, aggregate=np.full(M, 1 / M))
    everyone = np.ones((1, N), dtype=bool)
    assert (accuracy(everyone) * M) % 1 == pytest.approx(0, abs=1e-6)
    vendors = Sources(["a", "b", "a", "b", "c"])
    worth = value(vendors.game(accuracy), len(vendors))
    nobody = float(accuracy(~everyone)[0])
    assert worth.values.sum() == pytest.approx(float(accuracy(everyone)[0]) - nobody, abs=1e-6)
    assert worth.n_evaluations == 8


def test_regressions_are_valued_by_their_predictions() -> None:
    numbers = TRAIN[1].astype(np.float32)
    line = retraining_game(
        nn.Linear(D, 1),
        (TRAIN[0], numbers),
        queries=(QUERIES[0], np.zeros((M, 1), dtype=np.float32)),
        training=Recipe(epochs=2, lr=0.1, batch_size=5),
        output="squared_error",
        device="cpu",
    )
    found = value(line, N, exact=False, draws=80)
    assert found.values.shape == (M, N)
    assert np.isfinite(found.standard_errors).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "at least one model"),
        ({"aggregate": np.ones(2)}, "one weight for each of 3"),
        ({"queries": (QUERIES[0], QUERIES[1][:2])}, "3 inputs and 2 targets"),
        ({"output": "accuracy"}, "unknown output"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        game(**change)
