"""How well screens find what was planted: one line a screen, against known rows."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attribution.statistics import auroc, average_precision
from schemas.errors import ShapeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """What one screen found.

    Attributes:
        auroc: Chance that a planted row is more suspicious than another, a tie counting one half.
        average_precision: Precision averaged over recall; the planted share by chance.
        recall: Share of the planted rows among the `budget` most suspicious, ties shared out.
        budget: Rows that a person would look at.
    """

    auroc: float
    average_precision: float
    recall: float
    budget: int


def judge_screens(
    screens: Mapping[str, npt.ArrayLike], planted: npt.ArrayLike, *, budget: int | None = None
) -> dict[str, Screened]:
    """Measure each screen against rows that are known to be bad.

    Args:
        screens: Suspicion [n] by name; infinite values rank as the largest.
        planted: Bool [n].
        budget: Rows looked at; as many as were planted by default.

    Raises:
        ShapeError: The arrays do not fit, suspicion is NaN, or all rows are alike.
    """
    bad = np.asarray(planted, dtype=bool)
    looked_at = int(bad.sum()) if budget is None else budget
    found = {}
    for name, suspicion in screens.items():
        values = _finite(suspicion, len(bad), name)
        found[name] = Screened(
            auroc=auroc(values, bad),
            average_precision=average_precision(values, bad),
            recall=_recall(values, bad, looked_at),
            budget=looked_at,
        )
    return found


def suspects(suspicion: npt.ArrayLike, budget: int) -> npt.NDArray[np.bool_]:
    """The `budget` most suspicious rows, bool [n]; ties go to the lower row."""
    values = np.asarray(suspicion, dtype=np.float64)
    if not 0 <= budget <= len(values):
        raise ShapeError(f"budget is {budget} for {len(values)} rows; look at some of them")
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(-values, kind="stable")[:budget]] = True
    return chosen


def _finite(suspicion: npt.ArrayLike, n: int, name: str) -> npt.NDArray[np.float64]:
    values = np.asarray(suspicion, dtype=np.float64)
    if values.shape != (n,) or np.isnan(values).any():
        raise ShapeError(
            f"screen {name!r} has shape {values.shape} for {n} rows, or holds NaN; give one number "
            "for each row"
        )
    # Ranks are all that counts; an infinite suspicion is just the largest.
    return np.unique(values, return_inverse=True)[1].astype(np.float64)


def _recall(values: npt.NDArray[np.float64], bad: npt.NDArray[np.bool_], budget: int) -> float:
    if not 0 < budget <= len(values):
        raise ShapeError(f"budget is {budget} for {len(values)} rows; look at some of them")
    last = np.sort(values)[-budget]
    above, level = values > last, values == last
    share = (budget - above.sum()) / level.sum()
    return float((bad[above].sum() + share * bad[level].sum()) / bad.sum())
