"""Certified votes: deep partition aggregation and finite aggregation.

Rows are dealt to cells by a hash of their content; cell h feeds the models (h + s) mod m, s one of
d fixed shifts, and the class with most votes wins, ties going to the lower class. One changed
row touches one cell, hence at most d models, so some number of insertions and deletions cannot
change the vote: the certified radius. d = 1 is DPA (Levine and Feizi 2021), larger d finite
aggregation (Wang et al. 2022).

The certificate holds for what one cell's rows cannot reach: a model is a function of its cells'
rows alone, which are sorted by content, and of a fixed seed. Inputs must not be normalised, and no
option chosen, by looking at the pool. A changed row is a deletion and an insertion, two in all,
unless its hash stays (a flipped label, where labels are not hashed).
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attribution.models import ModelLike
from attribution.streams import Purpose, stream
from attribution.training import Recipe, TrainingPath, predict, train_models
from schemas.errors import ShapeError

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Pair = tuple[npt.NDArray[np.floating], IntArray]

# Paths on which a model never shares a product with another: its bits are its own.
_ALONE = (TrainingPath.COMPILED, TrainingPath.LOOP)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Partition:
    """Who trains on what.

    Attributes:
        cells: Int [n], the cell of each row as given.
        order: Int [n], the rows sorted by content; models must be trained in this order.
        masks: Bool [m, n], the rows of each model, in the order as given.
        shifts: Int [d].
    """

    cells: IntArray
    order: npt.NDArray[np.intp]
    masks: BoolArray
    shifts: IntArray

    @property
    def n_models(self) -> int:
        """Models, which is also the number of cells."""
        return len(self.masks)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Votes:
    """What the models say together.

    Attributes:
        predictions: Int [m, n_query], the class that each model gives.
        classes: Int [n_query], the class that wins.
        radii: Int [n_query], insertions and deletions, together, that cannot change it.
    """

    predictions: IntArray
    classes: IntArray
    radii: IntArray

    def certified_accuracy(self, labels: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Share of queries that are right whatever r rows are changed, for r = 0, 1, ..."""
        right = self.classes == np.asarray(labels)
        reach = np.arange(int(self.radii.max(initial=0)) + 2)
        return np.asarray((right & (self.radii >= reach[:, None])).mean(axis=1))


def partition(
    train: Pair, models: int, *, spread: int = 1, hash_labels: bool = False, seed: int = 0
) -> Partition:
    """Deal the rows to cells by their content.

    Args:
        train: Inputs [n, ...] and labels [n].
        models: k of the papers: each model sees about a k-th of the rows. There are k * spread
            models and cells.
        spread: d, the models that see a row; 1 is DPA.
        hash_labels: Whether a row's label decides its cell too. Without it a flipped label stays in
            its cell, and is one change instead of two.
        seed: Of the shifts, which must not depend on the rows.

    Raises:
        ShapeError: The numbers are not positive, or inputs and labels differ in length.
    """
    inputs, labels = (np.asarray(part) for part in train)
    if len(inputs) != len(labels) or len(inputs) == 0 or min(models, spread) < 1:
        raise ShapeError(
            f"{len(inputs)} inputs, {len(labels)} labels, {models} models and spread {spread}; "
            "give a label for each input, and 1 or more of all"
        )
    total = models * spread
    content = [_digest(row) for row in inputs]
    named = [own + _digest(label) for own, label in zip(content, labels, strict=True)]
    hashed = named if hash_labels else content
    cells = np.array(
        [int.from_bytes(hashlib.sha256(own).digest()[:8]) % total for own in hashed],
        dtype=np.int64,
    )
    shifts = np.zeros(1, dtype=np.int64)
    if spread > 1:
        shifts = np.sort(stream(seed, Purpose.FOLDS, total).choice(total, spread, replace=False))
    masks = np.zeros((total, len(labels)), dtype=bool)
    for shift in shifts:
        masks[(cells + shift) % total, np.arange(len(labels))] = True
    order = np.array(sorted(range(len(named)), key=named.__getitem__), dtype=np.intp)
    return Partition(cells=cells, order=order, masks=masks, shifts=shifts)


