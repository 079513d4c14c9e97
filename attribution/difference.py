"""Two recipes on the same data compared by their scores: what one relies on and the other does not.

For each query the part of its scores that the other recipe shares is projected out; the directions
that are left over distinguish the two (Shah et al. 2022, ModelDiff). Rows of unit length, so that a
recipe whose outputs move more does not count for more.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from attribution.explore import Components, FloatArray, principal_components
from attribution.statistics import ratio
from schemas.errors import ShapeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Distinguishing:
    """Directions over training rows that matter to one recipe and less to the other.

    Attributes:
        components: Of the residual, not centred; exemplars as of any components.
        own: Float64 [k], mean squared cosine of a query's scores with each direction: how much of
            them it explains, under the recipe that it is of.
        others: Float64 [k], the same under the other recipe.
    """

    components: Components
    own: FloatArray
    others: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How two recipes differ on the same queries and training rows.

    Attributes:
        agreement: Float64 [n_query], cosine of the two recipes' scores.
        first: What distinguishes the first recipe.
        second: What distinguishes the second.
    """

    agreement: FloatArray = field(repr=False)
    first: Distinguishing
    second: Distinguishing


def difference(
    first: npt.ArrayLike, second: npt.ArrayLike, count: int = 5, *, seed: int = 0
) -> Difference:
    """Compare the scores of two recipes on the same queries and training rows.

    Args:
        first: Float [n_query, n_train], of one output.
        second: The same under another recipe, model or algorithm.
        count: Directions on each side.
        seed: As `principal_components`.

    Raises:
        ShapeError: The shapes differ, or there are not so many directions.
    """
    pair = [np.asarray(scores, dtype=np.float64) for scores in (first, second)]
    if pair[0].shape != pair[1].shape or pair[0].ndim != 2:
        raise ShapeError(
            f"scores have shapes {pair[0].shape} and {pair[1].shape}; compare two recipes on the "
            "same queries and training rows"
        )
    one, other = (_unit(scores) for scores in pair)
    agreement = (one * other).sum(axis=1)
    sides = [
        _distinguishing(own, others, agreement, count, seed)
        for own, others in ((one, other), (other, one))
    ]
    return Difference(agreement=agreement, first=sides[0], second=sides[1])


def _distinguishing(
    own: FloatArray, others: FloatArray, agreement: FloatArray, count: int, seed: int
) -> Distinguishing:
    residual = own - agreement[:, None] * others
    found = principal_components(residual, count, centred=False, seed=seed)
    strengths = [((rows @ found.directions.T) ** 2).mean(axis=0) for rows in (own, others)]
    return Distinguishing(components=found, own=strengths[0], others=strengths[1])


def _unit(scores: FloatArray) -> FloatArray:
    lengths = np.sqrt((scores**2).sum(axis=1, keepdims=True))
    return ratio(scores, np.broadcast_to(lengths, scores.shape))
