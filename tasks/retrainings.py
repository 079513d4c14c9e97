"""Which retrainings of a workspace are sealed, and where: looked up by id, never recorded twice.

A chunk of the bank seals some retrainings: their ids, their logits on the test rows of its day,
and mostly their weights. The manifests of all chunks, whoever asked for them, are the index; there
is no other record. A retraining counts as observed where its chunk saw every test row of today.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.frozen import digest_of
from schemas.manifest import Manifest
from store.artifacts import Artifacts
from tasks.versions import VERSIONS

STAGE = "bank"
LOGITS_FILE = "logits.npy"
OBSERVED_FILE = "observed.npy"
STATES_FILE = "states.safetensors"

Columns = slice | NDArray[np.intp]


class Place(NamedTuple):
    """Where one retraining is: a chunk, and its row among the chunk's logits or weights."""

    manifest: Manifest
    row: int


class Retrainings:
    """The sealed retrainings of a workspace, as seen from one set of test rows.

    Where two chunks hold the same retraining the first to be sealed is read, so that what is read
    never changes while it exists.

    Args:
        artifacts: The workspace's artifacts.
        observed: Digest of each test row on which retrainings must be observed.
    """

    def __init__(self, artifacts: Artifacts, observed: Sequence[str]) -> None:
        self._artifacts = artifacts
        self._rows = observed
        self._digest = digest_of(list(observed))
        self._chunks: dict[str, Manifest] = {}
        self._columns: dict[str, Columns | None] = {self._digest: slice(None)}
        self._logits: dict[str, Place] = {}
        self._weights: dict[str, Place] = {}

    def look(self) -> "Retrainings":
        """Read what was sealed or removed since the last look; cheap where nothing was."""
        there = self._artifacts.keys(STAGE)
        if there != self._chunks.keys():
            found = (self._chunks.get(key) or self._artifacts.find(STAGE, key) for key in there)
            chunks = {manifest.key: manifest for manifest in found if manifest}
            current = [each for each in chunks.values() if each.version == VERSIONS[STAGE]]
            ordered = sorted(current, key=lambda each: (each.created_at, each.key))
            seen = [chunk for chunk in ordered if self.columns(chunk) is not None]
            self._logits = _first(seen, "retrainings")
            self._weights = _first(ordered, "weights")
            self._chunks = chunks  # last: a thread that finds these up to date finds all so
        return self

    def logits(self, name: str) -> Place | None:
        """Where the logits of a retraining are on every test row, or None."""
        return self._logits.get(name)

    def weights(self, name: str) -> Place | None:
        """Where the weights of a retraining are, or None."""
        return self._weights.get(name)

    def columns(self, chunk: Manifest) -> Columns | None:
        """The columns of a chunk's logits that are the test rows, or None if some are not there."""
        observed = str(chunk.facts["observed"])
        if observed not in self._columns:
            rows = np.load(self._artifacts.folder(chunk) / OBSERVED_FILE).tolist()
            place = {digest.decode(): column for column, digest in enumerate(rows)}
            found = [place.get(row, -1) for row in self._rows]
            self._columns[observed] = None if -1 in found else np.array(found, dtype=np.intp)
        return self._columns[observed]

    def chunks(self, names: Collection[str]) -> list[Manifest]:
        """Every chunk that holds one of some retrainings."""
        wanted = set(names)
        return [
            chunk
            for chunk in self._chunks.values()
            if chunk.version == VERSIONS[STAGE] and not wanted.isdisjoint(ids_of(chunk))
        ]

    def read(self, names: Sequence[str]) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Logits of observed retrainings, chunk by chunk.

        Yields:
            Places among the names, and the logits float32 [places, n_test, n_outputs] of those.
        """
        places = [self._logits[name] for name in names]
        by_chunk: dict[str, list[int]] = {}
        for number, place in enumerate(places):
            by_chunk.setdefault(place.manifest.key, []).append(number)
        for numbers in by_chunk.values():
            chunk = places[numbers[0]].manifest
            logits = np.load(self._artifacts.folder(chunk) / LOGITS_FILE, mmap_mode="r")
            rows = logits[[places[number].row for number in numbers]]
            yield numbers, rows[:, self.columns(chunk)]


def ids_of(chunk: Manifest, fact: str = "retrainings") -> list[str]:
    """Ids of the retrainings that a chunk holds, or of those whose "weights" it holds, in order."""
    names: Any = chunk.facts[fact]
    return list(names)


def _first(chunks: Sequence[Manifest], fact: str) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for chunk in chunks:
        for row, name in enumerate(ids_of(chunk, fact)):
            places.setdefault(name, Place(chunk, row))
    return places
