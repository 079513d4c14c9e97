"""Which subsets to retrain on next: those that tell most about given predictions.

Among random candidate subsets, greedily the one whose output, once known, is expected to lower the
posterior variance of the targets most. The variance of a Gaussian posterior does not depend on the
outputs to come, so what a plan buys is known before anything is trained; `bought` says afterwards.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attribution.streams import Purpose, stream
from optimize.datamodel import LinearDatamodel
from optimize.posterior import Float64, Points, gram
from optimize.subsets import query_weights
from schemas.errors import ShapeError

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class NextMasks:
    """Subsets worth a retraining, and what they are expected to buy.

    Variances are of the targets, without the noise of a retraining and relative to it, averaged
    over targets and queries.

    Attributes:
        masks: Bool [count, n_train], the most useful first.
        before: The variance now.
        after: Float64 [count], the variance once the first 1, 2, ... are trained.
        random: Float64 [count], the same for as many candidates in the order of their drawing.
    """

    masks: BoolArray
    before: float
    after: Float64
    random: Float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Bought:
    """What further retrainings did to a surrogate; each a mean over queries, before and after.

    Attributes:
        sd: Posterior standard deviation of the targets, in the output's unit.
        error: Leave-one-mask-out error over the variance of the outputs, each on its own bank.
    """

    sd: tuple[float, float]
    error: tuple[float, float]


def next_masks(
    surrogate: LinearDatamodel,
    count: int,
    *,
    targets: npt.ArrayLike | None = None,
    queries: npt.ArrayLike | None = None,
    candidates: int | npt.ArrayLike = 256,
    seed: int = 0,
) -> NextMasks:
    """Choose the subsets to retrain on next.

    Holds n_query (targets + candidates)^2 numbers.

    Args:
        surrogate: What is known so far.
        count: Subsets wanted.
        targets: What should become certain: masks, bool [T, n_train], or changes between masks,
            int8 [T, n_train] of -1, 0, 1, such as a decision. None: 64 random subsets of the size
            that the bank has most of.
        queries: As `LinearDatamodel.averaged`: whose predictions count, and how much.
        candidates: Number of random subsets to choose from, of the bank's sizes in turn, or the
            subsets themselves, bool [N, n_train].
        seed: Key of the random subsets.

    Raises:
        ShapeError: The arrays do not fit, there are fewer candidates than subsets wanted, or a
            target differs in size from the only size that the bank has.
    """
    shares = query_weights(queries, len(surrogate.tau))
    pool = _candidates(surrogate, candidates, seed)
    if not 1 <= count <= len(pool):
        raise ShapeError(f"{count} subsets are wanted of {len(pool)}; give more candidates")
    asked, above, constant = _targets(surrogate, targets, seed)
    offered = Points(pool, surrogate.subsets.points.centre)
    joint = [
        _covariance(surrogate, query, asked, above, constant, offered)
        for query in np.flatnonzero(shares).tolist()
    ]
    weights = shares[shares > 0] / len(asked.rows)
    before = _total(joint, weights, len(asked.rows))
    in_order = [each.copy() for each in joint]
    chosen, after = _greedy(joint, weights, len(asked.rows), count)
    random = [
        _learn(in_order, weights, len(asked.rows), len(asked.rows) + place)
        for place in range(count)
    ]
    return NextMasks(masks=pool[chosen], before=before, after=after, random=np.array(random))


def bought(
    before: LinearDatamodel, after: LinearDatamodel, targets: npt.ArrayLike | None = None
) -> Bought:
    """What retrainings bought: two surrogates of the same scores, on a bank and on a larger one.

    Args:
        before: On the smaller bank.
        after: On the larger one.
        targets: As `next_masks`.
    """
    sds = []
    for surrogate in (before, after):
        variance = surrogate.variance(*_targets(surrogate, targets, 0))
        sds.append(float(np.sqrt(variance).mean()))
    return Bought(
        sd=(sds[0], sds[1]), error=(float(before.error.mean()), float(after.error.mean()))
    )


def _greedy(
    joint: list[Float64], weights: Float64, n_targets: int, count: int
) -> tuple[list[int], Float64]:
    chosen: list[int] = []
    after = np.empty(count)
    for step in range(count):
        gain = np.zeros(len(joint[0]) - n_targets)
        for weight, each in zip(weights, joint, strict=True):
            seen = each[:n_targets, n_targets:]
            gain += weight * (seen**2).sum(axis=0) / (each.diagonal()[n_targets:] + 1)
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
        after[step] = _learn(joint, weights, n_targets, n_targets + chosen[-1])
    return chosen, after


def _learn(joint: list[Float64], weights: Float64, n_targets: int, place: int) -> float:
    """Condition every query's covariance on one more output; the variance that is left."""
    for each in joint:
        column = each[:, place].copy()
        each -= np.outer(column, column / (column[place] + 1))
    return _total(joint, weights, n_targets)


