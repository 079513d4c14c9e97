"""What happens to each row by its content alone: its hash, its side, its corrupted label.

Every draw is a pure function of (seed, purpose, content), derived through sha256: it is the same in
every process, on every platform and for every order of the rows, appended rows move no others to
the other side, and rows with equal inputs share a side.
"""

import hashlib
import re
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import DataError
from schemas.recipe import Task

TRAIN, TEST = "train", "test"
MOST_FLOAT_CLASSES = 20


def input_hashes(inputs: NDArray[Any]) -> list[bytes]:
    """Sha256 (32 bytes) of each row: its shape, and its little-endian float32 or int64 bytes.

    Negative zeros count as zeros.
    """
    if inputs.dtype.kind == "i":
        head = f"int64{tuple(int(size) for size in inputs.shape[1:])}".encode()
        rows = (row.astype("<i8", copy=False).tobytes() for row in inputs)
        return [hashlib.sha256(head + row).digest() for row in rows]
    head = f"float32{tuple(int(size) for size in inputs.shape[1:])}".encode()
    start = hashlib.sha256(head)
    hashes = []
    for row in inputs:
        digest = start.copy()
        digest.update((row + np.float32(0.0)).astype("<f4", copy=False).tobytes())
        hashes.append(digest.digest())
    return hashes


def row_hashes(hashes: Sequence[bytes], labels: Sequence[str]) -> list[bytes]:
    """Sha256 (32 bytes) of each row's input hash and target."""
    return [
        hashlib.sha256(digest + label.encode()).digest()
        for digest, label in zip(hashes, labels, strict=True)
    ]


def uniforms(seed: int, purpose: str, hashes: Sequence[bytes]) -> NDArray[np.float64]:
    """One number in [0, 1) for each hash, keyed by the seed and the purpose."""
    start = hashlib.sha256(f"winnow:{seed}:{purpose}:".encode())
    words = np.empty(len(hashes), dtype=np.uint64)
    for index, content in enumerate(hashes):
        digest = start.copy()
        digest.update(content)
        (words[index],) = struct.unpack_from("<Q", digest.digest())
    # 53 bits, as many as a float64 holds: u < fraction is then exact.
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def keyed_split(hashes: Sequence[bytes], *, seed: int, test_fraction: float) -> NDArray[np.bool_]:
    """True where a row is a test row: its own keyed number lies below the fraction."""
    return uniforms(seed, "split", hashes) < test_fraction


def declared_split(values: Sequence[str]) -> NDArray[np.bool_]:
    """True where a row is declared a test row.

    Raises:
        DataError: A value is neither train nor test; the message lists those found.
    """
    found = list(dict.fromkeys(values))
    unknown = [value for value in found if value not in (TRAIN, TEST)]
    if unknown:
        row = list(values).index(unknown[0]) + 1
        raise DataError(
            f"data.split holds {unknown[0]!r} in row {row}; it must say train or test, "
            f"and says {', '.join(found[:6])}{', ...' if len(found) > 6 else ''}"
        )
    return np.asarray([value == TEST for value in values], dtype=bool)


