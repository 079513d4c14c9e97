import numpy as np
import pytest
import torch
from torch import nn

from attribution.outputs import training_loss
from attribution.streams import Purpose, stream
from optimize.unlearning import method_of, unlearn
from optimize.unlearning.recipes import InfluenceStep
from optimize.unlearning.steps import most_passes
from tests.optimize.unlearning.problem import rows

DECAY = 0.05


def linear(n_outputs: int) -> nn.Module:
    return nn.Linear(5, n_outputs, dtype=torch.float64)


def minimum(model: nn.Module, task: str, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Minimise mean loss + wd/2 |theta|^2 to the end."""
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = training_loss(task, model(inputs), targets, "mean")
        loss = loss + DECAY / 2 * sum((value**2).sum() for value in model.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)


def fitted(task: str, targets: torch.Tensor, kept: torch.Tensor) -> nn.Module:
    inputs = torch.from_numpy(rows()[0]).double()
    model = linear(1 if task == "regression" else 3)
    minimum(model, task, inputs[kept], targets[kept])
    return model


def stacked(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().unsqueeze(0) for name, value in model.state_dict().items()}


def distance(states: dict[str, torch.Tensor], truth: nn.Module) -> float:
    pairs = [(states[name][0], value) for name, value in truth.state_dict().items()]
    return float(torch.sqrt(sum(((a - b) ** 2).sum() for a, b in pairs)))


def test_a_newton_step_of_least_squares_is_retraining() -> None:
    targets = torch.from_numpy(stream(0, Purpose.FORGET).standard_normal(60))
    kept = torch.ones(60, dtype=torch.bool)
    kept[:15] = False
    full, oracle = fitted("regression", targets, kept | True), fitted("regression", targets, kept)
    common = {
        "train": (torch.from_numpy(rows()[0]).double(), targets),
        "forget": np.arange(15),
        "weight_decay": DECAY,
    }
    newton = unlearn(method_of("influence"), linear(1), stacked(full), **common)
    plain = unlearn(method_of("influence", {"newton": False}), linear(1), stacked(full), **common)
    assert distance(newton.states, oracle) < 1e-6 * distance(stacked(full), oracle)
    assert 0.05 < distance(plain.states, oracle) / distance(stacked(full), oracle) < 0.6


def test_of_logistic_regression_newton_is_near_retraining_and_influence_is_not() -> None:
    targets = torch.from_numpy(rows()[1])
    kept = torch.ones(60, dtype=torch.bool)
    kept[:20] = False
    full = fitted("classification", targets, kept | True)
    oracle = fitted("classification", targets, kept)
    inputs = torch.from_numpy(rows()[0]).double()
    gap = distance(stacked(full), oracle)
    common = {"train": (inputs, targets), "forget": np.arange(20), "weight_decay": DECAY}
    found = {}
    for hessian in ("gauss-newton", "hessian"):
        for newton in (True, False):
            method = method_of("influence", {"newton": newton, "hessian": hessian})
            done = unlearn(method, linear(3), stacked(full), **common)
            found[hessian, newton] = distance(done.states, oracle) / gap
    # A third removed.
    assert found["hessian", True] < 0.25
    assert found["hessian", True] < 0.6 * found["hessian", False]
    # Of a linear model the Gauss-Newton matrix is the Hessian.
    assert abs(found["hessian", True] - found["gauss-newton", True]) < 1e-6


@pytest.mark.parametrize("hessian", ["gauss-newton", "hessian"])
def test_a_step_takes_a_pass_a_class_or_a_product_a_parameter(hessian: str) -> None:
    inputs, targets = torch.from_numpy(rows()[0]).double(), torch.from_numpy(rows()[1])
    model = fitted("classification", targets, torch.ones(60, dtype=torch.bool))
    method = InfluenceStep(hessian=hessian)
    done = unlearn(
        method,
        linear(3),
        stacked(model),
        train=(inputs, targets),
        forget=[1, 2],
        weight_decay=DECAY,
    )
    passes = {"gauss-newton": 3, "hessian": 2 * 18}[hessian]
    assert done.cost.examples == 2 + passes * 58
    assert most_passes(method, size=18, n_outputs=3, task="classification") == passes


def test_a_large_model_takes_at_most_its_iterations() -> None:
    method = InfluenceStep(iterations=70)
    assert most_passes(method, size=5_000, n_outputs=3, task="classification") == 140


def test_the_decay_of_the_forgotten_rows_belongs_to_the_step() -> None:
    targets = torch.from_numpy(stream(1, Purpose.FORGET).standard_normal(60))
    kept = torch.ones(60, dtype=torch.bool)
    kept[:15] = False
    full, oracle = fitted("regression", targets, kept | True), fitted("regression", targets, kept)
    wrong = unlearn(
        method_of("influence", {"damping": 1e-9}),
        linear(1),
        stacked(full),
        train=(torch.from_numpy(rows()[0]).double(), targets),
        forget=np.arange(15),
    )
    assert distance(wrong.states, oracle) > 1e-3 * distance(stacked(full), oracle)


def test_conjugate_gradients_find_what_the_exact_solver_finds() -> None:
    wide = nn.Sequential(nn.Linear(5, 600, dtype=torch.float64), nn.Linear(600, 3).double())
    inputs, targets = torch.from_numpy(rows()[0]).double(), torch.from_numpy(rows()[1])
    options = {"damping": 1.0, "tolerance": 1e-8}
    done = unlearn(
        method_of("influence", options), wide, stacked(wide), train=(inputs, targets), forget=[1, 2]
    )
    moved = torch.cat([(done.states[k][0] - v).flatten() for k, v in wide.state_dict().items()])
    kept = torch.arange(60) > 2
    kept[0] = True
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(wide, p, (inputs,)))(
        {name: value.detach() for name, value in wide.named_parameters()}
    )
    flat = torch.cat([part.flatten(2) for part in jacobian.values()], dim=2)
    p = torch.softmax(wide(inputs).detach(), dim=1)
    middle = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    residual = p - torch.nn.functional.one_hot(targets, 3)
    lost = torch.einsum("nk,nkp->p", residual[~kept], flat[~kept])
    rooted = torch.linalg.cholesky(middle + 1e-14 * torch.eye(3)).mT @ flat
    psi = rooted[kept].flatten(0, 1)
    shift = (psi**2).sum() / 58
    # Woodbury: the p x p matrix is never formed.
    inner = psi @ psi.T + shift * torch.eye(len(psi))
    want = (lost - psi.T @ torch.linalg.solve(inner, psi @ lost)) / shift
    torch.testing.assert_close(moved, want, rtol=1e-4, atol=1e-7)
    assert done.cost.scoring > 58
