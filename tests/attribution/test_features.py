import pytest
import torch
from torch import Tensor

from attribution.estimators import features as module
from attribution.estimators.features import featurize
from attribution.gradients import PerExampleGradients
from attribution.models import build
from attribution.projection import Projection
from schemas.errors import ShapeError


def problem(n: int = 20) -> tuple[torch.nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return build("cnn", (64,), 3, channels=[4, 6]), (torch.randn(n, 64), torch.arange(n) % 3)


@pytest.mark.parametrize("kind", ["sparse", "factored"])
def test_bfloat16_features_are_float32_and_near_the_exact_ones(kind: str) -> None:
    model, rows = problem()
    options = {"output": "margin", "task": "classification"}
    projection = Projection(kind=kind, dim=256)
    rough = featurize(model, None, rows, projection=projection, dtype="bfloat16", **options)
    exact = featurize(model, None, rows, projection=projection, dtype="float64", **options)
    assert rough.sketch.dtype == rough.residual.dtype == torch.float32
    error = (rough.sketch.double() - exact.sketch).norm(dim=1) / exact.sketch.norm(dim=1)
    assert float(error.max()) < 0.05
    torch.testing.assert_close(rough.residual.double(), exact.residual, atol=0.01, rtol=0)
    assert rough.fingerprint == exact.fingerprint
    with pytest.raises(ShapeError, match="dtype is 'float16'; give one of"):
        featurize(model, None, rows, dtype="float16", **options)


def test_memory_makes_batches_smaller_and_changes_no_feature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, rows = problem()
    seen: list[int] = []

    class Watched(PerExampleGradients):
        def run(self, inputs: Tensor, targets: Tensor) -> object:  # type: ignore[override]
            seen.append(len(inputs))
            return super().run(inputs, targets)

    monkeypatch.setattr(module, "PerExampleGradients", Watched)
    options = {"output": "margin", "task": "classification", "dtype": torch.float64}
    whole = featurize(model, None, rows, **options)
    assert seen == [1, 20]
    one_row = PerExampleGradients(model, None, output="margin", dtype=torch.float64).row_bytes(
        rows[0][:1], rows[1][:1]
    )
    seen.clear()
    small = featurize(model, None, rows, memory=6 * one_row, **options)
    assert seen == [1, 6, 6, 6, 2]
    torch.testing.assert_close(small.sketch, whole.sketch, rtol=1e-9, atol=1e-11)
    featurize(model, None, rows, memory=1, **options)
    assert seen[-20:] == [1] * 20
