import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attribution.gradients import PerExampleGradients, gradient_blocks, layout_of
from attribution.gradients.perexample import flat_gradients
from attribution.models import build
from schemas.errors import CheckpointError, RecipeError

# Torch says so once of an even kernel with padding='same'; such a layer is meant here.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

N = 5


class Shared(nn.Module):
    """One layer used twice, a tied weight, an in-place activation and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu_(self.first(x))
        h = self.second(torch.tanh(self.first(h)))
        h += x
        return self.head(h)


class Tokens(nn.Module):
    """Embedding whose weight is also the head, LayerNorm, Linear over positions, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.mix = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        h = h + self.attend(h, h, h, need_weights=False)[0]
        h = self.norm(self.mix(h)) * self.scale
        return nn.functional.linear(h.mean(1), self.embed.weight)


class Tied(nn.Module):
    """One Parameter as embedding and as head, another as two biases; a norm used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4, padding_idx=2)
        self.place = nn.Embedding(4, 4)
        self.norm = nn.LayerNorm(4)
        self.mix, self.mix_again = nn.Linear(4, 4), nn.Linear(4, 4)
        self.mix_again.bias = self.mix.bias
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens) + self.place(torch.arange(4).expand_as(tokens))
        h = self.norm(self.mix_again(torch.tanh(self.mix(self.norm(h)))))
        return self.head(h.mean(1))


class Attend(nn.Module):
    """Causal self-attention made of Linear layers, in a pre-norm block."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, 6), nn.RMSNorm(6)
        self.qkv, self.out = nn.Linear(6, 18, bias=False), nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        parts = self.qkv(self.norm(h)).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        return self.head(h.mean(1))


def sounds() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2),
        nn.BatchNorm1d(4),
        nn.Tanh(),
        nn.Conv1d(4, 6, 2, groups=2, padding="same"),
        nn.GroupNorm(3, 6),
        nn.Conv1d(6, 5, 1),
        nn.Conv1d(5, 5, 3, padding=1, padding_mode="reflect", bias=False),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
        nn.BatchNorm1d(10),
        nn.Linear(10, 3),
    )


def awake(model: nn.Module) -> nn.Module:
    """Norms away from their initial state, where scale 1 and shift 0 hide mistakes."""
    for module in model.modules():
        for name, value in [*module.named_parameters(recurse=False)]:
            if value.ndim == 1:
                nn.init.normal_(module.get_parameter(name), 0.5)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


class SequenceFirst(nn.Module):
    """Its layers see [positions, batch, features], and as many positions as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(x.transpose(0, 1)))
        return self.head(h.sum(0))


class Low(nn.Linear):
    """A Linear that computes more than a Linear."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        self.extra = nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.extra, self.bias)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=(1, 2), dilation=(1, 2)),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, (3, 2), groups=2, padding="same"),
        nn.GroupNorm(2, 6),
        nn.Conv2d(6, 6, 3, groups=6, padding=1, padding_mode="circular", bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(6, 3),
    )


def weight_normed() -> nn.Module:
    return nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)
    )


def numbers(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(N, *shape)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (mlp, numbers(2, 3)),
    "cnn": (cnn, numbers(2, 8, 9)),
    "shared": (Shared, numbers(6)),
    "tokens": (Tokens, lambda: torch.randint(7, (N, 4))),
    "positions": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2), nn.Flatten()),
        numbers(2, 3, 4),
    ),
    "sounds": (lambda: awake(sounds()), numbers(2, 11)),
    "pictures": (lambda: awake(cnn()), numbers(2, 8, 9)),
    "tied": (lambda: awake(Tied()), lambda: torch.randint(7, (N, 4))),
    "attention": (lambda: awake(Attend()), lambda: torch.randint(7, (N, 5))),
    "resnet": (lambda: awake(build("resnet", (2, 8, 8), 3, width=4)), numbers(2, 8, 8)),
    "sequence-first": (SequenceFirst, numbers(N, 3)),
    "subclass": (lambda: nn.Sequential(Low()), numbers(6)),
    "weight-norm": (weight_normed, numbers(6)),
}


