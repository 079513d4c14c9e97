"""One step in the space of parameters: theta + (H + s I)^-1 sum_F grad l_i.

The training objective is the sum over rows of l_i + wd/2 |theta|^2, wd the weight decay of a recipe
whose loss is a mean. So row i carries grad l_i + wd theta, and its ridge, wd, counts once for each
row of H. With H of all rows the step is the influence function's (Koh & Liang 2017), with H of the
rows that stay a Newton step (Guo et al. 2020).
"""

import torch
from torch import Tensor

from attribution.estimators.curvature import LossCurvature, dense_passes
from attribution.estimators.gradient_products import RowGradients
from attribution.estimators.solvers import FACTOR_EACH, ConjugateGradients, Exact, Solver
from attribution.outputs import Output
from attribution.rows import Rows
from optimize.unlearning.models import ModelStack
from optimize.unlearning.recipes import InfluenceStep
from optimize.unlearning.request import PRODUCT
from schemas.errors import ShapeError


def influence_step(
    stack: ModelStack,
    inputs: Tensor,
    targets: Tensor,
    forgotten: Tensor,
    method: InfluenceStep,
    *,
    task: str,
    weight_decay: float,
) -> tuple[ModelStack, float]:
    """The models after the step, and the examples that each took.

    Args:
        stack: Models trained on all rows.
        inputs: [n, ...].
        targets: [n].
        forgotten: Bool [n].
        method: What the step is.
        task: Which loss.
        weight_decay: Of the recipe that the models were trained with.

    Raises:
        ShapeError: H + s I is not positive definite, or the solver did not converge.
    """
    kept = ~forgotten if method.newton else torch.ones_like(forgotten)
    curved = Rows((inputs[kept], targets[kept]), "train")
    gone = Rows((inputs[forgotten], targets[forgotten]), "forget")
    device = stack.device.type
    moves, passes = [], 0.0
    for number in range(len(stack)):
        state = stack.state(number)
        dtype = next(iter(stack.params.values())).dtype
        curvature = LossCurvature(
            stack.model,
            state,
            curved,
            task=task,
            hessian=method.hessian,
            device=device,
            dtype=dtype,
        )
        pull = weight_decay * curvature.theta if weight_decay else None
        lost = RowGradients(
            stack.model, state, gone, output=Output.LOSS, device=device, dtype=dtype, pull=pull
        )
        shift = weight_decay * len(curved)
        if method.damping:
            shift += method.damping * curvature.mean_eigenvalue()
        if shift <= 0:
            raise ShapeError(
                "the step has neither weight decay nor damping; give damping above 0 (1 is one "
                "mean eigenvalue)"
            )
        solver = _solver(curvature, method)
        solved = solver.solve(lost.combine(torch.ones(1, len(gone))), [shift])[0]
        if not bool(torch.isfinite(solved).all()):
            raise ShapeError(
                f"H + s I is not positive definite for model {number}; raise the damping, or use "
                "hessian='gauss-newton'"
            )
        moves.append(solved[0])
        passes = max(passes, _passes(curvature, solver))
    along = stack.split(torch.stack(moves))
    moved = {name: value + along[name] for name, value in stack.params.items()}
    return stack.with_params(moved), len(gone) + passes * len(curved)


def _passes(curvature: LossCurvature, solver: Solver) -> float:
    """Passes over the rows that a solution took, forward and backward being one."""
    if "products" in solver.facts:
        return PRODUCT * float(solver.facts["products"])
    return _dense(curvature.size, curvature.dense_passes)


def most_passes(method: InfluenceStep, *, size: int, n_outputs: int, task: str) -> float:
    """The most passes over the rows that a step may take; exact where it solves by a factor.

    Args:
        method: The step.
        size: Parameters of the model.
        n_outputs: Its logits.
        task: Which loss.
    """
    if size > FACTOR_EACH:
        return PRODUCT * method.iterations
    return _dense(size, dense_passes(size, n_outputs, task=task, hessian=method.hessian))


def _dense(size: int, passes: int | None) -> float:
    return float(PRODUCT * size if passes is None else passes)


def _solver(curvature: LossCurvature, method: InfluenceStep) -> Solver:
    if curvature.size <= FACTOR_EACH:
        return Exact(curvature.dense())
    return ConjugateGradients(
        curvature.product, tolerance=method.tolerance, iterations=method.iterations
    )
