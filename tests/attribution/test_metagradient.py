from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attribution import attribute, estimators
from attribution.estimators import Reads
from attribution.metagradient import Metagradient, metagradient
from attribution.models import build, fresh, torch_stream
from attribution.outputs import UNASKED, of_examples, task_of, training_loss
from attribution.streams import stream
from attribution.training import Recipe, epoch_order, train_one_reference
from attribution.training.anymodel import noise_seed
from attribution.training.unrolled import Unrolled
from attribution.training.weighted import WeightedRun
from schemas.errors import NotFound, RecipeError, ShapeError, TrainingDiverged

N, M, D, K, SEED = 23, 3, 4, 3, 2**40 + 7
RNG = stream(0)
INPUTS, LABELS = RNG.standard_normal((N, D)), RNG.integers(0, K, N)
NUMBERS = RNG.standard_normal(N)
QUERIES = (RNG.standard_normal((M, D)), RNG.integers(0, K, M))
NUMBER_QUERIES = (QUERIES[0], RNG.standard_normal(M))
WEIGHTS = RNG.uniform(0.5, 1.5, N)

RECIPES = {
    "plain sgd": Recipe(lr=0.1, momentum=0.0, weight_decay=0.0, epochs=3, batch_size=8),
    "heavy ball, decay, cosine, warmup": Recipe(
        lr=0.2, weight_decay=0.05, schedule="cosine", warmup=1.0, epochs=4, batch_size=5
    ),
    "nesterov, decay, step": Recipe(
        lr=0.1, nesterov=True, weight_decay=0.02, schedule="step", epochs=4, batch_size=8
    ),
    "adamw, linear": Recipe(
        optimizer="adamw",
        lr=0.02,
        weight_decay=0.1,
        betas=(0.8, 0.95),
        schedule="linear",
        epochs=4,
        batch_size=8,
    ),
}
HEAVY = RECIPES["heavy ball, decay, cosine, warmup"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    # These models are tiny: a second thread only waits, for long where the cores are busy.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def perceptron() -> nn.Module:
    return build("mlp", (D,), K, hidden=[6], activation="tanh")


def regressor() -> nn.Module:
    return build("mlp", (D,), 1, hidden=[5], activation="gelu")


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, K))


class Continuing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(K, 5), nn.Linear(5, K)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(tokens).cumsum(1)))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(1, 4)
        self.attend = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, K)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.attend(self.lift(rows.unsqueeze(-1))).mean(1))


def convolving() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(3, K)
    )


def run_of(model: Any = perceptron, recipe: Recipe = HEAVY, **options: Any) -> WeightedRun:
    given = {"training": recipe, "seed": SEED, "device": "cpu", "dtype": torch.float64} | options
    return WeightedRun(model, (INPUTS, LABELS), **given)


def explain(
    model: Callable[[], nn.Module] = perceptron, recipe: Recipe = HEAVY, **options: Any
) -> Metagradient:
    given = {"training": recipe, "seed": SEED, "device": "cpu", "dtype": torch.float64} | options
    train = given.pop("train", (INPUTS, LABELS))
    return metagradient(model, train, given.pop("queries", QUERIES), **given)


def retrained(
    model: Callable[[], nn.Module],
    recipe: Recipe,
    weights: np.ndarray,
    train: tuple[np.ndarray, np.ndarray],
    queries: tuple[np.ndarray, np.ndarray],
    output: str,
) -> np.ndarray:
    """Outputs after training with these weights, by ``torch.optim`` and the plain loop."""
    inputs, targets = (torch.from_numpy(part) for part in train)
    scale = torch.from_numpy(weights)
    task = task_of(targets)
    net = fresh(model, SEED).double().train()
    shared: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(net.parameters(), betas=recipe.betas, **shared)
    else:
        shared |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
        optimizer = torch.optim.SGD(net.parameters(), **shared)
    step = 0
    for epoch in range(recipe.epochs):
        order = torch.from_numpy(epoch_order(SEED, epoch, len(inputs)))
        for place, rows in enumerate(order.split(recipe.batch_size)):
            optimizer.param_groups[0]["lr"] = recipe.rate(step, len(inputs))
            with torch_stream(noise_seed(SEED, epoch, place)):
                losses = training_loss(task, net(inputs[rows]), targets[rows], "none")
            optimizer.zero_grad()
            ((scale[rows] * losses).sum() / len(rows)).backward()
            optimizer.step()
            step += 1
    asked, wanted = (torch.from_numpy(part) for part in queries)
    return of_examples(output, net.eval()(asked), wanted).detach().numpy()


