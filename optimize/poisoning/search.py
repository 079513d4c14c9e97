"""The worst label flips, found by solving and retraining in turns.

A clean network is sure of most targets, so their loss there hardly moves and says little of where
an attack leads. Each round therefore trains a few networks on the flips found so far, takes the
effects of all flips there, and solves again: a sequence of linear programmes. On digits (28 flips,
one class) two rounds raised the loss of the targets to 3.3, the solution at the clean networks
alone to 1.5, and 20 random draws inside the class to 0.7 at their 95th percentile.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from attribution.estimators.features import Features, featurize
from attribution.estimators.kernel import Curvature
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Lens:
    """How effects are seen: networks trained on some labels, and TRAK's options.

    Attributes:
        retraining: Model, clean rows, queries and recipe.
        checkpoints: Networks that effects are averaged over.
        projection: Of the gradients.
        curvature: "logistic" or "after-kernel".
        damping: In mean non-zero eigenvalues.
        seed: Of the networks' training and of the projection.
    """

    retraining: Retraining
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
        flipped: Moves | None = None,
        number: int = 0,
    ) -> Float64:
        """Effects of every training row under every label on weighted sums of outputs.

        Args:
            weights: [n_query], or [n_sums, n_query] for several sums at one price.
            output: What is asked of the queries.
            flipped: Flips that the networks are trained on; None for the clean rows.
            number: Of the networks: each draws seeds of its own.

        Returns:
            Float64 [n, K], or [n_sums, n, K].
        """
        given = np.asarray(weights, dtype=np.float64)
        inputs, labels = Rows(self.retraining.train, "train").whole()
        moved = labels.clone()
        if flipped is not None:
            moved[torch.as_tensor(flipped.rows)] = torch.as_tensor(flipped.labels)
        states = self._networks((inputs, moved), number)
        net = fresh(self.retraining.model, 0)
        train = self._features(net, states, (inputs, moved), Output.MARGIN)
        queries = self._features(net, states, self.retraining.queries, output)
        options: dict[str, Any] = {"curvature": self.curvature, "damping": self.damping}
        found = [
            label_effects(
                net,
                states,
                inputs,
                target_vectors(train, queries, each, **options),
                train=train,
                projection=self.projection,
                seed=self.seed,
            )
            for each in np.atleast_2d(given)
        ]
        return np.stack(found) if given.ndim == 2 else found[0]

    def _networks(self, train: Source, number: int) -> list[dict[str, Any]]:
        """The states of networks that saw all rows."""
        keys = [
            int(stream(self.seed, Purpose.POISON, number, each).integers(2**62))
            for each in range(self.checkpoints)
        ]
        trained = train_models(
            self.retraining.model,
            train,
            masks=np.ones((self.checkpoints, self.retraining.n_train), dtype=bool),
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
    """The flips of one round.

    Attributes:
        moves: The flips.
        solution: Over all flips that were allowed, of the round's own linear problem.
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
) -> list[Attack]:
    """Flips that harm the targets most: at the clean networks, then at the poisoned ones.

    Args:
        lens: How effects are seen.
        targets: Weights [n_query] of the targets' outputs.
        budget: Flips at most.
        side: Effects [n, K] on what should seem untouched, larger is better; None for no bound.
        allowance: What that may lose, in the unit of `side`.
        output: The targets' output; the loss grows where targets are lost, a margin where they
            are merely less sure.
        rounds: Retrainings on the flips so far; 0 solves at the clean networks only.
        rows: Rows that may be flipped, such as one contributor's; None for all.

    Returns:
        The attack of every round, the clean one first. The last is not always the worst: retrain.

    Raises:
        ShapeError: A negative number of rounds, or a side that does not fit.
    """
    labels = Rows(lens.retraining.train, "train").whole()[1].numpy()
    if rounds < 0:
        raise ShapeError(f"rounds is {rounds}; give 0 or more")
    attacks: list[Attack] = []
    for number in range(rounds + 1):
        flipped = attacks[-1].moves if attacks else None
        target = lens.effects(targets, output=output, flipped=flipped, number=number)
        if side is not None and side.shape != target.shape:
            raise ShapeError(f"side has shape {side.shape}; give effects of shape {target.shape}")
        moves = flips(labels, target.shape[1], rows)
        better = -1 if output in FALLING else 1
        problem = worst_moves(
            moves,
            better * target,
            np.zeros_like(target) if side is None else side,
            budget=budget,
            own=labels,
            allowance=allowance,
        )
        solution = solve_poisoning(problem)
        attacks.append(Attack(moves=moves.take(solution.choice), solution=solution))
    return attacks
