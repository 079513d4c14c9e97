import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attribution.models import build, fresh
from attribution.training import (
    Recipe,
    TrainedModels,
    TrainingState,
    epoch_order,
    load_state,
    predict,
    save_state,
    train_models,
    train_one_reference,
)
from schemas.errors import (
    CheckpointError,
    DataError,
    RecipeError,
    ShapeError,
    TrainingDiverged,
)

N = 60
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(N, 3, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, N)
NUMBERS = RNG.normal(size=N).astype(np.float32)
SIZES = (30, 41, 7, 60, 22)
SEEDS = (11, 12, 13, 14, 2**40)
MASKS = np.zeros((len(SIZES), N), dtype=bool)
for _row, _size in enumerate(SIZES):
    MASKS[_row, RNG.permutation(N)[:_size]] = True

SHORT = Recipe(epochs=3, batch_size=8)
RECIPES = {
    "heavy ball": SHORT,
    "plain sgd, step": Recipe(epochs=3, batch_size=8, momentum=0.0, schedule="step"),
    "nesterov, cosine, warmup": Recipe(
        epochs=3, batch_size=8, nesterov=True, schedule="cosine", warmup=1.0
    ),
    "adamw, linear": Recipe(
        optimizer="adamw", lr=0.01, epochs=3, batch_size=8, schedule="linear", weight_decay=0.1
    ),
    "no decay, linear": Recipe(epochs=2, batch_size=16, weight_decay=0.0, schedule="linear"),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    # These models are tiny: a second thread only waits, for long where the cores are busy.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)),
        nn.Conv2d(1, 4, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.LayerNorm(24),
        nn.Linear(24, 3),
    )


def noisy() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(12, 8),
        nn.BatchNorm1d(8),
        nn.Dropout(0.2),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)
    )


def no_bias() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(12, 6, bias=False),
        nn.Identity(),
        nn.Sequential(nn.GELU(approximate="tanh"), nn.Linear(6, 3, bias=False)),
    )


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)),
        nn.Conv2d(1, 5, 3, padding=1),
        nn.MaxPool2d((1, 2)),
        nn.ReLU(),
        nn.Conv2d(5, 4, (2, 1), padding=(1, 0), bias=False),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 7),
        nn.ReLU(),
        nn.Linear(7, 3),
    )


def averaged() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)),
        nn.Conv2d(1, 5, 2, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(5, 4, 2, padding=1),
        nn.ReLU(),
        nn.AvgPool2d((3, 1)),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


def strided() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)),
        nn.Conv2d(1, 20, 2, padding=1, stride=(1, 2)),
        nn.ReLU(),
        nn.Conv2d(20, 6, (3, 2), stride=(2, 1), padding=(2, 0)),
        nn.Conv2d(6, 4, 1),
        nn.Flatten(),
        nn.Linear(24, 1),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "linear": (lambda: build("linear", (3, 4), 3), "compiled"),
    "relu": (lambda: build("mlp", (3, 4), 3, hidden=[8, 5]), "compiled"),
    "gelu": (lambda: build("mlp", (3, 4), 3, hidden=[8], activation="gelu"), "stacked"),
    "silu": (lambda: build("mlp", (3, 4), 3, hidden=[8], activation="silu"), "stacked"),
    "tanh": (lambda: build("mlp", (3, 4), 3, hidden=[8], activation="tanh"), "compiled"),
    "no bias": (no_bias, "stacked"),
    "regression": (lambda: build("mlp", (3, 4), 1, hidden=[8]), "compiled"),
    "pooled": (pooled, "compiled"),
    "averaged": (averaged, "compiled"),
    "strided regression": (strided, "compiled"),
    "layer norm": (normed, "vmap"),
    "convolution": (conv, "loop"),
    "batch norm and dropout": (noisy, "loop"),
}


def targets_of(name: str) -> np.ndarray[Any, Any]:
    return NUMBERS if "regression" in name else LABELS


def train(model: Any, targets: np.ndarray[Any, Any] = LABELS, **options: Any) -> TrainedModels:
    given = {"masks": MASKS, "seeds": SEEDS, "training": SHORT, "device": "cpu"} | options
    return train_models(model, (INPUTS, targets), **given)


