"""Products of the training loss's curvature, summed over all training rows, with vectors.

H [p, p] is the Hessian sum_i d2 l_i/d theta2, or the Gauss-Newton J^T D J, where J [n K, p] are the
logits' derivatives and D the Hessian of the loss in the logits (never negative). H never exists;
a product H v is one pass over all rows, for a block of vectors [b, p] at once. Everything is a
SUM over rows: nothing is divided by n.
"""

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attribution.gradients import PerExampleGradients, layout_of
from attribution.gradients.perexample import private_copy
from attribution.outputs import UNASKED, Task, training_loss
from attribution.rows import Inputs, Rows, call, to
from attribution.streams import Purpose, torch_seed
from schemas.errors import RecipeError, ShapeError

# Entries of what a block of vectors holds at once, per-row activations or parameters. Larger blocks
# leave the cache: 16 vectors of a 17k-parameter net take 0.1 s, 100 at once 2.9 s (2 CPU cores).
BLOCK_ENTRIES = {"cpu": 2**22, "cuda": 2**26}
ROWS = 512
# Above this many classes the trace is estimated with random signs instead of a pass for each.
TRACE_CLASSES = 32
PROBES = 64


class Hessian(StrEnum):
    """Which curvature."""

    GAUSS_NEWTON = "gauss-newton"
    HESSIAN = "hessian"


