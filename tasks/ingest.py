"""Source to sealed data set: the first stage of a run, stage ``data``.

Rows are read, checked, split by content, corrupted where the spec asks for it, standardised where
they come from a table, and sealed. Numeric columns of tables (and scikit-learn's tabular sets) are
shifted and scaled by the mean and standard deviation of the *training* rows; the artifact's
``scaling.json`` keeps both, and content hashes are those of the raw inputs, so a hash and with it
a row's side never depends on other rows. Digits are scaled to 0..1; a recipe's arrays are left
alone. Targets of a regression stay in their own unit.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.dataset import DatasetFacts
from schemas.errors import DataError
from schemas.manifest import Manifest
from schemas.recipe import DataSpec, Task
from schemas.spec import CurationSpec, LoadedSpec
from store.artifacts import Artifacts, artifact_key
from store.datasets import write_dataset
from store.workspace import Workspace
from tasks.intake import partition
from tasks.intake.rows import Columns, Rows
from tasks.intake.sources import read_rows, source_digest
from tasks.progress import advance

STAGE = "data"
DATA_VERSION = 1
SCALING_FILE = "scaling.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """Rows as they will be used, in their source's order.

    Attributes:
        inputs: float32 [n, ...], standardised where the source allows it, or tokens int64 [n, T].
        targets: int64 class indices or float32 values [n], after corruption; or int64 [n, T].
        true_targets: The same before corruption.
        train: bool [n].
        hashes: Sha256 of each raw input, hex [n].
        task: Classification, regression or language.
        classes: Class names by index; empty for the others.
        metadata: A JSON object for each row, as text, or None.
        scaling: ``features``, ``mean`` and ``scale`` of standardised columns, or None.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]
    true_targets: NDArray[Any]
    train: NDArray[np.bool_]
    hashes: tuple[str, ...]
    task: Task
    classes: tuple[str, ...]
    metadata: tuple[str, ...] | None
    scaling: Mapping[str, Any] | None


def ingest(loaded_spec: LoadedSpec, workspace: Workspace) -> Manifest:
    """Read the spec's data and seal it; the artifact is found again if nothing has changed.

    Args:
        loaded_spec: The spec and where it lies.
        workspace: Where the artifact goes.

    Returns:
        The receipt; its facts are those of ``DatasetFacts``, and
        ``load_dataset(Artifacts(workspace.artifacts).folder(manifest))`` opens the rows.

    Raises:
        DataError: The rows cannot be used as they are.
        RecipeError: The recipe that gives the rows cannot be used.
        StorageError: The disk is full or refuses.
    """
    spec = loaded_spec.spec
    path = loaded_spec.source_path
    digest = source_digest(spec.data.source, path)
    key = data_key(spec, digest)
    artifacts = Artifacts(workspace.artifacts)
    known = artifacts.find(STAGE, key)
    if known is not None:
        return known
    advance(STAGE, 0, 3, "steps")
    rows = read_rows(spec.data.source, path, columns_of(spec.data))
    if source_digest(spec.data.source, path) != digest:
        raise DataError(f"{path} changed while it was read; run again when it is complete")
    advance(STAGE, 1, 3, "steps")
    prepared = prepare(rows, spec.data, seed=spec.seed)
    facts = _facts(rows, prepared, spec.data, digest)
    advance(STAGE, 2, 3, "steps")
    with artifacts.seal(
        STAGE,
        key,
        version=DATA_VERSION,
        inputs={"source": digest, "data": spec.data.digest()},
        facts=facts.model_dump(mode="json"),
    ) as draft:
        _write(draft.path, rows, prepared, facts)
    advance(STAGE, 3, 3, "steps")
    return draft.manifest


def data_key(spec: CurationSpec, digest: str) -> str:
    """The key of the data artifact, from the spec and the source's digest."""
    return artifact_key(STAGE, DATA_VERSION, spec.data, digest, spec.seed)


def prepare(rows: Rows, data: DataSpec, *, seed: int) -> Prepared:
    """Encode, split, corrupt and standardise rows; every draw is keyed by a row's content.

    Raises:
        DataError: A side or a class is too small, or targets or split values do not fit.
    """
    task, targets, truth, classes = _encoded(rows, data)
    hashes = partition.input_hashes(rows.inputs)
    if rows.split is not None:
        train = ~partition.declared_split(rows.split)
    else:
        train = ~partition.keyed_split(hashes, seed=seed, test_fraction=data.test_fraction)
    partition.check_sides(targets, train, classes)
    if data.corrupt.labels > 0:
        if task != "classification":
            raise DataError(
                "data.corrupt.labels swaps classes, and these targets are numbers; leave it out, "
                "or say data.task = 'classification'"
            )
        targets = partition.corrupt_labels(
            truth,
            train,
            partition.row_hashes(hashes, [classes[index] for index in truth.tolist()]),
            n_classes=len(classes),
            fraction=data.corrupt.labels,
            seed=seed,
        )
        partition.check_sides(targets, train, classes)
    inputs, scaling = _standardise(rows, train)
    return Prepared(
        inputs=inputs,
        targets=targets,
        true_targets=truth,
        train=train,
        hashes=tuple(digest.hex() for digest in hashes),
        task=task,
        classes=classes,
        metadata=None if rows.metadata is None else tuple(map(_json_text, rows.metadata)),
        scaling=scaling,
    )


