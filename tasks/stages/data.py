"""The sealed rows that a spec asks for, its sets of them, and the digests that later keys hold."""

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.frozen import digest_of
from schemas.manifest import Manifest
from schemas.spec import CurationSpec
from store.artifacts import Artifacts
from store.datasets import StoredDataset, load_dataset
from tasks.ingest import SCALING_FILE
from tasks.sets import ExampleSets


@dataclass(frozen=True, kw_only=True, eq=False)
class DataStage:
    """The rows of one spec: training rows first, then test rows."""

    spec: CurationSpec
    artifacts: Artifacts
    manifest: Manifest

    @functools.cached_property
    def dataset(self) -> StoredDataset:
        """The ingested rows."""
        return load_dataset(self.artifacts.folder(self.manifest))

    @property
    def n_train(self) -> int:
        """Training rows."""
        return self.dataset.facts.n_train

    @functools.cached_property
    def sets(self) -> ExampleSets:
        """The sets of examples."""
        return ExampleSets(self.spec, self.dataset)

    @functools.cached_property
    def digests(self) -> tuple[str, ...]:
        """Digest of each row as the model sees it, label included, training rows first."""
        targets = self.dataset.targets.tolist()
        return tuple(self.digest_under(place, target) for place, target in enumerate(targets))

    def digest_under(self, place: int, target: Any) -> str:
        """Digest of a row as the model would see it under a target, its own or another."""
        text = f"{self._scaling}\n{self.dataset.hashes[place]}\n{target}"
        return hashlib.sha256(text.encode()).hexdigest()

    def digest_of_moved(self, inputs: NDArray[Any], target: Any) -> str:
        """Digest of a row that no source holds, by its inputs as the model sees them."""
        content = hashlib.sha256(np.ascontiguousarray(inputs).tobytes()).hexdigest()
        text = f"moved\n{inputs.dtype}{inputs.shape}\n{content}\n{target}"
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def _scaling(self) -> str:
        # Content hashes are those of the raw inputs; standardised rows are others.
        return next((f.sha256 for f in self.manifest.files if f.name == SCALING_FILE), "")

    @functools.cached_property
    def train_digest(self) -> str:
        """Digest of the training rows."""
        return digest_of(self.digests[: self.n_train])

    @functools.cached_property
    def test_digest(self) -> str:
        """Digest of the rows on which retrained models are observed: all test rows."""
        return digest_of(self.digests[self.n_train :])

    @functools.cached_property
    def metadata_digest(self) -> str:
        """Digest of the metadata of the training rows, which no other key depends on."""
        rows = self.dataset.examples.filter(split="train").sort("example_id")
        return digest_of(rows["metadata"].to_list())
