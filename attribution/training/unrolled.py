"""A training run that can be walked back: few states are kept, the others trained again.

Every k-th of the T states is kept on the way forward (k = sqrt(T) by default). On the way back the
states between two kept ones are trained again, one stretch at a time, so that T/k + k states are
held at most (Chen et al. 2016, of layers; here of steps).
"""

import math

import torch
from torch import Tensor

from attribution.training.adjoint import State
from attribution.training.weighted import WeightedRun
from schemas.errors import ShapeError, TrainingDiverged


class Unrolled:
    """A run trained to its end, and its adjoint.

    Args:
        run: The run; it is trained at once.
        segment: Steps between kept states; sqrt(T) by default.

    Attributes:
        last: The state after the last step.
        most_held: Most states that were in memory at once so far, the last one included.

    Raises:
        ShapeError: The segment is not a positive number of steps.
        TrainingDiverged: A parameter became NaN or infinite.
    """

    def __init__(self, run: WeightedRun, segment: int | None = None) -> None:
        self._segment = math.isqrt(run.n_steps - 1) + 1 if segment is None else segment
        if self._segment < 1:
            raise ShapeError(f"segment = {segment}; give one step or more between kept states")
        self.run = run
        self._kept: dict[int, State] = {}
        self._stretch: list[State] = []
        state = run.start()
        for step in range(run.n_steps):
            if step % self._segment == 0:
                self._kept[step] = state
            state = run.advance(state, step)
        self.last = state
        self.most_held = self._held()
        if not bool(torch.isfinite(state.params).all()):
            raise TrainingDiverged(
                f"the run of seed {run.seed} diverged: a parameter is NaN or infinite; lower the "
                f"learning rate ({run.recipe.lr:g})"
            )

    def pull(self, adjoints: Tensor) -> Tensor:
        """From outputs of the last parameters back to the weights of the rows.

        Args:
            adjoints: [Q, p], the derivative of each output with respect to the last parameters.

        Returns:
            [Q, n], the derivative of each output with respect to each row's weight.

        Raises:
            TrainingDiverged: A derivative became NaN or infinite.
        """
        scores = adjoints.new_zeros((len(adjoints), self.run.n_train))
        idle = tuple(torch.zeros_like(adjoints) for _ in self.last.slots)
        bar = State(adjoints, idle)
        for first in reversed(self._kept):
            stop = min(first + self._segment, self.run.n_steps)
            self._train_again(first, stop)
            for step in reversed(range(first, stop)):
                after = self._stretch.pop()
                bar, weights_bar = self.run.retreat(bar, self._stretch[-1], after, step)
                scores[:, self.run.rows(step)] += weights_bar
        self._stretch = []
        if not bool(torch.isfinite(scores).all()):
            raise TrainingDiverged(
                f"the derivative of the run of seed {self.run.seed} is NaN or infinite: small "
                f"changes grow without bound; lower the learning rate ({self.run.recipe.lr:g})"
            )
        return scores

    def _train_again(self, first: int, stop: int) -> None:
        """The states first..stop, both included."""
        self._stretch = [self._kept[first]]
        for step in range(first, stop - 1):
            self._stretch.append(self.run.advance(self._stretch[-1], step))
        self._stretch.append(self._kept.get(stop, self.last))
        self.most_held = max(self.most_held, self._held())

    def _held(self) -> int:
        kept = list(self._kept.values())
        return len({id(state) for state in [*kept, *self._stretch, self.last]})
