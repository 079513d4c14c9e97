"""A small logistic regression whose refits are known, for tests that hold scores against truth."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import nn

from attribution.retraining import Retraining
from attribution.training import Recipe

N, M, D, K, DECAY = 60, 8, 4, 3, 0.05


def rows(n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Three overlapping clouds."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, K, n)
    centres = np.random.default_rng(0).standard_normal((K, D))
    return (centres[labels] + draw.standard_normal((n, D))).astype(np.float32), labels


def retraining(**changes: object) -> Retraining:
    """Full-batch gradient descent, long enough to be at the minimum."""
    given = {
        "model": nn.Linear(D, K, bias=False),
        "train": rows(N, 1),
        "queries": rows(M, 2),
        "training": Recipe(lr=0.5, momentum=0.9, weight_decay=DECAY, epochs=150, batch_size=N),
        "device": "cpu",
    }
    return Retraining(**(given | changes))


def refitted_logits(kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Logits [n_query, K] of scikit-learn's minimiser of the same objective on some rows."""
    inputs, targets = (part[kept] for part in rows(N, 1))
    model = LogisticRegression(
        C=1 / (len(inputs) * DECAY), fit_intercept=False, tol=1e-10, solver="newton-cholesky"
    ).fit(inputs.astype(np.float64), targets)
    return rows(M, 2)[0].astype(np.float64) @ model.coef_.T


def refit(kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Margins [n_query] of that minimiser."""
    logits, own = refitted_logits(kept), np.eye(K, dtype=bool)[rows(M, 2)[1]]
    return logits[own] - np.logaddexp.reduce(np.where(own, -np.inf, logits), axis=1)


@cache
def leave_one_out() -> NDArray[np.float64]:
    """f_q(U) - f_q(U without i) by refitting, [n_query, n_train]."""
    return np.array([refit(np.ones(N, dtype=bool)) - refit(np.arange(N) != i) for i in range(N)]).T
