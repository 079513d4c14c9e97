"""Built-in models for text, given as token numbers int64 [n, T] with 0 for padding.

`bag` classifies by the mean of a text's embeddings, `transformer` by the mean of its last states;
with ``causal = true`` the transformer predicts the next token at every place instead, [n, T, K].
No dropout and no batch statistics: rows stay independent, in training too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attribution.convolutional import check_sizes
from schemas.errors import RecipeError, ShapeError

PADDING = 0


class Mean(nn.Module):
    """The mean over the tokens that are no padding; 0 of an empty text."""

    def forward(self, states: Tensor, tokens: Tensor) -> Tensor:
        """[..., T, width] and [..., T] to [..., width]."""
        real = (tokens != PADDING).to(states.dtype).unsqueeze(-1)
        return (states * real).sum(-2) / real.sum(-2).clamp(min=1.0)


class Bag(nn.Module):
    """Embeddings, their mean, a perceptron (Joulin et al. 2017 with hidden layers)."""

    def __init__(self, vocabulary: int, width: int, hidden: Sequence[int], n_outputs: int) -> None:
        super().__init__()
        self.embed, self.mean = nn.Embedding(vocabulary, width), Mean()
        layers: list[nn.Module] = []
        for wide in hidden:
            layers += [nn.Linear(width, wide), nn.ReLU()]
            width = wide
        self.head = nn.Sequential(*layers, nn.Linear(width, n_outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [..., T] to [..., n_outputs]."""
        return self.head(self.mean(self.embed(tokens), tokens))


class Block(nn.Module):
    """Pre-norm attention and perceptron, both added to their input (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, states: Tensor, seen: Tensor) -> Tensor:
        """States [n, T, width], and which places may be looked at, bool [n, 1, T, T]."""
        parts = self.qkv(self.before(states)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        states = states + self.out(mixed.transpose(1, 2).flatten(2))
        return states + self.down(nn.functional.gelu(self.up(self.between(states))))


class Transformer(nn.Module):
    """Embedded tokens and places, blocks of attention, and a head."""

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int,
        depth: int,
        heads: int,
        n_outputs: int,
        causal: bool,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.mean = nn.LayerNorm(width), Mean()
        self.head = nn.Linear(width, n_outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [n, T] to [n, n_outputs], or to [n, T, n_outputs] where it is causal."""
        length = tokens.shape[1]
        places = torch.arange(length, device=tokens.device)
        # A place for each token of each row: a layer that never sees the batch would cost every
        # per-example gradient a second pass (2.2 passes in all instead of 1.3).
        states = self.embed(tokens) + self.place(places.expand_as(tokens))
        seen = (tokens != PADDING)[:, None, None, :]
        # Every place sees itself: a row of attention with nothing to look at would be NaN.
        seen = seen | torch.eye(length, dtype=torch.bool, device=tokens.device)
        if self.causal:
            seen = seen & (places[:, None] >= places)
        for block in self.blocks:
            states = block(states, seen)
        states = self.norm(states)
        return self.head(states if self.causal else self.mean(states, tokens))


def bag(
    input_shape: Sequence[int],
    n_outputs: int,
    *,
    vocabulary: int = 4096,
    width: int = 64,
    hidden: Sequence[int] = (64,),
) -> nn.Module:
    """A classifier by the mean of a text's embeddings.

    Args:
        input_shape: (T,), tokens of one text.
        n_outputs: Classes, or 1 for regression.
        vocabulary: Token numbers, padding included.
        width: Of an embedding.
        hidden: Widths of the layers between the mean and the output; may be empty.

    Raises:
        ShapeError: The input is no row of tokens.
        RecipeError: A size is not a positive integer.
    """
    text_length(input_shape)
    check_sizes("vocabulary", [vocabulary])
    check_sizes("width", [width])
    check_sizes("hidden", hidden, empty=True)
    return Bag(vocabulary, width, hidden, n_outputs)


def transformer(
    input_shape: Sequence[int],
    n_outputs: int,
    *,
    vocabulary: int = 4096,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    causal: bool = False,
) -> nn.Module:
    """A small transformer: a classifier of texts, or a language model.

    Args:
        input_shape: (T,), tokens of one text.
        n_outputs: Classes; of a language model, tokens that it can predict.
        vocabulary: Token numbers, padding included.
        width: Of a state, a multiple of `heads`.
        depth: Blocks.
        heads: Of attention.
        causal: Predict the next token at every place.

    Raises:
        ShapeError: The input is no row of tokens.
        RecipeError: A size is not a positive integer, or the heads do not divide the width.
    """
    length = text_length(input_shape)
    sizes = {"vocabulary": vocabulary, "width": width, "depth": depth, "heads": heads}
    for name, size in sizes.items():
        check_sizes(name, [size])
    if width % heads:
        raise RecipeError(f"width = {width} is no multiple of heads = {heads}; make it one")
    return Transformer(vocabulary, length, width, depth, heads, n_outputs, causal)


def text_length(input_shape: Sequence[int]) -> int:
    """Tokens of one text.

    Raises:
        ShapeError: The shape is not that of a row of tokens.
    """
    if len(input_shape) != 1 or input_shape[0] < 1:
        raise ShapeError(
            f"inputs of shape {tuple(input_shape)} are no texts; give token numbers [n, T]"
        )
    return int(input_shape[0])
