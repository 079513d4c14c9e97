"""One training run as a function of the weights of its rows.

The loss of a step is sum_i w_i l_i / |batch|, with the divisor fixed: at w = 1 the run is that of
`attribution.training.train_one_reference`, and w_i = 0 leaves row i out in place, all other rows
keeping their batches and their share. States are flat vectors [p]; a step is a pure function of the
state before it, so that any stretch of the run can be trained again from a stored state.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attribution.models import ModelLike, torch_stream
from attribution.outputs import training_loss
from attribution.rows import Inputs, Rows, Source, call_at, take
from attribution.training.adjoint import State, rule_of
from attribution.training.anymodel import noise_seed
from attribution.training.batchnorm import refuse_tied_rows
from attribution.training.jobs import make_job, split_state
from attribution.training.recipe import Recipe, epoch_order
from schemas.errors import RecipeError, ShapeError


class WeightedRun:
    """A training run with one weight for each row.

    Dropout draws what it drew the first time, whenever a step is computed again. Batch norm is
    refused: a row of weight 0 would still normalise the rows of its batch. On CUDA a step that is
    computed again may differ by rounding, where a kernel adds in no fixed order.

    Args:
        model: A module, re-initialised under the seed, or a factory.
        train: Inputs [n, ...] and targets [n], or of documents [n, tokens]; or a map-style Dataset.
        training: The recipe.
        seed: Initial parameters, batch order and noise follow from it.
        weights: [n], finite; 1 by default.
        mask: bool [n], the rows that the run visits; all by default.
        task: "classification", "regression" or "language"; by default what the targets' type says.
        device: auto, cpu or cuda.
        dtype: Of parameters, inputs and sums.

    Raises:
        ShapeError: Weights, mask and data do not fit together.
        DataError: An input is NaN or infinite.
        RecipeError: The model cannot be re-initialised, cannot take the inputs, or keeps
            statistics of its batches.
    """

    def __init__(
        self,
        model: ModelLike,
        train: Source,
        *,
        training: Recipe,
        seed: int,
        weights: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
        task: str | None = None,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        data = Rows(train, "train")
        rows = np.ones(len(data), dtype=bool) if mask is None else np.asarray(mask)
        job = make_job(model, data, rows[None], [seed], training, task, device, dtype)
        self.net, self.recipe, self.task, self.seed = job.template, training, job.task, seed
        self.device, self.dtype, self._draws = job.device, dtype, not job.pure
        self._batched = True
        self._inputs, self._targets = job.inputs, job.targets
        self._subset = np.flatnonzero(rows)
        self._weights = _checked_weights(weights, len(rows)).to(device=self.device, dtype=dtype)
        trainable, self._constants = split_state(self.net)
        self._shapes = {name: value.shape for name, value in trainable.items()}
        self._first = torch.cat([value.flatten() for value in trainable.values()]).clone()
        self.rule = rule_of(training)
        self._per_epoch = training.steps_per_epoch(len(self._subset))
        # A step is computed up to three times, the steps of an epoch one after the other.
        self._order = lru_cache(maxsize=2)(self._drawn_order)
        self._refuse_batch_statistics()

    @property
    def n_train(self) -> int:
        """Rows that have a weight."""
        return len(self._weights)

    @property
    def n_params(self) -> int:
        """Numbers that train."""
        return len(self._first)

    @property
    def n_steps(self) -> int:
        """Steps of the whole run."""
        return self._per_epoch * self.recipe.epochs

    def start(self) -> State:
        """The state before the first step."""
        return self.rule.start(self._first.clone())

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.recipe.rate(step, len(self._subset))

    def rows(self, step: int) -> Tensor:
        """The training rows that a step visits, each once."""
        epoch, place = divmod(step, self._per_epoch)
        size = self.recipe.batch_size
        return self._order(epoch)[place * size : (place + 1) * size]

    def loss(self, params: Tensor, weights: Tensor, step: int) -> Tensor:
        """The loss of a step, a differentiable function of parameters [p] and weights [batch]."""
        rows = self.rows(step)
        self.net.train()
        # The fused attention kernels have no second derivative.
        with self._noise(step), sdpa_kernel(SDPBackend.MATH):
            logits = self.logits(params, take(self._inputs, rows))
            losses = training_loss(self.task, logits, self._targets[rows], "none")
        return (weights * losses).sum() / len(rows)

    def logits(self, params: Tensor, inputs: Inputs) -> Tensor:
        """Logits [rows, (tokens,) K] at the parameters, in the mode that ``net`` is in."""
        return call_at(self.net, {**self.named(params), **self._constants}, inputs)

    def named(self, params: Tensor) -> dict[str, Tensor]:
        """Parameters by name, as views of the flat vector."""
        pieces = params.split([prod(shape) for shape in self._shapes.values()])
        return {
            name: piece.view(shape)
            for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)
        }

    def advance(self, before: State, step: int) -> State:
        """The state after a step."""
        params = before.params.detach().requires_grad_()
        with torch.enable_grad():
            loss = self.loss(params, self._weights[self.rows(step)], step)
        gradient = torch.autograd.grad(loss, params, materialize_grads=True)[0]
        return self.rule.move(before, gradient, self.rate(step), step)

    def end(self) -> State:
        """The state after the last step, none before it kept."""
        state = self.start()
        for step in range(self.n_steps):
            state = self.advance(state, step)
        return state

    def retreat(
        self, after_bar: State, before: State, after: State, step: int
    ) -> tuple[State, Tensor]:
        """The adjoint of a step: one product with the batch's Hessian for each of Q outputs.

        Args:
            after_bar: Adjoints [Q, p] of the state after the step.
            before: The state before it.
            after: The state after it.
            step: Its number.

        Returns:
            Adjoints of the state before the step, and those [Q, batch] of its rows' weights.
        """
        params = before.params.detach().requires_grad_()
        weights = self._weights[self.rows(step)].requires_grad_()
        with torch.enable_grad():
            loss = self.loss(params, weights, step)
            gradient = torch.autograd.grad(loss, params, create_graph=True)[0]
        gradient_bar, before_bar = self.rule.pull(
            after_bar, after, gradient.detach(), self.rate(step), step
        )
        hessian_bar, weights_bar = self._products(gradient, (params, weights), gradient_bar)
        return State(before_bar.params + hessian_bar, before_bar.slots), weights_bar

    def _products(
        self, gradient: Tensor, of: tuple[Tensor, Tensor], vectors: Tensor
    ) -> list[Tensor]:
        """Derivatives of <vector, gradient> for each vector [Q, p]: all at once where vmap can."""
        if self._batched and len(vectors) > 1:
            try:
                return list(
                    torch.autograd.grad(
                        gradient, of, vectors, is_grads_batched=True, retain_graph=True
                    )
                )
            except RuntimeError:  # a backward pass without a vmap rule: its products one by one
                self._batched = False
        found = [torch.autograd.grad(gradient, of, vector, retain_graph=True) for vector in vectors]
        return [torch.stack(parts) for parts in zip(*found, strict=True)]

    def _drawn_order(self, epoch: int) -> Tensor:
        order = epoch_order(self.seed, epoch, len(self._subset))
        return torch.from_numpy(self._subset[order]).to(self.device)

    def _noise(self, step: int) -> AbstractContextManager[None]:
        if not self._draws:
            return nullcontext()
        seed = noise_seed(self.seed, *divmod(step, self._per_epoch))
        return torch_stream(seed, cuda=self.device == "cuda")

    def _refuse_batch_statistics(self) -> None:
        refuse_tied_rows(self.net.train())
        kept = {name: value._version for name, value in self._constants.items()}
        with torch.no_grad():
            self.loss(self._first, self._weights[self.rows(0)], 0)
        changed = [name for name, value in self._constants.items() if value._version != kept[name]]
        if changed:
            raise RecipeError(
                f"the model changes its buffer {changed[0]!r} while it trains, so that a row of "
                "weight 0 still acts on others; take a method that reads checkpoints"
            )


def _checked_weights(weights: npt.ArrayLike | None, n_train: int) -> Tensor:
    if weights is None:
        return torch.ones(n_train)
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (n_train,) or not np.isfinite(values).all():
        raise ShapeError(
            f"weights have shape {values.shape}; give one finite number for each of the {n_train} "
            "training rows"
        )
    return torch.from_numpy(values.copy())