def case(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    model, inputs = (make() for make in CASES[name])
    return model, inputs, torch.randint(3, (N,))


def joined(owner: PerExampleGradients, inputs: Tensor, targets: Tensor, limit: int) -> Tensor:
    blocks = list(owner.run(inputs, targets).blocks(limit))
    ends = [offset + block.shape[1] for offset, block in blocks]
    assert [offset for offset, _ in blocks] == [0, *ends[:-1]]
    assert ends[-1] == owner.layout.size
    return torch.cat([block for _, block in blocks], dim=1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("output", ["margin", "loss"])
def test_gradients_equal_one_autograd_call_for_each_example(name: str, output: str) -> None:
    model, inputs, targets = case(name)
    owner = PerExampleGradients(model, None, output=output, dtype=torch.float64)
    got = joined(owner, inputs, targets, 2**24)
    torch.testing.assert_close(got, flat_gradients(owner, inputs, targets), rtol=1e-9, atol=1e-11)
    assert got.abs().max() > 0


@pytest.mark.parametrize("name", ["mlp", "cnn", "shared", "tokens", "sounds", "tied"])
def test_gradients_do_not_care_how_rows_and_weights_are_cut(name: str) -> None:
    model, inputs, targets = case(name)
    owner = PerExampleGradients(model, None, output="margin", dtype=torch.float64)
    whole = joined(owner, inputs, targets, 2**24)
    pieces = [joined(owner, inputs[i : i + 1], targets[i : i + 1], 7) for i in range(N)]
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-9, atol=1e-11)
    fresh = PerExampleGradients(model, None, output="margin", dtype=torch.float64)
    torch.testing.assert_close(joined(fresh, inputs[:1], targets[:1], 40), whole[:1])


def test_hooks_cover_what_they_can_and_no_more() -> None:
    plans = {}
    for name in CASES:
        model, inputs, targets = case(name)
        owner = PerExampleGradients(model, None, output="margin")
        owner.run(inputs, targets)
        plans[name] = owner.plan
    for name in ("mlp", "cnn", "positions", "shared", "sounds", "tied", "attention", "resnet"):
        assert plans[name].general == ()
    assert set(plans["shared"].uses) == {"first.weight", "first.bias", "head.weight", "head.bias"}
    assert set(plans["tokens"].uses) == {"mix.weight", "mix.bias", "norm.weight", "norm.bias"}
    assert [role for _, role in plans["tied"].uses["embed.weight"]] == ["weight", "weight"]
    assert set(plans["sequence-first"].general) == {"inner.weight", "inner.bias"}
    assert plans["subclass"].uses == {}
    assert set(plans["weight-norm"].uses) == {"0.bias", "2.weight", "2.bias"} or (
        "0.bias" in plans["weight-norm"].general
    )


def test_the_callers_model_is_left_as_it_was() -> None:
    model, inputs, targets = case("cnn")
    model.train()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    state = {name: value + 1 for name, value in before.items()}
    with torch.no_grad():
        owner = PerExampleGradients(model, state, output="margin", dtype=torch.float64)
        got = joined(owner, inputs, targets, 2**24)
    assert model.training
    assert [value.requires_grad for value in model.parameters()] == [False] + [True] * 10
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(value.grad is None for value in model.parameters())
    assert got.shape[1] == layout_of(model).size
    torch.testing.assert_close(got, flat_gradients(owner, inputs, targets))


def test_a_user_hook_and_a_frozen_model_are_respected() -> None:
    model, inputs, targets = case("mlp")
    model[1].register_forward_hook(lambda _, __, out: out * 3)
    owner = PerExampleGradients(model, None, output="margin", dtype=torch.float64)
    got = joined(owner, inputs, targets, 2**24)
    torch.testing.assert_close(got, flat_gradients(owner, inputs, targets))
    with pytest.raises(RecipeError, match="no parameter"):
        PerExampleGradients(model.requires_grad_(False), None, output="margin")


def test_mappings_of_inputs_are_keyword_arguments() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 3), nn.LayerNorm(3)

        def forward(self, *, left: Tensor, right: Tensor) -> Tensor:
            return self.left(left) + self.right(right)

    inputs = {"left": torch.randn(N, 3), "right": torch.randn(N, 3)}
    targets = torch.randint(3, (N,))
    owner = PerExampleGradients(Two(), None, output="loss", dtype=torch.float64)
    got = torch.cat([block for _, block in owner.run(inputs, targets).blocks()], dim=1)
    torch.testing.assert_close(got, flat_gradients(owner, inputs, targets))


