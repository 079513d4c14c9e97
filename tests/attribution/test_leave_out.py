from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from torch import Tensor, nn

from attribution import attribute
from attribution.linear_fit import LinearFit
from attribution.rows import Rows
from schemas.errors import DataError, RecipeError, ShapeError

Arrays = tuple[NDArray[np.float64], NDArray[np.int64] | NDArray[np.float64]]


def scaled(loaded: object, n: int | None = None) -> Arrays:
    inputs, targets = loaded.data[:n], loaded.target[:n]  # type: ignore[attr-defined]
    return (inputs - inputs.mean(0)) / inputs.std(0), targets


def minimum(
    rows: Arrays, n_outputs: int, ridge: float, weight: NDArray[np.float64] | None = None
) -> Tensor:
    """The minimiser [K, d + 1] by Newton's method on autograd's derivatives: the slow truth."""
    inputs = torch.from_numpy(np.column_stack([rows[0], np.ones(len(rows[0]))]))
    targets = torch.from_numpy(rows[1])
    each = torch.ones(len(inputs)) if weight is None else torch.from_numpy(weight)
    size = n_outputs * inputs.shape[1]

    def objective(flat: Tensor) -> Tensor:
        weights = flat.view(n_outputs, -1)
        logits = inputs @ weights.T
        if targets.is_floating_point():
            losses = (targets - logits[:, 0]) ** 2
        else:
            losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        return (each * losses).sum() + ridge / 2 * weights[:, :-1].square().sum()

    flat = torch.zeros(size, dtype=torch.float64)
    for _ in range(60):
        slope = torch.autograd.functional.jacobian(objective, flat)
        if float(slope.norm()) < 1e-11 * len(inputs):
            break
        curved = torch.autograd.functional.hessian(objective, flat)
        step = torch.linalg.pinv(curved, rtol=1e-12, hermitian=True) @ slope
        scale = 1.0
        while scale > 1e-6 and objective(flat - scale * step) > objective(flat):
            scale /= 2
        flat = flat - scale * step
    return flat.view(n_outputs, -1)


def fit_of(rows: Arrays, n_outputs: int, ridge: float) -> tuple[LinearFit, nn.Module]:
    weights = minimum(rows, n_outputs, ridge)
    model = nn.Linear(rows[0].shape[1], n_outputs).double()
    with torch.no_grad():
        model.weight.copy_(weights[:, :-1])
        model.bias.copy_(weights[:, -1])
    task = "classification" if rows[1].dtype.kind == "i" else "regression"
    loaded = Rows((torch.from_numpy(rows[0]), torch.from_numpy(rows[1])), "train")
    return LinearFit.of(model, model.state_dict(), loaded, task=task, ridge=ridge), model


def left_out(rows: Arrays, group: list[int]) -> Arrays:
    kept = np.setdiff1d(np.arange(len(rows[0])), group)
    return rows[0][kept], rows[1][kept]


@pytest.mark.parametrize("ridge", [0.0, 5.0])
def test_least_squares_without_rows_is_the_refit_exactly(ridge: float) -> None:
    rows = scaled(load_diabetes())
    fit, _ = fit_of(rows, 1, ridge)
    for group in ([3], [10, 11, 200], list(range(40))):
        want = minimum(left_out(rows, group), 1, ridge) - fit.weights
        torch.testing.assert_close(fit.without(group), want, rtol=1e-8, atol=1e-8)


def test_least_squares_residuals_are_those_of_the_hat_matrix() -> None:
    inputs, targets = scaled(load_diabetes())
    fit, _ = fit_of((inputs, targets), 1, 0.0)
    x = np.column_stack([inputs, np.ones(len(inputs))])
    hat = np.einsum("nd,nd->n", x @ np.linalg.inv(x.T @ x), x)
    now = x @ fit.weights.numpy()[0]
    moved = np.concatenate([change.numpy() for _, change in fit.without_each()])[:, 0]
    without = now + np.einsum("nd,nd->n", x, moved)
    np.testing.assert_allclose(targets - without, (targets - now) / (1 - hat), rtol=1e-8)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_group_is_one_newton_step_with_the_hessian_of_the_rows_that_stay(classes: int) -> None:
    inputs, labels = scaled(load_wine())
    rows = inputs[labels < classes], labels[labels < classes]
    fit, _ = fit_of(rows, classes, 2.0)
    for group in ([5], [1, 40, 80, 81]):
        kept = left_out(rows, group)
        stays = LinearFit(
            features=torch.from_numpy(np.column_stack([kept[0], np.ones(len(kept[0]))])),
            targets=torch.from_numpy(kept[1]),
            weights=fit.weights,
            ridge=fit.ridge,
            decay=fit.decay,
            task=fit.task,
        )
        slope = stays.slopes(fit.weights).T @ stays.features + fit.weights * fit.ridge
        want = -(stays.inverse @ slope.flatten()).view_as(fit.weights)
        torch.testing.assert_close(fit.without(group), want, rtol=1e-8, atol=1e-9)


