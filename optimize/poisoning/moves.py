"""Moves: labels or inputs put on rows, as problems, as random baselines, and as training sets.

A flip moves the label of a training row, a perturbation its inputs; an insertion adds a candidate.
To train many poisoned models as one, every candidate is a further row of one enlarged training set,
its universe, and a poisoned model is a mask of it: without the rows that are moved, with their
moved copies. Banks, surrogates and LDS then need nothing new.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optimize.poisoning.problem import Poisoning
from schemas.errors import InfeasibleProblem, ShapeError

Float64 = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Labels put on rows, and inputs where these are moved.

    Attributes:
        rows: Int [n_moves], rows of the training set, or of the pool that is inserted from.
        labels: Int [n_moves], the label each gets.
        inputs: [n_moves, ...], the inputs each gets; None where they stay as they are.

    Raises:
        ShapeError: They are not as many of one as of the other.
    """

    rows: IntArray
    labels: IntArray
    inputs: npt.NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        rows, labels = np.asarray(self.rows), np.asarray(self.labels)
        if rows.ndim != 1 or rows.shape != labels.shape:
            raise ShapeError(
                f"moves have rows of shape {rows.shape} and labels of shape {labels.shape}; give "
                "one label for each row"
            )
        if self.inputs is not None and len(self.inputs) != len(rows):
            raise ShapeError(
                f"moves have {len(rows)} rows and {len(self.inputs)} inputs; give one for each row"
            )
        object.__setattr__(self, "rows", rows.astype(np.int64))
        object.__setattr__(self, "labels", labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: npt.ArrayLike) -> "Moves":
        """Some of the moves, by position or by a mask such as `Solution.choice`."""
        places = np.asarray(chosen)
        inputs = None if self.inputs is None else self.inputs[places]
        return Moves(rows=self.rows[places], labels=self.labels[places], inputs=inputs)

    def keys(self) -> list[tuple[int, int, bytes]]:
        """What tells moves apart: row, label, and the bytes of moved inputs."""
        count = len(self)
        texts = [b""] * count if self.inputs is None else [own.tobytes() for own in self.inputs]
        return list(zip(self.rows.tolist(), self.labels.tolist(), texts, strict=True))

    def gains(self, effects: Float64, own: npt.ArrayLike | None = None) -> Float64:
        """What each move adds to an aggregate, from `label_effects` [n, K]: float64 [n_moves].

        Args:
            effects: Effect of training on each row under each label.
            own: The labels [n] that flips take away; None for insertions, which take none.
        """
        gained = effects[self.rows, self.labels]
        if own is None:
            return gained
        return gained - effects[self.rows, np.asarray(own)[self.rows]]


def joined(sets: Sequence[Moves]) -> Moves:
    """All moves of some sets, one after the other; a set without moves says nothing of inputs.

    Raises:
        ShapeError: Some sets move inputs and some do not.
    """
    parts = [one for one in sets if len(one)]
    inputs = [one.inputs for one in parts if one.inputs is not None]
    if inputs and len(inputs) < len(parts):
        raise ShapeError("some sets move inputs and some do not; train them apart")
    none = [np.empty(0, np.int64)]
    return Moves(
        rows=np.concatenate([one.rows for one in parts] or none),
        labels=np.concatenate([one.labels for one in parts] or none),
        inputs=np.concatenate(inputs) if inputs else None,
    )


def flips(labels: npt.ArrayLike, n_classes: int, rows: npt.ArrayLike | None = None) -> Moves:
    """Every flip of some rows to every other class.

    Args:
        labels: Int [n], the labels of the training set.
        n_classes: Classes K.
        rows: Rows that may be flipped; None for all.
    """
    own = np.asarray(labels)
    allowed = np.arange(len(own)) if rows is None else np.asarray(rows)
    shift = np.arange(1, n_classes)
    moved = (own[allowed][:, None] + shift) % n_classes
    return Moves(rows=np.repeat(allowed, n_classes - 1), labels=moved.ravel())


def worst_moves(
    moves: Moves,
    target: Float64,
    side: Float64,
    *,
    budget: int,
    own: npt.ArrayLike | None = None,
    allowance: float = np.inf,
) -> Poisoning:
    """The problem of harming a target most, from effects of rows under labels.

    Args:
        moves: Flips, or insertions of candidates.
        target: `label_effects` [n, K] on the weighted mean output of the targets, a loss's negated.
        side: The same on everything else.
        budget: Moves at most.
        own: The labels that flips take away; None for insertions.
        allowance: What everything else may lose, in the unit of `side`.
    """
    return Poisoning(
        damage=-moves.gains(target, own),
        side=moves.gains(side, own),
        rows=moves.rows,
        budget=budget,
        allowance=allowance,
    )