def assert_equals_reference(
    got: TrainedModels, model: nn.Module, targets: Any, recipe: Recipe, rows: list[int]
) -> None:
    for place, row in enumerate(rows):
        state, losses = train_one_reference(
            model,
            (INPUTS, targets),
            mask=MASKS[row],
            seed=SEEDS[row],
            training=recipe,
            dtype=torch.float64,
        )
        assert state.keys() == got.states.keys()
        for name, value in state.items():
            torch.testing.assert_close(got.states[name][place], value, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(got.history[place], losses, rtol=1e-9)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", RECIPES)
def test_each_model_of_a_stack_equals_the_model_trained_alone(name: str, kind: str) -> None:
    make, path = MODELS[name]
    # Batch norm needs two rows in every batch, also in the last one.
    rows = [0, 3] if path == "loop" else list(range(len(SIZES)))
    if path in ("vmap", "loop") and kind == "no decay, linear":
        rows = rows[:2]
    model, recipe = make(), RECIPES[kind]
    got = train(
        model,
        targets_of(name),
        masks=MASKS[rows],
        seeds=[SEEDS[row] for row in rows],
        training=recipe,
        dtype=torch.float64,
    )
    assert got.path == path
    assert_equals_reference(got, model, targets_of(name), recipe, rows)


def test_float32_stays_close_to_float64() -> None:
    model = build("mlp", (3, 4), 3, hidden=[8, 5])
    narrow, wide = train(model), train(model, dtype=torch.float64)
    for name, value in wide.states.items():
        torch.testing.assert_close(narrow.states[name].double(), value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["relu", "gelu", "pooled", "layer norm", "convolution", "batch norm and dropout"]
)
def test_how_the_stack_is_cut_changes_nothing(name: str) -> None:
    make, path = MODELS[name]
    rows = [0, 3] if path == "loop" else list(range(len(SIZES)))
    options = {"masks": MASKS[rows], "seeds": [SEEDS[row] for row in rows]}
    model = make()
    whole = train(model, dtype=torch.float64, **options)
    cut = train(model, dtype=torch.float64, memory=1, **options)
    for key, value in whole.states.items():
        torch.testing.assert_close(cut.states[key], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch_size", [8, 50])
def test_subsets_of_one_size_give_the_same_bits_in_any_company(batch_size: int) -> None:
    model = build("mlp", (3, 4), 3, hidden=[128, 16])
    masks = np.stack([np.roll(MASKS[0], shift) for shift in range(7)])
    options: dict[str, Any] = {"training": Recipe(epochs=3, batch_size=batch_size)}
    together = train(model, masks=masks, seeds=range(7), **options)
    cut = train(model, masks=masks, seeds=range(7), memory=1, **options)
    for row in (0, 3, 6):
        alone = train(model, masks=masks[[row]], seeds=[row], **options)
        for name, value in together.states.items():
            assert torch.equal(alone.states[name][0], value[row])
            assert torch.equal(cut.states[name], value)


@pytest.mark.parametrize(
    "name", ["relu", "gelu", "pooled", "layer norm", "convolution", "batch norm and dropout"]
)
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(name: str) -> None:
    model = MODELS[name][0]()
    rows = {"masks": MASKS[[0, 0, 3]]}
    one, two = (train(model, seeds=(5, 6, 5), **rows) for _ in range(2))
    for key, value in one.states.items():
        assert torch.equal(two.states[key], value)
    last = next(key for key in reversed(one.states) if key.endswith("weight"))
    assert not torch.equal(one.states[last][0], one.states[last][1])


def test_a_seed_does_not_depend_on_the_callers_generator() -> None:
    torch.manual_seed(1)
    one = train(noisy(), masks=MASKS[[0]], seeds=[5])
    torch.manual_seed(2)
    two = train(noisy(), masks=MASKS[[0]], seeds=[5])
    assert all(torch.equal(two.states[name], value) for name, value in one.states.items())


def test_training_sees_only_the_rows_of_the_mask() -> None:
    model = build("mlp", (3, 4), 3, hidden=[8])
    inputs, labels = INPUTS.copy(), LABELS.copy()
    unseen = ~MASKS[0]
    inputs[unseen], labels[unseen] = 100.0, 0
    one = train(model, masks=MASKS[[0]], seeds=[5])
    two = train_models(
        model, (inputs, labels), masks=MASKS[[0]], seeds=[5], training=SHORT, device="cpu"
    )
    assert all(torch.equal(two.states[name], value) for name, value in one.states.items())


def test_an_epochs_order_is_a_permutation_of_its_own() -> None:
    orders = [epoch_order(seed, epoch, 50) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 4
    np.testing.assert_array_equal(orders[3], epoch_order(1, 1, 50))


@pytest.mark.parametrize(
    "name", ["relu", "gelu", "pooled", "layer norm", "convolution", "batch norm and dropout"]
)
@pytest.mark.parametrize("kind", ["heavy ball", "adamw, linear"])
def test_a_resumed_training_ends_as_an_uninterrupted_one(
    name: str, kind: str, tmp_path: Path
) -> None:
    model = MODELS[name][0]()
    options: dict[str, Any] = {
        "masks": MASKS[[0, 3]],
        "seeds": SEEDS[:2],
        "training": RECIPES[kind],
    }
    states: dict[int, TrainingState] = {}
    whole = train(model, **options)
    listened = train(model, **options, on_epoch=states.__setitem__)
    assert list(states) == [1, 2, 3]
    save_state(states[1], tmp_path / "state.safetensors")
    resumed = train(model, **options, resume=load_state(tmp_path / "state.safetensors"))
    for key, value in whole.states.items():
        assert torch.equal(listened.states[key], value)
        assert torch.equal(resumed.states[key], value)
    np.testing.assert_array_equal(resumed.history, whole.history)
    done = train(model, **options, resume=states[3])
    assert all(torch.equal(done.states[key], value) for key, value in whole.states.items())


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    model = build("linear", (3, 4), 3)
    states: dict[int, TrainingState] = {}
    train(model, on_epoch=states.__setitem__)
    with pytest.raises(ShapeError, match="other masks or seeds"):
        train(model, masks=~MASKS[[0, 0, 0, 0, 0]], resume=states[1])
    with pytest.raises(ShapeError, match="other masks or seeds"):
        train(build("mlp", (3, 4), 3), resume=states[1])
    (tmp_path / "bad").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="no saved training state"):
        load_state(tmp_path / "bad")


def test_snapshots_are_the_states_of_shorter_trainings() -> None:
    model = build("mlp", (3, 4), 3, hidden=[8])
    kept = train(model, snapshot_epochs=(0, 2, 3))
    assert list(kept.snapshots) == [0, 2, 3]
    shorter = train(model, training=Recipe(epochs=2, batch_size=8))
    for name, value in kept.states.items():
        assert torch.equal(kept.snapshots[3][name], value)
        assert torch.equal(kept.snapshots[2][name], shorter.states[name])
        for row, seed in enumerate(SEEDS):
            drawn = fresh(model, seed).state_dict()[name]
            assert torch.equal(kept.snapshots[0][name][row], drawn)
    with pytest.raises(RecipeError, match=r"snapshot epoch 4 is outside 0\.\.3"):
        train(model, snapshot_epochs=(4,))


def test_divergence_names_the_model_the_epoch_and_the_rate() -> None:
    with pytest.raises(TrainingDiverged, match=r"model \d \(seed .*\) diverged in epoch \d: .*100"):
        train(
            build("mlp", (3, 4), 1, hidden=[8]),
            NUMBERS,
            training=Recipe(lr=100.0, epochs=3, batch_size=8),
        )


@pytest.mark.parametrize("name", ["relu", "regression", "layer norm", "batch norm and dropout"])
def test_predictions_are_those_of_each_model_in_eval_mode(name: str) -> None:
    make, _ = MODELS[name]
    model = make()
    got = train(model, targets_of(name), masks=MASKS[[0, 3]], seeds=SEEDS[:2])
    logits = predict(model, got.states, INPUTS, device="cpu", batch_size=17)
    for row in range(2):
        alone = make()
        alone.load_state_dict(got.state(row))
        want = alone.eval()(torch.from_numpy(INPUTS)).detach()
        torch.testing.assert_close(logits[row], want, rtol=1e-5, atol=1e-6)


def test_states_of_another_model_are_refused() -> None:
    got = train(build("mlp", (3, 4), 3, hidden=[8]))
    with pytest.raises(CheckpointError, match=r"'1.weight' has shape \(8, 12\)"):
        predict(build("mlp", (3, 4), 3, hidden=[9]), got.states, INPUTS, device="cpu")
    with pytest.raises(CheckpointError, match=r"lack '5.bias'"):
        predict(build("mlp", (3, 4), 3, hidden=[8, 5]), got.states, INPUTS, device="cpu")


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", ["relu", "convolution"])
def test_threads_change_nothing_and_their_number_comes_back(name: str) -> None:
    model = MODELS[name][0]()
    masks = np.stack([np.roll(MASKS[0], shift) for shift in range(5)])
    parallel = train(model, masks=masks)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    for name, value in train(model, masks=masks).states.items():
        assert torch.equal(parallel.states[name], value)


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, int], Any]] = {
    "constant": lambda o, _: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0, total_iters=0),
    "cosine": lambda o, n: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=n),
    "linear": lambda o, n: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=n),
    "step": lambda o, n: torch.optim.lr_scheduler.MultiStepLR(o, [n // 2, 3 * n // 4], 0.1),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_those_of_torch(schedule: str) -> None:
    recipe = Recipe(lr=0.3, schedule=schedule, epochs=4, batch_size=10)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = SCHEDULES[schedule](optimizer, 40)
    for step in range(40):
        assert math.isclose(recipe.rate(step, 95), scheduler.get_last_lr()[0], rel_tol=1e-9)
        optimizer.step()
        scheduler.step()


def test_warmup_climbs_to_the_peak_and_the_schedule_takes_what_is_left() -> None:
    recipe = Recipe(lr=1.0, schedule="linear", warmup=1.5, epochs=5, batch_size=10)
    rates = [recipe.rate(step, 40) for step in range(20)]
    np.testing.assert_allclose(rates[:6], np.arange(1, 7) / 6)
    np.testing.assert_allclose(rates[6:], 1 - np.arange(14) / 14)


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": "adam"},
        {"schedule": "cos"},
        {"lr": 0.0},
        {"lr": math.nan},
        {"momentum": 1.0},
        {"momentum": 0.0, "nesterov": True},
        {"weight_decay": -1.0},
        {"epochs": 0},
        {"batch_size": 0},
        {"warmup": 30.0},
        {"betas": (0.9, 1.0)},
    ],
)
def test_a_recipe_refuses_values_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Recipe(**wrong)