def differences(
    *parts: Any, at: np.ndarray | None = None, along: np.ndarray | None = None, size: float = 1e-5
) -> np.ndarray:
    """Central differences of `retrained`, [M, n], or [M, 1] along one direction."""
    model, recipe, train, queries, output = parts
    base = np.ones(len(train[0])) if at is None else at
    directions = np.eye(len(base)) if along is None else along[None]
    columns = [
        retrained(model, recipe, base + size * step, train, queries, output)
        - retrained(model, recipe, base - size * step, train, queries, output)
        for step in directions
    ]
    return np.stack(columns, axis=1) / (2 * size)


def assert_equal_derivatives(got: np.ndarray, want: np.ndarray) -> None:
    for one, other in zip(got, want, strict=True):
        assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(other)
        assert np.linalg.norm(other) > 1e-3


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("output", ["margin", "loss"])
def test_it_equals_finite_differences_of_retraining(kind: str, output: str) -> None:
    recipe = RECIPES[kind]
    got = explain(recipe=recipe, output=output).scores
    want = differences(perceptron, recipe, (INPUTS, LABELS), QUERIES, output)
    assert_equal_derivatives(got, want)


@pytest.mark.parametrize("kind", ["nesterov, decay, step", "adamw, linear"])
@pytest.mark.parametrize("output", ["prediction", "loss"])
def test_it_equals_finite_differences_of_a_regression(kind: str, output: str) -> None:
    train, recipe = (INPUTS, NUMBERS), RECIPES[kind]
    got = explain(regressor, recipe, train=train, queries=NUMBER_QUERIES, output=output).scores
    want = differences(regressor, recipe, train, NUMBER_QUERIES, output)
    assert_equal_derivatives(got, want)


@pytest.mark.parametrize("model", [dropping, convolving, Attending])
def test_it_equals_finite_differences_for_other_modules(model: Callable[[], nn.Module]) -> None:
    recipe = Recipe(lr=0.1, epochs=2, batch_size=8)
    got = explain(model, recipe).scores
    want = differences(model, recipe, (INPUTS, LABELS), QUERIES, "margin")
    assert_equal_derivatives(got, want)


def test_it_equals_finite_differences_where_rows_are_documents() -> None:
    tokens = RNG.integers(0, K, (N, 6))
    targets = tokens[:, 1:].copy()
    targets[::2, 3:] = UNASKED
    train, queries = (tokens[:, :-1], targets), (tokens[:M, 1:], targets[:M])
    recipe = Recipe(lr=0.02, epochs=2, batch_size=8)
    got = explain(Continuing, recipe, train=train, queries=queries).scores
    want = differences(Continuing, recipe, train, queries, "logprob")
    assert_equal_derivatives(got, want)


def test_a_parameter_that_no_row_moves_does_no_harm_to_adamw() -> None:
    # Its second moment stays 0, where the root has no derivative.
    blank = INPUTS * np.array([1.0, 0.0, 1.0, 1.0])
    recipe = RECIPES["adamw, linear"]
    got = explain(recipe=recipe, train=(blank, LABELS)).scores
    want = differences(perceptron, recipe, (blank, LABELS), QUERIES, "margin")
    assert_equal_derivatives(got, want)


def test_it_is_taken_at_the_weights_that_are_given() -> None:
    got = explain(weights=WEIGHTS).scores
    want = differences(perceptron, HEAVY, (INPUTS, LABELS), QUERIES, "margin", at=WEIGHTS)
    assert_equal_derivatives(got, want)
    assert not np.allclose(got, explain().scores, rtol=0.01)


