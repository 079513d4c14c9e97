import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attribution import attribute
from attribution.outputs import evaluate
from attribution.streams import stream
from schemas.errors import ShapeError

DOUBLE = torch.float64
N, M, D, K = 23, 5, 6, 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)  # over two positions: a gradient is a sum over them
        self.norm = nn.LayerNorm(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, K)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.first(inputs.reshape(-1, 2, 3))))
        return self.head(self.drop(hidden.flatten(1)))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().double()


def states(count: int = 2) -> list[dict[str, Tensor]]:
    return [
        {name: value + 0.1 * number for name, value in net().state_dict().items()}
        for number in range(count)
    ]


def rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = stream(seed)
    return rng.standard_normal((n, D)), rng.integers(0, K, n)


TRAIN, QUERIES = rows(N, 1), rows(M, 2)
OPTIONS = {"train": TRAIN, "queries": QUERIES, "dtype": DOUBLE, "device": "cpu"}
LAYERS = ("first", "norm", "head")


def gradients(state: dict[str, Tensor], pair: tuple, output: str) -> list[dict[str, Tensor]]:
    """By layer, one autograd call a row."""
    model = net().eval()
    model.load_state_dict(state)
    inputs, targets = map(torch.as_tensor, pair)
    found = []
    for row in range(len(targets)):
        model.zero_grad()
        value = evaluate(output, model(inputs[row : row + 1]), targets[row : row + 1])
        value.sum().backward()
        found.append(
            {
                layer: torch.cat([v.grad.flatten() for v in getattr(model, layer).parameters()])
                for layer in LAYERS
            }
        )
    return found


def by_hand(state: dict[str, Tensor], normalise: str, output: str = "margin") -> np.ndarray:
    tau = np.zeros((M, N))
    train = gradients(state, TRAIN, "loss")
    for q, asked in enumerate(gradients(state, QUERIES, output)):
        for i, own in enumerate(train):
            if normalise == "layer":
                tau[q, i] = -sum(
                    float(asked[part] @ own[part] / asked[part].norm() / own[part].norm())
                    for part in LAYERS
                )
                continue
            a, b = torch.cat(list(asked.values())), torch.cat(list(own.values()))
            scale = float(a.norm() * b.norm()) if normalise == "whole" else 1.0
            tau[q, i] = -float(a @ b) / scale
    return tau


def close(got: np.ndarray, want: np.ndarray, rtol: float = 1e-6) -> None:
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max())


@pytest.mark.parametrize("output", ["margin", "loss", "logit"])
@pytest.mark.parametrize(
    ("method", "options", "normalise"),
    [
        ("graddot", {}, "none"),
        ("gradcos", {}, "whole"),
        ("gradcos", {"normalise": "layer"}, "layer"),
    ],
)
def test_similarities_are_those_of_an_autograd_loop(
    output: str, method: str, options: dict[str, str], normalise: str
) -> None:
    want = np.mean([by_hand(state, normalise, output) for state in states()], axis=0)
    got = attribute(method, net().train(), states(), output=output, **options, **OPTIONS)
    close(got, want)
    assert got.record["damping"] is None
    assert got.record["output"] == output


@pytest.mark.parametrize("normalise", ["none", "whole", "layer"])
def test_tracin_is_a_weighted_sum_over_checkpoints(normalise: str) -> None:
    parts = [by_hand(state, normalise) for state in states(3)]
    got = attribute(
        "tracin", net(), states(3), weights=[0.5, 0.2, 0.0], normalise=normalise, **OPTIONS
    )
    close(got, 0.5 * parts[0] + 0.2 * parts[1])
    close(attribute("tracin", net(), states(3), normalise=normalise, **OPTIONS), sum(parts))


@pytest.mark.parametrize("normalise", ["whole", "layer"])
def test_gas_is_tracin_with_gradients_of_length_one(normalise: str) -> None:
    weights = [0.5, 0.2, 0.1]
    got = attribute("gas", net(), states(3), weights=weights, normalise=normalise, **OPTIONS)
    want = sum(
        weight * by_hand(state, normalise) for weight, state in zip(weights, states(3), strict=True)
    )
    close(got, want)
    same = attribute("tracin", net(), states(3), weights=weights, normalise=normalise, **OPTIONS)
    np.testing.assert_array_equal(got, same)
    if normalise == "whole":
        close(attribute("gas", net(), states(1), **OPTIONS), by_hand(states(1)[0], "whole"))