class LossCurvature:
    """The curvature of the summed training loss at one checkpoint.

    Args:
        model: Maps rows to logits [n, K]; copied, in eval mode.
        state: The checkpoint.
        rows: The training rows, n of them.
        task: "classification" or "regression".
        hessian: "gauss-newton" or "hessian".
        device: "cpu" or "cuda".
        dtype: Of the products.
        batch_size: Rows at a time, or "auto".
        seed: Of the trace's probes where there are many classes.

    Attributes:
        theta: The parameters [p] that require gradients, in the gradient's order.
        n_outputs: Logits K.
    """

    def __init__(
        self,
        model: nn.Module,
        state: Mapping[str, Any],
        rows: Rows,
        *,
        task: str,
        hessian: str = Hessian.GAUSS_NEWTON,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int | str = "auto",
        seed: int = 0,
    ) -> None:
        if hessian not in set(Hessian):
            raise ShapeError(f"unknown hessian {hessian!r}; say {' or '.join(Hessian)}")
        self.hessian, self._task, self._rows, self._seed = hessian, task, rows, seed
        self._device, self._dtype = device, dtype
        self._source = (model, state)
        self._model = private_copy(model, state, device=device, dtype=dtype)
        layout = layout_of(self._model)
        named = dict(self._model.named_parameters())
        self._parameters: list[Tensor] = [named[name] for name in layout.names]
        self.theta = torch.cat([value.detach().flatten() for value in self._parameters])
        with torch.no_grad():
            self.n_outputs = call(self._model, self._load(*rows.batch(0, 1))[0]).shape[-1]
        entries = self._entries_a_row()
        budget = BLOCK_ENTRIES[device]
        fitting = max(1, min(ROWS, budget // (4 * entries)))
        self._batch = fitting if batch_size == "auto" else int(batch_size)
        self._block = max(1, budget // max(self.size, self._batch * entries))

    @property
    def size(self) -> int:
        """Parameters p."""
        return len(self.theta)

    def product(self, vectors: Tensor) -> Tensor:
        """H v for each row v of [b, p], over ALL training rows."""
        build = self._gauss_newton if self.hessian == Hessian.GAUSS_NEWTON else self._hessian
        return self._sum(build, vectors)

    def mean_eigenvalue(self) -> float:
        """tr(J^T D J) / min(n, p): the unit of rho, as everywhere.

        Of the n (K-1) eigenvalues that K classes allow, about n matter: a trained net hesitates
        between two classes of a row, not ten. (Digits, ten classes: the best damping was 0.7 to
        1.6 of this unit, and 6.5 to 14 of tr / min(n (K-1), p).) It is the Gauss-Newton's for
        the Hessian too, whose trace may be negative. Exact up to 32 classes, otherwise with 64
        probes (Hutchinson 1990).

        Raises:
            ShapeError: The curvature is zero: every prediction is certain.
        """
        # Of a document every token has gradients of its own, which only their sum reaches.
        tokens = Task(self._task) is Task.LANGUAGE
        if tokens or self.n_outputs > TRACE_CLASSES:
            generator = torch.Generator().manual_seed(torch_seed(self._seed, Purpose.SOLVER))
            signs = torch.randint(0, 2, (PROBES, self.size), generator=generator) * 2.0 - 1.0
            signs = signs.to(self.theta)
            trace = float((signs * self._sum(self._gauss_newton, signs)).sum() / PROBES)
        else:
            trace = self._trace()
        if trace <= 0.0:
            raise ShapeError(
                "the training loss has no curvature: all predictions are certain; use earlier "
                "checkpoints"
            )
        count = self._n_asked() if tokens else len(self._rows)
        return trace / min(count, self.size)

    @property
    def dense_passes(self) -> int | None:
        """As the function of that name says of this curvature."""
        return dense_passes(self.size, self.n_outputs, task=self._task, hessian=self.hessian)

    def dense(self) -> Tensor:
        """H [p, p], symmetric; p^2 numbers."""
        if self.dense_passes is not None:
            summed = torch.zeros(self.size, self.size, device=self._device, dtype=self._dtype)
            for rooted in self._rooted():
                summed.addmm_(rooted.T, rooted)
            return summed
        out = torch.empty(self.size, self.size, device=self._device, dtype=self._dtype)
        step = max(self._block, 256)
        for start in range(0, self.size, step):
            rows = torch.zeros_like(out[start : start + step])
            rows.diagonal(start).fill_(1.0)
            out[start : start + step] = self.product(rows)
        return (out + out.T).div_(2)

    def _sum(
        self, build: Callable[[Inputs, Tensor], Callable[[Tensor], Tensor]], vectors: Tensor
    ) -> Tensor:
        out = torch.zeros_like(vectors)
        # Fused attention has no second derivative, and its gradients depend on the batch.
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            for _, inputs, targets in self._rows.batches(self._batch):
                apply = build(*self._load(inputs, targets))
                for start in range(0, len(vectors), self._block):
                    part = slice(start, start + self._block)
                    out[part] += apply(vectors[part])
        return out

    def _n_asked(self) -> int:
        """Tokens whose prediction the training rows ask for."""
        batches = self._rows.batches(self._batch)
        return sum(int((targets != UNASKED).sum()) for _, _, targets in batches)

    def _gauss_newton(self, inputs: Inputs, targets: Tensor) -> Callable[[Tensor], Tensor]:
        logits = call(self._model, inputs)
        # J^T u is linear in u, so its derivative along v is J v: no forward mode is needed.
        probe = torch.zeros_like(logits, requires_grad=True)
        pulled = self._grad([logits], self._parameters, [probe], create_graph=True)
        used = [index for index, value in enumerate(pulled) if value is not None]
        outputs = [pulled[index] for index in used]

        def apply(vectors: Tensor) -> Tensor:
            parts = self._split(vectors)
            (pushed,) = self._grad(
                outputs, [probe], [parts[index] for index in used], is_grads_batched=True
            )
            if pushed is None:
                raise _no_product("its gradient does not depend on what it is pulled back from")
            curved = _loss_curvature(self._task, logits.detach(), pushed.detach())
            if logits.ndim > 2:
                curved = curved * (targets != UNASKED).unsqueeze(-1)
            found = self._grad([logits], self._parameters, [curved], is_grads_batched=True)
            return self._join(found, len(vectors))

        return apply

    def _hessian(self, inputs: Inputs, targets: Tensor) -> Callable[[Tensor], Tensor]:
        loss = training_loss(self._task, call(self._model, inputs), targets, "sum")
        first = self._grad([loss], self._parameters, None, create_graph=True)
        used = [
            index for index, value in enumerate(first) if value is not None and value.requires_grad
        ]
        outputs = [first[index] for index in used]

        def apply(vectors: Tensor) -> Tensor:
            if not used:
                return torch.zeros_like(vectors)
            parts = self._split(vectors)
            found = self._grad(
                outputs, self._parameters, [parts[index] for index in used], is_grads_batched=True
            )
            return self._join(found, len(vectors))

        return apply

    def _grad(
        self, outputs: list[Any], inputs: list[Tensor], along: list[Any] | None, **options: bool
    ) -> tuple[Any, ...]:
        try:
            return torch.autograd.grad(
                outputs, inputs, along, allow_unused=True, retain_graph=True, **options
            )
        except RuntimeError as error:
            raise _no_product(str(error).strip().splitlines()[0]) from error

    def _split(self, vectors: Tensor) -> list[Tensor]:
        sizes = [value.numel() for value in self._parameters]
        pairs = zip(vectors.split(sizes, dim=1), self._parameters, strict=True)
        return [part.reshape(len(vectors), *value.shape) for part, value in pairs]

    def _join(self, found: tuple[Any, ...], n_vectors: int) -> Tensor:
        return torch.cat(
            [
                value.new_zeros(n_vectors, value.numel())
                if part is None
                else part.detach().reshape(n_vectors, -1)
                for part, value in zip(found, self._parameters, strict=True)
            ],
            dim=1,
        )

    def _load(self, inputs: Inputs, targets: Tensor) -> tuple[Inputs, Tensor]:
        kind = self._dtype if targets.is_floating_point() else torch.int64
        return to(inputs, self._device, self._dtype), targets.to(self._device, kind)

    def _entries_a_row(self) -> int:
        """What autograd keeps of one row's forward pass: of two rows, less that of one."""
        kept = [0, 0]
        for index in (0, 1):
            inputs, _ = self._load(*self._rows.batch(0, min(index + 1, len(self._rows))))

            def count(value: Tensor, index: int = index) -> Tensor:
                kept[index] += value.numel()
                return value

            with (
                torch.enable_grad(),
                torch.autograd.graph.saved_tensors_hooks(count, lambda value: value),
            ):
                logits = call(self._model, inputs)
            kept[index] += logits.numel() + _entries(inputs)
        return max(1, kept[1] - kept[0], 4 * self.n_outputs)

    def _trace(self) -> float:
        """Sum over rows of E[|grad of -log p_c|^2] with c drawn from p: exactly tr(J^T D J)."""
        return sum(float(torch.linalg.vector_norm(rooted)) ** 2 for rooted in self._rooted())

    def _rooted(self) -> Iterator[Tensor]:
        """Rows [B, p] whose outer products sum to J^T D J: sqrt(p_c) grad log p_c of each class."""
        model, state = self._source
        regression = Task(self._task) is Task.REGRESSION
        for label in range(1 if regression else self.n_outputs):

            def root(logits: Tensor, _: Tensor, label: int = label) -> Tensor:
                if regression:
                    return 2**0.5 * logits[..., 0]
                logprob = torch.log_softmax(logits, dim=-1)[..., label]
                return (logprob.detach() / 2).exp() * logprob

            owner = PerExampleGradients(
                model, state, output=root, device=self._device, dtype=self._dtype
            )
            for _, inputs, targets in self._rows.batches(min(self._batch, 256)):
                blocks = [block for _, block in owner.run(inputs, targets).blocks()]
                yield blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


def dense_passes(size: int, n_outputs: int, *, task: str, hessian: str) -> int | None:
    """Passes over the rows, forward and backward, by which `dense` sums outer products.

    Of the Gauss-Newton matrix, one for each logit. None where it takes a product with H for each
    parameter instead: of the Hessian, of documents, of many classes.

    Args:
        size: Parameters p.
        n_outputs: Logits K.
        task: As `LossCurvature`.
        hessian: Likewise.
    """
    outer = hessian == Hessian.GAUSS_NEWTON and Task(task) is not Task.LANGUAGE
    return n_outputs if outer and n_outputs <= min(TRACE_CLASSES, size) else None


def _loss_curvature(task: str, logits: Tensor, along: Tensor) -> Tensor:
    """D u for each u of [b, n, K] or [b, n, T, K]: (diag p - p p^T) u, or 2 u."""
    if Task(task) is Task.REGRESSION:
        return 2 * along
    p = torch.softmax(logits, dim=-1)
    weighted = p * along
    return weighted - p * weighted.sum(-1, keepdim=True)


def _no_product(reason: str) -> RecipeError:
    return RecipeError(
        f"the model has no product with its curvature ({reason}); use layers with second "
        "derivatives, or method 'trak'"
    )


def _entries(inputs: Inputs) -> int:
    tensors = inputs.values() if isinstance(inputs, dict) else (inputs,)
    return sum(value.numel() for value in tensors)