@pytest.mark.parametrize("kind", RECIPES)
def test_more_weight_on_all_rows_at_once_does_the_sum_of_the_scores(kind: str) -> None:
    got = explain(recipe=RECIPES[kind]).scores.sum(1, keepdims=True)
    parts = (perceptron, RECIPES[kind], (INPUTS, LABELS), QUERIES, "margin")
    np.testing.assert_allclose(got, differences(*parts, along=np.ones(N)), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("model", [perceptron, dropping])
def test_at_weight_1_the_run_is_the_usual_training(
    kind: str, model: Callable[[], nn.Module]
) -> None:
    mask = RNG.permutation(N) < 17
    for rows in (np.ones(N, dtype=bool), mask):
        want, _ = train_one_reference(
            model,
            (INPUTS, LABELS),
            mask=rows,
            seed=SEED,
            training=RECIPES[kind],
            dtype=torch.float64,
        )
        found = explain(model, RECIPES[kind], mask=rows)
        for name, value in found.state.items():
            torch.testing.assert_close(value, want[name], rtol=1e-10, atol=1e-10)
        net = model().double()
        net.load_state_dict(want)
        asked, wanted = (torch.from_numpy(part) for part in QUERIES)
        outputs = of_examples("margin", net.eval()(asked), wanted)
        np.testing.assert_allclose(found.outputs, outputs.detach().numpy(), rtol=1e-9)


def test_rows_that_the_run_never_visits_score_nothing() -> None:
    mask = np.ones(N, dtype=bool)
    mask[[2, 11]] = False
    scores = explain(mask=mask).scores
    assert np.flatnonzero(~scores.any(axis=0)).tolist() == [2, 11]
    short = explain(train=(INPUTS[mask], LABELS[mask])).scores
    np.testing.assert_allclose(scores[:, mask], short, rtol=1e-12)


@pytest.mark.parametrize("kind", ["nesterov, decay, step", "adamw, linear"])
def test_neither_segments_nor_blocks_change_the_result(kind: str) -> None:
    want = explain(recipe=RECIPES[kind])
    assert (want.steps, want.passes) == (12, 1)
    for segment in (1, 5, 12, 100):
        got = explain(recipe=RECIPES[kind], segment=segment).scores
        np.testing.assert_array_equal(got, want.scores)
    alone = explain(recipe=RECIPES[kind], block=1)
    assert alone.passes == M
    np.testing.assert_allclose(alone.scores, want.scores, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("epochs", [1, 7, 30, 90])
def test_the_states_held_grow_as_the_root_of_the_steps(epochs: int) -> None:
    recipe = Recipe(lr=0.05, epochs=epochs, batch_size=8)
    found = explain(recipe=recipe, aggregate=np.ones(M))
    assert found.steps == 3 * epochs
    assert found.states_held <= 2 * np.sqrt(found.steps) + 2
    dense = explain(recipe=recipe, aggregate=np.ones(M), segment=1)
    assert dense.states_held == found.steps + 1
    np.testing.assert_array_equal(dense.scores, found.scores)


def test_a_sum_of_outputs_is_one_pass_and_the_sum_of_their_scores() -> None:
    shares = np.array([0.5, -1.0, 2.0])
    each, total = explain(), explain(aggregate=shares)
    assert total.passes == 1
    assert total.scores.shape == (N,)
    np.testing.assert_allclose(total.scores, shares @ each.scores, rtol=1e-9, atol=1e-12)


def test_a_backward_pass_that_vmap_cannot_take_is_run_for_each_output() -> None:
    sizes: list[float] = []

    class CubeSlope(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, value: Tensor, grad: Tensor) -> Tensor:
            context.save_for_backward(value, grad)
            return 3 * value**2 * grad

        @staticmethod
        def backward(context: Any, outer: Tensor) -> tuple[Tensor, Tensor]:
            value, grad = context.saved_tensors
            sizes.append(float(outer.abs().sum()))  # vmap cannot read a number
            return 6 * value * grad * outer, 3 * value**2 * outer

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, value: Tensor) -> Tensor:
            context.save_for_backward(value)
            return value**3

        @staticmethod
        def backward(context: Any, grad: Tensor) -> Tensor:
            return CubeSlope.apply(*context.saved_tensors, grad)

    class Cubed(nn.Module):
        def __init__(self, plain: bool) -> None:
            super().__init__()
            self.lower, self.upper, self.plain = nn.Linear(D, 4), nn.Linear(4, K), plain

        def forward(self, rows: Tensor) -> Tensor:
            hidden = self.lower(rows)
            return self.upper(hidden**3 if self.plain else Cube.apply(hidden))

    recipe = Recipe(lr=0.01, epochs=2, batch_size=8)
    got, want = (explain(lambda plain=plain: Cubed(plain), recipe) for plain in (False, True))
    assert len(sizes) == got.steps * M
    np.testing.assert_allclose(got.scores, want.scores, rtol=1e-9, atol=1e-12)


def test_the_walk_back_may_be_repeated() -> None:
    run = run_of()
    unrolled = Unrolled(run)
    assert torch.equal(run.end().params, unrolled.last.params)
    adjoints = torch.from_numpy(RNG.standard_normal((2, unrolled.run.n_params)))
    first, held = unrolled.pull(adjoints), unrolled.most_held
    assert torch.equal(unrolled.pull(adjoints), first)
    assert unrolled.most_held == held


def test_the_estimator_averages_the_runs_of_its_seeds() -> None:
    options: dict[str, Any] = {"train": (INPUTS, LABELS), "queries": QUERIES, "device": "cpu"}
    scores = attribute(
        "metagradient",
        perceptron(),
        None,
        training=HEAVY,
        seeds=(SEED, 5),
        dtype=torch.float64,
        **options,
    )
    each = [explain(perceptron(), seed=seed).scores for seed in (SEED, 5)]
    np.testing.assert_allclose(scores, np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
    assert scores.record["damping"] is None
    assert scores.record["options"]["seeds"] == [SEED, 5]
    assert (scores.record["steps"], scores.record["output"]) == (20, "margin")
    blocks: list[np.ndarray] = []
    attribute(
        "metagradient",
        perceptron(),
        [],
        training={"lr": 0.2, "epochs": 2},
        out=lambda _, block: blocks.append(block),
        **options,
    )
    assert np.concatenate(blocks).shape == (M, N)


def test_the_estimator_is_listed_as_one_that_trains() -> None:
    assert [known.name for known in estimators() if known.reads is Reads.RECIPE] == ["metagradient"]


def test_what_cannot_be_unrolled_is_refused() -> None:
    def norm(track: bool) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(
            nn.Unflatten(1, (1, D)),
            nn.BatchNorm1d(1, track_running_stats=track),
            nn.Flatten(),
            nn.Linear(D, K),
        )

    for track in (True, False):
        with pytest.raises(RecipeError, match="ties the rows of a batch"):
            explain(norm(track))

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(D, K)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, rows: Tensor) -> Tensor:
            if self.training:
                self.seen.add_(1)
            return self.linear(rows)

    with pytest.raises(RecipeError, match="changes its buffer 'seen'"):
        explain(Counting)
    wild = Recipe(lr=1e8, epochs=60)
    with pytest.raises(TrainingDiverged, match="lower the learning rate"):
        explain(lambda: nn.Linear(D, 1), wild, train=(INPUTS, NUMBERS), queries=NUMBER_QUERIES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.ones(N - 1)}, "weights have shape"),
        ({"weights": np.full(N, np.nan)}, "finite"),
        ({"aggregate": np.ones(M + 1)}, "aggregate has shape"),
        ({"mask": np.ones(N)}, "give bool"),
        ({"segment": 0}, "segment = 0"),
        ({"block": 0}, "block = 0"),
        ({"output": "prediction"}, "floating targets"),
        ({"output": "margins"}, "unknown output"),
        ({"queries": (QUERIES[0], QUERIES[1] + K)}, r"0\.\.2"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        explain(**change)


def test_the_estimator_says_what_it_lacks() -> None:
    options: dict[str, Any] = {"train": (INPUTS, LABELS), "queries": QUERIES, "device": "cpu"}
    with pytest.raises(ShapeError, match="training="):
        attribute("metagradient", perceptron(), None, **options)
    with pytest.raises(ShapeError, match="seeds"):
        attribute("metagradient", perceptron(), None, training=HEAVY, seeds=(), **options)
    with pytest.raises(NotFound, match="did you mean 'seeds'"):
        attribute("metagradient", perceptron(), None, seed_s=(1,), **options)
    with pytest.raises(ShapeError, match="no checkpoint"):
        attribute("trak", perceptron(), None, **options)
