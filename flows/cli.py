"""The `winnow` command: reads the request, calls what does the work, prints the answer.

Nothing heavy is imported before a command needs it (`winnow --help` takes under 0.4 s), and none of
winnow's own packages before `own_packages_first` has looked where they come from.

Exit codes: 0 done, 1 a run failed, 2 the request is wrong and nothing was touched, 130 interrupted.
"""

import atexit
import importlib.util
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter

if TYPE_CHECKING:
    from schemas.spec import LoadedSpec
    from store.workspace import Workspace

HOME = Path(__file__).resolve().parents[1]
PACKAGES = ("attribution", "optimize", "schemas", "store", "tasks")
A_RUN_FAILED = 1
REQUEST_IS_WRONG = 2
INTERRUPTED = 130

GLOBAL = Group("Everywhere", sort_key=100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What holds for every command."""

    workspace: Path | None = None
    debug: bool = False


Here = Annotated[Session, Parameter(parse=False)]
Json = Annotated[bool, Parameter(name="--json")]

app = App(
    name="winnow",
    help="Ask a model about its training data, and check the answer by retraining.",
    version=lambda: f"winnow {version('winnow')}",
    help_format="plaintext",
    default_parameter=Parameter(negative="", show_default=False),
)
app.meta.group_parameters = GLOBAL
app.meta.suppress_keyboard_interrupt = False  # `_answer` says what resumes


@app.command
def init(directory: Path = Path(), /) -> int:
    """Write a commented spec (winnow.toml) and a recipe to start from.

    Args:
        directory: Where to write; made if it does not exist.
    """
    from flows.starter import write_starter
    from flows.terminal import say

    spec, recipe = write_starter(directory)
    say(f"wrote {spec} and {recipe}")
    say(f"next: winnow run {spec}")
    return 0


@app.command
def check(spec: Path, /, *, as_json: Json = False) -> int:
    """Read a spec, say everything that is wrong with it, or what it means.

    Args:
        spec: The TOML file.
        as_json: Print JSON for scripts.
    """
    from flows import terminal
    from flows.summary import meaning

    loaded = _loaded(spec)
    if as_json:
        terminal.show_json(loaded.spec.model_dump(mode="json") | {"digest": loaded.digest})
    else:
        terminal.show(terminal.table(("", ""), meaning(loaded)))
    return 0


@app.command
def plan(spec: Path, /, *, here: Here, as_json: Json = False) -> int:
    """Show what is done already, and what `winnow run` would do.

    Args:
        spec: The TOML file.
        here: The session.
        as_json: Print JSON for scripts.
    """
    loaded, workspace = _opened(spec, here, create=False)

    from flows import plan as planning
    from flows import terminal

    steps = planning.plan(loaded, workspace)
    if as_json:
        fields = ("stage", "done", "total", "detail")
        terminal.show_json([{name: getattr(step, name) for name in fields} for step in steps])
        return 0
    rows = [
        (step.stage, f"{step.done} of {step.total}", _due(step.done, step.total), step.detail)
        for step in steps
    ]
    terminal.show(terminal.table(("stage", "sealed", "", "detail"), rows))
    planning.say_what_waits(loaded, workspace)
    return 0


def _due(done: int, total: int) -> str:
    return "done" if done >= total else f"{total - done} to do"


@app.command
def run(
    spec: Path,
    /,
    *,
    here: Here,
    only: str | None = None,
    refresh: list[str] | None = None,
    as_json: Json = False,
) -> int:
    """Do whatever is missing or stale, then show the answer.

    Args:
        spec: The TOML file.
        here: The session.
        only: Stop after this stage.
        refresh: Do this stage again although it is done; may be repeated.
        as_json: Print JSON for scripts.
    """
    loaded, workspace = _opened(spec, here, create=True)

    from flows.running import run_spec

    run_spec(loaded, workspace, only=only, refresh=refresh or [], debug=here.debug, as_json=as_json)
    return 0


@app.command
def status(*, here: Here, as_json: Json = False) -> int:
    """Show the run that goes on, and the last ones; never disturbs a run.

    Args:
        here: The session.
        as_json: Print JSON for scripts.
    """
    from flows.summary import show_status

    show_status(_found(here), as_json=as_json)
    return 0


bank = App(name="bank", help="Show or enlarge the retrained models that everything is measured on.")
app.command(bank)


@bank.command(name="status")
def bank_status(spec: Path, /, *, here: Here, as_json: Json = False) -> int:
    """Show what the bank holds by kind and size, what is missing, what it cost and can resolve.

    Args:
        spec: The TOML file.
        here: The session.
        as_json: Print JSON for scripts.
    """
    loaded, workspace = _opened(spec, here, create=False)

    from flows.bank import show_bank

    show_bank(loaded, workspace, as_json=as_json)
    return 0


@bank.command(name="extend")
def bank_extend(
    spec: Path,
    /,
    *,
    here: Here,
    models: int | None = None,
    verdicts: bool = False,
    subsets: Annotated[int | None, Parameter(name="--next")] = None,
) -> int:
    """Enlarge the bank from now on; the next `winnow run` works with it.

    Args:
        spec: The TOML file.
        here: The session.
        models: Models to have drawn in all; those that are missing are trained.
        verdicts: Calibrate on the models that verdicts have compared, too.
        subsets: Choose so many subsets, those whose models should tell most, and train them.
    """
    loaded, workspace = _opened(spec, here, create=True)

    from flows.bank import extend_bank

    extend_bank(
        loaded, workspace, models=models, verdicts=verdicts, subsets=subsets, debug=here.debug
    )
    return 0


@app.command
def forget(
    spec: Path,
    /,
    *,
    here: Here,
    where: str | None = None,
    note: str = "",
    problem: str | None = None,
    process: bool = False,
    show: Annotated[bool, Parameter(name="--list")] = False,
    as_json: Json = False,
) -> int:
    """Record a request that rows be forgotten, list all requests, or answer those that wait.

    Args:
        spec: The TOML file; a [[problem]] of kind "unlearn" says how.
        here: The session.
        where: SQL that names the training rows of a new request.
        note: Why they must go, for the certificate.
        problem: The problem that is to answer it, where there are several.
        process: Answer what waits: each request once, with its own certificate.
        show: List the requests and how they stand.
        as_json: Print JSON for scripts.
    """
    from schemas.errors import RequestError

    if sum((where is not None, process, show)) != 1:
        raise RequestError("say one of --where SQL, --list and --process")
    loaded, workspace = _opened(spec, here, create=not show)

    from flows import requests

    if where is not None:
        requests.add_request(loaded, workspace, where=where, note=note, problem=problem)
    elif process:
        requests.process_requests(loaded, workspace, debug=here.debug, as_json=as_json)
    else:
        requests.show_requests(loaded, workspace, as_json=as_json)
    return 0


@app.command
def debug(
    spec: Path,
    query: str,
    /,
    *,
    here: Here,
    uses: str | None = None,
    seeds: int | None = None,
    no_retrain: bool = False,
    as_json: Json = False,
) -> int:
    """Say which rows hold an output down, name their cause, and retrain without them.

    Args:
        spec: The TOML file.
        query: The id of a test row, the name of a set or of a problem of kind "debug", or SQL that
            finds test rows.
        here: The session.
        uses: Attribution to read; by default the one that the spec's problems use.
        seeds: Retrainings of each arm; by default 10, or those of the problem.
        no_retrain: Propose only.
        as_json: Print JSON for scripts.
    """
    loaded, workspace = _opened(spec, here, create=True)

    from flows.diagnosis import diagnose, question

    ask = question(loaded, query, uses=uses, seeds=seeds)
    diagnose(loaded, workspace, ask, retrain=not no_retrain, as_json=as_json, debug=here.debug)
    return 0


@app.command
def methods(*, as_json: Json = False) -> int:
    """List the attribution methods: what each needs, costs, and where it is published.

    Args:
        here: The session.
        as_json: Print JSON for scripts.
    """
    from attribution import estimators
    from flows import terminal

    fields = ("name", "needs", "cost", "source")
    known = [{field: getattr(method, field) for field in fields} for method in estimators()]
    if as_json:
        terminal.show_json(known)
    else:
        terminal.show(terminal.table(fields, (tuple(method.values()) for method in known)))
    return 0


@app.command
def sql(
    query: str,
    /,
    *,
    here: Here,
    as_json: Json = False,
    csv: bool = False,
    limit: int = 1_000,
) -> int:
    """Run SQL on the published results, read-only.

    Args:
        query: One statement, as in "FROM top_influences(17)".
        here: The session.
        as_json: Print JSON for scripts.
        csv: Print CSV.
        limit: Most rows to print; 0 for all.
    """
    from flows import terminal
    from store.connect import run_sql

    result = run_sql(_found(here).published, query, limit=limit or None)
    if as_json:
        terminal.show_json([dict(zip(result.columns, row, strict=True)) for row in result.rows])
    elif csv:
        terminal.show_csv(result.columns, result.rows)
    else:
        terminal.show_rows(result.columns, result.rows)
    if result.truncated:
        terminal.say(f"only the first {len(result.rows)} rows; --limit 0 gives all")
    return 0


@app.command
def doctor(*, here: Here, as_json: Json = False) -> int:
    """Check the installation and the workspace, and say what to do; exit 1 if something fails.

    Args:
        here: The session.
        as_json: Print JSON for scripts.
    """
    from dataclasses import asdict

    from flows import terminal
    from flows.doctor import Level, examine
    from schemas.errors import NotFound
    from store.workspace import locate_workspace

    try:
        workspace = _found(here)
    except NotFound:
        workspace = locate_workspace(override=here.workspace)
    findings = list(examine(workspace))
    if as_json:
        terminal.show_json([asdict(finding) for finding in findings])
    else:
        rows = [(each.level, each.what, each.found, each.advice) for each in findings]
        terminal.show(terminal.table(("", "", "found", "what to do"), rows))
    return int(any(each.level is Level.FAIL for each in findings))


@app.command
def ui(*, here: Here) -> int:
    """Serve the pages of Prefect and MLflow over the workspace until Ctrl-C."""
    import signal

    from flows import terminal
    from flows.screens import screens

    terminal.say("starting the pages of Prefect and MLflow ...")
    with screens(_found(here), debug=here.debug) as pages:
        # MLflow opens on traces of language models; runs are under model training.
        runs = f"{pages.mlflow}/#/experiments?workflowType=machine_learning"
        terminal.out().print(f"Prefect  {pages.prefect}\nMLflow   {runs}", soft_wrap=True)
        terminal.say("Ctrl-C ends both")
        try:
            signal.pause()
        except KeyboardInterrupt:
            return 0
    return 0


# -- workspaces --------------------------------------------------------------------------------


def _loaded(spec: Path) -> "LoadedSpec":
    """The spec, when every file that it names is there."""
    from flows.summary import missing_files
    from schemas.errors import SpecError
    from schemas.spec import load_spec

    loaded = load_spec(spec)
    if missing := missing_files(loaded):
        raise SpecError(str(spec), missing)
    return loaded


def _opened(spec: Path, here: Session, *, create: bool) -> "tuple[LoadedSpec, Workspace]":
    from store.workspace import locate_workspace, open_workspace

    loaded = _loaded(spec)
    place = open_workspace if create else locate_workspace
    return loaded, place(loaded.path, here.workspace)


def _found(here: Session) -> "Workspace":
    """The workspace of a command that names no spec."""
    from flows.places import find_workspace

    return find_workspace(here.workspace)


# -- from the shell ----------------------------------------------------------------------------


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    workspace: Annotated[
        Path | None, Parameter(help="Folder of results; by default .winnow beside the spec.")
    ] = None,
    debug: Annotated[bool, Parameter(help="Show tracebacks and Prefect's own messages.")] = False,
) -> Any:
    """Run one command."""
    command, bound, unparsed = app.parse_args(tokens, exit_on_error=False, print_error=False)
    here = Session(workspace=workspace, debug=debug)
    given = {"here": here} if "here" in unparsed else {}
    return command(*bound.args, **bound.kwargs, **given)


def own_packages_first() -> str | None:
    """Say which of winnow's packages would come from elsewhere, if one would."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = None if spec is None else spec.origin
        if origin is None:
            return f"the package `{name}` is not installed; run `pip install -e {HOME}`"
        if Path(origin).resolve().parent != HOME / name:
            return (
                f"`{name}` would be imported from {origin} instead of {HOME / name}; "
                "use the `winnow` command, and take that folder out of PYTHONPATH"
            )
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    if found := own_packages_first():
        _complain(found)
        sys.exit(REQUEST_IS_WRONG)
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" not in tokens:
        atexit.register(_end_quietly)
    sys.exit(_answer(tokens or ["--help"]))


def _answer(tokens: list[str]) -> int:
    from schemas.errors import WinnowError

    try:
        return (
            app.meta(tokens, exit_on_error=False, print_error=False, result_action="return_value")
            or 0
        )
    except WinnowError as error:
        if "--debug" in tokens:
            traceback.print_exc()
        _complain(str(error))
        return error.exit_code
    except CycloptsError as error:
        _complain(f"{_one_line(str(error))} `winnow --help` lists what there is.")
        return REQUEST_IS_WRONG
    except KeyboardInterrupt:
        again = f"; `winnow {shlex.join(tokens)}` goes on with what is missing"
        goes_on = {"run", "extend", "forget", "debug"} & set(tokens)
        _complain("interrupted" + (again if goes_on else ""))
        return INTERRUPTED
    except BrokenPipeError:
        # `winnow sql ... | head`: the reader has what it wanted.
        sys.stderr.close()
        return 0
    except Exception as error:  # the last line of defence: nobody is to read a traceback unasked
        if "--debug" in tokens:
            traceback.print_exc()
        _complain(f"{type(error).__name__}: {_one_line(str(error))} (--debug shows where)")
        return A_RUN_FAILED


def _end_quietly() -> None:
    """Close stderr for the interpreter's own end; registered first, so that it runs last.

    DuckDB 2.0 lists some 100 "leaked" objects there when Prefect's threads, which nobody joins,
    still hold one; the process ends anyway.
    """
    if "duckdb" in sys.modules:
        sys.stderr.flush()
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)


def _complain(text: str) -> None:
    sys.stderr.write(f"error: {text}\n")


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    main()
