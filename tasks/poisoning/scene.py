"""Where an attack plays: labels, moves, aggregates, and models of poisoned rows.

A poisoned model is named by its rows like any retraining, a row under another label or with other
inputs being another row; so none is trained twice, and a killed run goes on. What is trained here
is never written to the bank's own rows: no mask over the training rows describes it.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import InfeasibleProblem
from schemas.methods import FALLING
from schemas.spec import PoisonSpec, TrakSpec
from tasks.bank import CHUNK_MODELS, TrainingRows, accuracy_of, logits_of, outputs_of, retrained
from tasks.bank import states_of as weights_of
from tasks.blueprint import Blueprint
from tasks.sets import IntArray

if TYPE_CHECKING:
    from optimize.poisoning.clean_label import Ball
    from optimize.poisoning.moves import Moves
    from optimize.poisoning.problem import Poisoning
    from optimize.poisoning.search import Lens

Float64 = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

# What an attack is to raise; a mean margin falls as far where every target is merely less sure.
LOSS = "loss"
# Of the streams of one poisoning: what each is drawn for.
NETWORKS, SETS, MODELS, SCREENS = range(4)


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What some models say: means over rows, float64 [m] each.

    Attributes:
        targets: Output of the targets.
        loss: Cross-entropy of the targets.
        elsewhere: Output of the other judging rows.
        targets_right: Share of the targets that are classified rightly.
        elsewhere_right: The same of the others.
    """

    targets: Float64
    loss: Float64
    elsewhere: Float64
    targets_right: Float64
    elsewhere_right: Float64


