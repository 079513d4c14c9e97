"""A cooperative game: players, and a utility of every coalition of them.

A coalition is a mask, bool [n_players]; a utility maps masks [B, n_players] to [B], or to [B, m],
one column for each query, so that one set of retrainings values the players for every query. No
coalition is evaluated twice.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from schemas.errors import ShapeError

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Utility = Callable[[BoolArray], npt.ArrayLike]


class Game:
    """A utility whose outputs are checked and remembered.

    It is a utility itself: called with masks, it returns what the one inside would. It remembers
    n_players / 8 + 8 m bytes for each coalition that it has seen.

    Args:
        utility: Function of bool [B, n_players] that returns finite [B] or [B, m]; the same mask
            must always get the same output.
        n_players: Players.

    Attributes:
        n_players: Players.
        n_evaluations: Coalitions whose utility has been computed so far.

    Raises:
        ShapeError: There is no player.
    """

    def __init__(self, utility: Utility, n_players: int) -> None:
        if n_players < 1:
            raise ShapeError(f"a game of {n_players} players has no values; give at least one")
        self._utility = utility
        self._known: dict[bytes, FloatArray] = {}
        self._scalar = True
        self.n_players = n_players

    @property
    def n_evaluations(self) -> int:
        """Coalitions whose utility has been computed so far."""
        return len(self._known)

    @property
    def scalar(self) -> bool:
        """Whether the utility has one output and no axis for it; known after a first call."""
        return self._scalar

    def __call__(self, masks: BoolArray) -> FloatArray:
        """Utilities of coalitions, float64 [B] or [B, m].

        Raises:
            ShapeError: Masks do not fit the players, or the utility's outputs the masks.
        """
        table = self.table(masks)
        return table[:, 0] if self._scalar else table

    def table(self, masks: BoolArray) -> FloatArray:
        """Utilities of coalitions, always [B, m]; those not seen before are asked for at once.

        Raises:
            ShapeError: Masks do not fit the players, or the utility's outputs the masks.
        """
        masks = np.asarray(masks)
        if masks.dtype != np.bool_ or masks.ndim != 2 or masks.shape[1] != self.n_players:
            raise ShapeError(
                f"coalitions are {masks.dtype} of shape {masks.shape}; "
                f"give bool [B, {self.n_players}]"
            )
        keys = [packed.tobytes() for packed in np.packbits(masks, axis=1)]
        new = {key: row for row, key in enumerate(keys) if key not in self._known}
        if new:
            found = self._evaluate(masks[list(new.values())])
            self._known.update(zip(new, found, strict=True))
        if not keys:
            raise ShapeError("there is no coalition to evaluate; give at least one mask")
        return np.stack([self._known[key] for key in keys])

    def _evaluate(self, masks: BoolArray) -> FloatArray:
        found = np.asarray(self._utility(masks), dtype=np.float64)
        if found.ndim not in (1, 2) or len(found) != len(masks) or found.size == 0:
            raise ShapeError(
                f"the utility returned shape {found.shape} for {len(masks)} coalitions; "
                "return [B] or [B, m]"
            )
        scalar, table = found.ndim == 1, found.reshape(len(masks), -1)
        if self._known:
            width = len(next(iter(self._known.values())))
            if (scalar, table.shape[1]) != (self._scalar, width):
                raise ShapeError(
                    f"the utility returned {table.shape[1]} columns after {width} before; "
                    "return as many for every coalition"
                )
        bad = np.argwhere(~np.isfinite(table))
        if len(bad):
            row, column = bad[0]
            raise ShapeError(
                f"the utility of a coalition of {masks[row].sum()} players is "
                f"{table[row, column]:g} in column {column}; it must be finite for every coalition"
            )
        self._scalar = scalar
        return table


def everyone_and_no_one(n_players: int) -> BoolArray:
    """The grand coalition and the empty one, [2, n_players]."""
    return np.stack([np.ones(n_players, dtype=bool), np.zeros(n_players, dtype=bool)])