def test_data_that_does_not_fit_is_refused() -> None:
    model = build("linear", (3, 4), 3)
    with pytest.raises(ShapeError, match="give bool"):
        train(model, masks=MASKS.astype(int))
    with pytest.raises(ShapeError, match=r"give bool \[models, 60\]"):
        train(model, masks=MASKS[:, :-1])
    with pytest.raises(ShapeError, match="2 seeds for 5 masks"):
        train(model, seeds=(1, 2))
    with pytest.raises(ShapeError, match="mask 1 holds no row"):
        train(model, masks=MASKS[:2] & np.array([[True], [False]]), seeds=(1, 2))
    with pytest.raises(ShapeError, match="class indices run from 0 to 3"):
        train(model, np.where(LABELS == 0, 3, LABELS - 1))
    with pytest.raises(ShapeError, match="integer class indices"):
        train(model, NUMBERS, task="classification")
    with pytest.raises(ShapeError, match="model with 1 output"):
        train(model, NUMBERS)
    with pytest.raises(ShapeError, match="60 inputs and 59 targets"):
        train(model, LABELS[1:])
    with pytest.raises(RecipeError, match=r"cannot take inputs of shape \(3, 4\)"):
        train(build("linear", (13,), 3))
    broken = INPUTS.copy()
    broken[7, 0, 0] = np.nan
    with pytest.raises(DataError, match="train row 7"):
        train_models(model, (broken, LABELS), masks=MASKS, seeds=SEEDS, training=SHORT)


