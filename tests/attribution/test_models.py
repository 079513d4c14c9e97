import pytest
import torch
from torch import Tensor, nn

from attribution.models import build, fresh, fresh_each, torch_stream
from attribution.streams import Purpose, torch_seed
from schemas.errors import NotFound, RecipeError, ShapeError


class Scaled(nn.Module):
    """A parameter that no reset_parameters draws."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, rows: Tensor) -> Tensor:
        return self.inner(rows) * self.scale


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.attention(rows, rows, rows)[0].mean(1))


def same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_linear_and_mlp_flatten_their_input() -> None:
    rows = torch.randn(5, 2, 3)
    assert build("linear", (2, 3), 4)(rows).shape == (5, 4)
    assert build("mlp", (2, 3), 1, hidden=[7])(rows).shape == (5, 1)
    shapes = [p.shape for p in build("mlp", (2, 3), 4, hidden=[8, 5]).parameters()]
    assert shapes == [(8, 6), (8,), (5, 8), (5,), (4, 5), (4,)]


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_an_mlp_takes_each_activation(activation: str) -> None:
    kinds = [type(m).__name__.lower() for m in build("mlp", (2,), 2, activation=activation)]
    assert kinds.count(activation) == 2


def test_unknown_names_and_options_are_refused_with_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean 'mlp'"):
        build("mpl", (2,), 2)
    with pytest.raises(NotFound, match="did you mean 'tanh'"):
        build("mlp", (2,), 2, activation="tan")
    with pytest.raises(RecipeError, match="no option 'width'; its options: hidden, activation"):
        build("mlp", (2,), 2, width=3)
    with pytest.raises(RecipeError, match="no option 'hidden'"):
        build("linear", (2,), 2, hidden=[3])
    with pytest.raises(RecipeError, match="layer widths"):
        build("mlp", (2,), 2, hidden=[0])
    with pytest.raises(ShapeError, match="at least 1 output"):
        build("linear", (2,), 0)
    with pytest.raises(ShapeError, match="no number"):
        build("linear", (0,), 2)


@pytest.mark.parametrize("make", [lambda: build("mlp", (4,), 3, hidden=[5, 6]), Attention])
def test_a_module_drawn_again_equals_one_constructed_under_the_seed(make: object) -> None:
    assert callable(make)
    before = make()
    drawn = fresh(before, 17)
    with torch_stream(torch_seed(17, Purpose.INIT)):
        constructed = make()
    assert same(drawn, constructed)
    assert same(fresh(make, 17), constructed)
    assert not same(drawn, before)
    assert not same(drawn, fresh(before, 18))


@pytest.mark.parametrize("given", [build("mlp", (4,), 3), nn.BatchNorm1d(3), Attention])
def test_models_of_several_seeds_are_those_of_each_seed_alone(given: object) -> None:
    seeds = (3, 17, 3)
    for seed, made in zip(seeds, fresh_each(given, seeds), strict=True):
        assert same(made, fresh(given, seed))
        for value in made.state_dict().values():
            value.zero_()


def test_drawing_leaves_the_given_module_and_the_global_generator_alone() -> None:
    model = build("linear", (3,), 2)
    weights = [p.clone() for p in model.parameters()]
    state = torch.random.get_rng_state()
    fresh(model, 3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_frozen_parameters_and_statistics_keep_their_values() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    drawn = fresh(model, 5)
    assert torch.equal(drawn[0].weight, model[0].weight)
    assert not torch.equal(drawn[2].weight, model[2].weight)


def test_a_parameter_that_nothing_draws_asks_for_a_factory() -> None:
    with pytest.raises(RecipeError, match=r"'scale' is drawn by no reset_parameters.*factory"):
        fresh(Scaled(), 0)
    assert torch.equal(fresh(Scaled, 0).get_parameter("scale"), torch.ones(2))


def test_a_factory_must_return_a_module_that_can_train() -> None:
    with pytest.raises(RecipeError, match="returned int"):
        fresh(lambda: 3, 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(RecipeError, match="nothing to train"):
        fresh(nn.Flatten, 0)
