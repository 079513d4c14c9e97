"""What a spec means, and how a workspace stands, in rows for a table."""

from collections.abc import Iterator
from dataclasses import asdict

from flows import terminal
from schemas.errors import NotFound
from schemas.poisoning import MOVED
from schemas.spec import (
    LoadedSpec,
    PoisonSpec,
    Quota,
    ScreenSpec,
    SelectSpec,
    UnlearnSpec,
    ValueSpec,
)
from store.connect import run_sql
from store.workspace import Workspace
from tasks.progress import Outcome, RunProgress, read_progress
from tasks.unlearning.foresight import poor_predictions

LAST_RUNS = (
    "SELECT run_id, spec_name, status, committed_at, seconds FROM runs "
    "ORDER BY committed_at DESC NULLS LAST, run_id LIMIT 5"
)


def missing_files(loaded: LoadedSpec) -> list[str]:
    """Say which files a spec names and nobody can find."""
    named = [
        ("data.source", loaded.source_path),
        ("model.build", loaded.model_path),
        *((f"model.checkpoints[{i}]", path) for i, path in enumerate(loaded.checkpoint_paths)),
    ]
    return [
        f"{key}: {path} does not exist; paths are relative to the spec file"
        for key, path in named
        if path is not None and not path.is_file()
    ]


def meaning(loaded: LoadedSpec) -> Iterator[tuple[str, str]]:
    """Say in words what a spec asks for."""
    spec = loaded.spec
    yield "spec", f"{spec.name} ({loaded.digest}), seed {spec.seed}"
    corrupt = spec.data.corrupt.labels
    flipped = f", {corrupt:.0%} of the training labels flipped on purpose" if corrupt else ""
    yield "data", f"{spec.data.source}{flipped}"
    options = ", ".join(f"{key} = {value}" for key, value in spec.model.options.items())
    yield "model", spec.model.build + (f" ({options})" if options else "")
    train = spec.train
    if spec.model.checkpoints:
        yield "checkpoints", f"{len(spec.model.checkpoints)} of your own"
    elif spec.attribution:
        yield "checkpoints", f"{train.seeds} seeds, {train.epochs} epochs of {train.optimizer}"
    sizes = " and ".join(f"{alpha:.0%}" for alpha in spec.bank.alpha)
    if spec.attribution:
        yield "bank", f"{spec.bank.models} retrainings on {sizes} of the rows"
    for name, query in spec.sets.items():
        yield f"set {name}", query
    for attribution in spec.attribution:
        yield f"attribution {attribution.name}", f"{attribution.method}, {attribution.output}"
    for problem in spec.selections:
        yield f"problem {problem.name}", _selected(problem)
    for forgetting in spec.unlearnings:
        yield f"problem {forgetting.name}", _forgotten(forgetting)
    for traced in spec.traces:
        by = ", ".join(f"'{name}'" for name in traced.uses)
        asked = f"trace the {traced.top} rows behind each of '{traced.targets}' by {by}"
        yield f"problem {traced.name}", f"{asked}; judged without them, {spec.verdict.seeds} times"
    for asked_about in spec.diagnoses:
        query = " ".join(str(asked_about.query).split())
        yield f"problem {asked_about.name}", f"debug {query} by '{asked_about.uses}'"
    for attacked in spec.poisonings:
        yield f"problem {attacked.name}", _attacked(attacked)
    for valued in spec.valuations:
        yield f"problem {valued.name}", _valued(valued)
    for screen in spec.screens:
        yield f"problem {screen.name}", _screened(screen)
    if len(spec.decisions) > len(spec.traces) + len(spec.diagnoses):
        judged = f"judged on '{spec.verdict.judge_on}'"
        arms = f"{spec.verdict.seeds} seeds each against {', '.join(spec.verdict.arms)}; "
        yield "verdict", f"{arms if spec.selections else ''}{judged}"


def cautions(loaded: LoadedSpec) -> Iterator[str]:
    """What a spec allows and should not be trusted to answer well, with what to write instead."""
    for forgetting in loaded.spec.unlearnings:
        if said := poor_predictions(loaded.spec, forgetting):
            yield said