def test_tracin_predicts_the_change_of_one_small_step_in_output_units() -> None:
    rate, state = 1e-5, states(1)[0]
    tau = attribute("tracin", net(), [state], weights=[rate / N], **OPTIONS)
    model = net().eval()
    model.load_state_dict(state)
    inputs, targets = map(torch.as_tensor, TRAIN)
    asked, labels = map(torch.as_tensor, QUERIES)
    before = evaluate("margin", model(asked), labels)
    evaluate("loss", model(inputs), targets).mean().backward()
    with torch.no_grad():
        for value in model.parameters():
            value -= rate * value.grad
    change = (evaluate("margin", model(asked), labels) - before).detach().numpy()
    close(tau.sum(1), change, 1e-3)


def test_a_row_agrees_with_itself() -> None:
    own = attribute("gradcos", net(), states(), **(OPTIONS | {"queries": TRAIN, "output": "loss"}))
    np.testing.assert_allclose(np.diag(own), -1.0, rtol=1e-6)
    assert np.abs(own).max() <= 1 + 1e-6
    helped = attribute("graddot", net(), states(), **(OPTIONS | {"queries": TRAIN}))
    assert (np.diag(helped) > 0).all()  # training on a row raises its own margin


@pytest.mark.parametrize(
    ("method", "options"),
    [("graddot", {}), ("gradcos", {}), ("gradcos", {"normalise": "layer"}), ("tracin", {})],
)
def test_batches_do_not_change_the_scores(
    method: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = attribute(method, net(), states(), **options, **OPTIONS)
    monkeypatch.setattr("attribution.estimators.similarity.QUERY_BLOCK", 3)
    for size in (1, 7):
        close(attribute(method, net(), states(), batch_size=size, **options, **OPTIONS), whole)


@pytest.mark.parametrize("method", ["graddot", "gradcos", "tracin"])
def test_a_wide_sketch_comes_close(method: str) -> None:
    exact = attribute(method, net(), states(), **OPTIONS)
    got = attribute(method, net(), states(), projection={"dim": 20_000}, **OPTIONS)
    assert np.corrcoef(got.ravel(), exact.ravel())[0, 1] > 0.99
    assert "sparse" in got.record["fingerprint"][0]
    none = attribute(method, net(), states(), projection={"kind": "none"}, **OPTIONS)
    np.testing.assert_array_equal(none, exact)


def test_a_gradient_of_length_zero_is_similar_to_nothing() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(2, 2)
            self.head = nn.Linear(D, K, bias=False)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(inputs)

    torch.manual_seed(0)
    model = Flat().double()
    inputs = TRAIN[0].copy()
    inputs[3] = 0.0
    options = OPTIONS | {"train": (inputs, TRAIN[1])}
    for normalise in ("whole", "layer"):
        got = attribute("gradcos", model, [model.state_dict()], normalise=normalise, **options)
        assert not got[:, 3].any()
        assert np.isfinite(got).all()
        assert np.abs(got).max() <= 1 + 1e-6


def test_scores_stream_into_arrays_and_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attribution.estimators.similarity.QUERY_BLOCK", 2)
    want = attribute("graddot", net(), states(), **OPTIONS)
    array = np.empty((M, N), dtype=np.float32)
    assert attribute("graddot", net(), states(), out=array, **OPTIONS).base is array
    np.testing.assert_array_equal(array, want)
    blocks: list[np.ndarray] = []
    attribute("graddot", net(), states(), out=lambda _, block: blocks.append(block), **OPTIONS)
    np.testing.assert_array_equal(np.concatenate(blocks), want)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("tracin", {"weights": [1.0]}, "each of the 2"),
        ("tracin", {"weights": [1.0, -1.0]}, "0 or more"),
        ("tracin", {"normalise": "row"}, "normalise"),
        ("gradcos", {"normalise": "none"}, "'whole' or 'layer'"),
        ("gas", {"normalise": "none"}, "'whole' or 'layer'"),
        ("gas", {"weights": [1.0]}, "each of the 2"),
        ("gradcos", {"normalise": "layer", "projection": {"dim": 8}}, "mixes the layers"),
    ],
)
def test_options_out_of_range_are_refused(
    method: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        attribute(method, net(), states(), **options, **OPTIONS)
