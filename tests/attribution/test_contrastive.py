import numpy as np
import pytest
import torch
from torch import nn

from attribution import attribute, lds, train_bank
from attribution.bank import draw_masks
from attribution.contrastive import TEMPERATURE
from attribution.gradients import PerExampleGradients
from attribution.gradients.perexample import flat_gradients
from attribution.models import build
from attribution.training import Recipe, train_models, train_one_reference
from schemas.errors import RecipeError, ShapeError

CAPTIONS = ["a dark square", "a bright square", "a square with a bright left side"]
SHAPE, K = (6, 6), 3


def model() -> nn.Module:
    return build("two_tower", SHAPE, K, captions=CAPTIONS, channels=[4], width=8)


def made() -> nn.Module:
    torch.manual_seed(0)
    return model()


def pictures(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Dark, bright and half bright squares."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % K
    level = torch.tensor([-1.0, 1.0, 0.0])[labels]
    rows = level[:, None, None] + torch.randn(n, *SHAPE, generator=draw)
    rows[labels == 2, :, :3] += 1
    return rows, labels


def test_logits_are_cosines_with_the_captions_over_the_temperature() -> None:
    net, (rows, _) = made(), pictures(4, 0)
    want = torch.empty(4, K)
    for caption in range(K):
        text = net.texts(net.captions[caption : caption + 1])[0]
        for row, seen in enumerate(net.pictures(rows)):
            want[row, caption] = torch.cosine_similarity(seen, text, dim=0) / TEMPERATURE
    torch.testing.assert_close(net(rows), want)
    # The same words have the same numbers: "square" stands in all captions.
    words = [set(each.tolist()) - {0} for each in net.captions]
    assert len(set.intersection(*words)) == len({"a", "square"})


# Three rows are as many as captions, which must not be taken for rows.
@pytest.mark.parametrize("n", [1, 3, 5])
def test_gradients_of_pictures_equal_an_autograd_call_for_each(n: int) -> None:
    rows = pictures(n, 1)
    owner = PerExampleGradients(made(), None, output="margin", dtype=torch.float64)
    blocks = torch.cat([block for _, block in owner.run(*rows).blocks()], dim=1)
    torch.testing.assert_close(blocks, flat_gradients(owner, *rows), rtol=1e-8, atol=1e-10)
    assert owner.plan.general == ()  # both towers have closed forms


def test_a_row_is_judged_by_the_captions_and_not_by_its_batch() -> None:
    net, (rows, _) = made().double(), pictures(6, 2)
    together = net(rows.double())
    torch.testing.assert_close(net(rows[:1].double()), together[:1], rtol=1e-12, atol=1e-12)


def test_two_towers_train_together_as_alone() -> None:
    rows, recipe = pictures(12, 3), Recipe(lr=0.05, epochs=2, batch_size=5)
    masks = np.ones((2, 12), dtype=bool)
    masks[1, ::4] = False
    options = {"training": recipe, "dtype": torch.float64, "device": "cpu"}
    trained = train_models(model, rows, masks=masks, seeds=[5, 6], **options)
    for row, seed in enumerate((5, 6)):
        alone, _ = train_one_reference(model, rows, mask=masks[row], seed=seed, **options)
        for key, value in trained.state(row).items():
            torch.testing.assert_close(value, alone[key], rtol=0, atol=1e-6)


def test_scores_of_pictures_rank_retrained_two_towers() -> None:
    rows, queries = pictures(60, 4), pictures(12, 5)
    recipe = Recipe(lr=0.01, warmup=1, schedule="cosine", epochs=8, batch_size=10)
    masks, seeds, alpha = draw_masks(60, 60, [0.5], 2, 0)
    bank = train_bank(
        model, rows, queries=queries, masks=masks, seeds=seeds, training=recipe, alpha=alpha
    )
    whole = np.ones((3, 60), dtype=bool)
    full = train_models(model, rows, masks=whole, seeds=[1, 2, 3], training=recipe)
    states = [full.state(row) for row in range(3)]
    for method in ("trak", "ekfac"):
        scores = attribute(method, made(), states, train=rows, queries=queries, damping=1.0)
        assert lds(scores, bank).interval[0] > 0


@pytest.mark.parametrize(
    ("captions", "words"),
    [
        (CAPTIONS[:2], "2 captions for 3 classes"),
        ([*CAPTIONS[:2], " "], "2 captions for 3 classes"),
        ([*CAPTIONS[:2], "A SQUARE dark"], "the same words"),
        ("a dark square", "write a list of texts"),
    ],
)
def test_captions_that_tell_no_class_are_refused(captions: object, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build("two_tower", SHAPE, K, captions=captions)


def test_what_is_no_picture_is_refused_by_two_towers() -> None:
    with pytest.raises(ShapeError, match="no pictures"):
        build("two_tower", (7,), K, captions=CAPTIONS)
