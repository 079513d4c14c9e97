import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attribution import attribute
from attribution.streams import stream
from schemas.errors import ShapeError

pytest.importorskip("bm25s")

N, M = 30, 6


def bm25(documents: list[list[Any]], questions: list[list[Any]], k1: float, b: float) -> Any:
    """Lucene's formula, word by word."""
    mean = sum(map(len, documents)) / len(documents)
    frequency = Counter(word for document in documents for word in set(document))
    out = np.zeros((len(questions), len(documents)))
    for q, question in enumerate(questions):
        for i, document in enumerate(documents):
            for word in question:
                tf, df = document.count(word), frequency[word]
                idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
                scale = k1 * (1 - b + b * len(document) / mean)
                out[q, i] += idf * tf / (tf + scale) if tf else 0.0
    return out


def scores(documents: Any, questions: Any, **options: Any) -> Any:
    model = nn.Linear(1, 2)
    plain = {
        name: (torch.zeros(len(part), 1), torch.zeros(len(part), dtype=torch.int64))
        for name, part in (("train", documents), ("queries", questions))
    }
    texts = {"train_texts": documents, "query_texts": questions}
    return attribute("bm25", model, [model.state_dict()], **(plain | texts | options))


def tokens() -> tuple[np.ndarray, np.ndarray]:
    rng = stream(1)
    return tuple(rng.zipf(1.5, (n, 9)).clip(max=40) - 1 for n in (N, M))


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.0), (2.0, 1.0)])
def test_it_is_the_published_formula_word_by_word(k1: float, b: float) -> None:
    lengths = stream(2).integers(1, 10, N)
    documents = [row[:size].tolist() for row, size in zip(tokens()[0], lengths, strict=True)]
    questions = [[*row.tolist(), 999] for row in tokens()[1]]  # a word that no row has
    got = scores(documents, questions, k1=k1, b=b)
    np.testing.assert_allclose(got, bm25(documents, questions, k1, b), rtol=1e-5, atol=1e-6)
    lowered = scores(documents, questions, k1=k1, b=b, output="loss")
    np.testing.assert_array_equal(lowered, -got)
    assert "bm25s" in got.record["implementation"]


def test_token_ids_are_read_from_the_rows_and_padding_counts_as_nothing() -> None:
    train, queries = (np.pad(part, ((0, 0), (0, 3))) for part in tokens())
    labels = [torch.zeros(n, dtype=torch.int64) for n in (N, M)]
    model = nn.Linear(1, 2)
    got = attribute(
        "bm25",
        model,
        [model.state_dict()],
        train=(train, labels[0]),
        queries=(queries, labels[1]),
        padding=0,
    )
    words = [[[w for w in row if w] for row in part.tolist()] for part in (train, queries)]
    np.testing.assert_allclose(got, bm25(*words, 1.5, 0.75), rtol=1e-5, atol=1e-6)


def test_texts_are_compared_by_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["The cat sat.", "A dog ran", "", "the CAT and the dog", "birds"]
    asked = ["cat?", "", "nothing here", "Dog dog"]
    monkeypatch.setattr("attribution.estimators.retrieval.QUERY_BLOCK", 3)
    got = scores(texts, asked)
    words = [
        [text.lower().replace(".", "").replace("?", "").split() for text in part]
        for part in (texts, asked)
    ]
    np.testing.assert_allclose(got, bm25(*words, 1.5, 0.75), rtol=1e-5, atol=1e-6)
    assert got[0].argmax() == 0
    assert not got[1:3].any()


def test_bad_requests_are_refused_with_what_to_do() -> None:
    for options, message in (
        ({"k1": -1.0}, "k1 of 0 or more"),
        ({"b": 2.0}, "b in 0..1"),
        ({"train_texts": ["one"]}, "1 train_texts for 3 rows"),
        ({"query_texts": None}, "no token ids"),
        ({"train_texts": ["", "!", ""]}, "holds a word"),
    ):
        with pytest.raises(ShapeError, match=message):
            scores(["a", "b", "c"], ["a", "b"], **options)
