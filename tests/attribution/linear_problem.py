"""A small logistic regression whose refits are known, for tests that hold scores against truth."""

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


def refit(kept: NDArray[np.bool_], problem: Retraining) -> NDArray[np.float64]:
    """Margins [n_query] of scikit-learn's minimiser of the same objective on some rows."""
    inputs, targets = (np.asarray(part)[kept] for part in problem.train)
    model = LogisticRegression(
        C=1 / (len(inputs) * DECAY), fit_intercept=False, tol=1e-10, max_iter=2_000
    ).fit(inputs.astype(np.float64), targets)
    logits = np.asarray(problem.queries[0], dtype=np.float64) @ model.coef_.T
    own = np.eye(K, dtype=bool)[np.asarray(problem.queries[1])]
    others = np.where(own, -np.inf, logits)
    return logits[own] - np.logaddexp.reduce(others, axis=1)


def leave_one_out(problem: Retraining) -> NDArray[np.float64]:
    """f_q(U) - f_q(U without i) by refitting, [n_query, n_train]."""
    everything = np.ones(problem.n_train, dtype=bool)
    whole = refit(everything, problem)
    effects = []
    for row in range(problem.n_train):
        kept = everything.copy()
        kept[row] = False
        effects.append(whole - refit(kept, problem))
    return np.array(effects).T
