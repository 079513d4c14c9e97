import pytest
import torch
from torch import nn

from attribution.convolutional import picture_shape
from attribution.models import build, fresh
from attribution.training import Recipe, train_models
from schemas.errors import RecipeError, ShapeError


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["cnn", "resnet"])
@pytest.mark.parametrize("shape", [(64,), (8, 8), (1, 8, 8), (3072,), (3, 32, 32), (28, 28)])
def test_pictures_may_be_flat_or_not(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = build(name, shape, 10).eval()
    rows = torch.randn(2, *shape)
    got = model(rows)
    assert got.shape == (2, 10)
    torch.manual_seed(0)
    same = build(name, picture_shape(shape), 10).eval()
    assert torch.equal(same(rows.reshape(2, *picture_shape(shape))), got)


def test_the_cnn_has_the_size_it_says() -> None:
    assert size(build("cnn", (64,), 10)) == 21_546
    assert 50_000 < size(build("cnn", (1, 28, 28), 10)) < 60_000
    assert 65_000 < size(build("cnn", (3, 32, 32), 10)) < 75_000
    assert size(build("cnn", (64,), 10, channels=[4], hidden=[])) == 40 + 64 * 10 + 10


def test_what_is_no_picture_is_refused() -> None:
    for shape in [(30,), (2, 3, 4, 5), (0,), (1, 0, 3)]:
        with pytest.raises(ShapeError, match="no pictures"):
            build("cnn", shape, 2)
    for name, options in [
        ("cnn", {"channels": []}),
        ("cnn", {"channels": 16}),
        ("cnn", {"hidden": [0]}),
        ("resnet", {"width": "wide"}),
        ("resnet", {"blocks": [1, 2.0]}),
    ]:
        with pytest.raises(RecipeError, match="positive whole numbers"):
            build(name, (8, 8), 2, **options)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_rows_are_independent_while_training(name: str) -> None:
    torch.manual_seed(0)
    options = {"width": 4} if name == "resnet" else {}
    model = build(name, (9, 9), 3, **options).double()
    rows = torch.randn(4, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(model(rows)[:1], model(rows[:1]), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_a_picture_model_learns_and_is_drawn_by_its_seed(name: str) -> None:
    torch.manual_seed(1)
    options = {"width": 8, "blocks": [1, 1]} if name == "resnet" else {"channels": [8]}
    model = build(name, (64,), 2, **options)
    targets = torch.arange(40) % 2
    rows = torch.randn(40, 8, 8) * 0.3
    rows[:, :, :4] += targets[:, None, None]
    recipe = Recipe(epochs=6, batch_size=10, lr=0.05)
    masks = torch.ones(2, 40, dtype=torch.bool).numpy()
    trained = train_models(
        model, (rows.flatten(1), targets), masks=masks, seeds=[3, 4], training=recipe,
        task="classification", device="cpu",
    )  # fmt: skip
    first = {name: values[0] for name, values in trained.states.items()}
    model.load_state_dict(first)
    assert float((model(rows.flatten(1)).argmax(1) == targets).float().mean()) > 0.9
    one, two = fresh(model, 5), fresh(lambda: build(name, (64,), 2, **options), 5)
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