class Scene:
    """One problem of kind poison on the rows of a plan.

    Args:
        plan: The blueprint.
        problem: The problem.

    Raises:
        RequestError: The rows do not fit the problem.
    """

    def __init__(self, plan: Blueprint, problem: PoisonSpec) -> None:
        self.plan, self.problem, self.reach = plan, problem, plan.problems.reach(problem)
        attribution = plan.spec.attribution_named(problem.uses)
        if not isinstance(attribution, TrakSpec):  # the spec refuses it
            raise InfeasibleProblem(f"problem '{problem.name}' needs an attribution by 'trak'")
        self.attribution = attribution
        self.output = plan.output(attribution)
        self.better = -1 if self.output in FALLING else 1
        dataset = plan.dataset
        self.labels: IntArray = np.array(dataset.train.targets)
        self.n_classes = len(dataset.classes)
        self.inserts, self.moves_inputs = problem.move == "insert", problem.moves_inputs
        places = self.reach.places
        # Moves name rows of the pool where rows are inserted, else training rows.
        self.movable: IntArray = np.arange(len(places)) if self.inserts else places
        self.labels_before: IntArray = dataset.targets[places] if self.inserts else self.labels
        self.asked: IntArray = np.union1d(self.reach.targets, self.reach.elsewhere)

    # --- rows -------------------------------------------------------------------------------------

    @property
    def own(self) -> IntArray | None:
        """The labels that flips take away; None of insertions, which take none."""
        return None if self.inserts else self.labels

    @functools.cached_property
    def train(self) -> tuple[NDArray[Any], IntArray]:
        """The clean training rows."""
        return np.array(self.plan.dataset.train.inputs), self.labels

    @functools.cached_property
    def pool(self) -> NDArray[Any] | None:
        """Inputs that may be inserted; None where labels are flipped."""
        return np.array(self.plan.dataset.inputs[self.reach.places]) if self.inserts else None

    @functools.cached_property
    def ball(self) -> "Ball":
        """How far inputs may move; only moves of inputs have a radius."""
        from optimize.poisoning.clean_label import Ball

        radius, valid = self.problem.radius, self.problem.valid
        if radius is None:  # the spec refuses it
            raise InfeasibleProblem(f"problem '{self.problem.name}' has no radius; give one")
        if valid is None:
            return Ball.within(self.train[0], radius)
        return Ball(radius=radius, low=valid[0], high=valid[1])

    def place_of(self, moves: "Moves") -> IntArray:
        """The place of each move's row among all rows of the data set."""
        return self.reach.places[moves.rows] if self.inserts else moves.rows

    def rows_of(self, sets: "Sequence[Moves | None]") -> tuple[TrainingRows, BoolArray]:
        """The clean rows and all candidates of some sets, and each set's mask of them."""
        from optimize.poisoning.moves import Moves, Universe

        none = Moves(rows=np.empty(0, np.int64), labels=np.empty(0, np.int64))
        given = [none if each is None else each for each in sets]
        if self.moves_inputs:
            universe = Universe.of_perturbations(self.train, given)
        elif self.pool is None:
            universe = Universe.of_flips(self.train, given)
        else:
            universe = Universe.of_insertions(self.train, self.pool, given)
        clean = self.plan.data.digests[: self.plan.n_train]
        digests = (*clean, *self._digests(universe.candidates))
        return TrainingRows(*universe.train, digests), universe.masks

    def _digests(self, moves: "Moves") -> list[str]:
        """What names each moved row."""
        data, labels = self.plan.data, moves.labels.tolist()
        if moves.inputs is not None:
            pairs = zip(moves.inputs, labels, strict=True)
            return [data.digest_of_moved(own, label) for own, label in pairs]
        places = self.place_of(moves).tolist()
        return [data.digest_under(*pair) for pair in zip(places, labels, strict=True)]

    def poisoned(self, moves: "Moves") -> tuple[TrainingRows, BoolArray]:
        """The rows after some moves alone, and which of them are poisoned: bool [n]."""
        rows, (mask,) = self.rows_of([moves])
        kept = np.flatnonzero(mask)
        digests = [rows.digests[place] for place in kept.tolist()]
        own = TrainingRows(rows.inputs[mask], rows.targets[mask], digests)
        return own, kept >= len(self.labels)

    def random(self, budget: int, rng: np.random.Generator, *, inside: bool = False) -> "Moves":
        """Moves without a plan: rows that may be moved, each to a label that is not its own.

        Where inputs move, each to a random corner of the ball.

        Inside the classes of the targets first, if so asked: where these have too few rows, all of
        them and others.
        """
        from optimize.poisoning.clean_label import random_inputs
        from optimize.poisoning.moves import Moves, joined, random_flips

        def drawn(rows: IntArray, count: int) -> Moves:
            if self.moves_inputs:
                return random_inputs(self.train, self.ball, count, rng, rows=rows)
            return random_flips(self.labels_before, self.n_classes, count, rng, rows=rows)

        if not inside:
            return drawn(self.movable, budget)
        own = np.isin(self.labels_before[self.movable], self.reach.classes)
        first = drawn(self.movable[own], min(budget, int(own.sum())))
        rest = drawn(self.movable[~own], budget - len(first))
        return joined([first, rest])

    # --- models -----------------------------------------------------------------------------------

    def seeds(self, *key: int, count: int) -> IntArray:
        """So many training seeds of this problem's own."""
        from attribution.streams import SEED_LIMIT, Purpose, stream

        streams = (stream(self.plan.spec.seed, Purpose.POISON, *key, each) for each in range(count))
        return np.array([each.integers(SEED_LIMIT) for each in streams], dtype=np.int64)

    def models(
        self, sets: "Sequence[Moves | None]", seeds: IntArray, *, weights: bool = False
    ) -> list[str]:
        """Names of one model for each set (None: the clean rows) and seed, trained where missing.

        Args:
            sets: [m].
            seeds: [m].
            weights: Keep their weights, for `states`.
        """
        names = []
        for start in range(0, len(sets), CHUNK_MODELS):
            part = slice(start, start + CHUNK_MODELS)
            rows, masks = self.rows_of(sets[part])
            names += retrained(self.plan, masks, seeds[part], weights=weights, rows=rows)
        return names

    def states(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The weights of models that were asked for with them."""
        stack = weights_of(self.plan, names)
        return [{key: values[each] for key, values in stack.items()} for each in range(len(names))]

    def seen(self, names: Sequence[str]) -> Seen:
        """What models say of the targets and of the others."""
        plan, reach = self.plan, self.reach
        logits = logits_of(plan, names)

        def mean(ids: IntArray, output: str) -> Float64:
            return outputs_of(plan, logits, ids, output).mean(axis=1, dtype=np.float64)

        return Seen(
            targets=mean(reach.targets, self.output),
            loss=mean(reach.targets, LOSS),
            elsewhere=mean(reach.elsewhere, self.output),
            targets_right=accuracy_of(plan, logits, reach.targets),
            elsewhere_right=accuracy_of(plan, logits, reach.elsewhere),
        )

    def taken(self, names: Sequence[str]) -> Float64 | None:
        """Share of the targets that each model takes for the wanted class [m]; None without one."""
        plan, wanted = self.plan, self.reach.taken_for
        if wanted is None:
            return None
        places = plan.dataset.positions(self.reach.targets) - plan.n_train
        said = logits_of(plan, names)[:, places].argmax(axis=-1) == wanted
        return np.asarray(said.mean(axis=1))

    def damage(self, change: Sequence[float]) -> list[float]:
        """A change of an output, (mean, low, high), as damage: > 0 is worse."""
        mean, low, high = (-self.better * value for value in change)
        return [mean, min(low, high), max(low, high)]

    # --- effects ----------------------------------------------------------------------------------

    @functools.cached_property
    def lens(self) -> "Lens":
        """Through what effects of labels are seen: TRAK as the attribution has it."""
        from attribution.projection import Projection
        from attribution.retraining import Retraining
        from optimize.poisoning.search import Lens

        plan, asked = self.plan, self.plan.dataset.subset(self.asked)
        damping: Any = plan.sealed("scores", plan.scores.key(self.attribution)).facts["damping"]
        return Lens(
            retraining=Retraining(
                model=plan.build_model,
                train=self.train,
                queries=(np.array(asked.inputs), asked.targets),
                training=plan.training.recipe(),
                device=plan.spec.compute.device,
            ),
            pool=self.pool,
            networks=self._networks,
            checkpoints=self.problem.checkpoints,
            projection=Projection(**self.attribution.projection.model_dump()),
            curvature=self.attribution.curvature,
            damping=float(damping),
            seed=plan.spec.seed,
        )

    def _networks(self, moves: "Moves | None", number: int) -> list[dict[str, Any]]:
        count = self.problem.checkpoints
        seeds = self.seeds(NETWORKS, number, count=count)
        return self.states(self.models([moves] * count, seeds, weights=True))

    def mean_over(self, ids: IntArray) -> Float64:
        """Weights of the queries [n_asked] that make the mean over some of them."""
        return np.isin(self.asked, ids) / len(ids)

    def worst(
        self, target: Float64, side: Float64, *, budget: int, allowance: float
    ) -> "tuple[Moves, Poisoning]":
        """Every move that may be made, and the problem of choosing the worst of them.

        Args:
            target: Effects of rows under labels on the targets' mean output.
            side: The same elsewhere.
            budget: Moves at most.
            allowance: What may be lost elsewhere, in the unit of the effects.
        """
        from optimize.poisoning.moves import worst_moves

        moves = self.lens.every_move(self.n_classes, self.movable)
        sides = (self.better * target, self.better * side)
        return moves, worst_moves(moves, *sides, budget=budget, own=self.own, allowance=allowance)