def _total(joint: list[Float64], weights: Float64, n_targets: int) -> float:
    pairs = zip(weights, joint, strict=True)
    return float(sum(weight * each.diagonal()[:n_targets].sum() for weight, each in pairs))


def _covariance(
    surrogate: LinearDatamodel,
    query: int,
    asked: Points,
    above: Float64,
    constant: float,
    offered: Points,
) -> Float64:
    """Posterior covariance of targets and candidates [T + N, T + N], in units of sigma^2."""
    sizes = offered.rows.sum(axis=1) - surrogate.subsets.mean_size
    first = surrogate.covariance(query, asked, above, constant)
    second = surrogate.covariance(query, offered, sizes, 1.0)
    explained, added = (np.hstack([a, b]) for a, b in zip(first[1], second[1], strict=True))
    diagonal = surrogate.chosen.kappa[query] * surrogate.prior_variances(query)
    crossed = gram(asked, offered, diagonal)
    free = np.block(
        [[gram(asked, asked, diagonal), crossed], [crossed.T, gram(offered, offered, diagonal)]]
    )
    return np.asarray(free - explained.T @ explained + added.T @ added)


def _candidates(
    surrogate: LinearDatamodel, candidates: int | npt.ArrayLike, seed: int
) -> BoolArray:
    if not isinstance(candidates, int):
        return surrogate.checked(candidates)
    sizes = np.unique(surrogate.subsets.points.rows.sum(axis=1))
    return _random_subsets(surrogate, np.resize(sizes, candidates), seed, 0)


def _targets(
    surrogate: LinearDatamodel, targets: npt.ArrayLike | None, seed: int
) -> tuple[Points, Float64, float]:
    """The targets, their sizes above the bank's mean or what they add, and 1 for masks, else 0."""
    if targets is None:
        sizes, times = np.unique(surrogate.subsets.points.rows.sum(axis=1), return_counts=True)
        given = _random_subsets(surrogate, np.full(64, sizes[times.argmax()]), seed, 1)
    else:
        given = np.atleast_2d(np.asarray(targets))
    if given.dtype == np.int8 and given.shape[1:] == surrogate.tau.shape[1:]:
        points, constant = Points(given, None), 0.0
        above = given.sum(axis=1, dtype=np.float64)
    else:
        points, constant = Points(surrogate.checked(given), surrogate.subsets.points.centre), 1.0
        above = given.sum(axis=1) - surrogate.subsets.mean_size
    if not surrogate.identifies_size and (np.abs(above) > 0.5).any():
        raise ShapeError(
            f"the bank has subsets of {surrogate.sizes[0]} rows only, and a target has another "
            "size; retrain on subsets of a second size first"
        )
    return points, above, constant


def _random_subsets(
    surrogate: LinearDatamodel, sizes: npt.NDArray[np.integer], seed: int, purpose: int
) -> BoolArray:
    masks = np.zeros((len(sizes), surrogate.tau.shape[1]), dtype=bool)
    for row, size in enumerate(sizes):
        # Not the streams of `attribution.bank.draw_masks`, whose subsets the bank has already.
        draw = stream(seed, Purpose.MASKS, row, 1, purpose)
        masks[row, draw.permutation(masks.shape[1])[:size]] = True
    return masks
