import numpy as np
import pytest
import torch
from torch import nn

from attribution import attribute, lds, train_bank
from attribution.bank import draw_masks
from attribution.gradients import PerExampleGradients
from attribution.gradients.perexample import flat_gradients
from attribution.models import build
from attribution.training import Recipe, train_models, train_one_reference
from schemas.errors import RecipeError, ShapeError

N, T, V, K = 12, 7, 11, 3
SMALL = {
    "bag": {"vocabulary": V, "width": 6, "hidden": [5]},
    "transformer": {"vocabulary": V, "width": 8, "depth": 1, "heads": 2},
}


def texts(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, V, (n, T), generator=draw)
    lengths = torch.randint(2, T + 1, (n, 1), generator=draw)
    tokens[torch.arange(T) >= lengths] = 0
    return tokens, torch.randint(K, (n,), generator=draw)


def made(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build(name, (T,), K, **SMALL[name] | options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(SMALL))
def test_a_text_is_what_it_says_whatever_its_padding(name: str) -> None:
    model, (tokens, _) = made(name), texts(5, 0)
    longer = torch.cat([tokens, torch.zeros(5, 3, dtype=torch.int64)], dim=1)
    if name == "transformer":
        torch.manual_seed(0)
        roomy = build(name, (T + 3,), K, **SMALL[name])  # type: ignore[arg-type]
        state = model.state_dict()
        state["place.weight"] = torch.cat([state["place.weight"], torch.randn(3, 8)])
        roomy.load_state_dict(state)
        torch.testing.assert_close(roomy(longer), model(tokens))
    else:
        torch.testing.assert_close(model(longer), model(tokens))
    assert bool(torch.isfinite(model(torch.zeros_like(tokens))).all())


@pytest.mark.parametrize("name", list(SMALL))
def test_gradients_of_texts_equal_an_autograd_call_for_each(name: str) -> None:
    owner = PerExampleGradients(made(name), None, output="margin", dtype=torch.float64)
    rows = texts(5, 1)
    blocks = torch.cat([block for _, block in owner.run(*rows).blocks()], dim=1)
    torch.testing.assert_close(blocks, flat_gradients(owner, *rows), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", list(SMALL))
def test_texts_train_together_as_alone(name: str) -> None:
    rows, recipe = texts(N, 2), Recipe(lr=0.1, epochs=2, batch_size=5)
    masks = np.ones((2, N), dtype=bool)
    masks[1, ::4] = False

    def model() -> nn.Module:
        return build(name, (T,), K, **SMALL[name])  # type: ignore[arg-type]

    options = {"training": recipe, "dtype": torch.float64, "device": "cpu"}
    trained = train_models(model, rows, masks=masks, seeds=[5, 6], **options)
    for row, seed in enumerate((5, 6)):
        alone, _ = train_one_reference(model, rows, mask=masks[row], seed=seed, **options)
        for key, value in trained.state(row).items():
            torch.testing.assert_close(value, alone[key], rtol=0, atol=1e-5)


def test_a_causal_model_never_looks_ahead() -> None:
    model = build("transformer", (T,), V, **SMALL["transformer"], causal=True)
    tokens, _ = texts(3, 3)
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % V
    torch.testing.assert_close(model(tokens)[:, :4], model(changed)[:, :4])
    assert model(tokens).shape == (3, T, V)


def test_scores_of_texts_rank_retrained_models() -> None:
    # The class is which of three words opens the text; the rest is noise.
    tokens, _ = texts(90, 4)
    labels = torch.arange(90) % K
    tokens[:, 0] = 1 + labels
    queries = tokens[::9], labels[::9]
    recipe = Recipe(lr=0.3, epochs=15, batch_size=10)
    masks, seeds, alpha = draw_masks(90, 40, [0.5], 2, 0)

    def model() -> nn.Module:
        return build("bag", (T,), K, **SMALL["bag"])  # type: ignore[arg-type]

    rows = tokens, labels
    bank = train_bank(
        model, rows, queries=queries, masks=masks, seeds=seeds, training=recipe, alpha=alpha
    )
    full = train_models(
        model, rows, masks=np.ones((3, 90), dtype=bool), seeds=[1, 2, 3], training=recipe
    )
    states = [full.state(row) for row in range(3)]
    scores = attribute("trak", model(), states, train=rows, queries=queries, damping=1.0)
    assert lds(scores, bank).interval[0] > 0


def test_bad_sizes_and_pictures_are_refused() -> None:
    with pytest.raises(ShapeError, match="no texts"):
        build("bag", (3, 4), K)
    with pytest.raises(RecipeError, match="no multiple of heads"):
        build("transformer", (T,), K, width=10, heads=4)
    with pytest.raises(RecipeError, match="vocabulary"):
        build("bag", (T,), K, vocabulary=0)