def _selected(problem: SelectSpec) -> str:
    match problem.size:
        case float():
            size = f"{problem.size:.0%}"
        case Quota(min=least, max=most):
            size = f"{least or 1} to {'all' if most is None else most} rows"
        case _:
            size = f"{problem.size} rows"
    several = problem.combine if len(problem.weights) > 1 else ""
    aims = " and ".join(f"'{name}'" for name in problem.weights)
    bound = [
        *(f"quotas by {column}" for column in problem.quotas),
        *(f"{budget.column} up to {budget.most:g}" for budget in problem.budgets),
        *(f"with '{name}'" for name in problem.included),
        *(f"without '{name}'" for name in problem.excluded),
    ]
    if problem.duplicates != "keep":
        bound.append("no duplicates")
    if problem.caution:
        bound.append(f"{problem.caution:g} sd of caution")
    told = f"select {size} for {several and f'the {several} of '}{aims} by '{problem.uses}'"
    return "; ".join([told, ", ".join(bound)]) if bound else told


def _forgotten(problem: UnlearnSpec) -> str:
    rows = f"the set '{problem.forget}'" if problem.forget else "what requests name"
    beside = ", ".join(name for name in problem.compare if name != problem.method)
    return (
        f"forget {rows} by {problem.method}"
        + (f", beside {beside}" if beside else "")
        + f"; {problem.models} models, judged by {2 * problem.models} retrained without it; change "
        f"of '{problem.targets}' predicted by '{problem.uses}'"
    )


def _attacked(problem: PoisonSpec) -> str:
    amounts = (f"{each:,}" if isinstance(each, int) else f"{each:.1%}" for each in problem.amounts)
    done = MOVED[problem.move]
    if problem.moves_inputs:
        done += f" (each by at most {problem.radius:g})"
    whose = " ".join(problem.targets.split())
    bound = "" if problem.stealth is None else f", others at most {problem.stealth:g} worse"
    aim = "" if problem.taken_for is None else f", to be taken for '{problem.taken_for}',"
    return (
        f"the worst that {' or '.join(amounts)} {done} could do to '{whose}'{aim} by "
        f"'{problem.uses}'{bound}; judged beside {2 * problem.draws} random ones, and by screens"
    )


def _valued(problem: ValueSpec) -> str:
    whose = f"sources by '{problem.by}'" if problem.by else "rows"
    output = "mean output" if problem.output == "auto" else problem.output
    return (
        f"value {whose} by {problem.method}: what they add to the {output} of '{problem.targets}'"
    )


def _screened(problem: ScreenSpec) -> str:
    rates = ", ".join(f"{name} {100 * r:g} %" for name, r in problem.quarantine.rates.items())
    files = f" of {problem.inbox}" if problem.inbox else ""
    return (
        f"screen batches{files} for '{problem.targets}' by '{problem.uses}'; of good rows each "
        f"holds up: {rates}"
    )


def show_status(workspace: Workspace, *, as_json: bool) -> None:
    """Print the progress file and the last published runs; never opens the ledger."""
    progress = read_progress(workspace.progress)
    try:
        published = run_sql(workspace.published, LAST_RUNS)
    except NotFound:
        published = None
    runs = [] if published is None else published.rows
    columns = () if published is None else published.columns
    if as_json:
        state = None if progress is None else asdict(progress)
        last = [dict(zip(columns, row, strict=True)) for row in runs]
        terminal.show_json({"workspace": str(workspace.root), "progress": state, "runs": last})
        return
    if progress is None and not runs:
        terminal.say(f"{workspace.root}: nothing has run yet")
    if progress is not None:
        terminal.out().print(headline(progress), markup=False)
        rows = [(stage.stage, stage.amount) for stage in progress.stages]
        if rows:
            terminal.show(terminal.table(("stage", "done"), rows))
    if runs:
        terminal.show(terminal.table(columns, runs))


def headline(progress: RunProgress) -> str:
    """Say in one line how the last run stands."""
    when = terminal.ago(progress.updated_at)
    said: dict[Outcome, str] = {
        Outcome.RUNNING: f"is running (process {progress.pid}, last news {when})",
        Outcome.DONE: f"was done {when}",
        Outcome.FAILED: f"failed {when}; `winnow run` tries again what is missing",
        Outcome.STOPPED: f"was stopped {when}; `winnow run` goes on with what is missing",
    }
    return f"{progress.label} {said[progress.outcome]}"
