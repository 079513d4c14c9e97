"""Players that are groups of rows: vendors, files, annotators.

The value of a source is that of a player who brings all of its rows or none; it is not the sum of
its rows' values, for within a coalition rows of one source repeat each other.
"""

import numpy as np
import numpy.typing as npt

from attribution.valuation.game import BoolArray, Game, Utility
from schemas.errors import ShapeError


class Sources:
    """The sources of rows, numbered in the order of their sorted names.

    Args:
        labels: [n_rows], the name or number of each row's source.

    Attributes:
        names: The distinct labels, sorted, [n_sources].
        sizes: Rows of each, int [n_sources].

    Raises:
        ShapeError: Labels are not one for each row, or there is none.
    """

    def __init__(self, labels: npt.ArrayLike) -> None:
        given = np.asarray(labels)
        if given.ndim != 1 or len(given) == 0:
            raise ShapeError(f"sources have shape {given.shape}; give one label for each row")
        self.names, self._source, self.sizes = np.unique(
            given, return_inverse=True, return_counts=True
        )

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, masks: BoolArray) -> BoolArray:
        """The rows that coalitions of sources bring, bool [B, n_sources] to bool [B, n_rows]."""
        return np.asarray(masks)[:, self._source]

    def game(self, utility: Utility) -> Game:
        """The game of the sources, for a utility of rows.

        Raises:
            ShapeError: The utility is a `Game` of another number of rows.
        """
        n_rows = len(self._source)
        if isinstance(utility, Game) and utility.n_players != n_rows:
            raise ShapeError(
                f"sources are given for {n_rows} rows and the game has {utility.n_players}; "
                "label the rows of the game"
            )
        return Game(lambda masks: utility(self.rows(masks)), len(self))
