"""Latent semantic analysis against scikit-learn's."""

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from attribution.estimators.retrieval import WORD
from attribution.latent_words import latent_words
from attribution.streams import stream
from schemas.errors import ShapeError

WORDS = [f"word{number}" for number in range(40)]


def texts(seed: int, count: int) -> list[str]:
    rng = stream(seed)
    return [" ".join(WORDS[w] for w in rng.zipf(1.4, 12).clip(max=40) - 1) for _ in range(count)]


def test_products_are_those_of_scikit_learn() -> None:
    """Directions are free up to their signs, so products of vectors are compared."""
    train, queries = texts(0, 60), [*texts(1, 9), "unheard of"]
    own = latent_words(train, queries, dim=8)
    words = TfidfVectorizer(sublinear_tf=True, token_pattern=WORD.pattern)
    matrix = words.fit_transform(train)
    svd = TruncatedSVD(8, algorithm="arpack").fit(matrix)
    want = svd.transform(words.transform(queries)) @ svd.transform(matrix).T
    np.testing.assert_allclose(own[1] @ own[0].T, want, atol=1e-5)
    assert not own[1][-1].any()


def test_they_are_the_same_again_and_no_wider_than_the_texts_allow() -> None:
    train, queries = texts(0, 9), texts(1, 3)
    first, second = latent_words(train, queries), latent_words(train, queries)
    for one, again in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, again)
    assert first[0].shape == (9, 8)


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(ShapeError, match="have no directions"):
        latent_words(["a b c", "a b c"], ["a"])
