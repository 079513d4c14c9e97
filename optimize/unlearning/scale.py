"""How large predicted removals are on training rows: the scales of a teacher's targets.

Directions are right in order and not in size, and rows that go themselves have a size of their own.
What a removal does to test outputs, with its error, `optimize.unlearning.changes` says.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attribution.evaluate import Bank
from attribution.statistics import ratio
from schemas.errors import ShapeError


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalSlopes:
    """Slopes of observed on predicted changes, for a teacher of the rows' own outputs.

    A row that goes itself is not a row that stays: its own effect outgrows the linear one, for the
    model no longer has to fit it. On the digits MLP sums of scores had slopes 3.0 and 4.0; Newton
    directions at damping 0.3 had 0.3 to 0.7 and 0.5 to 0.8, the less the farther a removal reaches.

    Attributes:
        kept: For rows that stay.
        forgotten: For rows that are removed themselves.
        pairs: How many (model, row) pairs the two were fitted to.
    """

    kept: float
    forgotten: float
    pairs: tuple[int, int]


def removal_slopes(
    predicted: npt.ArrayLike, bank: Bank, *, rows: npt.ArrayLike, whole: npt.ArrayLike
) -> RemovalSlopes:
    """How large the effects of removals are on training rows, apart for those that go themselves.

    Least squares through the origin over all pairs of a model and a row. Rows that are hard to fit
    lose most and lose more than in proportion, so take all training rows for queries, and models
    that lack about as many rows as are to be forgotten.

    Args:
        predicted: Float [M, n_query], for each model of the bank the change of outputs from all
            rows to its own: of `unlearned_logits`, or sums of centred scores.
        bank: Models trained on nearly all rows, with training rows for queries.
        rows: Int [n_query], which training row each query is.
        whole: Float [n_query], mean output of models trained on all rows.

    Raises:
        ShapeError: Arrays do not fit, or no model lacks any of the rows.
    """
    guess, base = np.asarray(predicted, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    own, masks = np.asarray(rows), np.asarray(bank.masks, dtype=bool)
    outputs = np.asarray(bank.outputs, dtype=np.float64)
    if guess.shape != outputs.shape or not own.shape == base.shape == outputs.shape[1:]:
        raise ShapeError(
            f"predicted changes {guess.shape}, bank outputs {outputs.shape}, rows {own.shape} and "
            f"whole {base.shape} do not fit; give one of each for every query"
        )
    gone = ~masks[:, own]
    if gone.all() or not gone.any():
        raise ShapeError("every model has, or lacks, all of the rows; give a bank that drops some")
    observed = outputs - base
    kept, forgotten = (
        float(ratio((guess[one] * observed[one]).sum(), (guess[one] ** 2).sum()))
        for one in (~gone, gone)
    )
    return RemovalSlopes(
        kept=kept, forgotten=forgotten, pairs=(int((~gone).sum()), int(gone.sum()))
    )
