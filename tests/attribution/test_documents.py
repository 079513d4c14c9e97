"""Documents: one example asks for several predictions, and its loss is their sum."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attribution import attribute, lds, train_bank
from attribution.bank import draw_masks
from attribution.estimators.factors import fit_factors
from attribution.gradients import PerExampleGradients
from attribution.gradients.perexample import flat_gradients
from attribution.outputs import UNASKED, of_examples, task_of, training_loss
from attribution.rows import Rows
from attribution.training import Recipe, train_models, train_one_reference
from schemas.errors import RecipeError, ShapeError

N, M, T, V = 24, 4, 6, 7
DOUBLE = torch.float64


class Causal(nn.Module):
    """A causal attention layer over embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(V, 8), nn.Embedding(T, 8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, V)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens) + self.place(torch.arange(tokens.shape[1], device=tokens.device))
        parts = self.qkv(h).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        return self.head(self.norm(h + self.out(mixed.transpose(1, 2).flatten(2))))


def documents(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens and the next token of each; the end of each document is padding."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (n, T + 1), generator=draw)
    targets = tokens[:, 1:].clone()
    lengths = torch.randint(2, T + 1, (n, 1), generator=draw)
    targets[torch.arange(T) >= lengths] = UNASKED
    return tokens[:, :-1], targets


def model() -> nn.Module:
    torch.manual_seed(0)
    return Causal()


def test_a_documents_output_is_the_sum_over_the_tokens_asked_for() -> None:
    inputs, targets = documents(5, 0)
    logits = model()(inputs).detach()
    want = torch.stack(
        [
            nn.functional.cross_entropy(row, target, ignore_index=UNASKED, reduction="sum")
            for row, target in zip(logits, targets, strict=True)
        ]
    )
    torch.testing.assert_close(of_examples("loss", logits, targets), want)
    torch.testing.assert_close(of_examples("logprob", logits, targets), -want)
    torch.testing.assert_close(training_loss("language", logits, targets), want.sum())
    assert task_of(targets) == "language"
    p = logits.softmax(-1)
    margins = torch.log(p / (1 - p))
    asked = targets != UNASKED
    own = margins.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(of_examples("margin", logits, targets), (own * asked).sum(-1))


def test_gradients_of_documents_equal_an_autograd_call_for_each() -> None:
    inputs, targets = documents(5, 1)
    owner = PerExampleGradients(model(), None, output="loss", dtype=DOUBLE)
    blocks = torch.cat([block for _, block in owner.run(inputs, targets).blocks()], dim=1)
    want = flat_gradients(owner, inputs, targets)
    torch.testing.assert_close(blocks, want, rtol=1e-9, atol=1e-11)


def test_padding_changes_nothing() -> None:
    inputs, targets = documents(N, 2)
    queries = documents(M, 3)
    scores = {}
    for change in (0, 1):
        # What stands where nothing is asked, after all that is: a causal model never looks there.
        padded = inputs.clone()
        padded[targets == UNASKED] = (padded[targets == UNASKED] + change) % V
        for method, options in (("trak", {"damping": 1.0}), ("graddot", {}), ("ekfac", {})):
            options = options | ({"damping": 1.0} if method == "ekfac" else {})
            found = attribute(
                method,
                model(),
                [model().state_dict()],
                train=(padded, targets),
                queries=queries,
                **options,
            )
            scores[method, change] = np.asarray(found)
    for method in ("trak", "graddot", "ekfac"):
        np.testing.assert_allclose(scores[method, 0], scores[method, 1], rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    ["trak", "influence", "ekfac", "kfac", "logra", "datainf", "source", "graddot", "gradcos"],
)
def test_a_document_raises_its_own_probability_and_lowers_its_loss(method: str) -> None:
    rows = documents(6, 4)
    damping: dict[str, Any] = {} if method.startswith("grad") else {"damping": 1.0}
    if method == "source":
        damping = {"weights": [0.1]}
    for output, sign in (("logprob", 1), ("loss", -1)):
        scores = attribute(
            method,
            model(),
            [model().state_dict()],
            train=rows,
            queries=rows,
            output=output,
            **damping,
        )
        assert (sign * np.diag(np.asarray(scores)) > 0).all()


def test_exact_influence_is_dense_algebra_with_tokens_of_their_own() -> None:
    inputs, targets = documents(8, 5)
    queries = documents(3, 6)
    net = model().to(DOUBLE)
    owner = PerExampleGradients(net, None, output="loss", dtype=DOUBLE)
    train = flat_gradients(owner, inputs, targets)
    asked = PerExampleGradients(net, None, output="logprob", dtype=DOUBLE)
    right = flat_gradients(asked, *queries)
    curved = torch.zeros(train.shape[1], train.shape[1], dtype=DOUBLE)
    parameters = list(net.parameters())
    for row, target in zip(inputs, targets, strict=True):
        logits = net(row[None])[0]
        p = logits.softmax(-1).detach()
        for token in (target != UNASKED).nonzero()[:, 0].tolist():
            jacobian = torch.stack(
                [
                    torch.cat(
                        [
                            (torch.zeros_like(v) if g is None else g).flatten()
                            for v, g in zip(
                                parameters,
                                torch.autograd.grad(
                                    value, parameters, retain_graph=True, allow_unused=True
                                ),
                                strict=True,
                            )
                        ]
                    )
                    for value in logits[token]
                ]
            )
            inner = torch.diag(p[token]) - torch.outer(p[token], p[token])
            curved += jacobian.T @ inner @ jacobian
    ridge = 0.7
    matrix = curved + ridge * torch.eye(len(curved), dtype=DOUBLE)
    # Each row carries its share of the penalty.
    theta = torch.cat([value.detach().flatten() for value in parameters])
    train = train + ridge / len(inputs) * theta
    scores = attribute(
        "influence",
        net,
        [net.state_dict()],
        train=(inputs, targets),
        queries=queries,
        solver="exact",
        damping=1e-12,
        ridge=ridge,
        dtype=DOUBLE,
    )
    want = -right @ torch.linalg.solve(matrix, train.T)
    np.testing.assert_allclose(np.asarray(scores), want.detach().numpy(), rtol=1e-5, atol=1e-7)


def test_drawn_signs_have_the_fisher_matrix_of_independent_tokens_as_expectation() -> None:
    inputs, targets = documents(4, 7)
    net = nn.Sequential(nn.Embedding(V, 3), nn.Linear(3, V)).to(DOUBLE)
    net[0].weight.requires_grad_(False)
    hidden = net[0](inputs)
    p = net(inputs).softmax(-1).detach()
    asked = (targets != UNASKED).to(DOUBLE)
    length = 1 + hidden.square().sum(-1)
    want = ((1 - p.square().sum(-1)) * length * asked).sum() / len(inputs)
    found = fit_factors(
        net,
        None,
        Rows((inputs, targets), "train"),
        task="language",
        labels="signs",
        samples=400,
        seed=0,
        checkpoint=0,
        device="cpu",
        batch_size=3,
        dtype=DOUBLE,
    )
    assert float(found.corrected.sum()) == pytest.approx(float(want), rel=0.05)


def test_many_language_models_train_as_one_and_each_as_alone() -> None:
    train = documents(N, 8)
    recipe = Recipe(lr=0.05, epochs=2, batch_size=5)
    masks = np.ones((2, N), dtype=bool)
    masks[1, ::3] = False
    trained = train_models(
        Causal, train, masks=masks, seeds=[3, 4], training=recipe, dtype=DOUBLE, device="cpu"
    )
    for row in range(2):
        alone, losses = train_one_reference(
            Causal, train, mask=masks[row], seed=3 + row, training=recipe, dtype=DOUBLE
        )
        for name, value in trained.state(row).items():
            torch.testing.assert_close(value, alone[name], rtol=0, atol=1e-5)
        np.testing.assert_allclose(trained.history[row], losses, rtol=1e-6)


def test_a_bank_of_language_models_ranks_the_scores_of_documents() -> None:
    # Documents of two patterns: i, i+1, i+2, ... and i, i+2, i+4, ...
    start = torch.arange(48) % V
    step = 1 + torch.arange(48) // 24
    tokens = (start[:, None] + step[:, None] * torch.arange(T + 1)) % V
    rows = tokens[:, :-1], tokens[:, 1:]
    queries = rows[0][::8], rows[1][::8]
    recipe = Recipe(lr=0.02, epochs=12, batch_size=8)
    masks, seeds, alpha = draw_masks(48, 32, [0.5], 2, 0)
    bank = train_bank(
        Causal, rows, queries=queries, masks=masks, seeds=seeds, training=recipe, alpha=alpha
    )
    assert bank.output == "logprob"
    everything = np.ones((2, 48), dtype=bool)
    full = train_models(Causal, rows, masks=everything, seeds=[1, 2], training=recipe)
    states = [full.state(row) for row in range(2)]
    scores = attribute("trak", model(), states, train=rows, queries=queries, damping=1.0)
    assert lds(scores, bank).interval[0] > 0


def test_bad_documents_are_refused() -> None:
    inputs, targets = documents(4, 9)
    with pytest.raises(ShapeError, match="ask for at least one token"):
        of_examples("loss", model()(inputs), torch.full_like(targets, UNASKED))
    with pytest.raises(ShapeError, match="one number for each example"):
        of_examples(lambda z, _: z[..., 0], model()(inputs), targets)
    with pytest.raises(ShapeError, match="outputs"):
        of_examples("loss", model()(inputs), targets[:, :3])
    with pytest.raises(RecipeError, match="tokens, outputs"):
        train_models(
            lambda: nn.Sequential(nn.Embedding(V, 3), nn.Flatten(), nn.Linear(3 * T, V)),
            (inputs, targets),
            masks=np.ones((1, 4), dtype=bool),
            seeds=[0],
            training=Recipe(epochs=1),
        )
    rows = {"train": (inputs, targets), "queries": (inputs, targets)}
    state = [model().state_dict()]
    with pytest.raises(ShapeError, match="say 'logistic'"):
        attribute("trak", model(), state, curvature="ggn", damping=1.0, **rows)
    with pytest.raises(ShapeError, match="say 'signs'"):
        attribute("ekfac", model(), state, labels="sampled", damping=1.0, **rows)