def encode_targets(targets: NDArray[Any], task: str) -> tuple[Task, NDArray[Any], tuple[str, ...]]:
    """Turn targets into class indices or numbers.

    With ``task="auto"``: text, booleans and integers are classes; floats are classes only if all
    are whole numbers with at most 20 different values, and numbers to predict otherwise.

    Returns:
        The task; int64 indices [n] or float32 values [n] (of texts that predict themselves, the
        next tokens int64 [n, T] as they are); the class names in natural order
        ("class2" before "class10"), empty for regression.

    Raises:
        DataError: The targets do not fit the task that was asked for.
    """
    if targets.ndim == 2:
        return "language", targets.astype(np.int64), ()
    kind = targets.dtype.kind
    whole = kind in "iub" or (kind == "f" and bool((targets == np.floor(targets)).all()))
    if task == "auto":
        few = len(np.unique(targets)) <= MOST_FLOAT_CLASSES if kind == "f" else True
        task = "classification" if kind == "U" or (whole and few) else "regression"
    if task == "regression":
        if kind == "U":
            raise DataError(
                f"row 1 has the target {str(targets[0])!r}, which is text; regression needs "
                "numbers, or say data.task = 'classification'"
            )
        with np.errstate(over="ignore"):
            numbers = targets.astype(np.float32)
        if not np.isfinite(numbers).all():
            row = int(np.flatnonzero(~np.isfinite(numbers))[0]) + 1
            raise DataError(f"row {row}: target {targets[row - 1]} does not fit in float32")
        return "regression", numbers, ()
    if kind == "f" and not whole:
        row = int(np.flatnonzero(targets != np.floor(targets))[0])
        raise DataError(
            f"row {row + 1} has the target {targets[row]}, which is no class; "
            "say data.task = 'regression'"
        )
    if kind == "b":
        targets = np.where(targets, "true", "false")
    values = targets if kind in "Ub" else targets.astype(np.int64)
    distinct, inverse = np.unique(values, return_inverse=True)
    names = [str(value) for value in distinct.tolist()]
    order = (
        sorted(range(len(names)), key=lambda index: _natural(names[index]))
        if values.dtype.kind == "U"
        else list(range(len(names)))
    )
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return "classification", place[inverse.reshape(-1)], tuple(names[index] for index in order)


def corrupt_labels(
    labels: NDArray[np.int64],
    train: NDArray[np.bool_],
    hashes: Sequence[bytes],
    *,
    n_classes: int,
    fraction: float,
    seed: int,
) -> NDArray[np.int64]:
    """Give round(fraction * n_train) training rows another label.

    The rows are those with the smallest keyed numbers, and each new label is uniform over the
    other classes: which rows and which labels depends on the rows' contents, never their order.

    Args:
        labels: Class indices int64 [n].
        train: True where a row is a training row, [n].
        hashes: Row hashes, input and target, [n].
        n_classes: How many classes there are.
        fraction: Share of the training rows.
        seed: The spec's seed.

    Returns:
        The labels after corruption, int64 [n]; ``labels`` is left alone.
    """
    pool = np.flatnonzero(train)
    count = round(fraction * len(pool))
    if count == 0:
        return labels.copy()
    content = [hashes[index] for index in pool.tolist()]
    # Equal rows have equal numbers and equal hashes: which of them goes first makes no difference
    # to the content of the data, so a stable order is enough.
    chosen = pool[np.argsort(uniforms(seed, "corrupt", content), kind="stable")[:count]]
    draws = uniforms(seed, "corrupt-label", [hashes[index] for index in chosen.tolist()])
    other = np.minimum((draws * (n_classes - 1)).astype(np.int64), n_classes - 2)
    corrupted = labels.copy()
    corrupted[chosen] = other + (other >= labels[chosen])
    return corrupted


def check_sides(labels: NDArray[Any], train: NDArray[np.bool_], classes: Sequence[str]) -> None:
    """Refuse too few rows, a single class, and a class without training rows.

    Raises:
        DataError: Says what there is too little of.
    """
    n_train, n_test = int(train.sum()), int((~train).sum())
    if n_train < 2 or n_test < 1:
        raise DataError(
            f"there are {n_train} training and {n_test} test rows; at least 2 and 1 are needed, "
            "so add rows, change data.test_fraction or declare data.split"
        )
    if not classes:
        return
    if len(classes) < 2:
        raise DataError(
            f"all {len(labels)} rows have the class {classes[0]!r}; there must be two or more"
        )
    counts = np.bincount(labels[train], minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        shown = ", ".join(map(repr, empty[:5])) + (", ..." if len(empty) > 5 else "")
        raise DataError(
            f"{len(empty)} of {len(classes)} classes have no training rows ({shown}); remove "
            "those rows, declare data.split, or say data.task = 'regression' if they are numbers"
        )


def _natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that takes runs of digits as numbers; equal keys fall back on the text."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    keys = tuple((0, int(p), p) if p[0] in "0123456789" else (1, 0, p) for p in parts)
    return (*keys, (-1, 0, text))
