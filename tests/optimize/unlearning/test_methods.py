from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attribution.models import build
from attribution.outputs import UNASKED, of_models, training_loss
from attribution.streams import Purpose, stream
from attribution.training import predict
from optimize.unlearning import METHODS, forget_directions, losses, method_of, unlearn
from optimize.unlearning.models import ModelStack
from optimize.unlearning.recipes import Tuning
from optimize.unlearning.tuning import Table, fine_tune
from schemas.errors import NotFound, RecipeError, ShapeError, TrainingDiverged
from tests.optimize.unlearning.problem import mlp, rows, trained

FORGET = np.arange(12)
KEPT = np.arange(60) >= 12
STATES = trained()
ORACLES = trained(mask=KEPT, seed=100)
CHANGES = {"epochs": 3, "batch_size": 16, "lr": 3e-3}


def loss_on(states: dict[str, torch.Tensor], chosen: np.ndarray) -> np.ndarray:
    inputs, labels = rows()
    logits = predict(mlp, states, inputs[chosen])
    return of_models("loss", logits.numpy(), labels[chosen]).mean(axis=1)


def forget(name: str, states: dict[str, torch.Tensor] = STATES, **options: Any) -> Any:
    extra = {"oracles": ORACLES} if name == "oracle_matching" else {}
    weight_decay = 1e-3 if name == "influence" else 0.0
    return unlearn(
        method_of(name, options),
        mlp,
        states,
        train=rows(),
        forget=FORGET,
        weight_decay=weight_decay,
        **extra,
    )


@pytest.mark.parametrize("name", METHODS)
def test_each_method_moves_every_model_as_it_would_alone_and_touches_nothing_else(
    name: str,
) -> None:
    before = {key: value.clone() for key, value in STATES.items()}
    options = {} if name in ("influence", "projected") else CHANGES
    together = forget(name, **options)
    # Alone, a model is looped over and its projection is numbered 0, as that of the first.
    alone = forget(name, {key: value[:1] for key, value in STATES.items()}, **options)
    for key, value in together.states.items():
        torch.testing.assert_close(value[:1], alone.states[key], rtol=1e-4, atol=1e-5)
        assert not torch.equal(value[0], STATES[key][0])
        assert torch.equal(STATES[key], before[key])
    assert together.cost == alone.cost
    assert together.cost.examples > 0


def test_adam_on_a_stack_is_torchs_adam_on_each_model() -> None:
    inputs, labels = (torch.from_numpy(part) for part in rows())
    stack = ModelStack.of(mlp, STATES)
    table = Table(
        inputs=inputs,
        labels=labels,
        forgotten=torch.zeros(60, dtype=torch.bool),
        reference=torch.zeros(3, 60),
    )
    loss = losses.own_loss("classification")
    parts = torch.arange(60).split(20)
    tuning = Tuning(lr=0.01, decay=0.5, epochs=2)
    moved, processed = fine_tune(stack, table, [[(p, loss) for p in parts]] * 2, tuning)
    assert processed == 120
    for row in range(3):
        net = mlp()
        net.load_state_dict(stack.state(row))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(2):
            for part in parts:
                optimizer.zero_grad()
                training_loss("classification", net(inputs[part]), labels[part], "mean").backward()
                optimizer.step()
            schedule.step()
        for name, value in net.state_dict().items():
            torch.testing.assert_close(moved.states[name][row], value, rtol=1e-4, atol=1e-5)


def test_ascent_raises_the_forgotten_loss_and_fine_tuning_lowers_the_others() -> None:
    gone = ~KEPT
    assert (loss_on(forget("ascent", **CHANGES).states, gone) > loss_on(STATES, gone)).all()
    assert (loss_on(forget("finetune", **CHANGES).states, KEPT) < loss_on(STATES, KEPT)).all()
    harder = {"epochs": 10, "batch_size": 16, "lr": 1e-2}
    both, only = forget("graddiff", **harder).states, forget("ascent", **harder).states
    assert (loss_on(both, gone) > loss_on(STATES, gone)).all()
    assert (loss_on(both, KEPT) < loss_on(only, KEPT)).all()


