"""Sources that hold arrays: ``npz:`` archives and ``idx:`` sets of pictures (the MNIST family).

Pictures become [n, channels, h, w]: a set [n, h, w] has one channel, and [n, h, w, 3] is turned.
Whole numbers from 0 to 255 in one byte become 0 to 1, with one scale for all pixels. Where the
files say which rows are test rows, they stay so.
"""

import gzip
import hashlib
import math
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import DataError
from tasks.intake.rows import Columns, Rows, to_float32

# Names that sets in the wild use, in the order in which they are looked for.
INPUT_NAMES = ("inputs", "x", "images", "data", "features")
TARGET_NAMES = ("targets", "y", "labels", "target", "label")
SIDES = ("train", "test")
IDX_SIDES = {"train": "train", "test": "t10k"}
IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def idx_files(path: Path) -> dict[str, Path]:
    """The four files of a set: images and labels of train and test, gzipped or not.

    Args:
        path: A folder, or a folder and the beginning of the names ("emnist/emnist-letters").

    Raises:
        DataError: One of the four is missing, or matches twice.
    """
    folder, prefix = (path, "") if path.is_dir() else (path.parent, path.name)
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    found = {}
    for side, stem in IDX_SIDES.items():
        for kind, rank in (("images", 3), ("labels", 1)):
            # EMNIST writes "test" where MNIST writes "t10k".
            pattern = re.compile(
                rf"{re.escape(prefix)}[-_.]?({stem}|{side})-{kind}[-.]idx{rank}-ubyte(\.gz)?"
            )
            fits = sorted(name for name in names if pattern.fullmatch(name))
            if len(fits) != 1:
                what = f"{len(fits)} files match" if fits else "there is no"
                name = "-".join(filter(None, (prefix.rstrip("-"), stem, kind)))
                raise DataError(
                    f"data.source {path}: {what} {name}-idx{rank}-ubyte(.gz); give a folder that "
                    "holds one each of images and labels of train and t10k"
                )
            found[f"{side} {kind}"] = folder / fits[0]
    return found


def idx_digest(path: Path) -> str:
    """Sha256 in hex over the bytes of the four files.

    Raises:
        DataError: A file is missing or cannot be read.
    """
    total = hashlib.sha256()
    for name, file in sorted(idx_files(path).items()):
        try:
            with file.open("rb") as stream:
                total.update(f"{name}:{hashlib.file_digest(stream, 'sha256').hexdigest()}".encode())
        except OSError as error:
            raise DataError(f"data.source {file}: {error.strerror}") from error
    return total.hexdigest()


def read_idx(path: Path) -> Rows:
    """The rows of an ``idx:`` set: training rows first, then test rows.

    Raises:
        DataError: A file is missing, broken, or of another kind, or lengths differ.
    """
    files = idx_files(path)
    images, labels, split = [], [], []
    for side in SIDES:
        pictures, classes = _read_idx(files[f"{side} images"]), _read_idx(files[f"{side} labels"])
        if classes.ndim != 1 or pictures.ndim < 2 or len(pictures) != len(classes):
            raise DataError(
                f"data.source {path}: the {side} side has images {pictures.shape} and labels "
                f"{classes.shape}; expected one label for each image"
            )
        images.append(pictures)
        labels.append(classes)
        split += [side] * len(classes)
    if images[0].shape[1:] != images[1].shape[1:]:
        raise DataError(
            f"data.source {path}: train images are {images[0].shape[1:]} and test images "
            f"{images[1].shape[1:]}; expected one size"
        )
    return Rows(
        inputs=as_pictures(np.concatenate(images)),
        targets=np.concatenate(labels).astype(np.int64),
        split=tuple(split),
    )


def read_npz(path: Path, columns: Columns) -> Rows:
    """The rows of an ``npz:`` archive.

    It holds inputs and targets ("inputs" or x, images, data, features; "targets" or y, labels,
    target, label, or what ``data.target`` names), either one array of each, with the side of each
    row in the array that ``data.split`` names or in "split", or two, with "train" and "test" in
    front or behind: x_train and x_test, train_images and test_images. An array called "id" or
    "ids", or named by ``data.id``, has the ids; those of ``data.metadata`` are kept beside.

    Raises:
        DataError: The file is no such archive, holds objects, or arrays do not fit together.
    """
    arrays = _load(path)
    try:
        return _assemble(arrays, columns, path)
    except KeyError as error:
        raise DataError(
            f"data.source {path}: {error.args[0]}; the file holds {', '.join(arrays) or 'nothing'}"
        ) from error