def random_flips(
    labels: npt.ArrayLike,
    n_classes: int,
    budget: int,
    rng: np.random.Generator,
    *,
    inside: int | None = None,
    rows: npt.ArrayLike | None = None,
) -> Moves:
    """Flips of random rows to random other classes: what no plan at all would do.

    Args:
        labels: Int [n].
        n_classes: Classes K.
        budget: Rows to flip.
        rng: Where they are drawn from.
        inside: The class whose rows are flipped; None for rows of any class.
        rows: Rows that may be flipped; None for all.

    Raises:
        InfeasibleProblem: There are fewer rows than the budget.
    """
    own = np.asarray(labels)
    pool = np.arange(len(own)) if rows is None else np.asarray(rows)
    if inside is not None:
        pool = pool[own[pool] == inside]
    if budget > len(pool):
        raise InfeasibleProblem(f"{budget} flips are asked of {len(pool)} rows; ask for fewer")
    drawn = rng.choice(pool, budget, replace=False)
    return Moves(rows=drawn, labels=(own[drawn] + rng.integers(1, n_classes, budget)) % n_classes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Universe:
    """A training set enlarged by candidates, and the poisoned sets as masks of it.

    Candidates are in order of their rows, labels and inputs: the rows of a mask, and so the model
    trained on them, do not depend on what other sets there are.

    Attributes:
        train: Inputs [n + n_candidates, ...] and targets, the clean rows first.
        masks: Bool [n_sets, n + n_candidates], one poisoned training set each.
        clean: Bool [n + n_candidates], the training set as it was.
        candidates: The moves behind the rows after the clean ones.
    """

    train: tuple[npt.NDArray[np.floating], IntArray]
    masks: BoolArray
    clean: BoolArray
    candidates: Moves

    @classmethod
    def of_flips(
        cls, train: tuple[npt.NDArray[np.floating], IntArray], sets: Sequence[Moves]
    ) -> "Universe":
        """The universe of some sets of flips.

        Raises:
            ShapeError: A set flips a row twice, or not at all.
        """
        inputs, labels = train
        for number, one in enumerate(sets):
            if len(np.unique(one.rows)) < len(one) or (one.labels == labels[one.rows]).any():
                raise ShapeError(f"set {number} flips a row twice or to its own label; flip once")
        universe = cls._enlarged(train, inputs, sets)
        for mask, one in zip(universe.masks, sets, strict=True):
            mask[one.rows] = False
        return universe

    @classmethod
    def of_perturbations(
        cls, train: tuple[npt.NDArray[np.floating], IntArray], sets: Sequence[Moves]
    ) -> "Universe":
        """The universe of some sets of moved inputs, their labels kept.

        Raises:
            ShapeError: A set moves a row twice, or its label.
        """
        inputs, labels = train
        for number, one in enumerate(sets):
            if len(np.unique(one.rows)) < len(one) or (one.labels != labels[one.rows]).any():
                raise ShapeError(f"set {number} moves a row twice or its label; move inputs once")
        universe = cls._enlarged(train, inputs, sets)
        for mask, one in zip(universe.masks, sets, strict=True):
            mask[one.rows] = False
        return universe

    @classmethod
    def of_insertions(
        cls,
        train: tuple[npt.NDArray[np.floating], IntArray],
        pool: npt.NDArray[np.floating],
        sets: Sequence[Moves],
    ) -> "Universe":
        """The universe of some sets of insertions from a pool of inputs."""
        return cls._enlarged(train, pool, sets)

    @classmethod
    def _enlarged(
        cls,
        train: tuple[npt.NDArray[np.floating], IntArray],
        pool: npt.NDArray[np.floating],
        sets: Sequence[Moves],
    ) -> "Universe":
        inputs, labels = train
        n = len(labels)
        keys = [one.keys() for one in sets]
        every = sorted({key for own in keys for key in own})
        places = {key: n + place for place, key in enumerate(every)}
        columns = [[places[key] for key in own] for own in keys]
        candidates = joined(sets).take(_firsts(keys, every))
        clean = np.arange(n + len(candidates)) < n
        masks = np.tile(clean, (len(sets), 1))
        for mask, own in zip(masks, columns, strict=True):
            mask[own] = True
        moved = candidates.inputs
        return cls(
            train=(
                np.concatenate([inputs, pool[candidates.rows] if moved is None else moved]),
                np.concatenate([labels, candidates.labels]),
            ),
            masks=masks,
            clean=clean,
            candidates=candidates,
        )

    def effects(self, of_train: Float64, of_pool: Float64 | None = None) -> Float64:
        """`label_effects` as scores of the universe's rows, float64 [n + n_candidates].

        Args:
            of_train: Effects of the training rows [n, K].
            of_pool: Effects of the pool [m, K] that is inserted from; None for flips.
        """
        n = int(self.clean.sum())
        source = of_train if of_pool is None else of_pool
        own = of_train[np.arange(n), self.train[1][:n]]
        return np.concatenate([own, source[self.candidates.rows, self.candidates.labels]])


def _firsts(
    keys: Sequence[Sequence[tuple[int, int, bytes]]], every: Sequence[tuple[int, int, bytes]]
) -> IntArray:
    """Where each key comes first among those of all sets, joined."""
    first: dict[tuple[int, int, bytes], int] = {}
    for place, key in enumerate(key for own in keys for key in own):
        first.setdefault(key, place)
    return np.array([first[key] for key in every], dtype=np.int64)