def test_scrub_moves_the_student_away_from_its_teacher_on_what_goes() -> None:
    gone, common = ~KEPT, {"epochs": 8, "lr": 0.02}
    with_ascent = forget("scrub", ascent_epochs=6, **common).states
    without = forget("scrub", ascent_epochs=0, **common).states
    assert (loss_on(with_ascent, gone) > loss_on(without, gone) + 0.02).all()
    # A teacher that counts for everything holds the student where it is.
    held = forget("scrub", ascent_epochs=0, own_loss=0.0, distillation=1.0, **common).states
    for name, value in held.items():
        torch.testing.assert_close(value, STATES[name], rtol=1e-4, atol=1e-5)


def test_npo_starts_as_gradient_ascent_and_lets_go_of_what_is_forgotten() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.2, 0.0]], dtype=torch.float64)
    labels, gone = torch.tensor([0, 1]), torch.tensor([True, True])
    before = torch.log_softmax(logits, 1)[torch.arange(2), labels]
    npo = losses.preference("classification", 0.1, 1.0)
    ascent = losses.own_loss("classification", -1.0)

    def gradient(loss: losses.Loss, reference: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda z: loss(z, labels, gone, reference))(logits)

    assert float(npo(logits, labels, gone, before)) == pytest.approx(20 * np.log(2))
    torch.testing.assert_close(gradient(npo, before), gradient(ascent, before))
    assert float(gradient(npo, before + 100).norm()) < 1e-3 * float(gradient(npo, before).norm())


def test_matching_reaches_the_predicted_logits_and_oracle_matching_the_oracles() -> None:
    inputs = rows()[0]
    options = {"epochs": 200, "batch_size": 60, "lr": 0.01, "decay": 0.99, "repeats": 1}
    before = predict(mlp, STATES, inputs)
    found = forget("matching", **options, scale=1.5, forgotten_scale=2.5)
    directions = forget_directions(
        mlp,
        STATES,
        train=rows(),
        forget=[FORGET],
        curvature="logistic",
        damping=0.3,
        centred=True,
        newton=True,
    )
    stack = ModelStack.of(mlp, STATES)
    _, change = stack.pushed(torch.from_numpy(inputs), stack.split(directions.flat[0]))
    target = before - torch.where(torch.from_numpy(KEPT), 1.5, 2.5).view(1, -1, 1) * change
    left = (predict(mlp, found.states, inputs) - target).norm() / (before - target).norm()
    # The teacher is linear in the parameters and the student is not.
    assert float(left) < 0.4
    oracles = predict(mlp, ORACLES, inputs)
    found = forget("oracle_matching", **options)
    left = (predict(mlp, found.states, inputs) - oracles).norm() / (before - oracles).norm()
    assert float(left) < 0.3


def test_a_warm_start_is_the_projected_step() -> None:
    still = {"lr": 1e-12, "epochs": 1, "batch_size": 60}
    warm = forget("matching", warm=True, scale=1.5, **still).states
    for name, value in forget("projected", scale=1.5).states.items():
        torch.testing.assert_close(warm[name], value)


def test_fewer_oracles_than_models_are_taken_in_turn() -> None:
    one = {name: value[:1] for name, value in ORACLES.items()}
    three = {name: value[[0, 0, 0]] for name, value in ORACLES.items()}
    common: dict[str, Any] = {"train": rows(), "forget": FORGET}
    method = method_of("oracle_matching", CHANGES)
    a = unlearn(method, mlp, STATES, oracles=one, **common)
    b = unlearn(method, mlp, STATES, oracles=three, **common)
    for name, value in a.states.items():
        torch.testing.assert_close(value, b.states[name])
    with pytest.raises(ShapeError, match="needs them"):
        unlearn(method, mlp, STATES, **common)


