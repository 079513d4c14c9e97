import numpy as np
import pytest
import torch

from attribution.devices import resolve
from attribution.outputs import (
    OUTPUTS,
    Output,
    evaluate,
    output_name,
    tangent,
    task_of,
    task_output,
    training_loss,
)
from schemas.errors import DeviceUnavailable, ShapeError

LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
CLASSES = torch.tensor([0, 2, 1])
PREDICTIONS = torch.tensor([[1.5], [-2.0]], dtype=torch.float64)
NUMBERS = torch.tensor([1.0, 0.5], dtype=torch.float64)


def test_every_output_is_described_and_computed() -> None:
    p = torch.softmax(LOGITS, 1)[torch.arange(3), CLASSES]
    want = {
        "margin": torch.log(p / (1 - p)),
        "loss": -torch.log(p),
        "logprob": torch.log(p),
        "logit": LOGITS[torch.arange(3), CLASSES],
    }
    for name, values in want.items():
        torch.testing.assert_close(evaluate(name, LOGITS, CLASSES), values)
    torch.testing.assert_close(evaluate("prediction", PREDICTIONS, NUMBERS), PREDICTIONS[:, 0])
    error = (NUMBERS - PREDICTIONS[:, 0]) ** 2
    torch.testing.assert_close(evaluate("squared_error", PREDICTIONS, NUMBERS), error)
    torch.testing.assert_close(evaluate("loss", PREDICTIONS, NUMBERS), error)
    assert set(OUTPUTS) == set(Output)


def test_the_margin_survives_logits_that_overflow_a_softmax() -> None:
    logits = torch.tensor([[5000.0, -5000.0, 0.0], [-90.0, 90.0, 90.0]], requires_grad=True)
    margin = evaluate("margin", logits, torch.tensor([0, 0]))
    np.testing.assert_allclose(
        margin.detach().numpy(), [5000.0, -180.0 - float(np.log(2))], rtol=1e-6
    )
    (gradient,) = torch.autograd.grad(margin.sum(), logits)
    assert torch.isfinite(gradient).all()
    residual, curvature = tangent("classification", logits.detach(), torch.tensor([0, 0]))
    assert torch.isfinite(residual).all()
    assert torch.isfinite(curvature).all()


def test_the_residual_keeps_its_digits_when_the_model_is_sure() -> None:
    residual, curvature = tangent("classification", torch.tensor([[40.0, 0.0]]), torch.tensor([0]))
    assert residual.item() == pytest.approx(np.exp(-40.0), rel=1e-4)
    assert curvature.item() == pytest.approx(np.exp(-40.0), rel=1e-4)


def test_the_tangent_is_the_derivative_of_the_loss_by_the_output() -> None:
    def loss_of_margin(margin: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.softplus(-margin)

    margin = evaluate("margin", LOGITS, CLASSES)
    torch.testing.assert_close(loss_of_margin(margin), evaluate("loss", LOGITS, CLASSES))
    residual, curvature = tangent("classification", LOGITS, CLASSES)
    first = torch.func.vmap(torch.func.grad(loss_of_margin))(margin)
    second = torch.func.vmap(torch.func.grad(torch.func.grad(loss_of_margin)))(margin)
    torch.testing.assert_close(residual, -first)
    torch.testing.assert_close(curvature, second)
    residual, curvature = tangent("regression", PREDICTIONS, NUMBERS)
    torch.testing.assert_close(residual, 2 * (NUMBERS - PREDICTIONS[:, 0]))
    torch.testing.assert_close(curvature, torch.full((2,), 2.0, dtype=torch.float64))


def test_the_training_loss_reduces_as_asked() -> None:
    each = training_loss("classification", LOGITS, CLASSES, "none")
    torch.testing.assert_close(training_loss("classification", LOGITS, CLASSES), each.sum())
    torch.testing.assert_close(
        training_loss("classification", LOGITS, CLASSES, "mean"),
        torch.nn.functional.cross_entropy(LOGITS, CLASSES),
    )
    with pytest.raises(ShapeError, match="regression"):
        training_loss("regression", LOGITS, CLASSES)


def test_outputs_work_on_stacks_of_models() -> None:
    stacked = torch.stack([LOGITS, LOGITS.flip(1)])
    got = evaluate("margin", stacked, torch.stack([CLASSES, CLASSES]))
    torch.testing.assert_close(got[1], evaluate("margin", LOGITS.flip(1), CLASSES))


def test_a_margin_of_one_output_is_refused() -> None:
    with pytest.raises(ShapeError, match="two logits or more"):
        evaluate("margin", PREDICTIONS, torch.tensor([0, 0]))
    with pytest.raises(ShapeError, match="needs class targets"):
        evaluate("margin", PREDICTIONS, NUMBERS)


@pytest.mark.parametrize(
    ("output", "logits", "targets", "message"),
    [
        ("margin", LOGITS, torch.tensor([0, 1, 3]), "0..2"),
        ("margin", LOGITS, torch.tensor([0, 1, -1]), "from -1"),
        ("margin", LOGITS, torch.tensor([0, 1]), "do not fit"),
        ("prediction", LOGITS, CLASSES, "floating targets"),
        ("prediction", LOGITS, NUMBERS.new_zeros(3), "one output"),
        ("squared_error", PREDICTIONS, NUMBERS * torch.nan, "NaN"),
        ("marginal", LOGITS, CLASSES, "unknown output"),
        (lambda z, _: z, LOGITS, CLASSES, "one number for each example"),
        (lambda z, _: z.sum(), LOGITS, CLASSES, "one number for each example"),
    ],
)
def test_what_does_not_fit_is_refused(
    output: str, logits: torch.Tensor, targets: torch.Tensor, message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        evaluate(output, logits, targets)


def test_a_function_may_be_an_output() -> None:
    def top(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return logits.max(-1).values

    torch.testing.assert_close(evaluate(top, LOGITS, CLASSES), LOGITS.max(1).values)
    assert output_name(top) == "callable:top"
    assert output_name("loss") == "loss"


def test_the_task_is_read_from_the_targets() -> None:
    assert task_of(CLASSES) == "classification"
    assert task_of(np.zeros(3, dtype=np.float32)) == "regression"
    assert task_output("classification") == "margin"
    assert task_output("regression") == "prediction"


def test_a_device_is_taken_at_its_word() -> None:
    assert resolve("cpu") == "cpu"
    assert resolve("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(DeviceUnavailable, match="unknown device"):
        resolve("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceUnavailable, match="say 'auto'"):
            resolve("cuda")