def test_hessian_and_gradient_are_autograds() -> None:
    rows = scaled(load_wine())
    fit, _ = fit_of(rows, 3, 1.5)

    def objective(flat: Tensor) -> Tensor:
        weights = flat.view_as(fit.weights)
        losses = nn.functional.cross_entropy(fit.features @ weights.T, fit.targets, reduction="sum")
        return losses + 1.5 / 2 * weights[:, :-1].square().sum()

    flat = (fit.weights + 0.1).flatten()
    want = torch.autograd.functional.hessian(objective, flat)
    torch.testing.assert_close(fit.hessian(fit.weights + 0.1), want)
    slope = fit.slopes(fit.weights + 0.1).T @ fit.features + (fit.weights + 0.1) * fit.penalty()
    want = torch.autograd.functional.jacobian(objective, flat)
    torch.testing.assert_close(slope.flatten(), want)
    assert fit.stationarity() < 1e-8


def test_a_rows_share_of_the_weight_decay_goes_with_it() -> None:
    inputs, targets = scaled(load_diabetes(), 80)
    pair = torch.from_numpy(inputs), torch.from_numpy(targets)
    model = nn.Linear(inputs.shape[1], 1).double()
    options = {"task": "regression", "weight_decay": 0.05, "penalise_bias": True}
    start = LinearFit.of(model, model.state_dict(), Rows(pair, "train"), **options)
    fit = start.minimised()
    assert fit.stationarity() < 1e-8 < start.stationarity()

    def solved(kept: NDArray[np.intp]) -> Tensor:
        x = torch.from_numpy(np.column_stack([inputs[kept], np.ones(len(kept))]))
        gram = 2 * x.T @ x + len(kept) * 0.05 * torch.eye(x.shape[1], dtype=torch.float64)
        return torch.linalg.solve(gram, 2 * x.T @ torch.from_numpy(targets[kept]))[None]

    torch.testing.assert_close(fit.weights, solved(np.arange(80)))
    for group in ([7], [3, 4, 50]):
        want = solved(np.setdiff1d(np.arange(80), group)) - fit.weights
        torch.testing.assert_close(fit.without(group), want, rtol=1e-8, atol=1e-9)
    rows = torch.tensor([0, 7, 79])
    ((part, weights),) = fit.refits(rows)
    assert part == slice(0, 3)
    for place, row in enumerate(rows.tolist()):
        want = solved(np.delete(np.arange(80), row))
        torch.testing.assert_close(weights[place], want, rtol=1e-8, atol=1e-8)


def test_the_jackknife_is_the_derivative_of_the_refit() -> None:
    rows = scaled(load_wine(), 120)
    rows = rows[0], rows[1].astype(np.int64)
    fit, _ = fit_of(rows, 2, 1.0)
    moved, step = fit.jackknife(), 1e-4
    for row in (0, 63, 119):
        sides = []
        for sign in (1, -1):
            weight = np.ones(len(rows[0]))
            weight[row] += sign * step
            sides.append(minimum(rows, 2, 1.0, weight))
        derivative = (sides[0] - sides[1]) / (2 * step)
        # The common shift of both biases is free and moves nothing.
        centred = derivative - derivative.mean(0)
        torch.testing.assert_close(
            -(moved[row] - moved[row].mean(0)), centred, rtol=1e-5, atol=1e-8
        )


@pytest.fixture(scope="module")
def cancer() -> tuple[Arrays, LinearFit, nn.Module, NDArray[np.float64]]:
    """A logistic regression of breast_cancer and its margins after leaving out each fifth row.

    A ridge of 2 on both logits is one of 1 on their difference: scikit-learn's C = 1.
    """
    rows = scaled(load_breast_cancer())
    fit, model = fit_of(rows, 2, 2.0)
    margins = []
    for row in range(0, len(rows[0]), 5):
        kept = left_out(rows, [row])
        margins.append(_margins(_binary(kept, 2.0), rows))
    return rows, fit, model, np.array(margins).T


def _binary(rows: Arrays, ridge: float) -> NDArray[np.float64]:
    """Weights of the margin of class 1: half the ridge, since two logits share it."""
    x, sign = np.column_stack([rows[0], np.ones(len(rows[0]))]), 2.0 * rows[1] - 1
    penalty = np.append(np.full(x.shape[1] - 1, ridge / 2), 0.0)
    w = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(sign * (x @ w)))
        slope = -x.T @ (sign * p) + penalty * w
        w -= np.linalg.solve((x.T * (p * (1 - p))) @ x + np.diag(penalty), slope)
    assert np.abs(slope).max() < 1e-10
    return w


