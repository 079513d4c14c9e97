"""The worst label flips or insertions, found by solving and retraining in turns.

A clean network is sure of most targets, so their loss there hardly moves and says little of where
an attack leads. Each round therefore trains a few networks on the moves found so far, takes the
effects of all moves there, and solves again: a sequence of linear programmes. On digits (28 flips,
one class) two rounds raised the loss of the targets to 3.3, the solution at the clean networks
alone to 1.5, and 20 random draws inside the class to 0.7 at their 95th percentile.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from attribution.estimators.features import Features, featurize
from attribution.estimators.kernel import Curvature
from attribution.estimators.shortcuts import parameter_directions
from attribution.models import fresh
from attribution.outputs import FALLING, Output
from attribution.projection import Projection
from attribution.retraining import Retraining
from attribution.rows import Rows, Source
from attribution.streams import Purpose, stream
from attribution.training import train_models
from optimize.poisoning.effects import label_effects, target_vectors
from optimize.poisoning.moves import Moves, flips, worst_moves
from optimize.poisoning.problem import solve_poisoning
from optimize.problem import Solution
from schemas.errors import ShapeError

Float64 = npt.NDArray[np.float64]
# Networks that were trained on some moves (None: on the clean rows), for the lens of this number.
Networks = Callable[[Moves | None, int], list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sight:
    """What a lens shows at networks of some training rows.

    Attributes:
        net: The model, with no weights that matter.
        states: State dicts of the networks.
        rows: Inputs and labels that they were trained on.
        train: Features of the rows, one item a network.
        queries: Features of the queries, likewise.
    """

    net: nn.Module
    states: list[dict[str, Any]]
    rows: tuple[Any, torch.Tensor]
    train: list[Features]
    queries: list[Features]


@dataclass(frozen=True, kw_only=True, eq=False)
class Lens:
    """How effects are seen: networks trained on some rows, and TRAK's options.

    Attributes:
        retraining: Model, clean rows, queries and recipe.
        pool: Inputs [m, ...] that may be inserted under any label; None: training rows are flipped.
        networks: Where networks come from that others train and keep; None trains them here.
        checkpoints: Networks that effects are averaged over.
        projection: Of the gradients.
        curvature: "logistic" or "after-kernel".
        damping: In mean non-zero eigenvalues.
        seed: Of the networks' training and of the projection.
    """

    retraining: Retraining
    pool: npt.NDArray[np.floating] | None = None
    networks: Networks | None = None
    checkpoints: int = 5
    projection: Projection = field(default_factory=Projection)
    curvature: str = Curvature.LOGISTIC
    damping: float = 1.0
    seed: int = 0

    def effects(
        self,
        weights: npt.ArrayLike,
        *,
        output: str = Output.MARGIN,
        moves: Moves | None = None,
        number: int = 0,
    ) -> Float64:
        """Effects of every row that may be moved, under every label, on weighted sums of outputs.

        Args:
            weights: [n_query], or [n_sums, n_query] for several sums at one price.
            output: What is asked of the queries.
            moves: Moves that the networks are trained on; None for the clean rows.
            number: Of the networks: each draws seeds of its own.

        Returns:
            Float64 [n, K] for flips, [m, K] for insertions from the pool; or [n_sums, ..., K].
        """
        given = np.asarray(weights, dtype=np.float64)
        seen = self.look(output=output, moves=moves, number=number)
        found = [
            label_effects(
                seen.net,
                seen.states,
                seen.rows[0] if self.pool is None else self.pool,
                self._vectors(seen, each),
                train=seen.train,
                projection=self.projection,
                seed=self.seed,
            )
            for each in np.atleast_2d(given)
        ]
        return np.stack(found) if given.ndim == 2 else found[0]

    def look(
        self, *, output: str = Output.MARGIN, moves: Moves | None = None, number: int = 0
    ) -> "Sight":
        """Networks trained on some moves, and the features that effects are made of there.

        Args:
            output: What is asked of the queries.
            moves: Moves that the networks are trained on; None for the clean rows.
            number: Of the networks: each draws seeds of its own.
        """
        rows = self._moved(moves)
        states = self.networks(moves, number) if self.networks else self._networks(rows, number)
        net = fresh(self.retraining.model, 0)
        return Sight(
            net=net,
            states=states,
            rows=rows,
            train=self._features(net, states, rows, Output.MARGIN),
            queries=self._features(net, states, self.retraining.queries, output),
        )

    def directions(self, seen: "Sight", weights: npt.ArrayLike) -> list[torch.Tensor]:
        """Where training on what raises a weighted sum of outputs pulls the parameters, [p] each.

        Args:
            seen: What was seen.
            weights: [n_query].
        """
        return parameter_directions(
            seen.net,
            seen.states,
            seen.rows[0],
            self._vectors(seen, weights),
            train=seen.train,
            projection=self.projection,
            seed=self.seed,
        )

    def _vectors(self, seen: "Sight", weights: npt.ArrayLike) -> list[torch.Tensor]:
        options: dict[str, Any] = {"curvature": self.curvature, "damping": self.damping}
        return target_vectors(seen.train, seen.queries, weights, **options)

    def own_labels(self) -> npt.NDArray[np.int64] | None:
        """The labels [n] that flips take away; None where rows are inserted."""
        return None if self.pool is not None else self._clean()[1].numpy()

    def every_move(self, n_classes: int, rows: npt.ArrayLike | None = None) -> Moves:
        """Every flip of some rows, or every insertion of some rows of the pool under any label.

        Args:
            n_classes: Classes K.
            rows: Training rows, or rows of the pool; None for all.
        """
        own = self.own_labels()
        if own is not None:
            return flips(own, n_classes, rows)
        assert self.pool is not None  # noqa: S101
        allowed = np.arange(len(self.pool)) if rows is None else np.asarray(rows)
        labels = np.tile(np.arange(n_classes), len(allowed))
        return Moves(rows=np.repeat(allowed, n_classes), labels=labels)

    def _clean(self) -> tuple[Any, torch.Tensor]:
        return Rows(self.retraining.train, "train").whole()

    def _moved(self, moves: Moves | None) -> tuple[Any, torch.Tensor]:
        """The training rows after some moves."""
        inputs, labels = self._clean()
        if moves is None:
            return inputs, labels
        given = torch.as_tensor(moves.labels)
        if self.pool is not None:
            added = torch.as_tensor(np.array(self.pool[moves.rows])).to(inputs)
            return torch.cat([inputs, added]), torch.cat([labels, given])
        places, moved = torch.as_tensor(moves.rows), labels.clone()
        moved[places] = given
        if moves.inputs is None:
            return inputs, moved
        return inputs.index_copy(0, places, torch.as_tensor(moves.inputs).to(inputs)), moved

    def _networks(self, train: tuple[Any, torch.Tensor], number: int) -> list[dict[str, Any]]:
        """The states of networks that saw all rows."""
        keys = [
            int(stream(self.seed, Purpose.POISON, number, each).integers(2**62))
            for each in range(self.checkpoints)
        ]
        trained = train_models(
            self.retraining.model,
            train,
            masks=np.ones((self.checkpoints, len(train[1])), dtype=bool),
            seeds=keys,
            training=self.retraining.training,
            device=self.retraining.device,
        )
        return [dict(trained.state(each)) for each in range(self.checkpoints)]

    def _features(
        self, net: nn.Module, states: list[dict[str, Any]], rows: Source, output: str
    ) -> list[Features]:
        return [
            featurize(
                net,
                state,
                rows,
                output=output,
                task=self.retraining.kind,
                projection=self.projection,
                seed=self.seed,
                checkpoint=number,
            )
            for number, state in enumerate(states)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """The moves of one round.

    Attributes:
        moves: The flips or insertions.
        solution: Over all moves that were allowed, of the round's own linear problem.
    """

    moves: Moves
    solution: Solution


def worst_flips(
    lens: Lens,
    targets: npt.ArrayLike,
    *,
    budget: int,
    side: Float64 | None = None,
    allowance: float = np.inf,
    output: str = Output.LOSS,
    rounds: int = 2,
    rows: npt.ArrayLike | None = None,
    clean: Float64 | None = None,
) -> list[Attack]:
    """Flips that harm the targets most: at the clean networks, then at the poisoned ones.

    With a lens that has a pool they are insertions from it, under any label.

    Args:
        lens: How effects are seen.
        targets: Weights [n_query] of the targets' outputs.
        budget: Moves at most.
        side: Effects [n, K] on what should seem untouched, larger is better; None for no bound.
        allowance: What that may lose, in the unit of `side`.
        output: The targets' output; the loss grows where targets are lost, a margin where they
            are merely less sure.
        rounds: Retrainings on the moves so far; 0 solves at the clean networks only.
        rows: Rows that may be moved, such as one contributor's; None for all.
        clean: Effects on the targets at the clean networks, where they are known already.

    Returns:
        The attack of every round, the clean one first. The last is not always the worst: retrain.

    Raises:
        ShapeError: A negative number of rounds, or a side that does not fit.
    """
    if rounds < 0:
        raise ShapeError(f"rounds is {rounds}; give 0 or more")
    attacks: list[Attack] = []
    for number in range(rounds + 1):
        before = attacks[-1].moves if attacks else None
        if number == 0 and clean is not None:
            target = clean
        else:
            target = lens.effects(targets, output=output, moves=before, number=number)
        if side is not None and side.shape != target.shape:
            raise ShapeError(f"side has shape {side.shape}; give effects of shape {target.shape}")
        moves = lens.every_move(target.shape[1], rows)
        better = -1 if output in FALLING else 1
        problem = worst_moves(
            moves,
            better * target,
            np.zeros_like(target) if side is None else side,
            budget=budget,
            own=lens.own_labels(),
            allowance=allowance,
        )
        solution = solve_poisoning(problem)
        attacks.append(Attack(moves=moves.take(solution.choice), solution=solution))
    return attacks
