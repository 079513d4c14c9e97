"""Which labels are wrong, and how sure that is: suspicion made into a probability.

Suspicion is any number that wrong rows have more of: self-influence, harm, the loss of models that
did not see the row. Here it becomes a probability by a mixture, and predictions of models that did
not see a row become suspicion (confident learning, memorising).
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import stats

from schemas.errors import ShapeError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# Median deviations that are taken as they are, and Ashman's D of two kinds that lie apart.
_CORE, _APART = 4.0, 2.0
# The suspects that the mixture starts from, and the fewest rows that a component may hold.
_START, _FEWEST = 0.9, 3.0
# Steps of EM; it stops where the log-likelihood of a row gains less than this.
_STEPS, _GAIN = 500, 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongLabels:
    """How sure it is that each label is wrong.

    Attributes:
        probability: Float64 [n], rising with suspicion.
        share: The estimated share of wrong labels; 0 where the rows are of one kind.
        separated: Whether two kinds describe the suspicion better than one, by BIC, and lie apart.
    """

    probability: FloatArray = field(repr=False)
    share: float
    separated: bool


def wrong_label_probability(suspicion: npt.ArrayLike) -> WrongLabels:
    """The posterior of being one of the more suspicious kind, in a mixture of two normals.

    The mixture is fitted by EM to asinh of the suspicion about its median, over four median
    deviations: linear where most rows are, logarithmic in the tail. It knows no label to be wrong,
    so it is as good as its assumption that wrong labels form a kind of their own. Where one normal
    is the better description, or the two lie within each other (Ashman, Bird and Zepf 1994: D of 2
    or less), every probability is 0: the suspicion may still rank, but accuses nobody.

    Args:
        suspicion: Float [n], larger is more suspicious.

    Raises:
        ShapeError: Fewer than ten values, or one that is not finite.
    """
    values = np.asarray(suspicion, dtype=np.float64)
    if values.ndim != 1 or len(values) < 10 or not np.isfinite(values).all():
        raise ShapeError(
            f"suspicion has shape {values.shape}; give ten or more finite values, one for each row"
        )
    away = values - np.median(values)
    unit = float(np.median(np.abs(away))) or float(np.abs(away).mean())
    nothing = WrongLabels(probability=np.zeros(len(values)), share=0.0, separated=False)
    if unit == 0:
        return nothing
    x = np.arcsinh(away / (_CORE * unit))
    single = stats.norm.logpdf(x, x.mean(), x.std()).sum()
    posterior, double, share, apart = _two_normals(x)
    # Three further parameters: a mean, a spread and a share.
    if 2 * (double - single) <= 3 * np.log(len(x)) or apart <= _APART:
        return nothing
    order = np.argsort(x, kind="stable")
    rising = np.empty(len(x))
    # The wider of two normals wins far out on both sides; suspicion below is no suspicion.
    rising[order] = np.maximum.accumulate(np.where(x[order] > np.median(x), posterior[order], 0.0))
    return WrongLabels(probability=rising, share=share, separated=True)


def _two_normals(x: FloatArray) -> tuple[FloatArray, float, float, float]:
    """Posterior of the higher normal [n], log-likelihood, its share, Ashman's D; by EM."""
    floor = 1e-3 * float(x.std())
    posterior = (x >= np.quantile(x, _START)).astype(np.float64)
    before = -np.inf
    for _ in range(_STEPS):
        weights = np.stack([1 - posterior, posterior])
        count = np.maximum(weights.sum(axis=1), _FEWEST)
        mean = weights @ x / count
        spread = np.sqrt((weights * (x - mean[:, None]) ** 2).sum(axis=1) / count)
        spread = np.maximum(spread, floor)
        logs = np.log(count / count.sum())[:, None] + stats.norm.logpdf(
            x, mean[:, None], spread[:, None]
        )
        total = np.logaddexp(*logs)
        posterior = np.exp(logs[1] - total)
        now = float(total.sum())
        if now - before < _GAIN * len(x):
            break
        before = now
    apart = float(np.sqrt(2) * (mean[1] - mean[0]) / np.sqrt((spread**2).sum()))
    return posterior, now, float(posterior.mean()), apart


def out_of_bag(values: npt.ArrayLike, masks: npt.ArrayLike) -> FloatArray:
    """Mean over the models that did not see a row: float64 [n, ...].

    Args:
        values: Float [M, n, ...], what each model says of each row: outputs or probabilities.
        masks: Bool [M, n], the rows that each model saw.

    Raises:
        ShapeError: The arrays do not fit, or some row was seen by every model.
    """
    said, saw = np.asarray(values), np.asarray(masks, dtype=bool)
    if said.shape[:2] != saw.shape:
        raise ShapeError(f"values have shape {said.shape} for masks {saw.shape}; give [M, n, ...]")
    unseen = (~saw).sum(axis=0)
    if not unseen.all():
        row = int(np.argmin(unseen))
        raise ShapeError(f"every model saw row {row}; train some on subsets without it")
    total = np.einsum("mn,mn...->n...", (~saw).astype(np.float64), said.astype(np.float64))
    return total / unseen.reshape(-1, *[1] * (said.ndim - 2))


def memorisation(values: npt.ArrayLike, masks: npt.ArrayLike) -> FloatArray:
    """What seeing a row does to its own output, float64 [n] (Feldman and Zhang 2020).

    The mean over models that saw it minus that over models that did not: self-influence by
    retraining, which no gradient is taken for.

    Args:
        values: Float [M, n], each model's output on each row.
        masks: Bool [M, n].

    Raises:
        ShapeError: As `out_of_bag`, or some row was seen by no model.
    """
    saw = np.asarray(masks, dtype=bool)
    return out_of_bag(values, ~saw) - out_of_bag(values, saw)


def confident_errors(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> BoolArray:
    """Rows that count as another class than their label, bool [n] (Northcutt et al. 2021).

    A row counts as class j where its probability reaches the mean that rows labelled j have for j;
    of several such classes the most probable one. Rows that count as none are not suspected.

    Args:
        probabilities: Float [n, K], of models that did not see the row: `out_of_bag`.
        labels: Int [n], the given labels.

    Raises:
        ShapeError: The arrays do not fit, or a label is no class.
    """
    p, given = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.ndim != 2 or given.shape != p.shape[:1]:
        raise ShapeError(
            f"probabilities have shape {p.shape} for {given.shape} labels; give [n, K]"
        )
    if given.min() < 0 or given.max() >= p.shape[1]:
        raise ShapeError(f"labels must be between 0 and {p.shape[1] - 1}; see probabilities")
    rows = np.arange(len(given))
    count = np.bincount(given, minlength=p.shape[1])
    own = np.bincount(given, weights=p[rows, given], minlength=p.shape[1])
    # A class that no row is labelled has no mean, and no row counts as it.
    least = np.where(count > 0, own / np.maximum(count, 1), np.inf)
    reached = np.where(p >= least, p, -np.inf)
    counted = reached.argmax(axis=1)
    return np.isfinite(reached.max(axis=1)) & (counted != given)
