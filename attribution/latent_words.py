"""Texts as vectors of their words: latent semantic analysis (Deerwester et al. 1990).

X [n, words] holds (1 + ln tf) idf of the training texts, rows of length one, with
idf = ln((1 + n) / (1 + df)) + 1. Of X = U S V' the d largest singular values are kept, and a text x
becomes x V. No model is asked and nothing is read from queries: words that no training text has
count as nothing.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds

from attribution.estimators.retrieval import WORD
from attribution.streams import Purpose, stream
from schemas.errors import ShapeError

WIDTH = 64


def latent_words(
    train_texts: Sequence[str],
    query_texts: Sequence[str],
    *,
    dim: int = WIDTH,
    seed: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors [n, d] of training texts and [m, d] of queries.

    Args:
        train_texts: Whose words and directions are used.
        query_texts: Texts that are laid along them.
        dim: Width d; fewer where there are not as many texts or words.
        seed: Key of the vector that the iteration starts from.

    Raises:
        ShapeError: Fewer than three training texts, or no word that two of them tell apart.
    """
    words = [Counter(WORD.findall(text.lower())) for text in train_texts]
    known = {word: place for place, word in enumerate(sorted({w for row in words for w in row}))}
    count = len(words)
    if count < 3 or len(known) < 3:
        raise ShapeError(
            f"{count} texts of {len(known)} words have no directions; give three of each or more"
        )
    frequency = np.zeros(len(known))
    for row in words:
        frequency[[known[word] for word in row]] += 1
    idf = np.log((1 + count) / (1 + frequency)) + 1
    matrix = _weighed(words, known, idf)
    rank = min(dim, count - 1, len(known) - 1)
    start = stream(seed, Purpose.SOLVER).standard_normal(min(matrix.shape))
    _, _, directions = svds(matrix, k=rank, v0=start)
    # From the largest singular value on, each with its largest entry positive: signs are free.
    directions = directions[::-1]
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(rank), largest])[:, None]
    questions = [Counter(WORD.findall(text.lower())) for text in query_texts]
    sides = (matrix, _weighed(questions, known, idf))
    train, queries = ((side @ directions.T).astype(np.float32) for side in sides)
    return train, queries


def _weighed(
    rows: Sequence[Counter[str]], known: dict[str, int], idf: NDArray[np.float64]
) -> csr_array:
    """Rows of length one; of zeros where a text has no known word."""
    places, columns, values = list[int](), list[int](), list[float]()
    for place, row in enumerate(rows):
        own = [(known[word], times) for word, times in row.items() if word in known]
        weights = np.array([(1 + np.log(times)) * idf[word] for word, times in own])
        length = np.linalg.norm(weights)
        places += [place] * len(own)
        columns += [word for word, _ in own]
        values += (weights / length).tolist() if length else []
    return csr_array((values, (places, columns)), shape=(len(rows), len(known)))
