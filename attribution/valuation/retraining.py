"""The game of retraining: the utility of a coalition is what a model trained on it says.

All coalitions of a batch are trained as one (`attribution.training`), and none twice. Every
coalition is trained under the same seeds, so that a game is a function, and what a player adds is
seen through less training noise; values are those of that function, and further seeds average
what hangs on the seed. The empty coalition is the untrained model under the seeds.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attribution.bank import train_bank_models
from attribution.models import ModelLike, fresh
from attribution.outputs import OutputLike, Task, of_models, output_name, task_of, task_output
from attribution.rows import Rows, Source
from attribution.streams import Purpose, stream
from attribution.training import Recipe, predict
from attribution.training.jobs import split_state
from attribution.valuation.game import BoolArray, FloatArray, Game
from schemas.errors import ShapeError

# Models whose weights are held at once.
MODELS_AT_ONCE = 256


def correct(logits: Tensor, targets: Tensor) -> Tensor:
    """1 where the most probable class is the target, else 0: an output whose mean is accuracy."""
    return (logits.argmax(dim=-1) == targets).to(logits.dtype)


def retraining_game(
    model: ModelLike,
    train: Source,
    *,
    queries: Source,
    training: Recipe,
    output: OutputLike | None = None,
    aggregate: npt.ArrayLike | None = None,
    seeds: int = 1,
    seed: int = 0,
    task: str | None = None,
    device: str = "auto",
    memory: int | None = None,
) -> Game:
    """A game whose players are the training rows.

    Args:
        model: A module (re-initialised) or a factory.
        train: As `attribution.training.train_models`.
        queries: The same for the m queries.
        training: The recipe.
        output: What the utility says of each query; by default margin, or prediction for a
            regression; `correct` for accuracy.
        aggregate: Weights [m] of a sum over queries, for a utility of one number; 1/m everywhere
            is the mean.
        seeds: Models trained on each coalition, whose outputs are averaged.
        seed: Key of the training seeds.
        task: By default what the targets' type says.
        device: auto, cpu or cuda.
        memory: As `attribution.training.train_models`.

    Raises:
        ShapeError: Inputs and targets differ in length, weights are not one for each query, or
            there is less than one seed.
    """
    rows = Rows(train, "train").whole()
    inputs, targets = Rows(queries, "queries").whole()
    if seeds < 1:
        raise ShapeError(f"seeds is {seeds}; train at least one model on each coalition")
    weights = None if aggregate is None else np.asarray(aggregate, dtype=np.float64)
    if weights is not None and weights.shape != (len(targets),):
        raise ShapeError(
            f"aggregate has shape {weights.shape}; give one weight for each of {len(targets)} "
            "queries"
        )
    kind = Task(task) if task is not None else task_of(rows[1])
    kept = task_output(kind) if output is None else output
    output_name(kept)
    numbers = [int(stream(seed, Purpose.SEEDS, repeat).integers(2**62)) for repeat in range(seeds)]

    def outputs_of(logits: npt.NDArray[np.float32]) -> FloatArray:
        """Logits [B x seeds, m, K] to outputs [B, m], the seeds averaged."""
        values = of_models(kept, logits, targets, task=kind).astype(np.float64)
        return values.reshape(-1, seeds, len(targets)).mean(axis=1)

    def trained(masks: BoolArray) -> FloatArray:
        _, logits = train_bank_models(
            model,
            rows,
            eval_inputs=inputs,
            masks=np.repeat(masks, seeds, axis=0),
            seeds=np.tile(numbers, len(masks)),
            training=training,
            task=kind,
            device=device,
            memory=memory,
        )
        return outputs_of(logits)

    def utility(masks: BoolArray) -> FloatArray:
        found = np.empty((len(masks), len(targets)))
        sizes = masks.sum(axis=1)
        if (sizes == 0).any():
            states = untrained(model, numbers)
            found[sizes == 0] = outputs_of(predict(model, states, inputs, device=device).numpy())
        # Models of one size are stepped together, so sizes stay side by side.
        order = np.argsort(sizes, kind="stable")[np.count_nonzero(sizes == 0) :]
        step = max(1, MODELS_AT_ONCE // seeds)
        for start in range(0, len(order), step):
            places = order[start : start + step]
            found[places] = trained(masks[places])
        return found if weights is None else found @ weights

    return Game(utility, len(rows[1]))


def untrained(model: ModelLike, seeds: Sequence[int]) -> dict[str, Tensor]:
    """The models of the empty coalition: what each seed initialises, [len(seeds), ...] by name."""
    made = []
    for seed in seeds:
        trainable, constants = split_state(fresh(model, seed))
        made.append({**trainable, **constants})
    return {name: torch.stack([state[name] for state in made]) for name in made[0]}