def test_a_parameter_that_is_not_used_has_zero_gradient() -> None:
    model, inputs, targets = case("mlp")
    model.spare = nn.Linear(2, 2)
    model.forward = lambda x: model[3](model[2](model[1](model[0](x))))  # type: ignore[method-assign]
    blocks = dict(gradient_blocks(model, None, inputs, targets, "margin"))
    spare = [block for offset, block in blocks.items() if offset >= layout_of(case("mlp")[0]).size]
    assert [block.shape for block in spare] == [(N, 4), (N, 2)]
    assert all(not block.any() for block in spare)


def test_models_that_mix_rows_are_refused() -> None:
    _, inputs, targets = case("mlp")
    batch = nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3)
    )
    with pytest.raises(RecipeError, match="statistics of the batch"):
        list(gradient_blocks(batch, None, inputs, targets, "margin"))

    class Centred(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1) - x.flatten(1).mean(0))

    with pytest.raises(RecipeError, match="other rows"):
        list(gradient_blocks(Centred(6, 3), None, inputs, targets, "margin"))
    inner = nn.Sequential(nn.Flatten(), nn.Linear(6, 6), Centred(6, 3))
    with pytest.raises(RecipeError, match=r"other rows.*after layer '2'"):
        list(gradient_blocks(inner, None, inputs, targets, "margin"))
    counted = nn.Sequential(nn.Embedding(7, 3, scale_grad_by_freq=True), nn.Flatten())
    with pytest.raises(RecipeError, match=r"layer '0' scales gradients by how often"):
        list(gradient_blocks(counted, None, torch.zeros(3, 1).long(), targets[:3], "margin"))


def test_layers_without_a_per_example_gradient_are_named() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(6))
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = x.flatten(1) * self.gain
            return self.head(h if h.sum().item() > 0 else -h)

    _, inputs, targets = case("mlp")
    with pytest.raises(RecipeError, match="gain"):
        list(gradient_blocks(Branch(), None, inputs.abs(), targets, "margin"))


def test_overwriting_a_layers_input_is_refused() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.inner(x.flatten(1))
            z = self.head(h)
            h += 1
            return z

    _, inputs, targets = case("mlp")
    with pytest.raises(RecipeError, match="in-place"):
        list(gradient_blocks(Overwrites(), None, inputs, targets, "margin"))


def test_weights_that_do_not_fit_are_refused() -> None:
    model, inputs, targets = case("mlp")
    state = dict(model.state_dict())
    with pytest.raises(CheckpointError, match=r"3\.bias"):
        list(gradient_blocks(model, state | {"3.bias": torch.zeros(4)}, inputs, targets, "margin"))
    bad = torch.full((3,), torch.nan)
    with pytest.raises(CheckpointError, match="NaN"):
        list(gradient_blocks(model, state | {"3.bias": bad}, inputs, targets, "margin"))
    state.pop("1.weight")
    with pytest.raises(CheckpointError, match=r"1\.weight"):
        list(gradient_blocks(model, state, inputs, targets, "margin"))
