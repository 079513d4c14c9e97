import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attribution import attribute
from attribution.outputs import evaluate
from attribution.streams import stream
from attribution.training import Recipe, TrainingState, train_models
from schemas.errors import CheckpointError, ShapeError

DOUBLE = torch.float64
N, M, D, K = 20, 4, 5, 3


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(D, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, K))
    return nn.Sequential(*layers).double()


def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = stream(seed)
    # Inputs of very different scale: what Adam evens out.
    inputs = rng.standard_normal((n, D)) * np.array([10.0, 1.0, 1.0, 0.1, 0.01])
    return torch.from_numpy(inputs), torch.from_numpy(rng.integers(0, K, n))


TRAIN, QUERIES = rows(N, 1), rows(M, 2)
OPTIONS: dict[str, Any] = {"train": TRAIN, "queries": QUERIES, "dtype": DOUBLE}


def trained(steps: int = 12) -> tuple[nn.Module, torch.optim.Adam]:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.8, 0.95), eps=1e-6)
    for step in range(steps):
        optimizer.zero_grad()
        part = slice(5 * (step % 4), 5 * (step % 4) + 5)
        evaluate("loss", model(TRAIN[0][part]), TRAIN[1][part]).mean().backward()
        optimizer.step()
    return model, optimizer


def named(model: nn.Module, optimizer: torch.optim.Adam) -> dict[str, Any]:
    """The same moments, by the parameters' names."""
    kept = {name: optimizer.state[value] for name, value in model.named_parameters()}
    moments = {
        moment: {name: entry[moment].clone() for name, entry in kept.items()}
        for moment in ("exp_avg", "exp_avg_sq")
    }
    return {**moments, "step": next(iter(kept.values()))["step"].item()}


def each(model: nn.Module, pair: Any, output: str) -> Tensor:
    found = []
    for x, y in zip(*pair, strict=True):
        value = evaluate(output, model(x[None]), y[None]).sum()
        parts = torch.autograd.grad(value, list(model.parameters()))
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found)


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values.values()])


def close(got: np.ndarray, want: Tensor, rtol: float = 1e-5) -> None:
    wanted = want.detach().numpy()
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=rtol * np.abs(wanted).max())


@pytest.mark.parametrize("kind", ["less", "step", "diagonal"])
def test_it_is_the_published_preconditioner_of_every_training_row(kind: str) -> None:
    model, optimizer = trained()
    state = named(model, optimizer)
    m, v, t = flat(state["exp_avg"]), flat(state["exp_avg_sq"]), state["step"]
    g, asked = each(model, TRAIN, "loss"), each(model, QUERIES, "margin")
    first, second = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
    gamma = {
        "less": first / (second + 1e-6).sqrt(),
        "step": first / (1 - 0.8 ** (t + 1)) / ((second / (1 - 0.95 ** (t + 1))).sqrt() + 1e-6),
        "diagonal": g / (v.sqrt() + 1e-6),
    }[kind]
    options = OPTIONS | {"optimizer_states": [optimizer.state_dict()], "preconditioner": kind}
    dot = attribute("graddot", model, [model.state_dict()], **options)
    close(dot, -asked @ gamma.T)
    cosine = -asked @ gamma.T / asked.norm(dim=1)[:, None] / gamma.norm(dim=1)
    for method in ("gradcos", "less"):
        close(attribute(method, model, [model.state_dict()], **options), cosine)
    got = attribute("less", model, [model.state_dict()], normalise="none", **options)
    np.testing.assert_array_equal(got, dot)
    assert got.record["options"]["preconditioner"] == kind
    for size in (1, 7):
        again = attribute("graddot", model, [model.state_dict()], batch_size=size, **options)
        np.testing.assert_allclose(again, dot, rtol=1e-5)


def test_the_optimisers_step_on_a_row_changes_outputs_as_the_scores_say() -> None:
    model, optimizer = trained()
    state, rate = copy.deepcopy(optimizer.state_dict()), 1e-7
    tau = attribute(
        "less",
        model,
        [model.state_dict()],
        optimizer_states=[state],
        preconditioner="step",
        normalise="none",
        weights=[rate],
        **OPTIONS,
    )
    before = evaluate("margin", model(QUERIES[0]), QUERIES[1]).detach()
    weights = copy.deepcopy(model.state_dict())
    for row in range(N):
        model.load_state_dict(weights)
        optimizer.load_state_dict(copy.deepcopy(state))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        chosen = slice(row, row + 1)
        evaluate("loss", model(TRAIN[0][chosen]), TRAIN[1][chosen]).sum().backward()
        optimizer.step()
        change = evaluate("margin", model(QUERIES[0]), QUERIES[1]) - before
        close(tau[:, row], change, 1e-4)