class Reads(nn.Module):
    """Control flow that reads values: vmap cannot run it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 3)

    def forward(self, rows: Tensor) -> Tensor:
        flat = rows.flatten(1)
        return self.inner(flat if bool(flat.sum() > 0) else -flat)


def test_a_forward_pass_that_vmap_cannot_run_is_looped() -> None:
    model = Reads()
    got = train(model, dtype=torch.float64)
    assert got.path == "loop"
    assert_equals_reference(got, model, LABELS, SHORT, list(range(len(SIZES))))


def test_a_frozen_layer_is_kept_and_the_rest_is_trained() -> None:
    model = build("mlp", (3, 4), 3, hidden=[8])
    model.get_parameter("1.weight").requires_grad_(False)
    got = train(model, dtype=torch.float64)
    assert got.path == "vmap"
    frozen = model.get_parameter("1.weight").double()
    assert torch.equal(got.states["1.weight"], frozen.expand(len(SIZES), -1, -1))
    assert_equals_reference(got, model, LABELS, SHORT, list(range(len(SIZES))))


def test_token_inputs_reach_an_embedding_as_integers() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))

    tokens = RNG.integers(0, 9, (N, 5))
    got = train_models(
        make(), (tokens, LABELS), masks=MASKS, seeds=SEEDS, training=SHORT, device="cpu"
    )
    assert got.path == "vmap"
    assert predict(make(), got.states, tokens, device="cpu").shape == (len(SIZES), N, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_cuda_trains_what_the_cpu_trains(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = MODELS[name][0]()
    if name == "batch norm and dropout":
        model = nn.Sequential(*(m for m in model if not isinstance(m, nn.Dropout)))
    options = {"masks": MASKS[[0, 3]], "seeds": SEEDS[:2], "dtype": torch.float64}
    cpu = train(model, targets_of(name), **options)
    cuda, again = (train(model, targets_of(name), **options, device="cuda") for _ in "ab")
    for key, value in cpu.states.items():
        torch.testing.assert_close(cuda.states[key], value, rtol=1e-6, atol=1e-9)
        assert torch.equal(again.states[key], cuda.states[key])
