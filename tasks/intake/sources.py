"""The sources a spec can name, read into one form: `Rows`.

Known: ``sklearn:digits|breast_cancer|diabetes|wine``, ``csv:``, ``parquet:``, ``jsonl:``,
``npz:``, ``idx:`` and ``python:recipe.py:function``. Everything read here has been refused or is
sound: float32 finite inputs, one target per row, unique ids. Splitting and corrupting happen
elsewhere.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import DataError, RecipeError
from schemas.recipe import python_reference
from tasks.intake.arrays import idx_digest, read_idx, read_npz
from tasks.intake.recipes import call, load_function, recipe_digest
from tasks.intake.rows import Columns, Rows, check_rows, to_float32
from tasks.intake.tables import read_table

PARTS = ("inputs", "targets", "ids", "metadata", "split")


def source_digest(source: str, path: Path | None) -> str:
    """What identifies the source's content, sha256 in hex.

    Of a file's bytes (of four files for ``idx:``); for ``python:``, of the recipe's bytes and the
    function's name (files that the recipe reads are not seen); for ``sklearn:``, of the name and
    the library's version.

    Args:
        source: The spec's ``data.source``.
        path: Its file, as ``LoadedSpec.source_path`` has it.

    Raises:
        DataError: The file is missing or cannot be read.
        RecipeError: The recipe file cannot be read.
    """
    if path is None:
        import sklearn

        return _sha256(f"{source}@{sklearn.__version__}")
    reference = python_reference(source)
    if reference is not None:
        return _sha256(f"python:{reference.function}@{recipe_digest(path)}")
    if source.startswith("idx:"):
        return idx_digest(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError(
            f"data.source {path}: {reason}; paths are relative to the spec file"
        ) from error


def read_rows(source: str, path: Path | None, columns: Columns) -> Rows:
    """Read and check every row of a source.

    Args:
        source: The spec's ``data.source``.
        path: Its file, as ``LoadedSpec.source_path`` has it; None for scikit-learn's sets.
        columns: The roles of a table's columns; the other kinds of source name their own parts.

    Raises:
        DataError: Something in the rows cannot be used; the message names row and column.
        RecipeError: The recipe cannot be loaded, or returns something else than was agreed.
    """
    kind, _, name = source.partition(":")
    reference = python_reference(source)
    if path is None:
        rows = _read_sklearn(name)
    elif reference is not None:
        rows = _read_recipe(path, reference.function, columns)
    elif kind == "npz":
        rows = read_npz(path, columns)
    elif kind == "idx":
        rows = read_idx(path)
    else:
        rows = read_table(kind, path, columns)
    check_rows(rows)
    return rows


def rows_from_parts(parts: Mapping[str, Any], where: str) -> Rows:
    """Make rows from arrays by name: inputs and targets, and maybe ids, metadata, split.

    Args:
        parts: Arrays, tensors on the CPU or nested lists; metadata may be a mapping of columns or
            a sequence of mappings.
        where: What to call their origin in a message.

    Raises:
        RecipeError: A part is missing, unknown, of another length, or no array of plain values.
    """
    unknown = [name for name in parts if name not in PARTS]
    if unknown or "inputs" not in parts or "targets" not in parts:
        raise RecipeError(
            f"{where} gives {', '.join(map(str, parts)) or 'nothing'}; "
            f"give inputs and targets, and if need be {', '.join(PARTS[2:])}"
        )
    arrays = {
        name: _as_array(value, f"{name} of {where}")
        for name, value in parts.items()
        if name != "metadata" and value is not None
    }
    inputs, targets = arrays["inputs"], arrays["targets"]
    if inputs.ndim < 2 or inputs.dtype.kind not in "fiub":
        raise RecipeError(
            f"inputs of {where} are {inputs.dtype} of shape {inputs.shape}; "
            "give numbers of shape [n, ...], one row per example"
        )
    metadata = _metadata_rows(parts.get("metadata"), where)
    for name, values in arrays.items():
        if name != "inputs" and values.ndim != 1:
            raise RecipeError(
                f"{name} of {where} have shape {values.shape}; give one value for each row"
            )
    lengths = {name: len(values) for name, values in arrays.items()}
    lengths["metadata"] = len(inputs) if metadata is None else len(metadata)
    for name, length in lengths.items():
        if length != len(inputs):
            raise RecipeError(f"{where} gives {len(inputs)} inputs but {length} {name}")
    ids = arrays.get("ids")
    if ids is not None and ids.dtype.kind not in "iuU":
        raise RecipeError(f"ids of {where} are {ids.dtype}; give integers or text")
    split = arrays.get("split")
    return Rows(
        inputs=to_float32(inputs),
        targets=targets,
        ids=None if ids is None or ids.dtype.kind == "U" else ids.astype(np.int64),
        source_ids=tuple(ids.tolist()) if ids is not None and ids.dtype.kind == "U" else None,
        metadata=metadata,
        split=None if split is None else tuple(str(value) for value in split.tolist()),
    )


def _read_sklearn(name: str) -> Rows:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    targets = bunch.target
    if name != "diabetes":  # names say more than numbers in every table and report
        targets = np.asarray([str(label) for label in bunch.target_names])[bunch.target]
    if name == "digits":
        # Pixels are 0..16. One scale for all of them keeps the picture a picture.
        return Rows(inputs=to_float32(bunch.data / 16.0), targets=targets)
    features = tuple(str(feature) for feature in bunch.feature_names)
    return Rows(
        inputs=to_float32(bunch.data),
        targets=targets,
        features=features,
        scalable=np.ones(len(features), dtype=bool),
    )


def _read_recipe(path: Path, name: str, columns: Columns) -> Rows:
    if columns.id or columns.split or columns.metadata:
        raise DataError(
            "data.id, data.split and data.metadata name columns of a file; a recipe returns them "
            "itself, in a dict with ids, split and metadata"
        )
    result = call(load_function(path, name), path, {})
    where = f"{name} in {path}"
    if isinstance(result, Mapping):
        return rows_from_parts(result, where)
    if isinstance(result, tuple) and len(result) == 2:
        return rows_from_parts(dict(zip(PARTS, result, strict=False)), where)
    size = f" of {len(result)}" if isinstance(result, tuple) else ""
    raise RecipeError(
        f"{where} returned {type(result).__name__}{size}; "
        "return (inputs, targets) or a dict with inputs and targets"
    )


def _as_array(value: Any, what: str) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as cause:  # ragged lists; tensors with gradients
        raise RecipeError(f"{what} do not form an array: {str(cause).splitlines()[0]}") from cause
    if array.dtype.kind == "O" and all(isinstance(item, str) for item in array.flat):
        array = array.astype(str)  # pandas and friends keep text as objects
    if array.dtype.kind not in "fiubU":
        raise RecipeError(f"{what} are of type {array.dtype}; give numbers or text, not objects")
    return array


def _metadata_rows(value: Any, where: str) -> tuple[Mapping[str, Any], ...] | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        columns = {
            str(name): _as_array(column, f"metadata {name!r} of {where}").tolist()
            for name, column in value.items()
        }
        if len({len(column) for column in columns.values()}) > 1:
            raise RecipeError(f"metadata of {where} has columns of different lengths")
        return tuple(
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        )
    if isinstance(value, Sequence) and all(isinstance(item, Mapping) for item in value):
        return tuple(value)
    raise RecipeError(f"metadata of {where} is {type(value).__name__}; give a dict of columns")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