def test_moments_are_read_by_name_or_from_torch_and_several_checkpoints_are_summed() -> None:
    model, optimizer = trained()
    options = OPTIONS | {"betas": (0.8, 0.95), "eps": 1e-6}
    states = [model.state_dict()] * 2
    by_name = attribute(
        "less", model, states, optimizer_states=[named(model, optimizer)] * 2, **options
    )
    by_torch = attribute(
        "less", model, states, optimizer_states=[optimizer.state_dict()] * 2, **OPTIONS
    )
    np.testing.assert_array_equal(by_name, by_torch)
    one = attribute(
        "less",
        model,
        states[:1],
        weights=[2.0],
        optimizer_states=[optimizer.state_dict()],
        **OPTIONS,
    )
    np.testing.assert_allclose(by_torch, one, rtol=1e-6)


def test_a_training_hands_its_moments_over() -> None:
    kept: dict[int, TrainingState] = {}
    recipe = Recipe(optimizer="adamw", lr=1e-2, weight_decay=0.0, epochs=3, batch_size=5)
    masks = np.ones((2, N), dtype=bool)
    done = train_models(
        net(),
        TRAIN,
        masks=masks,
        seeds=[3, 4],
        training=recipe,
        dtype=DOUBLE,
        on_epoch=lambda epoch, state: kept.__setitem__(epoch, state),
    )
    state = kept[3]
    assert all(value.equal(done.state(1)[name]) for name, value in state.checkpoint(1).items())
    moments = state.moments(1, steps=3 * recipe.steps_per_epoch(N))
    assert moments["step"] == 12
    for steps in (None, 12):
        states = [kept[epoch].moments(1, steps=steps) for epoch in (2, 3)]
        got = attribute(
            "less",
            net(),
            [kept[epoch].checkpoint(1) for epoch in (2, 3)],
            optimizer_states=states,
            **OPTIONS,
        )
        assert np.isfinite(got).all()
    # AdamW's own next step on one row, by Torch from the moments handed over.
    model = net()
    model.load_state_dict(state.checkpoint(1))
    first, second = flat(moments["exp_avg"]), flat(moments["exp_avg_sq"])
    g = each(model, TRAIN, "loss")
    gamma = (0.9 * first + 0.1 * g) / (0.999 * second + 0.001 * g**2 + 1e-8).sqrt()
    dot = attribute("graddot", model, [state.checkpoint(1)], optimizer_states=[moments], **OPTIONS)
    close(dot, -each(model, QUERIES, "margin") @ gamma.T)


def test_a_training_without_second_moments_says_so() -> None:
    kept: list[TrainingState] = []
    train_models(
        net(),
        TRAIN,
        masks=np.ones((1, N), dtype=bool),
        seeds=[3],
        training=Recipe(epochs=1),
        dtype=DOUBLE,
        on_epoch=lambda _, state: kept.append(state),
    )
    with pytest.raises(CheckpointError, match="adamw"):
        kept[0].moments(0)


def test_bad_states_are_refused_with_what_to_do() -> None:
    model, optimizer = trained()
    good = named(model, optimizer)
    short = {**good, "exp_avg": {}}
    negative = {
        **good,
        "exp_avg_sq": {name: -value for name, value in good["exp_avg_sq"].items()},
    }
    narrow = {**good, "exp_avg_sq": {name: value[:1] for name, value in good["exp_avg_sq"].items()}}
    unstepped = torch.optim.Adam(model.parameters()).state_dict()
    partial = torch.optim.Adam(model[0].parameters()).state_dict()
    for state, message in (
        (short, "no exp_avg of '0.weight'"),
        (negative, "negative"),
        (narrow, "has shape"),
        (unstepped, "after a step"),
        (partial, "2 parameters and the model 6"),
    ):
        with pytest.raises(CheckpointError, match=message):
            attribute("less", model, [model.state_dict()], optimizer_states=[state], **OPTIONS)
    without = {name: good[name] for name in ("exp_avg", "exp_avg_sq")}
    for options, message in (
        ({}, "TrainingState.moments"),
        ({"optimizer_states": [good, good]}, "2 optimizer_states and 1 checkpoints"),
        ({"optimizer_states": [good], "preconditioner": "adam"}, "say less, step, diagonal"),
        ({"optimizer_states": [good], "betas": (1.0, 0.9)}, "lie in"),
        ({"optimizer_states": [good], "normalise": "row"}, "normalise"),
    ):
        with pytest.raises(ShapeError, match=message):
            attribute("less", model, [model.state_dict()], **options, **OPTIONS)
    with pytest.raises(CheckpointError, match="how many steps"):
        attribute(
            "less",
            model,
            [model.state_dict()],
            optimizer_states=[without],
            preconditioner="step",
            **OPTIONS,
        )
    with pytest.raises(ShapeError, match="projection=None"):
        attribute(
            "graddot",
            model,
            [model.state_dict()],
            optimizer_states=[good],
            projection={"dim": 8},
            **OPTIONS,
        )