def test_costs_count_examples_scoring_included() -> None:
    assert forget("finetune", epochs=2).cost.examples == 2 * 48
    assert forget("ascent", epochs=2).cost.examples == 2 * 12
    descent = forget("ascent_descent", epochs=3, ascent_epochs=1).cost
    assert descent.examples == 12 + 3 * 48
    assert forget("graddiff", epochs=2).cost.examples == 2 * 24
    assert forget("npo", epochs=2).cost.teacher == pytest.approx(12 / 3)
    assert forget("projected").cost.examples == 60
    matched = forget("matching", epochs=2, repeats=3, retain_per_forget=2.0).cost
    assert (matched.scoring, matched.teacher, matched.tuning) == (60, 60, 2 * (36 + 24))
    everything = forget("matching", epochs=1, repeats=1, shared=True).cost
    assert (everything.scoring, everything.teacher, everything.tuning) == (180, 300, 60)


def test_convolutions_run_one_model_after_the_other_with_the_same_result() -> None:
    def net() -> nn.Module:
        return nn.Sequential(
            nn.Unflatten(1, (1, 1, 5)),
            nn.Conv2d(1, 4, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(20, 3),
        )

    states = {k: torch.stack([v, 2 * v]) for k, v in net().state_dict().items()}
    looped = ModelStack.of(net, states)
    assert looped.looped
    stacked = ModelStack(model=looped.model, params=looped.params, fixed=looped.fixed, looped=False)
    inputs = torch.from_numpy(rows()[0])
    along = {name: torch.ones_like(value) for name, value in looped.params.items()}
    for a, b in zip(looped.pushed(inputs, along), stacked.pushed(inputs, along), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def documents() -> tuple[np.ndarray, np.ndarray]:
    tokens = stream(0, Purpose.FORGET).integers(1, 9, size=(12, 7))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].copy()
    targets[:, :2] = UNASKED
    return np.ascontiguousarray(inputs), targets


@pytest.mark.parametrize(
    "name", ["finetune", "ascent", "graddiff", "npo", "scrub", "matching", "projected"]
)
def test_language_models_forget_documents(name: str) -> None:
    net = build("transformer", (6,), 9, vocabulary=9, width=8, depth=1, heads=2, causal=True)
    states = {key: value.repeat(2, *[1] * value.ndim) for key, value in net.state_dict().items()}
    # Both are the same network; a little apart, they stay told from one another.
    states = {
        key: value * torch.tensor([1.0, 1.1]).view(2, *[1] * (value.ndim - 1))
        for key, value in states.items()
    }
    options = {} if name == "projected" else {"epochs": 2, "lr": 1e-3}
    done = unlearn(method_of(name, options), net, states, train=documents(), forget=[0, 1, 2])
    moved = predict(net, done.states, torch.from_numpy(documents()[0]))
    assert torch.isfinite(moved).all()
    before = predict(net, states, torch.from_numpy(documents()[0]))
    assert not torch.allclose(moved, before, atol=1e-6)


def test_unasked_tokens_are_never_matched() -> None:
    logits = torch.zeros(2, 6, 9)
    reference = logits.clone()
    reference[:, :2] = 50.0
    labels = torch.from_numpy(documents()[1][:2])
    assert float(losses.matching(logits, labels, labels[:, 0] > 0, reference)) == 0.0


def test_methods_and_options_that_do_not_exist_are_refused() -> None:
    with pytest.raises(NotFound, match="no unlearning method 'forgetmenot'"):
        method_of("forgetmenot")
    with pytest.raises(RecipeError, match="no option 'beta'"):
        method_of("finetune", {"beta": 1.0})
    with pytest.raises(RecipeError, match="no option 'lr'"):
        method_of("influence", {"lr": 1.0})
    with pytest.raises(RecipeError, match="adam or sgd"):
        method_of("scrub", {"optimizer": "lion"})
    assert method_of("npo", {"beta": 0.2, "lr": 0.5}).tuning.lr == 0.5  # type: ignore[union-attr]


def test_a_learning_rate_that_breaks_a_model_is_an_error() -> None:
    with pytest.raises(TrainingDiverged, match="lower the learning rate"):
        forget("ascent", optimizer="sgd", lr=1e30, epochs=4)


def test_a_step_without_any_ridge_is_refused() -> None:
    with pytest.raises(ShapeError, match="neither weight decay nor damping"):
        unlearn(method_of("influence"), mlp, STATES, train=rows(), forget=[1])
