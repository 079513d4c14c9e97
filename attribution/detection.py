"""Wrong labels found by scores: how well self-influence and harm rank rows known to be wrong."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attribution.outputs import FALLING, Output, OutputLike
from attribution.statistics import auroc, average_precision
from schemas.errors import ShapeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """How a ranking of rows finds the wrong ones.

    Attributes:
        auroc: Chance that a wrong row ranks above a right one.
        average_precision: Precision averaged over recall; `share` by chance.
        share: Share of the rows that are wrong.
    """

    auroc: float
    average_precision: float
    share: float


def mislabel_detection(
    wrong: npt.ArrayLike,
    *,
    scores: npt.ArrayLike | None = None,
    self_influence: npt.ArrayLike | None = None,
    output: OutputLike = Output.MARGIN,
) -> dict[str, Detection]:
    """AUROC and average precision of the two rankings of rows by suspicion.

    "harm" is minus the mean score over queries: rows that make other outputs worse.
    "self-influence" is the score of a row for itself: rows that only their own presence explains
    (Koh and Liang 2017). For a loss both signs turn round.

    Args:
        wrong: Bool [n_train], rows known to be wrong.
        scores: Float [n_query, n_train]; scores that carry a record say their own output.
        self_influence: Float [n_train], tau[i, i].
        output: What the scores are of.

    Returns:
        "harm" and "self-influence", of what was given.

    Raises:
        ShapeError: Nothing to rank by, arrays that do not fit, or labels all alike.
    """
    known = getattr(scores, "record", {}).get("output", output)
    sign = -1.0 if known in FALLING else 1.0
    suspicion = {}
    if scores is not None:
        tau = np.asarray(scores)
        if tau.ndim != 2:
            raise ShapeError(f"scores have shape {tau.shape}; give [n_query, n_train]")
        suspicion["harm"] = -sign * tau.mean(axis=0, dtype=np.float64)
    if self_influence is not None:
        suspicion["self-influence"] = sign * np.asarray(self_influence, dtype=np.float64)
    if not suspicion:
        raise ShapeError("neither scores nor self_influence is given; there is nothing to rank by")
    labels = np.asarray(wrong)
    return {
        name: Detection(
            auroc=auroc(values, labels),
            average_precision=average_precision(values, labels),
            share=float(labels.mean()),
        )
        for name, values in suspicion.items()
    }