def columns_of(data: DataSpec) -> Columns:
    """Which columns of a table mean what, as a spec says."""
    return Columns(
        target=data.target,
        true_target=data.true_target,
        text=data.text,
        id=data.id,
        split=data.split,
        metadata=data.metadata,
    )


def _encoded(
    rows: Rows, data: DataSpec
) -> tuple[Task, NDArray[Any], NDArray[Any], tuple[str, ...]]:
    """The task, targets and true targets as models have them, and the classes of both."""
    if rows.true_targets is None:
        task, targets, classes = partition.encode_targets(rows.targets, data.task)
        return task, targets, targets, classes
    if rows.targets.dtype.kind != rows.true_targets.dtype.kind:
        raise DataError(
            f"data.target {data.target!r} and data.true_target {data.true_target!r} are of "
            "different types, so that no label is a true one; write both alike"
        )
    both = np.concatenate([rows.targets, rows.true_targets])
    task, encoded, classes = partition.encode_targets(both, data.task)
    if task != "classification":
        raise DataError(
            "data.true_target is of classes, and these targets are numbers; leave it out, or say "
            "data.task = 'classification'"
        )
    return task, encoded[: len(rows)], encoded[len(rows) :], classes


def _standardise(
    rows: Rows, train: NDArray[np.bool_]
) -> tuple[NDArray[Any], Mapping[str, Any] | None]:
    if rows.scalable is None or not rows.scalable.any():
        return rows.inputs, None
    # In the order of the ids, so that permuted rows give the same sums to the last bit.
    order = np.flatnonzero(train)[np.argsort(rows.example_ids[train], kind="stable")]
    pool = rows.inputs[order]
    mean = pool.mean(axis=0, dtype=np.float64)
    scale = pool.std(axis=0, dtype=np.float64)
    # A column that is constant up to rounding carries nothing; dividing would blow rounding up.
    scale[scale <= 1e-6 * np.abs(mean)] = 1.0
    scale[scale == 0.0] = 1.0
    mean[~rows.scalable], scale[~rows.scalable] = 0.0, 1.0
    scaling = {"features": list(rows.features), "mean": mean.tolist(), "scale": scale.tolist()}
    return standardised(rows.inputs, scaling), scaling


def standardised(raw: NDArray[Any], scaling: Mapping[str, Any]) -> NDArray[np.float32]:
    """Columns shifted and scaled as a sealed data set's were, float32 [n, d]."""
    mean, scale = np.array(scaling["mean"]), np.array(scaling["scale"])
    inputs: NDArray[Any] = np.empty(raw.shape, dtype=np.float32)
    step = max(1, 2**22 // inputs.shape[1])  # bounds the float64 intermediate to 32 MB
    for start in range(0, len(inputs), step):
        block = slice(start, start + step)
        inputs[block] = (raw[block] - mean) / scale
    return inputs


def _facts(rows: Rows, prepared: Prepared, data: DataSpec, digest: str) -> DatasetFacts:
    return DatasetFacts(
        dataset_id=_dataset_id(rows, prepared),
        task=prepared.task,
        n_train=int(prepared.train.sum()),
        n_test=int((~prepared.train).sum()),
        classes=prepared.classes,
        input_shape=prepared.inputs.shape[1:],
        input_dtype=str(prepared.inputs.dtype),
        n_tokens=data.text.vocabulary if data.text else 0,
        n_corrupted=int((prepared.targets != prepared.true_targets)[prepared.train].sum()),
        features=rows.features,
        source_digest=digest,
    )


def _dataset_id(rows: Rows, prepared: Prepared) -> str:
    """Digest of the rows as they are used, whatever order they came in: 20 hex characters."""
    total = hashlib.sha256(
        json.dumps([DATA_VERSION, prepared.task, prepared.classes, prepared.scaling]).encode()
    )
    ids = rows.example_ids
    for index in np.argsort(ids, kind="stable").tolist():
        fields = [
            int(ids[index]),
            bool(prepared.train[index]),
            prepared.hashes[index],
            prepared.targets[index].tolist(),
            prepared.true_targets[index].tolist(),
            None if rows.source_ids is None else rows.source_ids[index],
            None if prepared.metadata is None else prepared.metadata[index],
        ]
        total.update(json.dumps(fields).encode() + b"\n")
    return total.hexdigest()[:20]


def _write(folder: Path, rows: Rows, prepared: Prepared, facts: DatasetFacts) -> None:
    write_dataset(
        folder,
        example_ids=rows.example_ids,
        split=np.where(prepared.train, partition.TRAIN, partition.TEST),
        inputs=prepared.inputs,
        targets=prepared.targets,
        true_targets=prepared.true_targets,
        hashes=prepared.hashes,
        facts=facts,
        source_ids=rows.source_ids,
        metadata=prepared.metadata,
    )
    if prepared.scaling is not None:
        text = json.dumps(prepared.scaling, indent=2) + "\n"
        (folder / SCALING_FILE).write_text(text, encoding="utf-8")


def _json_text(values: Mapping[str, Any]) -> str:
    return json.dumps({str(name): _plain(value) for name, value in values.items()}, allow_nan=False)


def _plain(value: Any) -> Any:
    """A JSON value; NaN and infinities, which JSON lacks, become null, and dates text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)