def as_pictures(values: NDArray[Any]) -> NDArray[np.float32]:
    """Float32 inputs: bytes scaled to 0..1, pictures with their channels first."""
    if values.ndim == 3 and values.dtype == np.uint8:
        values = values[:, None]
    elif values.ndim == 4 and values.shape[-1] in (1, 3, 4) and values.shape[1] not in (1, 3, 4):
        values = values.transpose(0, 3, 1, 2)
    scale = np.float32(255.0) if values.dtype == np.uint8 else None
    result = to_float32(values)
    if scale is not None:
        result /= scale
    return result


def _assemble(arrays: dict[str, NDArray[Any]], columns: Columns, path: Path) -> Rows:
    target_names = (columns.target,) if columns.target else TARGET_NAMES
    sided = all(_find(arrays, INPUT_NAMES, side) for side in SIDES)
    sides: tuple[str | None, ...] = SIDES if sided else (None,)
    taken = [(_need(arrays, INPUT_NAMES, side, "inputs"), side) for side in sides]
    lengths = [len(arrays[name]) for name, _ in taken]

    def joined(names: tuple[str, ...], what: str) -> NDArray[Any]:
        found = [arrays[_need(arrays, names, side, what)] for side in sides]
        for array, length, side in zip(found, lengths, sides, strict=True):
            if array.ndim == 2 and array.shape[1] == 1:
                continue
            if array.ndim != 1 or len(array) != length:
                where = f" of {side}" if side else ""
                raise DataError(
                    f"data.source {path}: {what}{where} have shape {array.shape} for {length} "
                    "inputs; give one value for each"
                )
        return np.concatenate([array.reshape(-1) for array in found])

    inputs = [arrays[name] for name, _ in taken]
    if len({array.shape[1:] for array in inputs}) > 1 or any(a.ndim < 2 for a in inputs):
        raise DataError(
            f"data.source {path}: inputs have shapes {', '.join(str(a.shape) for a in inputs)}; "
            "give numbers of shape [n, ...], alike on both sides"
        )
    names = tuple(columns.metadata)
    kept = {name: joined((name,), f"metadata {name!r}") for name in names}
    ids = None
    if columns.id or _find(arrays, ("id", "ids"), sides[0]):
        ids = joined((columns.id,) if columns.id else ("id", "ids"), "ids")
    split: tuple[str, ...] | None = None
    if sided:
        split = tuple(side for side, n in zip(SIDES, lengths, strict=True) for _ in range(n))
    elif columns.split or "split" in arrays:
        split = tuple(str(v) for v in joined((columns.split or "split",), "split").tolist())
    text = ids is not None and ids.dtype.kind == "U"
    return Rows(
        inputs=as_pictures(np.concatenate(inputs)),
        targets=joined(target_names, "targets"),
        ids=None if ids is None or text else ids.astype(np.int64),
        source_ids=tuple(ids.tolist()) if ids is not None and text else None,
        metadata=tuple(
            dict(zip(names, row, strict=True))
            for row in zip(*(kept[name].tolist() for name in names), strict=True)
        )
        if names
        else None,
        split=split,
    )


def _find(arrays: dict[str, NDArray[Any]], names: tuple[str, ...], side: str | None) -> str | None:
    for name in names:
        forms = (name,) if side is None else (f"{name}_{side}", f"{side}_{name}")
        for form in forms:
            if form in arrays:
                return form
    return None


def _need(
    arrays: dict[str, NDArray[Any]], names: tuple[str, ...], side: str | None, what: str
) -> str:
    found = _find(arrays, names, side)
    if found is None:
        where = f" of the {side} side" if side else ""
        raise KeyError(f"no {what}{where} (looked for {', '.join(names)})")
    return found


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        # NumPy leaves a file open that it opened itself and then refused.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"data.source {path}: a single array; save it with numpy.savez")
            with archive:
                arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise DataError(
            f"data.source {path}: does not exist; paths are relative to the spec file"
        ) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "allow_pickle" in reason or "Object arrays" in reason:
            reason = "it holds objects, which are not read; save plain numbers and text"
        raise DataError(f"data.source {path}: {reason}") from error
    for name, array in arrays.items():
        if array.dtype.kind not in "fiubU":
            raise DataError(
                f"data.source {path}: {name!r} is of type {array.dtype}; save numbers or text"
            )
    return arrays


def _read_idx(file: Path) -> NDArray[Any]:
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data.source {file}: cannot be read ({error}); copy it again") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        raise DataError(f"data.source {file}: no idx file; its first bytes are {content[:4]!r}")
    kind, rank = np.dtype(IDX_TYPES[content[2]]), content[3]
    head = 4 + 4 * rank
    shape = struct.unpack(f">{rank}I", content[4:head]) if len(content) >= head else ()
    expected = head + kind.itemsize * math.prod(shape)
    if not shape or len(content) != expected:
        raise DataError(
            f"data.source {file}: {len(content)} bytes, and its header {tuple(shape)} says "
            f"{expected}; copy it again"
        )
    return np.frombuffer(content, dtype=kind, offset=head).reshape(shape)
