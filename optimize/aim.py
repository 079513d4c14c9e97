"""Subsets that lie where a choice will: what to retrain on before its prediction is trusted.

A surrogate of random subsets sees none like the chosen one. These lean towards it, at many sizes
and by several strengths, and all rows are among them, against which changes are read.

To say which size is best, a family must be judged by queries that did not rank its rows: the best
55 % of Fashion-MNIST with 30 % wrong labels for 400 queries reach a mean log-probability of -0.34
on these and -0.78 on others. Half of the crossed subsets are therefore made from what one half of
the queries says of the rows. The others are made from all queries: half of them rank worse, and
subsets by halves alone put the change that such a choice makes 0.3 too low of 2.2.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attribution.streams import Purpose, stream
from optimize.datamodel import LinearDatamodel
from optimize.posterior import Float64
from optimize.subsets import query_weights
from schemas.errors import ShapeError

BoolArray = npt.NDArray[np.bool_]

# In every other subset the odds of a row are exp(strength x utility in standard deviations); the
# rest hold the best rows outright.
STRENGTHS = (0.5, 1.0, 2.0)
# Whose utilities make each subset in turn: both halves', one half's, both halves', the other's.
_TURNS = (-1, 0, -1, 1)
# All rows are one in six: the other side of every change.
_ALL_EVERY = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Aimed:
    """Subsets to retrain on, and what they were made from.

    Attributes:
        masks: Bool [count, n_train].
        half: Int [count], the half of the queries that ranked the rows, 0 or 1; -1 where both did.
        queries: Bool [2, n_query], those halves.
        utilities: Float64 [2, n_train], what each half says of every row; the more the better.
    """

    masks: BoolArray
    half: npt.NDArray[np.intp]
    queries: BoolArray
    utilities: Float64

    def unseen_by(self, half: int) -> BoolArray:
        """The subsets that a half of the queries has not ranked, all rows among them: [count]."""
        return (self.half == 1 - half) | self.masks.all(axis=1)


def aimed_subsets(
    surrogate: LinearDatamodel,
    count: int,
    *,
    queries: npt.ArrayLike | None = None,
    rising: bool = True,
    crossed: bool = True,
    smallest: float | None = None,
    seed: int = 0,
) -> Aimed:
    """Subsets along the choices of every size, from the smallest to all rows.

    Args:
        surrogate: What is known so far.
        count: Subsets wanted, all rows among them repeatedly: they want seeds of their own.
        queries: As `LinearDatamodel.averaged`: whose mean output the choice will raise.
        rising: Whether the output should rise; False for a loss.
        crossed: Whether half of them are made from halves of the queries, for `size_curve`.
        smallest: Share of the rows in the smallest subset; by default the bank's smallest.
        seed: Key of the draws.

    Raises:
        ShapeError: The count is not positive, fewer than two queries count, or the share is not
            inside (0, 1].
    """
    if count < 1:
        raise ShapeError(f"{count} aimed subsets are wanted; give 1 or more")
    n_train = surrogate.tau.shape[1]
    least = surrogate.sizes[0] / n_train if smallest is None else smallest
    if not 0 < least <= 1:
        raise ShapeError(f"smallest = {smallest}; it must be above 0 and at most 1")
    shares = query_weights(queries, len(surrogate.tau))
    halves = _halves(shares, seed)
    effects = np.stack([surrogate.averaged(shares * half).weights[0] for half in halves])
    utilities = effects if rising else -effects
    whole = surrogate.averaged(shares).weights
    leans = _standard(np.concatenate([utilities, whole if rising else -whole]))
    turns = _TURNS if crossed else (-1,)
    partial = count - count // _ALL_EVERY
    masks = np.ones((count, n_train), dtype=bool)
    made_from = np.full(count, -1)
    for number in range(partial):
        rng = stream(seed, Purpose.AIM, number)
        share = least + (1 - least) * (number + rng.random()) / partial
        size = max(1, min(round(share * n_train), n_train - 1))
        round_, turn = divmod(number, len(turns))
        made_from[number] = turns[turn]
        lean = leans[made_from[number]]
        # Out of step with the turns, so that every one has all strengths at all sizes.
        if (round_ + turn // 2) % 2:
            # The best by perturbed utilities are a draw with those odds (Gumbel top-k).
            lean = STRENGTHS[round_ % len(STRENGTHS)] * lean + rng.gumbel(size=n_train)
        masks[number] = False
        masks[number, np.argsort(-lean, kind="stable")[:size]] = True
    return Aimed(masks=masks, half=made_from, queries=halves, utilities=utilities)


def _standard(utilities: Float64) -> Float64:
    spread = utilities.std(axis=1, keepdims=True)
    return np.asarray(utilities / np.where(spread > 0, spread, 1.0))


def _halves(shares: Float64, seed: int) -> BoolArray:
    """Two random halves of the queries that count, bool [2, n_query]."""
    used = np.flatnonzero(shares)
    if len(used) < 2:
        raise ShapeError(
            f"{len(used)} query counts; aiming needs two, one to rank and one to judge"
        )
    halves = np.zeros((2, len(shares)), dtype=bool)
    for number, place in enumerate(stream(seed, Purpose.AIM).permutation(used).tolist()):
        halves[number % 2, place] = True
    return halves
