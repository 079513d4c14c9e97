"""Text turned into token numbers, a row at a time, by rules that learn nothing from other rows.

Words are hashed into a fixed number of places (Weinberger et al. 2009), bytes are themselves; so a
text's tokens, its content hash and its side of the split never depend on what else is in the file.
0 is padding.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.errors import DataError
from schemas.recipe import TextSpec

WORD = re.compile(r"\w+|[^\w\s]")
PADDING = 0
# Torch's own mark for a token whose prediction is not asked for.
UNASKED = -100


def tokenise(texts: Sequence[str], spec: TextSpec, *, following: bool = False) -> NDArray[np.int64]:
    """Token numbers, cut or padded to the length that the spec gives.

    Args:
        texts: One text a row.
        spec: How they are read.
        following: One token more, for a model that predicts each from those before it.

    Returns:
        int64 [n, length], or [n, length + 1] with `following`.

    Raises:
        DataError: A text holds no token (or one only, with `following`).
    """
    length = spec.length + following
    found = np.zeros((len(texts), length), dtype=np.int64)
    for row, text in enumerate(texts):
        numbers = _numbers(text, spec)
        if len(numbers) < 1 + following:
            raise DataError(
                f"row {row + 1} has {len(numbers)} tokens in column {spec.column!r}; remove the row"
            )
        found[row, : len(numbers[:length])] = numbers[:length]
    return found


def next_tokens(tokens: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inputs and targets [n, T] of a language model from tokens [n, T + 1]; padding is unasked."""
    targets = tokens[:, 1:].copy()
    targets[targets == PADDING] = UNASKED
    return np.ascontiguousarray(tokens[:, :-1]), targets


def ask_answers(
    targets: NDArray[np.int64], answers: Sequence[str], spec: TextSpec
) -> NDArray[np.int64]:
    """Targets [n, T] of which only the last mention of each row's answer is asked.

    A row whose answer is empty stays as it is.

    Raises:
        DataError: A text does not hold its answer after its first token and within its length.
    """
    found = targets.copy()
    for row, answer in enumerate(answers):
        wanted = np.array(_numbers(answer, spec), dtype=np.int64)
        if not len(wanted):
            continue
        windows = np.lib.stride_tricks.sliding_window_view(targets[row], len(wanted))
        places = np.flatnonzero((windows == wanted).all(axis=1))
        if not len(places):
            raise DataError(
                f"row {row + 1}: {answer!r} of column {spec.answer!r} is not in the first "
                f"{spec.length + 1} tokens of its text (the first of them is never asked); mend "
                "the row or empty the cell"
            )
        last = int(places[-1])
        found[row, :last] = found[row, last + len(wanted) :] = UNASKED
    return found


def _numbers(text: str, spec: TextSpec) -> list[int]:
    return _bytes(text) if spec.tokens == "bytes" else _words(text, spec.vocabulary)


def _words(text: str, vocabulary: int) -> list[int]:
    words = WORD.findall(text.lower())
    return [1 + zlib.crc32(word.encode()) % (vocabulary - 1) for word in words]


def _bytes(text: str) -> list[int]:
    return [1 + byte for byte in text.encode()]
