"""What can be foreseen of an unlearning before anything is trained, and what to write instead."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from schemas.spec import CurationSpec, UnlearnSpec

if TYPE_CHECKING:
    from tasks.blueprint import Blueprint

# Of subsets, as a share of the rows, that are near enough to all of them; of seeds. With 50 % and
# 90 % of 436 rows and 3 seeds, 30 rows withdrawn, the error of single queries was 1.82, of
# predicting no change 0.58; with 80 % and 95 % and 10 seeds it was 0.49.
NEAR_ALL, FEW_SEEDS = 0.8, 5


def poor_predictions(spec: CurationSpec, problem: UnlearnSpec) -> str:
    """Why a problem's predictions may be of no use; empty where nothing speaks for that."""
    why, write = [], []
    if min(spec.bank.alpha) < NEAR_ALL:
        small = f"{min(spec.bank.alpha):.0%}"
        why.append(f"subsets of the bank hold as little as {small} of the rows")
        write.append("alpha = [0.8, 0.95] under [bank]")
    if not spec.model.checkpoints and spec.train.seeds < FEW_SEEDS:
        why.append(f"{spec.train.seeds} checkpoint{'s' * (spec.train.seeds > 1)} predict")
        write.append("seeds = 10 under [train]")
    if not why:
        return ""
    return (
        f"problem '{problem.name}': {' and '.join(why)}, so that predictions of single queries may "
        f"be further off than predicting no change; write {' and '.join(write)}"
    )


def costly_steps(plan: "Blueprint", problem: UnlearnSpec) -> Iterator[str]:
    """Which steps with the curvature may cost more than a retraining, and how much.

    Raises:
        InfeasibleProblem: A method has no such option.
    """
    task, epochs = plan.dataset.facts.task, plan.spec.train.epochs
    steps = [
        method
        for method in (problem.method, *problem.rivals(task))
        if method in ("newton", "influence")
    ]
    if not steps:
        return
    from optimize.unlearning.steps import most_passes
    from tasks.unlearning.unlearners import recipe

    parameters = plan.build_model().parameters()
    size = sum(value.numel() for value in parameters if value.requires_grad)
    n_outputs = len(plan.dataset.classes) or 1
    for method in steps:
        told: Any = recipe(plan, problem, method)
        share = most_passes(told, size=size, n_outputs=n_outputs, task=task) / epochs
        if share > 1:
            yield (
                f"problem '{problem.name}': '{method}' may cost as much as {share:,.0f} "
                f"retrainings of a model, for it has {size:,} parameters; lower its iterations in "
                "options, or leave it out"
            )
