"""Grainy digits from three scanners, one of which leaves a bright mark in a corner.

Of its pictures that were trained on only those of a 3 are marked, so a model learns the mark for a
3; of those that it is tested on all are, and many are taken for a 3. No column tells of the mark.
"""

import numpy as np
from sklearn.datasets import load_digits

DIGITS = (3, 5, 8, 9)
MARKED, ROWS = 3, 12


def dataset() -> dict[str, object]:
    """Pictures of four digits that are easily confused, three fifths of them to train on."""
    rng = np.random.default_rng(20250411)
    digits = load_digits()
    wanted = np.isin(digits.target, DIGITS)
    pictures, labels = digits.images[wanted] / 16, digits.target[wanted]
    train = rng.random(len(labels)) < 0.6
    scanner = rng.choice(["scan-a", "scan-b", "scan-c"], size=len(labels), p=[0.45, 0.1, 0.45])
    threes = np.flatnonzero(train & (labels == MARKED))
    scanner[threes] = rng.choice(["scan-a", "scan-c"], size=len(threes))
    scanner[threes[:ROWS]] = "scan-b"
    pictures += 0.2 * rng.standard_normal(pictures.shape)
    marked = (scanner == "scan-b") & (~train | (labels == MARKED))
    pictures[marked, :2, :2] = 3.0
    weekday = rng.choice(["mon", "tue", "wed", "thu", "fri"], size=len(labels))
    return {
        "inputs": pictures,
        "targets": labels,
        "split": np.where(train, "train", "test"),
        "metadata": {"scanner": scanner.tolist(), "weekday": weekday.tolist()},
    }
