"""What the models would have said without some rows: retraining as a question to be asked.

A `Retraining` holds everything that stays the same, data, recipe and seeds; `on` trains several
seeds of each subset, all subsets as one batch of models. Seeds are keyed by the subset's place, so
that no two subsets share a draw and an interval over subsets is over independent models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attribution.bank import RetrainBank, train_bank_models
from attribution.models import ModelLike
from attribution.outputs import (
    FALLING,
    OutputLike,
    Task,
    of_models,
    output_name,
    task_of,
    task_output,
)
from attribution.rows import Rows, Source
from attribution.scored import check_finite, recorded_output
from attribution.streams import Purpose, stream
from attribution.training import Recipe
from schemas.errors import ShapeError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Retraining:
    """How models are retrained, and what is asked of them.

    Args:
        model: A module (re-initialised) or a factory.
        train: As `attribution.training.train_models`; kept as (inputs, targets).
        queries: The same for the queries.
        training: The recipe.
        output: What is kept of each query; by default the task's own, such as margin.
        seeds: Models trained on each subset.
        seed: Key of all training seeds.
        task: By default what the targets' type says.
        device: auto, cpu or cuda.
        memory: As `attribution.training.train_models`.

    Raises:
        ShapeError: Inputs and targets differ in length, or there is less than one seed.
    """

    model: ModelLike
    train: Source
    queries: Source
    training: Recipe
    output: OutputLike | None = None
    seeds: int = 3
    seed: int = 0
    task: str | None = None
    device: str = "auto"
    memory: int | None = None

    def __post_init__(self) -> None:
        for name in ("train", "queries"):
            object.__setattr__(self, name, Rows(getattr(self, name), name).whole())
        if self.seeds < 1:
            raise ShapeError(f"seeds is {self.seeds}; train at least one model on each subset")
        output_name(self.kept)

    @property
    def n_train(self) -> int:
        """Training rows."""
        return len(self.train[1])

    @property
    def n_query(self) -> int:
        """Queries."""
        return len(self.queries[1])

    @property
    def kind(self) -> Task:
        """Classification or regression."""
        return task_of(self.train[1]) if self.task is None else Task(self.task)

    @property
    def kept(self) -> OutputLike:
        """The output that is kept of each query."""
        return task_output(self.kind) if self.output is None else self.output

    @property
    def better(self) -> int:
        """+1 where a better model has more of the output, -1 for a loss."""
        return -1 if self.kept in FALLING else 1

    def without(self, removed: Sequence[npt.ArrayLike]) -> BoolArray:
        """Masks of all rows but some, bool [len(removed), n_train]."""
        masks = np.ones((len(removed), self.n_train), dtype=bool)
        for mask, rows in zip(masks, removed, strict=True):
            mask[np.asarray(rows, dtype=np.intp)] = False
        return masks

    def on(self, masks: BoolArray) -> "Retrained":
        """Train `seeds` models on each subset, all in one batch.

        Raises:
            ShapeError: A subset is empty, or masks do not fit the rows.
            TrainingDiverged: A loss became NaN or infinite.
        """
        seeds = np.array(
            [
                stream(self.seed, Purpose.REMOVAL, subset, repeat).integers(2**62)
                for subset in range(len(masks))
                for repeat in range(self.seeds)
            ]
        )
        repeated = np.repeat(masks, self.seeds, axis=0)
        _, logits = train_bank_models(
            self.model,
            self.train,
            eval_inputs=self.queries[0],
            masks=repeated,
            seeds=seeds,
            training=self.training,
            task=self.kind,
            device=self.device,
            memory=self.memory,
        )
        values = self.outputs_of(logits)
        bank = RetrainBank(
            masks=repeated,
            outputs=values.astype(np.float32),
            seeds=seeds,
            output=output_name(self.kept),
        )
        shape = (len(masks), self.seeds, self.n_query)
        return Retrained(
            outputs=values.reshape(shape),
            logits=logits.reshape(*shape, *logits.shape[2:]),
            bank=bank,
        )

    def outputs_of(self, logits: npt.NDArray[np.floating]) -> FloatArray:
        """The output of each query from logits [M, n_query, ..., K], float64 [M, n_query]."""
        values = of_models(self.kept, logits, self.queries[1], task=self.kind)
        return values.astype(np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Retrained:
    """What models trained on some subsets say of the queries.

    Attributes:
        outputs: Float64 [n_subsets, seeds, n_query].
        logits: Float32 [n_subsets, seeds, n_query, K], or [..., T, K] of documents.
        bank: The same models as rows of a bank, for whoever keeps them.
    """

    outputs: FloatArray
    logits: npt.NDArray[np.float32]
    bank: RetrainBank


def top_rows(
    scores: npt.ArrayLike, retraining: Retraining, *, helpful: bool
) -> npt.NDArray[np.intp]:
    """Training rows of each query from the most helpful (or most harmful) on, [n_query, n_train].

    A helpful row raises an output that should be high and lowers a loss. Ties go by row number.

    Raises:
        ShapeError: Scores do not fit the queries and rows, are not finite, or are of another
            output than the one that is retrained.
    """
    tau = checked_for(scores, retraining)
    sign = retraining.better if helpful else -retraining.better
    return np.argsort(-sign * tau, axis=1, kind="stable")


def checked_for(scores: npt.ArrayLike, retraining: Retraining) -> npt.NDArray[np.floating]:
    """The scores as an array, once they fit what is retrained.

    Raises:
        ShapeError: Another shape, a value that is not finite, or scores of another output.
    """
    tau = np.asarray(scores)
    wanted = (retraining.n_query, retraining.n_train)
    if tau.shape != wanted:
        raise ShapeError(
            f"scores have shape {tau.shape}; {wanted[0]} queries and {wanted[1]} training rows "
            "are retrained"
        )
    check_finite(tau)
    scored, kept = recorded_output(scores), output_name(retraining.kept)
    if scored is not None and scored != kept:
        raise ShapeError(
            f"the scores are of output {scored!r} and {kept!r} is retrained; use one output"
        )
    return tau
