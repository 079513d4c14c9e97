"""Copies, among the rows that stay, of rows that must go: models still learn from them.

Copies have the same inputs as they were read. They are identical where the label is the same too,
as models see it; under another label they teach something else about the same inputs.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.stages.data import DataStage

BoolArray = NDArray[np.bool_]
# Ids that a sentence names; of more it gives the first.
IDS_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Copies:
    """What stays of rows that must go.

    Attributes:
        rows: Rows to forget of which an identical copy stays.
        identical: Ids of these copies, ascending.
        rows_relabelled: Rows to forget whose inputs stay under another label.
        relabelled: Ids of those that stay, ascending.
    """

    rows: int
    identical: tuple[int, ...]
    rows_relabelled: int
    relabelled: tuple[int, ...]

    def __bool__(self) -> bool:
        return bool(self.ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """Of all copies, ascending."""
        return tuple(sorted({*self.identical, *self.relabelled}))

    @property
    def sentence(self) -> str:
        """Which they are and what to do; empty where there are none."""
        if not self:
            return ""
        kinds = (
            ("identical copies", self.rows, self.identical),
            (
                "copies by their inputs alone, under another label,",
                self.rows_relabelled,
                self.relabelled,
            ),
        )
        parts = [
            f"{_of(rows)} {kind} among the rows that stay: {_few(ids)}"
            for kind, rows, ids in kinds
            if ids
        ]
        return f"{'; '.join(parts)}. Models still learn from them; add them to what must go."

    @property
    def limit(self) -> str:
        """What a comparison with retrained models then does not say; empty without copies."""
        if not self:
            return ""
        return (
            "The comparison says nothing of what models know of the forgotten rows by the copies "
            "that stay: retrained ones learnt from these too."
        )


def copies_that_stay(data: DataStage, gone: BoolArray, asked: BoolArray | None = None) -> Copies:
    """The copies of rows that must go among those that do not.

    Args:
        data: The rows.
        gone: All rows to forget, bool [n_train].
        asked: Those whose copies are looked for; by default all of them.
    """
    n, hashes, digests = data.n_train, data.dataset.hashes, data.digests
    asked = gone if asked is None else asked
    staying = _places(hashes[:n], np.flatnonzero(~gone).tolist())
    same, other = set[int](), set[int]()
    rows = rows_relabelled = 0
    for place in np.flatnonzero(asked).tolist():
        copies = staying.get(hashes[place], [])
        identical = [copy for copy in copies if digests[copy] == digests[place]]
        relabelled = [copy for copy in copies if digests[copy] != digests[place]]
        rows += bool(identical)
        rows_relabelled += bool(relabelled)
        same.update(identical)
        other.update(relabelled)
    ids = data.dataset.example_ids
    return Copies(
        rows=rows,
        identical=tuple(sorted(ids[list(same)].tolist())),
        rows_relabelled=rows_relabelled,
        relabelled=tuple(sorted(ids[list(other)].tolist())),
    )


def with_copies(data: DataStage, places: Iterable[int]) -> list[int]:
    """Places of some training rows and of all training rows with the same inputs, ascending."""
    hashes = data.dataset.hashes
    meant = {hashes[place] for place in places}
    return [place for place in range(data.n_train) if hashes[place] in meant]


def _places(hashes: tuple[str, ...], places: list[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place in places:
        found.setdefault(hashes[place], []).append(place)
    return found


def _of(rows: int) -> str:
    return "1 of these rows has" if rows == 1 else f"{rows:,} of these rows have"


def _few(ids: tuple[int, ...]) -> str:
    more = f" and {len(ids) - IDS_SHOWN:,} more" if len(ids) > IDS_SHOWN else ""
    word = "example id" if len(ids) == 1 else "example ids"
    return f"{', '.join(map(str, ids[:IDS_SHOWN]))}{more} ({word})"
