"""What can be refused before anything is trained: rows, sets, sizes, quotas, models, devices.

The command line calls `preflight` before it starts a server, so that a wrong request costs a
second and leaves nothing behind but, at most, the sealed rows.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import InfeasibleProblem, RecipeError, ShapeError
from schemas.frozen import either
from schemas.methods import OUTPUTS_OF_TASK, Bm25Spec, EmbeddingSpec, MetagradientSpec
from schemas.questions import WORTHS_OF_TASK
from schemas.screening import SCREENS_OF_TASK
from schemas.spec import AttributionSpec, DebugSpec, ScreenSpec, ValueSpec, load_spec
from store.workspace import Workspace, open_workspace
from tasks.blueprint import Blueprint
from tasks.ingest import ingest
from tasks.intake.checkpoints import read_checkpoint
from tasks.job import Job, blueprint
from tasks.players import most_retrainings
from tasks.problems import KINDS
from tasks.texts import options_of_rows

# Subsets that a method without checkpoints can be fitted to, though not well. A problem that uses
# it takes some of them away.
FEWEST_SUBSETS = 8

if TYPE_CHECKING:
    from torch import Tensor, nn


def open_job(
    spec: Path | str, workspace: Path | str | None = None, ask: DebugSpec | None = None
) -> Job:
    """A job for a spec file, in its workspace; the spec is checked, the rows are not."""
    loaded = load_spec(spec)
    folder = open_workspace(loaded.path, Path(workspace) if workspace else None)
    return Job(spec=loaded.path, workspace=folder.root, ask=ask)


def ingested(job: Job) -> Job:
    """The job with its rows ingested and sealed."""
    manifest = ingest(load_spec(job.spec), Workspace(job.workspace))
    return job.model_copy(update={"data": manifest.key})


def preflight(job: Job) -> Job:
    """Ingest the rows and check everything that the rest of a run will ask of them.

    Raises:
        RequestError: With what was found and what to do; nothing has been trained.
    """
    from attribution.devices import resolve
    from attribution.training.batchnorm import refuse_unkept_statistics

    job = ingested(job)
    plan = blueprint(job)
    resolve(plan.spec.compute.device)
    _ = plan.sets.scored  # every set in use is run, and overlaps are refused
    model = plan.build_model()
    refuse_unkept_statistics(model.train())
    for path in plan.loaded.checkpoint_paths:
        read_checkpoint(path, model)
    for problem in plan.spec.decisions:
        KINDS[problem.kind].check(plan, problem)
    for valuation in plan.spec.valuations:
        check_valuation(plan, valuation)
    for screen in plan.spec.screens:
        check_screen(plan, screen)
    for attribution in plan.spec.attribution:
        check_attribution(plan, model, attribution)
    return job


def check_attribution(plan: Blueprint, model: "nn.Module", attribution: AttributionSpec) -> None:
    """Refuse outputs that the data does not have, and models without per-example gradients.

    A method that reads the bank alone takes no gradient, but wants subsets to be fitted to.

    Raises:
        ShapeError: The output does not belong to the task, or the bank is too small.
        RecipeError: The model's gradient cannot be taken row by row.
    """
    from attribution.gradients import PerExampleGradients
    from attribution.training.batchnorm import refuse_tied_rows

    task, output = plan.dataset.facts.task, plan.output(attribution)
    if output not in OUTPUTS_OF_TASK[task]:
        raise ShapeError(
            f"attribution '{attribution.name}': a {task} has no output '{output}'; "
            f"choose {either(OUTPUTS_OF_TASK[task])}"
        )
    if attribution.bank_only:
        subsets = len(np.unique(plan.bank.masks[plan.bank.rows("calibrate")], axis=0))
        fewest = FEWEST_SUBSETS * (2 if plan.scores.fitted_share(attribution) < 1 else 1)
        if subsets < fewest:
            raise ShapeError(
                f"attribution '{attribution.name}' is fitted to the bank, of which {subsets} "
                f"subsets calibrate; have at least {fewest}, better some hundreds: raise "
                "bank.models"
            )
        return
    if isinstance(attribution, Bm25Spec | EmbeddingSpec):
        options_of_rows(plan, attribution)
        return
    rows = plan.dataset.train
    try:
        some = PerExampleGradients(model, None, output=output)
        some.run(torch_rows(rows.inputs[:2]), torch_rows(rows.targets[:2]))
        if isinstance(attribution, MetagradientSpec):
            refuse_tied_rows(model.train())
    except RecipeError as error:
        raise RecipeError(f"attribution '{attribution.name}': {error}") from error


def torch_rows(values: NDArray[Any]) -> "Tensor":
    """A few rows as a tensor of their own."""
    import torch

    return torch.from_numpy(np.array(values))


def check_valuation(plan: Blueprint, problem: ValueSpec) -> None:
    """Refuse sources and outputs that the data does not have, and what would take for ever.

    Raises:
        QueryError: The targets cannot be used.
        NotFound: There is no such metadata column.
        DataError: Some training row has no source.
        ShapeError: The output does not belong to the task, or too many models would be trained.
    """
    _ = plan.sets.ids(problem.targets)
    task = plan.dataset.facts.task
    if problem.worth_for(task) not in WORTHS_OF_TASK[task]:
        raise ShapeError(
            f"problem '{problem.name}': a {task} has no output '{problem.output}'; "
            f"choose {either(WORTHS_OF_TASK[task])}"
        )
    players = plan.values.players(problem)
    most = most_retrainings(problem, len(players))
    if most > problem.max_retrainings:
        who = f"sources by '{problem.by}'" if problem.by else "rows"
        fewer = "fewer draws" if problem.by else "a metadata column as by"
        raise ShapeError(
            f"problem '{problem.name}': {len(players):,} {who} could take {most:,} retrainings; "
            f"give {fewer}, method = 'leave_one_out', or a max_retrainings that allows them"
        )


def check_screen(plan: Blueprint, problem: ScreenSpec) -> None:
    """Refuse screens that the task does not have, and shares that no row can reach.

    Raises:
        QueryError: The targets cannot be used.
        InfeasibleProblem: A screen does not fit the task, or there are too few trusted rows.
    """
    _ = plan.sets.ids(problem.targets)
    known = SCREENS_OF_TASK[plan.dataset.facts.task]
    for name, rate in problem.quarantine.rates.items():
        if name not in known:
            raise InfeasibleProblem(
                f"problem '{problem.name}': a {plan.dataset.facts.task} has no classes, which "
                f"'{name}' compares; leave it out"
            )
        if rate * (plan.n_train + 1) < 1:
            raise InfeasibleProblem(
                f"problem '{problem.name}': {name} = {rate:g} is less than one of "
                f"{plan.n_train:,} trusted rows, so it would hold up nothing; write "
                f"{1 / plan.n_train:.2g} or more"
            )
