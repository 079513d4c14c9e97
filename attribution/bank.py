"""The retrain bank: models retrained on known subsets, and what they say about each query.

Row j is one retraining: mask 1_S (bool [n_train]), training seed, and the output f_q for every
query q. The bank tunes damping, measures LDS with its noise ceiling and calibrates surrogates.
Rows that share a mask differ by seed only: they tell seed noise from the effect of the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from attribution.kept import retraining_names, trained_through
from attribution.models import ModelLike
from attribution.outputs import Output, OutputLike, of_models, output_name, task_of, task_output
from attribution.rows import Rows, Source
from attribution.streams import Purpose, stream
from attribution.subsets import draw_masks as draw_masks
from attribution.training import Recipe, TrainedModels, predict, train_models
from attribution.training.jobs import checked_masks
from schemas.errors import ShapeError

IndexArray = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, eq=False)
class RetrainBank:
    """Retrained models and their outputs.

    Args:
        masks: bool [M, n_train]; which training rows each model saw.
        outputs: float32 [M, n_query], in the output's own unit.
        seeds: int64 [M]; the training seed of each row.
        alpha: float64 [M]; the share of rows that was asked for, or None.
        kinds: str [M]; what each row was made for, or None.
        output: Name of the output.

    Raises:
        ShapeError: Shapes do not fit, masks are not boolean or empty, or an output is not finite.
    """

    masks: npt.NDArray[np.bool_]
    outputs: npt.NDArray[np.float32]
    seeds: npt.NDArray[np.int64]
    alpha: npt.NDArray[np.float64] | None = None
    kinds: npt.NDArray[np.str_] | None = None
    output: str = Output.MARGIN

    def __post_init__(self) -> None:
        masks = np.asarray(self.masks)
        if masks.dtype != np.bool_ or masks.ndim != 2 or len(masks) == 0:
            raise ShapeError(
                f"bank masks are {masks.dtype} of shape {masks.shape}; give bool [models, n_train]"
            )
        empty = np.flatnonzero(~masks.any(axis=1))
        if len(empty):
            raise ShapeError(f"bank row {empty[0]} has an empty mask; no model was trained on it")
        # Checked before the cast: a number too large for float32 is a fault of its own.
        outputs = np.asarray(self.outputs, dtype=np.float64)
        if outputs.ndim != 2 or len(outputs) != len(masks):
            raise ShapeError(
                f"bank outputs have shape {outputs.shape} for {len(masks)} masks; "
                "give [models, n_query]"
            )
        with np.errstate(over="ignore"):
            narrow = outputs.astype(np.float32)
        bad = np.argwhere(~np.isfinite(narrow))
        if len(bad):
            row, query = bad[0]
            raise ShapeError(
                f"bank row {row} has output {outputs[row, query]:g} on query {query}; "
                "drop that row or retrain it"
            )
        columns: dict[str, Any] = {"seeds": np.asarray(self.seeds)}
        if not np.issubdtype(columns["seeds"].dtype, np.integer):
            raise ShapeError(f"bank seeds are {columns['seeds'].dtype}; give integers")
        columns["seeds"] = columns["seeds"].astype(np.int64)
        if self.alpha is not None:
            columns["alpha"] = np.asarray(self.alpha, dtype=np.float64)
        if self.kinds is not None:
            columns["kinds"] = np.asarray(self.kinds, dtype=np.str_)
        for name, column in columns.items():
            if column.shape != (len(masks),):
                raise ShapeError(
                    f"bank {name} have shape {column.shape} for {len(masks)} masks; "
                    "give one for each"
                )
        for name, column in {"masks": masks, "outputs": narrow, **columns}.items():
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def n_train(self) -> int:
        """Training rows that masks speak of."""
        return int(self.masks.shape[1])

    @property
    def n_query(self) -> int:
        """Queries that outputs speak of."""
        return int(self.outputs.shape[1])

    def subset(self, rows: npt.ArrayLike) -> "RetrainBank":
        """Some rows, by index or by a boolean mask over rows.

        Raises:
            ShapeError: No row is left, or an index is outside the bank.
        """
        index = np.asarray(rows)
        if index.dtype == np.bool_ and index.shape != (len(self),):
            raise ShapeError(
                f"a row mask of shape {index.shape} does not fit {len(self)} bank rows"
            )
        index = np.flatnonzero(index) if index.dtype == np.bool_ else index.astype(np.intp)
        if index.ndim != 1 or len(index) == 0:
            raise ShapeError("no bank row is left; choose at least one")
        if index.min() < -len(self) or index.max() >= len(self):
            raise ShapeError(f"row {index.max()} is outside the bank's {len(self)} rows")
        return replace(
            self,
            masks=self.masks[index],
            outputs=self.outputs[index],
            seeds=self.seeds[index],
            alpha=None if self.alpha is None else self.alpha[index],
            kinds=None if self.kinds is None else self.kinds[index],
        )

    def distinct(self) -> list[IndexArray]:
        """Rows that share a mask, as one array of indices for each mask, in order of appearance."""
        groups: dict[bytes, list[int]] = {}
        for row, packed in enumerate(np.packbits(self.masks, axis=1)):
            groups.setdefault(packed.tobytes(), []).append(row)
        return [np.array(rows, dtype=np.intp) for rows in groups.values()]

    def split(self, share: float, seed: int) -> tuple["RetrainBank", "RetrainBank"]:
        """Two banks without a common mask, the first with ``share`` of the masks of each alpha.

        Raises:
            ShapeError: The share is not inside (0, 1), or leaves one side empty.
        """
        if not 0 < share < 1:
            raise ShapeError(f"share = {share}; it must lie between 0 and 1")
        groups = self.distinct()
        # Without alpha, subsets of one size belong together.
        strata = self.masks.sum(axis=1) if self.alpha is None else self.alpha
        of_group = np.array([strata[rows[0]] for rows in groups])
        first = np.zeros(len(self), dtype=bool)
        for number, stratum in enumerate(np.unique(of_group)):
            members = np.flatnonzero(of_group == stratum)
            shuffled = stream(seed, Purpose.CALIBRATION, number).permutation(members)
            for group in shuffled[: round(share * len(members))]:
                first[groups[group]] = True
        if first.all() or not first.any():
            raise ShapeError(
                f"a share of {share:g} of {len(groups)} distinct masks leaves one side empty; "
                "retrain on more subsets or choose another share"
            )
        return self.subset(first), self.subset(~first)


def train_bank(
    model: ModelLike,
    train: Source,
    *,
    queries: Source,
    masks: npt.ArrayLike,
    seeds: Sequence[int] | npt.NDArray[np.integer[Any]],
    training: Recipe,
    output: OutputLike | None = None,
    task: str | None = None,
    device: str = "auto",
    memory: int | None = None,
    alpha: npt.ArrayLike | None = None,
    folder: Path | str | None = None,
) -> RetrainBank:
    """Retrain on each mask and keep what the models say about the queries.

    Args:
        model: A module (re-initialised) or a factory.
        train: As `attribution.training.train_models`.
        queries: The same for the queries.
        masks: bool [M, n].
        seeds: [M].
        training: The recipe.
        output: What is kept of each query; by default margin, or prediction for a regression.
        task: By default what the targets' type says.
        device: auto, cpu or cuda.
        memory: As `attribution.training.train_models`.
        alpha: [M], kept with the rows.
        folder: Where finished models' logits are kept. An interrupted call, made again, goes on
            there, and a larger bank trains only what is new (see `attribution.kept`).

    Raises:
        ShapeError: Arrays do not fit together.
        TrainingDiverged: A loss became NaN or infinite.
        CheckpointError: A file of the folder cannot be read.
    """
    rows = Rows(train, "train").whole()
    query_inputs, query_targets = Rows(queries, "queries").whole()
    kind = task_of(rows[1]) if task is None else task
    kept = task_output(kind) if output is None else output
    output_name(kept)
    subsets, numbers = checked_masks(masks, seeds, len(rows[1]))

    def logits_of(places: Sequence[int]) -> npt.NDArray[np.float32]:
        _, found = train_bank_models(
            model,
            rows,
            eval_inputs=query_inputs,
            masks=subsets[places],
            seeds=[numbers[place] for place in places],
            training=training,
            task=kind,
            device=device,
            memory=memory,
        )
        return found

    if folder is None:
        logits = logits_of(range(len(subsets)))
    else:
        names = retraining_names(model, rows, query_inputs, subsets, numbers, training, kind)
        logits = trained_through(Path(folder), names, subsets.sum(axis=1).tolist(), logits_of)
    return RetrainBank(
        masks=np.asarray(masks),
        outputs=of_models(kept, logits, query_targets, task=kind),
        seeds=np.asarray(seeds),
        alpha=None if alpha is None else np.asarray(alpha),
        output=output_name(kept),
    )


def train_bank_models(
    model: ModelLike,
    train: Source,
    *,
    eval_inputs: Any,
    masks: npt.ArrayLike,
    seeds: Sequence[int] | npt.NDArray[np.integer[Any]],
    training: Recipe,
    task: str | None = None,
    device: str = "auto",
    memory: int | None = None,
    snapshot_epochs: Sequence[int] = (),
) -> tuple[TrainedModels, npt.NDArray[np.float32]]:
    """Retrain on each mask; keep the models and their logits, for a caller that stores both.

    Returns:
        The models, and their logits float32 [M, n_eval, K], or [M, n_eval, T, K] of documents.
    """
    trained = train_models(
        model,
        train,
        masks=masks,
        seeds=seeds,
        training=training,
        task=task,
        device=device,
        memory=memory,
        snapshot_epochs=snapshot_epochs,
    )
    logits = predict(model, trained.states, eval_inputs, device=device)
    return trained, logits.float().numpy()
