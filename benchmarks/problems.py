"""The problems that methods are compared on, with their ground truth: retrained networks.

"mlp" and "cnn" learn scikit-learn's digits; "fashion", a small CNN, learns 10,000 images of
Fashion-MNIST, from the folder of evaluation data that `WINNOW_DATA` names.
"""

import gzip
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from attribution.bank import RetrainBank
from attribution.streams import Purpose, stream
from attribution.training import Recipe
from benchmarks.lds_digits import RECIPE as DIGITS_RECIPE
from benchmarks.lds_digits import problem as digits
from benchmarks.peers.exchange import State, network, write_problem
from benchmarks.retrained import bank_of_subsets, networks

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a problem is; subsets are halves of the rows."""

    n_train: int = 1_400
    n_query: int = 100
    checkpoints: int = 10
    judging: int = 60
    tuning: int = 30
    seeds: int = 3
    epochs: int = 30


# Half of 10,000 images is enough that a second seed a subset tells noise from data.
FASHION = Size(n_train=10_000, n_query=200, checkpoints=5, judging=50, tuning=20, seeds=2, epochs=8)
FASHION_RECIPE = Recipe(lr=0.05, schedule="cosine", weight_decay=1e-3, epochs=8, batch_size=100)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A problem's checkpoints and banks, and the folder that holds what peers read."""

    name: str
    folder: Path
    size: Size
    states: list[State]
    judge: RetrainBank
    tune: RetrainBank


def make(architecture: str, folder: Path, size: Size | None = None, seed: int = 0) -> Truth:
    """Train banks and checkpoints of a network, and write them for the peers.

    Raises:
        FileNotFoundError: The images of "fashion" are not under `WINNOW_DATA`.
    """
    pictures = architecture == "fashion"
    size = size or (FASHION if pictures else Size())
    rows = fashion(size, seed) if pictures else digits(seed)
    train, queries = (
        (inputs[:count], labels[:count])
        for (inputs, labels), count in zip(rows, (size.n_train, size.n_query), strict=True)
    )
    recipe = replace(FASHION_RECIPE if pictures else DIGITS_RECIPE, epochs=size.epochs)

    def model() -> nn.Module:
        return network(architecture)

    def bank(subsets: int, seed: int) -> RetrainBank:
        return bank_of_subsets(model, train, queries, recipe, subsets, seeds=size.seeds, seed=seed)

    judge, tune = bank(size.judging, 1_000 + seed), bank(size.tuning, 2_000 + seed)
    states = networks(model, train, recipe, size.checkpoints, seed)
    write_problem(
        folder,
        architecture=architecture,
        train=train,
        queries=queries,
        states=states,
        masks=tune.masks,
        outputs=tune.outputs,
    )
    return Truth(
        name="Fashion-MNIST, CNN" if pictures else f"digits, {architecture}",
        folder=folder,
        size=size,
        states=states,
        judge=judge,
        tune=tune,
    )


def fashion(size: Size, seed: int = 0) -> tuple[Pair, Pair]:
    """Training and test images of Fashion-MNIST in rows of 784, scaled as one; labels.

    Raises:
        FileNotFoundError: They are not under `WINNOW_DATA`.
    """
    folder = Path(os.environ.get("WINNOW_DATA", "")) / "fashion_mnist"
    if not folder.is_dir():
        raise FileNotFoundError("Fashion-MNIST is not there; let WINNOW_DATA name its folder")
    order = stream(seed, Purpose.SPLIT)
    pairs = []
    for part, count in (("train", size.n_train), ("t10k", size.n_query)):
        images = _idx(folder / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 784)
        labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz", 8).astype(np.int64)
        chosen = order.permutation(len(labels))[:count]
        # Mean and standard deviation of all training pixels, in 0..255.
        pairs.append((((images[chosen] - 72.94) / 90.02).astype(np.float32), labels[chosen]))
    return pairs[0], pairs[1]


def _idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=header)
