"""`winnow bank`: what a spec's bank holds, and the acts that enlarge it."""

from typing import Any

from flows import terminal
from flows.plan import sealed_blueprint
from flows.running import failures_of_the_run, refuse_held_ledger
from schemas.errors import NotFound, RequestError
from schemas.spec import LoadedSpec
from store.workspace import Workspace
from tasks.bank_design import is_to_choose
from tasks.bank_extension import models_to_draw, rows_to_adopt
from tasks.bank_status import bank_status
from tasks.job import Job, blueprint
from tasks.preflight import preflight
from tasks.progress import recording

COLUMNS = ("kind", "origin", "alpha", "masks", "seeds", "models", "sealed", "missing")


def show_bank(loaded: LoadedSpec, workspace: Workspace, *, as_json: bool) -> None:
    """Print what the bank holds; nothing is read in or trained for it.

    Raises:
        NotFound: The rows are not there yet, and the bank follows from them.
        RequestError: The spec has no attribution, and so no bank.
    """
    _refuse_unread(loaded)
    plan = sealed_blueprint(loaded, workspace)
    if plan is None:
        raise NotFound(
            f"{loaded.spec.name}: the bank follows from the rows, which are not read in yet; "
            "`winnow run SPEC --only data` reads them"
        )
    status = bank_status(plan)
    if as_json:
        terminal.show_json(status)
        return
    rows = [[entry[column] for column in COLUMNS] for entry in status["rows"]]
    terminal.show(terminal.table(COLUMNS, rows))
    for line in _sentences(status):
        terminal.out().print(line, markup=False)


def _refuse_unread(loaded: LoadedSpec) -> None:
    if not loaded.spec.attribution:
        raise RequestError(
            f"{loaded.spec.name} has no bank, for it has no attribution; values are of retrainings "
            "of their own"
        )


def _sentences(status: dict[str, Any]) -> list[str]:
    cost, resolves = status["cost"], status["resolves"]
    origin = f"{status['drawn']} drawn, {status['adopted']} adopted"
    origin += f", {status['chosen']} chosen" if status["chosen"] else ""
    sealed = f"{status['sealed']} sealed, {status['missing']} missing"
    lines = [f"{status['models']} models ({origin}): {sealed}"]
    if cost is not None:
        lines.append(
            f"{cost['models']} models took {cost['seconds']:,.1f} s of training, "
            f"{cost['models_per_second']:,.1f} a second in a chunk"
        )
    lines.append(
        f"evaluates on {resolves['masks']} subsets × {resolves['seeds']} seeds, "
        f"{resolves['queries']} queries"
    )
    if resolves["half_width"] is not None:
        lines[-1] += f": an LDS will be known to about ±{resolves['half_width']:.2g}"
    for each in resolves["ceilings"]:
        if each["ceiling"] is not None:
            sizes = "all sizes" if each["alpha"] is None else f"{each['alpha']:.0%} of the rows"
            lines.append(f"LDS ceiling of {each['output']}, {sizes}: {each['ceiling']:.2f}")
    return lines + [_bought(each) for each in status["bought"]]


def _bought(receipt: dict[str, Any]) -> str:
    sd, error = receipt["sd"], receipt["error"]
    wider = " The larger bank puts the spread of effects, or the noise, higher than was thought."
    return (
        f"{receipt['models']} chosen subsets took the sd of the predicted {receipt['output']}, "
        f"set '{receipt['set']}', from {sd['before']:.3g} to {sd['after']:.3g}, where "
        f"{sd['foreseen']:.3g} was foreseen and {sd['random']:.3g} for random ones."
        f"{wider if sd['after'] > sd['before'] else ''} The leave-one-mask-out error, as a share "
        f"of the outputs' variance, went from {error['before']:.2f} to {error['after']:.2f}."
    )


def extend_bank(
    loaded: LoadedSpec,
    workspace: Workspace,
    *,
    models: int | None,
    verdicts: bool,
    subsets: int | None,
    debug: bool,
) -> None:
    """Enlarge the bank from now on, and train what it then lacks.

    Args:
        loaded: The spec.
        workspace: Where its bank is.
        models: Models to have drawn in all.
        verdicts: Adopt the models of verdicts.
        subsets: Number of subsets to choose by what they are expected to tell.
        debug: Show Prefect's own messages.

    Raises:
        RequestError: Nothing was asked for, what was asked for is there already, or the spec has
            no attribution, and so no bank.
        LedgerHeld: Another process runs in this workspace.
        WinnowError: Whatever the flow ends with.
    """
    from flows.server import serving

    _refuse_unread(loaded)
    if models is None and not verdicts and subsets is None:
        raise RequestError("say what to extend the bank by: --models N, --verdicts, or --next K")
    if subsets is not None and (models is not None or verdicts):
        other = "--verdicts" if models is None else "--models"
        raise RequestError(
            f"--next chooses by scores of the bank as it is, which {other} enlarges; extend it by "
            "one, `winnow run`, then by the other"
        )
    refuse_held_ledger(workspace)
    job = Job(spec=loaded.path, workspace=workspace.root)
    # What can be refused is refused here, before anything counts as begun.
    plan = blueprint(preflight(job))
    if models is not None:
        models_to_draw(plan, models)
    if verdicts:
        rows_to_adopt(plan)
    if subsets is not None:
        is_to_choose(plan, subsets)
    with (
        recording(workspace.progress, f"{loaded.spec.name} bank"),
        terminal.progress_bars(),
        serving(workspace, debug=debug),
        failures_of_the_run(),
    ):
        # Only now: Prefect reads where its server is when it is imported.
        from flows import extend

        extend.extend_bank(
            str(loaded.path),
            workspace=str(workspace.root),
            models=models,
            verdicts=verdicts,
            subsets=subsets,
        )
    show_bank(loaded, workspace, as_json=False)
    terminal.say(f"`winnow run {loaded.path}` takes it in")
