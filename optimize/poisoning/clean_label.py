"""Moved inputs as attacks: which rows, how far, and random ones of the same size beside them.

Labels stay. `worst_inputs` moves the rows whose inputs matter most for the targets, and `moved_on`
goes on from there, a step at a time, at networks trained on what was moved so far; so the attack
follows what training does (Koh and Liang 2017). `matching_inputs` moves rows of the class that
targets should be taken for.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from attribution.outputs import FALLING, Output
from attribution.rows import Rows
from optimize.poisoning.moves import Moves
from optimize.poisoning.perturbation import Perturbed, match_gradients, perturb
from optimize.poisoning.search import Lens, Sight
from schemas.errors import InfeasibleProblem

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]

# Rows that are moved for each that is kept: those that gain most by one step to the edge.
_SHORTLIST = 3
# Share of the radius that a step goes on.
STEP = 0.25
# Rows at a time: their graph is kept for a derivative of a derivative.
_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Ball:
    """How far inputs may be moved.

    Attributes:
        radius: Largest change of a coordinate, in the unit of the inputs as the model sees them.
        low: Least valid value, one for all coordinates or for each.
        high: Largest valid value.
    """

    radius: float
    low: npt.ArrayLike = -np.inf
    high: npt.ArrayLike = np.inf

    @classmethod
    def within(cls, inputs: FloatArray, radius: float) -> "Ball":
        """One whose valid range is what some inputs [n, ...] span, coordinate by coordinate."""
        return cls(radius=radius, low=inputs.min(axis=0), high=inputs.max(axis=0))

    def shrunk(self, share: float) -> "Ball":
        """The ball of a share of the radius, with the same valid range."""
        return replace(self, radius=share * self.radius)


def worst_inputs(
    lens: Lens,
    targets: npt.ArrayLike,
    *,
    ball: Ball,
    budget: int,
    rows: IntArray | None = None,
    output: str = Output.LOSS,
    steps: int = 20,
) -> Moves:
    """Moved inputs that harm the targets most, to first order at networks of the clean rows.

    Args:
        lens: How effects are seen.
        targets: Weights [n_query] of the targets' outputs.
        ball: How far inputs may go, from what they are in the clean rows.
        budget: Rows to move.
        rows: Training rows that may be moved; None for all.
        output: The targets' output.
        steps: As `perturb` takes them.

    Raises:
        InfeasibleProblem: There are fewer rows than the budget.
    """
    inputs, labels = _clean(lens)
    allowed = _allowed(len(labels), rows, budget)
    seen = lens.look(output=output)
    aim = _Aim(seen, lens.directions(seen, targets), better=-1 if output in FALLING else 1)

    def moved(some: IntArray, steps: int) -> tuple[FloatArray, npt.NDArray[np.float64]]:
        return aim.moved((inputs[some], labels[some]), ball=ball, steps=steps)

    _, gained = moved(allowed, 1)
    short = allowed[np.argsort(-gained, kind="stable")[: _SHORTLIST * budget]]
    found, gained = moved(short, steps)
    best = np.sort(np.argsort(-gained, kind="stable")[:budget])
    return Moves(rows=short[best], labels=labels[short[best]], inputs=found[best])


def moved_on(
    lens: Lens,
    targets: npt.ArrayLike,
    attack: Moves,
    *,
    ball: Ball,
    number: int,
    output: str = Output.LOSS,
) -> Moves:
    """The rows of an attack moved a step on, at networks trained on the attack.

    A quarter of the radius, for the effect of far moves is not what it is nearby. On digits (43
    rows, a radius of a quarter of the range) eight steps from `worst_inputs` of the first quarter
    raised the loss of the targets by 0.8, `worst_inputs` of the whole radius by 0.3.

    Args:
        lens: How effects are seen.
        targets: Weights [n_query] of the targets' outputs.
        attack: What was moved so far.
        ball: How far inputs may go, from what they are in the clean rows.
        number: Of the networks, as `Lens.effects` takes it; another one for each step.
        output: The targets' output.
    """
    seen = lens.look(output=output, moves=attack, number=number)
    aim = _Aim(seen, lens.directions(seen, targets), better=-1 if output in FALLING else 1)
    moved, _ = aim.moved((attack.inputs, attack.labels), ball=ball.shrunk(STEP), steps=1)
    start = _clean(lens)[0][attack.rows]
    inputs = np.clip(moved, start - ball.radius, start + ball.radius).astype(np.float32)
    return Moves(rows=attack.rows, labels=attack.labels, inputs=inputs)


def matching_inputs(
    lens: Lens,
    targets: FloatArray,
    taken_for: int,
    *,
    ball: Ball,
    budget: int,
    rows: IntArray | None = None,
    before: Moves | None = None,
    number: int = 0,
    steps: int = 100,
    restarts: int = 4,
) -> Moves:
    """Moved rows of one class whose training gradient is that of targets under its label.

    The rows are those with the largest training gradients (Souri et al. 2022): what the model is
    sure of pulls at nothing.

    Args:
        lens: Whose networks gradients are matched at.
        targets: Inputs [q, ...] of the targets.
        taken_for: The class that the models should give them.
        ball: How far inputs may go, from what they are in the clean rows.
        budget: Rows to move.
        rows: Training rows that may be moved, those of other classes disregarded; None for all.
        before: An attack that the networks are trained on; None for the clean rows.
        number: Of the networks, as `Lens.effects` takes it.
        steps: As `match_gradients` takes them.
        restarts: Likewise.

    Raises:
        InfeasibleProblem: There are fewer rows of the class than the budget.
    """
    inputs, labels = _clean(lens)
    own = np.arange(len(labels)) if rows is None else np.asarray(rows)
    allowed = _allowed(len(labels), own[labels[own] == taken_for], budget)
    seen = lens.look(moves=before, number=number)
    norms = sum(
        (each.sketch.norm(dim=1) * each.residual.abs()).double().cpu().numpy()
        for each in seen.train
    )
    chosen = np.sort(allowed[np.argsort(-norms[allowed], kind="stable")[:budget]])
    found = match_gradients(
        seen.net,
        seen.states,
        (inputs[chosen], labels[chosen]),
        (targets, taken_for),
        radius=ball.radius,
        low=ball.low,
        high=ball.high,
        steps=steps,
        restarts=restarts,
        seed=lens.seed,
    )
    return Moves(rows=chosen, labels=labels[chosen], inputs=found.inputs)


def random_inputs(
    train: tuple[FloatArray, IntArray],
    ball: Ball,
    budget: int,
    rng: np.random.Generator,
    *,
    rows: IntArray | None = None,
) -> Moves:
    """Random rows, each moved to a random corner of the ball, cut off at the valid range.

    Args:
        train: Inputs [n, ...] and labels [n].
        ball: How far inputs may go.
        budget: Rows to move.
        rng: Where they are drawn from.
        rows: Training rows that may be moved; None for all.

    Raises:
        InfeasibleProblem: There are fewer rows than the budget.
    """
    inputs, labels = train
    drawn = rng.choice(_allowed(len(labels), rows, budget), budget, replace=False)
    start = inputs[drawn]
    corner = start + ball.radius * rng.choice([-1.0, 1.0], start.shape)
    moved = np.clip(corner, ball.low, ball.high).astype(np.float32)
    return Moves(rows=drawn, labels=labels[drawn], inputs=moved)


@dataclass(frozen=True, slots=True, eq=False)
class _Aim:
    """Where moved inputs are to pull the parameters of some networks."""

    seen: Sight
    directions: list[torch.Tensor]
    better: int

    def moved(
        self, rows: tuple[Any, IntArray], *, ball: Ball, steps: int
    ) -> tuple[FloatArray, npt.NDArray[np.float64]]:
        """Moved inputs [m, ...] and by how much each lowers the targets' worth [m]."""
        parts: list[Perturbed] = [
            perturb(
                self.seen.net,
                self.seen.states,
                (rows[0][start : start + _ROWS], rows[1][start : start + _ROWS]),
                self.directions,
                radius=ball.radius,
                low=ball.low,
                high=ball.high,
                steps=steps,
                better=self.better,
            )
            for start in range(0, len(rows[1]), _ROWS)
        ]
        gained = [self.better * (part.before - part.after) for part in parts]
        return np.concatenate([part.inputs for part in parts]), np.concatenate(gained)


def _clean(lens: Lens) -> tuple[Any, IntArray]:
    inputs, labels = Rows(lens.retraining.train, "train").whole()
    return np.asarray(inputs), np.asarray(labels)


def _allowed(n: int, rows: IntArray | None, budget: int) -> IntArray:
    allowed = np.arange(n) if rows is None else np.asarray(rows)
    if budget > len(allowed):
        raise InfeasibleProblem(
            f"{budget} rows are to be moved of {len(allowed)} that may be; ask for fewer"
        )
    return allowed
