import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attribution.gradients import PerExampleGradients
from attribution.gradients.perexample import flat_gradients
from attribution.models import build
from attribution.projection import Projection, fingerprint_of, sketch
from attribution.projection.factored import allocate, equal_shares, factored_matrix
from attribution.projection.reference import words
from schemas.errors import ShapeError

N = 5
KEY = {"seed": 11, "checkpoint": 2}


class Words(nn.Module):
    """Tied embedding and head, a shared bias, norms, attention and a loose parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6, padding_idx=1)
        self.norm = nn.LayerNorm(6)
        self.qkv, self.out = nn.Linear(6, 18, bias=False), nn.Linear(6, 6)
        self.again = nn.Linear(6, 6)
        self.again.bias = self.out.bias
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(6, 9)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        parts = self.qkv(self.norm(h)).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        h = h + self.again(torch.tanh(self.out(mixed.transpose(1, 2).flatten(2))))
        return self.head(h.mean(1) * self.scale)


def pictures() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, stride=2, padding=(1, 2), dilation=(1, 2), padding_mode="reflect"),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, padding="same"),
        nn.Conv2d(8, 6, 1, bias=False),
        nn.Flatten(2),
        nn.Conv1d(6, 5, 4, stride=2),
        nn.Flatten(),
        nn.LazyLinear(12),
        nn.Tanh(),
        nn.Linear(12, 3),
    )


def case(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(5)
    if name == "words":
        return Words(), torch.randint(9, (N, 4))
    if name == "long":  # linear layers over 200 positions
        layers = (nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3), nn.Unflatten(1, (1, 200)))
        return nn.Sequential(*layers, nn.AvgPool2d((200, 1)), nn.Flatten()), torch.randn(N, 200, 6)
    inputs = torch.randn(N, 2, 8, 9)
    if name == "resnet":
        return build("resnet", (2, 8, 9), 3, width=8, blocks=[1]), inputs
    model = pictures() if name == "pictures" else build("mlp", (2, 8, 9), 3, hidden=[20, 7])
    model(inputs)
    return model, inputs


def passed(name: str, **options: object) -> tuple[PerExampleGradients, Tensor, Tensor]:
    model, inputs = case(name)
    owner = PerExampleGradients(model, None, output="margin", **options)  # type: ignore[arg-type]
    return owner, inputs, torch.arange(N) % 3


@pytest.mark.parametrize("name", ["mlp", "pictures", "words"])
@pytest.mark.parametrize("dim", [12, 101, 5000])
def test_the_sketch_is_the_reference_matrix_times_the_exact_gradient(name: str, dim: int) -> None:
    owner, inputs, targets = passed(name, dtype=torch.float64)
    blocks, p = owner.run(inputs, targets).blocks(64), owner.layout.size
    got = sketch(blocks, Projection(kind="factored", dim=dim), **KEY, p=p)
    matrix = factored_matrix(blocks.outer_layers(), p, dim, **KEY)
    want = flat_gradients(owner, inputs, targets).numpy() @ matrix
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-10)
    assert got.abs().max() > 0
    if dim == 5000 and name == "words":  # wider than the gradient: everything is kept
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(p), atol=1e-12)


def test_the_sketch_does_not_care_how_rows_are_cut() -> None:
    owner, inputs, targets = passed("pictures", dtype=torch.float64)
    options = {"projection": Projection(kind="factored", dim=90), **KEY, "p": owner.layout.size}
    whole = sketch(owner.run(inputs, targets).blocks(), **options)
    rows = [sketch(owner.run(inputs[i : i + 1], targets[i : i + 1]).blocks(), **options)
            for i in range(N)]  # fmt: skip
    torch.testing.assert_close(torch.cat(rows), whole, rtol=1e-9, atol=1e-11)


def test_inner_products_are_kept_on_average_in_every_layer() -> None:
    owner, inputs, targets = passed("mlp")
    layers = owner.run(inputs, targets).blocks().outer_layers()
    p, draws = owner.layout.size, 150
    ends = np.r_[0:15, p - 15 : p]  # of the first and of the last layer
    inner = np.zeros((30, 30))
    for seed in range(draws):
        matrix = factored_matrix(layers, p, 36, seed=seed, checkpoint=0)
        # Rows have norm 1 exactly, as a product of rows of signs: a wrong scale would show here.
        np.testing.assert_allclose((matrix**2).sum(1), 1.0, atol=1e-9)
        inner += matrix[ends] @ matrix[ends].T / draws
    np.testing.assert_allclose(inner, np.eye(30), atol=5 * 0.5 / np.sqrt(draws))


def test_bits_are_keyed_by_seed_checkpoint_layer_and_side() -> None:
    owner, inputs, targets = passed("mlp")
    layers = owner.run(inputs, targets).blocks().outer_layers()
    p = owner.layout.size
    base = factored_matrix(layers, p, 36, seed=1, checkpoint=0)
    for other in ({"seed": 2, "checkpoint": 0}, {"seed": 1, "checkpoint": 1}):
        assert (factored_matrix(layers, p, 36, **other) != base).any()
    counter = words(np.array([3], dtype=np.uint64), 0, kind=4, seed=1, checkpoint=0)
    assert (counter != words(np.array([3], dtype=np.uint64), 0, kind=5, seed=1, checkpoint=0)).any()


def test_columns_are_shared_equally_and_returned_when_not_needed() -> None:
    assert equal_shares([100, 100, 100], 30) == [10, 10, 10]
    assert equal_shares([3, 100, 100], 31) == [3, 14, 14]
    assert equal_shares([3, 4], 100) == [3, 4]
    owner, inputs, targets = passed("pictures")
    layers = owner.run(inputs, targets).blocks().outer_layers()
    names = [layer.name for layer in layers]
    assert names == ["0.weight", "4.weight", "6.weight", "8.weight", "10.weight"]
    assert [layer.bias_name for layer in layers] == ["0.bias", None, "6.bias", "8.bias", "10.bias"]
    p = owner.layout.size
    found = allocate(layers, p, 200)
    assert found.rest_size == 16 + 80
    assert found.rest_first + found.rest_width == 200
    for part in found.parts:
        assert part.rows <= part.layer.rows
        assert part.rows * part.columns <= part.layer.size
    with pytest.raises(ShapeError, match="6 layers to share it"):
        allocate(layers, p, 5)


def test_a_shared_bias_is_not_counted_with_either_weight() -> None:
    owner, inputs, targets = passed("words")
    layers = {v.name: v for v in owner.run(inputs, targets).blocks().outer_layers()}
    assert set(layers) == {"embed.weight", "qkv.weight", "out.weight", "again.weight"}
    assert {layer.bias_name for layer in layers.values()} == {None}


def test_fingerprints_name_the_choice_and_the_allocation() -> None:
    prints = {}
    for name in ("mlp", "resnet", "long"):
        owner, inputs, targets = passed(name)
        blocks, p = owner.run(inputs, targets).blocks(), owner.layout.size
        for kind in ("factored", "auto", "sparse"):
            prints[name, kind] = fingerprint_of(blocks, Projection(kind=kind, dim=64), **KEY, p=p)
    assert prints["mlp", "factored"].startswith("factored/1:dim=64,seed=11,checkpoint=2,p=")
    assert len({prints[name, "factored"].partition("layers=")[2] for name, _ in prints}) == 3
    assert prints["mlp", "auto"] == prints["mlp", "factored"]
    assert prints["resnet", "auto"] == prints["resnet", "factored"]
    assert prints["long", "auto"] == prints["long", "sparse"]


def test_auto_gives_the_sketch_it_chose() -> None:
    for name, kind in (("mlp", "factored"), ("long", "sparse")):
        owner, inputs, targets = passed(name)
        blocks, p = owner.run(inputs, targets).blocks(), owner.layout.size
        chosen = sketch(blocks, Projection(kind="auto", dim=64), **KEY, p=p)
        torch.testing.assert_close(
            chosen, sketch(blocks, Projection(kind=kind, dim=64), **KEY, p=p)
        )


def test_plain_blocks_have_no_sides() -> None:
    with pytest.raises(ShapeError, match="needs a model's gradients"):
        sketch([(0, torch.ones(2, 5))], Projection(kind="factored", dim=3), **KEY, p=5)


@pytest.mark.parametrize("name", ["mlp", "pictures", "words"])
@pytest.mark.parametrize("kind", ["factored", "sparse"])
def test_bfloat16_gradients_are_near_and_accumulated_in_float32(name: str, kind: str) -> None:
    found = {}
    for dtype in (torch.bfloat16, torch.float64):
        owner, inputs, targets = passed(name, dtype=dtype)
        options = {"projection": Projection(kind=kind, dim=120), **KEY, "p": owner.layout.size}
        found[dtype] = sketch(owner.run(inputs, targets).blocks(), **options)
    rough, exact = found[torch.bfloat16], found[torch.float64]
    assert rough.dtype == torch.float32
    error = (rough.double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert 1e-6 < float(error.max()) < 0.05


@pytest.mark.parametrize("name", ["mlp", "pictures", "words"])
@pytest.mark.parametrize("nonzeros", [1, 3])
def test_the_row_by_row_sparse_sketch_is_the_block_by_block_one(name: str, nonzeros: int) -> None:
    for dtype, near in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        owner, inputs, targets = passed(name, dtype=dtype)
        blocks, p = owner.run(inputs, targets).blocks(), owner.layout.size
        projection = Projection(dim=57, nonzeros=nonzeros)
        got = sketch(blocks, projection, **KEY, p=p)
        want = sketch(list(blocks), projection, **KEY, p=p)
        assert got.dtype == dtype
        torch.testing.assert_close(got, want, rtol=near, atol=near)
        # The draws are kept; another checkpoint has its own.
        again = sketch(blocks, projection, seed=11, checkpoint=3, p=p)
        other = sketch(list(blocks), projection, seed=11, checkpoint=3, p=p)
        torch.testing.assert_close(again, other, rtol=near, atol=near)


def test_outer_products_are_cut_at_eight_rows_and_by_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(1)
    model = build("linear", (200,), 30)
    owner = PerExampleGradients(model, None, output="margin", dtype=torch.float64)
    blocks = owner.run(torch.randn(61, 200), torch.arange(61) % 30).blocks()
    options = {"projection": Projection(dim=64), **KEY, "p": owner.layout.size}
    want = sketch(list(blocks), **options)
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        torch.testing.assert_close(sketch(blocks, **options), want, rtol=1e-9, atol=1e-10)