def train_votes(
    model: ModelLike,
    train: Pair,
    dealt: Partition,
    queries: npt.NDArray[np.floating],
    training: Recipe,
    *,
    n_classes: int,
    seed: int = 0,
    device: str = "auto",
) -> Votes:
    """Train every model on its cells and count votes.

    A model without rows votes for class 0, as a function of nothing but its rows must. Where
    models would share products, whose rounding depends on the company, each is trained alone.

    Args:
        model: A module (re-initialised) or a factory.
        train: As they were dealt.
        dealt: `partition` of these rows.
        queries: Inputs [n_query, ...].
        training: The recipe.
        n_classes: Classes K.
        seed: Key of the models' seeds.
        device: auto, cpu or cuda.

    Raises:
        ShapeError: Rows and partition do not fit.
        TrainingDiverged: A loss became NaN or infinite.
    """
    if len(train[1]) != len(dealt.order):
        raise ShapeError(f"{len(dealt.order)} rows were dealt and {len(train[1])} are given")
    rows = tuple(np.asarray(part)[dealt.order] for part in train)
    masks = dealt.masks[:, dealt.order]
    used = np.flatnonzero(masks.any(axis=1))
    predictions = np.zeros((dealt.n_models, len(queries)), dtype=np.int64)

    def fill(part: npt.NDArray[np.intp]) -> TrainingPath:
        trained = train_models(
            model,
            (rows[0], rows[1]),
            masks=masks[part],
            seeds=[int(stream(seed, Purpose.FOLDS, m, 0).integers(2**62)) for m in part.tolist()],
            training=training,
            device=device,
        )
        for place, number in enumerate(part.tolist()):
            own = {name: value[place : place + 1] for name, value in trained.states.items()}
            logits = predict(model, own, queries, device=device)
            predictions[number] = logits[0].argmax(dim=-1).numpy()
        return trained.path

    together = len(used) > 0 and fill(used[:1]) in _ALONE
    for part in [used[1:]] if together else np.split(used[1:], np.arange(1, len(used[1:]))):
        if len(part):
            fill(part)
    return count_votes(predictions, n_classes, dealt.shifts)


def count_votes(predictions: npt.ArrayLike, n_classes: int, shifts: npt.ArrayLike = (0,)) -> Votes:
    """The winning class of each query and its certified radius, over every other class.

    For a rival c the margin is n_y - n_c - 1[c < y], and taking over cell h costs it at most
    delta_h = sum over its models of 1 + 1[vote = y] - 1[vote = c]. The radius is how many of the
    largest delta_h fit into the margin of the nearest rival.

    Args:
        predictions: Int [m, n_query].
        n_classes: Classes K, those without a vote included: they are rivals too.
        shifts: Those of the partition; [0] for DPA.

    Raises:
        ShapeError: A vote is outside 0..K-1.
    """
    votes, steps = np.asarray(predictions, dtype=np.int64), np.asarray(shifts, dtype=np.int64)
    if votes.ndim != 2 or votes.size == 0 or votes.min() < 0 or votes.max() >= n_classes:
        raise ShapeError(
            f"predictions have shape {votes.shape}; give classes 0..{n_classes - 1} [m, n_query]"
        )
    counts = (votes[:, :, None] == np.arange(n_classes)).sum(axis=0)
    winner = counts.argmax(axis=1)  # the lower class where counts tie
    own = votes == winner
    most = counts.max(axis=1)
    radii = np.full(len(winner), len(votes))
    for rival in range(n_classes):
        harm = 1 + own.astype(np.int64) - (votes == rival)
        of_cell = sum(np.roll(harm, -shift, axis=0) for shift in steps.tolist())
        spent = np.cumsum(-np.sort(-np.asarray(of_cell), axis=0), axis=0)
        margin = most - counts[:, rival] - (rival < winner)
        fits = (spent <= margin).sum(axis=0)
        radii = np.where(winner == rival, radii, np.minimum(radii, fits))
    return Votes(predictions=votes, classes=winner, radii=radii)


def _digest(value: npt.NDArray[np.generic]) -> bytes:
    array = np.ascontiguousarray(value)
    header = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(header + array.tobytes()).digest()
