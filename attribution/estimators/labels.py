"""The output gradients at which a Fisher matrix is taken, as losses whose gradients they are.

For cross-entropy the Fisher matrix is the Gauss-Newton matrix J^T (diag p - p p^T) J, the
expectation of g g^T over labels drawn from the model. Here are four ways to that expectation; what
is drawn is a function of (seed, checkpoint, sample, row), whatever the batches are. The tokens of
a document have labels of their own, drawn independently.
"""

import math
from collections.abc import Iterator
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from attribution.outputs import UNASKED, Output, Task, evaluate_unchecked, training_loss
from attribution.streams import PURPOSE_CODES, Purpose, philox4x32, stream
from schemas.errors import ShapeError


class Labels(StrEnum):
    """How the expectation over labels is taken.

    Of a net that fits its rows few draws are surprising and those few outweigh all others: signs
    use every class of every row in one pass, with the same expectation.
    """

    SAMPLED = "sampled"
    SIGNS = "signs"
    ALL = "all"
    OBSERVED = "observed"


class LabelPasses:
    """Which passes a batch needs, and the loss of each, weighted to sum to the expectation.

    Args:
        task: "classification", "regression" or "language".
        labels: "sampled": one label drawn for each row; "signs": sum over classes of
            +-sqrt(p_c) (e_c - p) with random signs; "all": one pass a class, exact; "observed":
            the labels that are there (the empirical Fisher matrix, another one). Documents take
            "signs" or "observed".
        samples: Passes with fresh draws, for the first two.
        n_rows: Training rows.
        seed: Seed of the draws.
        checkpoint: Index of the checkpoint; each has draws of its own.

    Attributes:
        n_outputs: Logits of the model, set after the first pass.

    Raises:
        ShapeError: `labels` is unknown, or `samples` is not 1 or more.
    """

    def __init__(
        self, task: str, *, labels: str, samples: int, n_rows: int, seed: int, checkpoint: int
    ) -> None:
        if labels not in set(Labels):
            raise ShapeError(f"unknown labels {labels!r}; say {', '.join(Labels)}")
        if samples < 1:
            raise ShapeError(f"samples is {samples}; give 1 or more")
        self.n_outputs = 1
        self._task = Task(task)
        self._regression = self._task is Task.REGRESSION
        self._language = self._task is Task.LANGUAGE
        if self._language and labels not in (Labels.SIGNS, Labels.OBSERVED):
            raise ShapeError(f"labels {labels!r} are for one prediction a row; say 'signs'")
        self._labels, self._number = Labels(labels), 0
        drawn = self._labels in (Labels.SAMPLED, Labels.SIGNS)
        self._samples = samples if drawn else 1
        self._noise, self._keys = [], []
        for sample in range(self._samples):
            draw = stream(seed, Purpose.LABELS, checkpoint, sample)
            self._keys.append(draw.integers(0, 2**32, size=2, dtype=np.uint32))
            values = draw.standard_normal(n_rows) if self._regression else draw.random(n_rows)
            self._noise.append(torch.from_numpy(values))
        self._positions, self._signs = slice(0, 0), torch.empty(0)

    @property
    def count(self) -> int:
        """Passes of each batch."""
        by_class = self._labels is Labels.ALL and not self._regression
        return self.n_outputs if by_class else self._samples

    def each(self, positions: slice, targets: Tensor) -> Iterator[Tensor]:
        """What to give the model as targets in each pass."""
        self._positions, self._number = positions, 0
        while self._number < self.count:
            self._signs = torch.empty(0)
            if self._labels is Labels.SAMPLED:
                yield self._noise[self._number][positions]
            elif self._labels is Labels.SIGNS and not self._regression:
                places = torch.arange(len(targets), dtype=torch.float64)
                if self._language:  # -1 for tokens whose prediction is not asked for
                    places = torch.where(targets == UNASKED, -1.0, places[:, None])
                yield places
            else:
                yield targets
            self._number += 1

    def output(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The weighted loss of the pass, [...]; of documents [B]."""
        if self._labels is Labels.OBSERVED:
            return training_loss(self._task, logits, targets, "none")
        scale = 1.0 / math.sqrt(self.count)
        if self._regression:
            # (y - f)^2 is minus the log density of a normal of variance 1/2, up to a constant:
            # E g g^T = 2 grad f grad f^T, which a noise of one standard deviation also gives.
            noise = targets if self._labels is Labels.SAMPLED else torch.ones_like(targets)
            fixed = logits.detach().squeeze(-1)
            drawn = fixed + noise * math.sqrt(0.5)
            return training_loss(Task.REGRESSION, logits, drawn, "none") * scale
        p = torch.softmax(logits.detach().double(), dim=-1)
        if self._labels is Labels.SIGNS:
            places = targets.long()
            if self._language:
                places = places.amax(-1)
            weights = self._row_signs(places, logits) * p.sqrt()
            weights = weights - weights.sum(-1, keepdim=True) * p
            loss = (weights.to(logits.dtype) * logits).sum(-1) * scale
            return torch.where(targets >= 0, loss, 0.0).sum(-1) if self._language else loss
        if self._labels is Labels.ALL:
            chosen = torch.full_like(targets, self._number)
            weight = p[..., self._number].sqrt().to(logits.dtype)
            return evaluate_unchecked(Output.LOSS, logits, chosen) * weight
        above = targets.double().unsqueeze(-1) > p.cumsum(-1)
        chosen = above.sum(-1).clamp(max=p.shape[-1] - 1)
        return evaluate_unchecked(Output.LOSS, logits, chosen) * scale

    def _row_signs(self, places: Tensor, logits: Tensor) -> Tensor:
        """+1 and -1 for the rows at these places of the batch, float64 [..., K] or [..., T, K]."""
        n_classes = logits.shape[-1]
        n_tokens = logits.shape[-2] if self._language else 1
        if not len(self._signs):
            rows = np.arange(self._positions.start, self._positions.stop, dtype=np.uint64)
            n_words = -(-n_classes // 128)
            counter = np.zeros((len(rows), n_tokens * n_words, 4), dtype=np.uint32)
            counter[..., 0] = (rows & np.uint64(0xFFFFFFFF))[:, None]
            counter[..., 1] = (rows >> np.uint64(32))[:, None]
            counter[..., 2] = np.arange(counter.shape[1])
            counter[..., 3] = PURPOSE_CODES[Purpose.LABELS] << 16
            words = philox4x32(counter, self._keys[self._number]).astype("<u4")
            bits = np.unpackbits(words.reshape(len(rows) * n_tokens, -1).view(np.uint8), axis=1)
            signs = 1.0 - 2.0 * torch.from_numpy(bits[:, :n_classes]).double()
            signs = signs.unflatten(0, (len(rows), n_tokens)) if self._language else signs
            self._signs = signs.to(logits.device)
        return self._signs[places]
