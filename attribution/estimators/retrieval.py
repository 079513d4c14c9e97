"""BM25 (Robertson & Zaragoza 2009): which training rows share rare words with a query.

    tau[q, i] = s sum_{w in q} idf(w) tf / (tf + k1 (1 - b + b |i| / mean length))
    idf(w) = ln(1 + (n - df + 1/2) / (df + 1/2))                            (Lucene's form)

s is -1 for outputs that training lowers, else 1. No model is asked: it corroborates, and it is what
attribution of facts has to beat (Akyürek et al. 2022). The index is bm25s's (Lù 2024).
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attribution.estimators.representations import FALLING
from attribution.estimators.request import Clock, Record, Request, open_sink
from attribution.rows import Rows
from schemas.errors import ShapeError

QUERY_BLOCK = 512
WORD = re.compile(r"\w+")


def estimate_bm25(
    request: Request,
    *,
    train_texts: Sequence[Any] | None = None,
    query_texts: Sequence[Any] | None = None,
    padding: int | None = None,
    k1: float = 1.5,
    b: float = 0.75,
) -> tuple[NDArray[np.float32], Record]:
    """BM25 of every query against every training row; model and checkpoints are not used.

    Args:
        request: What is asked.
        train_texts: One for each training row: a string, cut into lower-case words, or a sequence
            of tokens. By default the rows' inputs, where those are token ids [n, T].
        query_texts: The same for queries.
        padding: Token id that counts as nothing.
        k1: How soon more of one word stops to count, 0 or more.
        b: How much long rows are held back, 0 to 1.

    Raises:
        ShapeError: Texts are missing, too few or all empty, or a constant is out of range.
    """
    if not (0 <= k1 < float("inf") and 0 <= b <= 1):
        raise ShapeError(f"k1 is {k1} and b is {b}; give k1 of 0 or more, and b in 0..1")
    clock = Clock()
    documents = _tokens(request.train, train_texts, "train_texts", padding)
    questions = _tokens(request.queries, query_texts, "query_texts", padding)
    if not any(documents):
        raise ShapeError("no training row holds a word; give train_texts that do")
    # Imported here: the numerics must load where only Torch and SciPy are.
    import bm25s

    index = bm25s.BM25(method="lucene", k1=k1, b=b, auto_compile=False)
    index.index(documents, show_progress=False)
    clock.stop("index")
    sign = -1.0 if request.output in FALLING else 1.0
    n_query, n_train = len(request.queries), len(request.train)
    target, send = open_sink(request.out, n_query, n_train)
    for start in range(0, n_query, QUERY_BLOCK):
        rows = slice(start, min(start + QUERY_BLOCK, n_query))
        found = [index.get_scores_from_ids(index.get_tokens_ids(q)) for q in questions[rows]]
        send(rows, (sign * np.stack(found)).astype(np.float32))
    clock.stop("score")
    return target, {
        "damping": None,
        "chosen_from": "there is nothing to damp",
        "fingerprint": [f"bm25/1:lucene,k1={k1},b={b}"],
        "options": {"k1": k1, "b": b, "padding": padding, "sign": sign},
        "implementation": f"bm25s {bm25s.__version__}",
        "batch_size": request.batch_size,
        "seconds": clock.seconds,
    }


def _tokens(
    rows: Rows, texts: Sequence[Any] | None, name: str, padding: int | None
) -> list[list[str]]:
    """Words of each row."""
    found = list(_inputs(rows, name) if texts is None else texts)
    if len(found) != len(rows):
        raise ShapeError(f"there are {len(found)} {name} for {len(rows)} rows; give one for each")
    ignored = None if padding is None else str(padding)
    return [
        WORD.findall(text.lower())
        if isinstance(text, str)
        else [word for word in map(str, text) if word != ignored]
        for text in found
    ]


def _inputs(rows: Rows, name: str) -> Iterator[list[int]]:
    for _, inputs, _ in rows.batches(1024):
        if not isinstance(inputs, torch.Tensor) or inputs.is_floating_point() or inputs.ndim != 2:
            raise ShapeError(
                f"the {rows.name} inputs are no token ids [n, T]; give {name}, a string or a "
                "sequence of tokens for each row"
            )
        yield from inputs.tolist()
