"""Metagradients: the derivative of a trained model's outputs with respect to its rows' weights.

For a run with losses sum_i w_i l_i / |batch| and outputs f_q of the model that it ends with,

    tau[q, i] = df_q / dw_i,

by reverse mode through every step of the run (Hara, Nitanda and Maehara 2019; Engstrom et al.
2025; MAGIC, Ilyas and Engstrom 2025): exact for infinitesimal weights and this very run, its
initial parameters, batch order and noise included. One pass over the run gives all n rows for one
output, or for a weighted sum of outputs; Q outputs cost Q products with the Hessian a step and
share everything else.

Of T steps, every sqrt(T)-th state is kept on the way forward and the states between two of them
are trained again on the way back: 2 sqrt(T) states at most, for one more training.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attribution.models import ModelLike
from attribution.outputs import OutputLike, of_examples, output_name, task_output
from attribution.rows import Rows, Source, to
from attribution.training import Recipe
from attribution.training.unrolled import Unrolled
from attribution.training.weighted import WeightedRun
from schemas.errors import ShapeError

# Numbers in the adjoints of one pass (256 MiB in float32): more queries take further passes.
PASS_NUMBERS = 2**26
# Queries in one forward pass.
BATCH = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Metagradient:
    """What one run says of its rows.

    Attributes:
        scores: tau [n_query, n_train], or [n_train] for a weighted sum of the outputs, in the
            output's unit; > 0 where more weight on the row raises the output.
        outputs: Of the model that the run ends with, [n_query].
        state: That model's parameters, by name.
        steps: Steps of the run, T.
        states_held: Most states that were in memory at once.
        passes: Passes back through the run.
    """

    scores: npt.NDArray[np.floating]
    outputs: npt.NDArray[np.floating]
    state: dict[str, Tensor]
    steps: int
    states_held: int
    passes: int


def metagradient(
    model: ModelLike,
    train: Source,
    queries: object,
    *,
    training: Recipe,
    seed: int,
    output: OutputLike | None = None,
    aggregate: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    task: str | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    segment: int | None = None,
    block: int | None = None,
) -> Metagradient:
    """Differentiate one training run with respect to the weights of its rows.

    Dropout is replayed as it was drawn. Where the loss has kinks or the run is chaotic (a learning
    rate at the edge of divergence, adamw with gradients as small as its eps) the derivative is
    still exact, and tells less of a row's removal: LDS 0.96 for rows left out of the digits
    perceptron's run with GELU and a rate falling from 0.02, 0.4 with ReLU and a constant 0.05
    (benchmarks/metagradient_digits.py; Engstrom et al. 2025 call such runs metasmooth or not).

    Args:
        model: A module, re-initialised under the seed, or a factory.
        train: Inputs [n, ...] and targets [n], or of documents [n, tokens]; or a map-style Dataset.
        queries: (inputs, targets) of the examples to be explained, or a map-style Dataset.
        training: The recipe.
        seed: Of the run: the one that `attribution.training.train_models` trains under this seed.
        output: What is explained; by default the task's own.
        aggregate: Weights [n_query]; then it is sum_q aggregate_q f_q alone that is explained, in
            one pass for one vector.
        weights: [n] at which the derivative is taken; 1 by default, where the run is the usual one.
        mask: bool [n], the rows of the run; the others score 0.
        task: "classification", "regression" or "language"; by default what the targets' type says.
        device: auto, cpu or cuda.
        dtype: Of everything; float64 for tests.
        segment: Steps between kept states; sqrt(T) by default. It changes memory, not results.
        block: Outputs in one pass; as many as fit `PASS_NUMBERS` by default.

    Raises:
        ShapeError: Arrays do not fit together, or a number is out of range.
        DataError: An input is NaN or infinite.
        RecipeError: The model cannot be trained by this recipe, or normalises over its batches.
        TrainingDiverged: The run or its derivative became NaN or infinite.
    """
    run = WeightedRun(
        model,
        train,
        training=training,
        seed=seed,
        weights=weights,
        mask=mask,
        task=task,
        device=device,
        dtype=dtype,
    )
    asked = Rows(queries, "queries")
    blocks = _blocks(len(asked), pass_outputs(run) if block is None else block)
    sums = None if aggregate is None else _checked_aggregate(aggregate, len(asked))
    ends = _Ends(run, asked, task_output(run.task) if output is None else output)
    ends.values(run.start().params)  # refuses queries that do not fit before anything is trained
    unrolled = Unrolled(run, segment)
    params = unrolled.last.params
    if sums is None:
        passes = [unrolled.pull(ends.adjoints(params, rows)) for rows in blocks]
        scores = torch.cat(passes)
    else:
        passes = [unrolled.pull(ends.sum_adjoint(params, sums))]
        scores = passes[0][0]
    return Metagradient(
        scores=scores.cpu().numpy(),
        outputs=ends.values(params).cpu().numpy(),
        state={name: value.cpu().clone() for name, value in run.named(params).items()},
        steps=run.n_steps,
        states_held=unrolled.most_held,
        passes=len(passes),
    )


def pass_outputs(run: WeightedRun) -> int:
    """Outputs whose adjoints fit `PASS_NUMBERS`."""
    return max(1, PASS_NUMBERS // (run.n_params * (1 + len(run.start().slots))))


class _Ends:
    """The outputs f_q of the model that a run ends with, in eval mode, and their gradients."""

    def __init__(self, run: WeightedRun, queries: Rows, output: OutputLike) -> None:
        output_name(output)
        self._run, self._queries, self._output = run, queries, output

    @torch.no_grad()
    def values(self, params: Tensor) -> Tensor:
        """[n_query]."""
        return torch.cat([self._of(params, rows) for rows in _blocks(len(self._queries), BATCH)])

    def adjoints(self, params: Tensor, rows: slice) -> Tensor:
        """Gradients [rows, p], one backward pass for each."""
        found = []
        for row in range(rows.start, rows.stop):
            leaf = params.detach().requires_grad_()
            value = self._of(leaf, slice(row, row + 1)).sum()
            found.append(torch.autograd.grad(value, leaf, materialize_grads=True)[0])
        return torch.stack(found)

    def sum_adjoint(self, params: Tensor, weights: Tensor) -> Tensor:
        """The gradient [1, p] of the weighted sum of the outputs."""
        total = torch.zeros_like(params)
        for rows in _blocks(len(self._queries), BATCH):
            leaf = params.detach().requires_grad_()
            values = self._of(leaf, rows)
            value = (values * weights[rows].to(values)).sum()
            total += torch.autograd.grad(value, leaf, materialize_grads=True)[0]
        return total.unsqueeze(0)

    def _of(self, params: Tensor, rows: slice) -> Tensor:
        run = self._run
        inputs, targets = self._queries.batch(rows.start, rows.stop)
        targets = targets.to(run.device, run.dtype if targets.is_floating_point() else None)
        run.net.eval()
        logits = run.logits(params, to(inputs, run.device, run.dtype))
        return of_examples(self._output, logits, targets)


def _blocks(count: int, size: int) -> list[slice]:
    if size < 1:
        raise ShapeError(f"block = {size}; give one output or more a pass")
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _checked_aggregate(aggregate: npt.ArrayLike, n_query: int) -> Tensor:
    weights = np.asarray(aggregate, dtype=np.float64)
    if weights.shape != (n_query,) or not np.isfinite(weights).all():
        raise ShapeError(
            f"aggregate has shape {weights.shape}; give one finite weight for each of the "
            f"{n_query} queries"
        )
    return torch.from_numpy(weights.copy())