def _margins(weights: NDArray[np.float64], rows: Arrays) -> NDArray[np.float64]:
    x = np.column_stack([rows[0], np.ones(len(rows[0]))])
    return (2.0 * rows[1] - 1) * (x @ weights)


def _score(
    cancer: tuple[Arrays, LinearFit, nn.Module, NDArray[np.float64]], method: str, **options: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows, fit, model, without = cancer
    x = torch.from_numpy(rows[0]), torch.from_numpy(rows[1])
    scores = attribute(
        method, model, [model.state_dict()], train=x, queries=x, ridge=2.0, **options
    )
    now = _margins((fit.weights[1] - fit.weights[0]).numpy(), rows)
    return np.asarray(scores)[:, ::5], now[:, None] - without


def test_alo_beats_the_jackknife_and_newton_steps_reach_the_refit(
    cancer: tuple[Arrays, LinearFit, nn.Module, NDArray[np.float64]],
) -> None:
    error = {}
    for name, options in {
        "jackknife": {},
        "alo": {},
        "alo 2": {"steps": 2},
    }.items():
        got, truth = _score(cancer, name.split()[0], **options)
        error[name] = np.sqrt(((got - truth) ** 2).mean() / (truth**2).mean())
        if name == "alo":
            assert stats.spearmanr(got.ravel(), truth.ravel()).statistic >= 0.99
    assert error["alo"] < 0.7 * error["jackknife"]
    assert error["alo 2"] < 0.01


def test_scores_are_falls_of_any_output_and_keep_the_sign() -> None:
    rows = scaled(load_wine())
    fit, model = fit_of(rows, 3, 1.0)
    pair = torch.from_numpy(rows[0]), torch.from_numpy(rows[1])
    found: dict[str, NDArray[np.float64]] = {}
    for output in ("margin", "loss", "logit"):
        scores = attribute(
            "alo", model, [model.state_dict()], train=pair, queries=pair, output=output, ridge=1.0
        )
        found[output] = np.asarray(scores)
    assert (np.diag(found["margin"]) > 0).all()
    assert (np.diag(found["loss"]) < 0).all()
    row, query = 20, 77
    weights = fit.weights + fit.without([row])
    logits = torch.tensor([*rows[0][query], 1.0]) @ torch.stack([fit.weights, weights]).mT
    fall = (logits[0] - logits[1])[rows[1][query]]
    assert found["logit"][query, row] == pytest.approx(float(fall), rel=1e-4)


def test_blocks_and_out_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = scaled(load_wine())
    _, model = fit_of(rows, 3, 1.0)
    pair = torch.from_numpy(rows[0]), torch.from_numpy(rows[1])

    def run(out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        return np.asarray(
            attribute(
                "alo", model, [model.state_dict()], train=pair, queries=pair, ridge=1.0, out=out
            )
        )

    want = run()
    monkeypatch.setattr("attribution.linear_fit.BLOCK", 1000)
    monkeypatch.setattr("attribution.estimators.leave_out.BLOCK", 1000)
    room = np.zeros_like(want)
    run(room)
    np.testing.assert_allclose(room, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (lambda fit: fit.without([]), ShapeError, "0 rows out of 178"),
        (lambda fit: fit.without([1, 1]), ShapeError, "each once"),
        (lambda fit: fit.without([178]), ShapeError, "0..177"),
        (lambda fit: fit.without([0], steps=-1), ShapeError, "steps is -1"),
    ],
)
def test_bad_groups_are_refused(
    ask: Callable[[LinearFit], object], error: type[Exception], words: str
) -> None:
    fit, _ = fit_of(scaled(load_wine()), 3, 1.0)
    with pytest.raises(error, match=words):
        ask(fit)


def test_a_deep_model_a_negative_ridge_and_an_open_fit_are_refused() -> None:
    inputs, labels = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0, 1])
    deep = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    pair = {"train": (inputs, labels), "queries": (inputs, labels)}
    with pytest.raises(RecipeError, match="one linear layer"):
        attribute("alo", deep, [deep.state_dict()], **pair)
    plain = nn.Linear(3, 2).double()
    with pytest.raises(ShapeError, match="ridge is -1"):
        attribute("alo", plain, [plain.state_dict()], ridge=-1.0, **pair)
    square = nn.Linear(5, 1).double()
    torch.manual_seed(0)
    numbers = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    with pytest.raises(DataError, match="do not determine"):
        attribute("alo", square, [square.state_dict()], train=numbers, queries=numbers)
