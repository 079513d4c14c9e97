"""The `winnow` command: reads the request, calls what does the work, prints the answer.

Nothing heavy is imported before a command needs it (`winnow --help` takes under 0.4 s), and none of
winnow's other packages before `own_packages_first` has looked where they come from.

Exit codes: 0 done, 1 a run failed, 2 the request is wrong and nothing was touched, 130 interrupted.
"""

import atexit
import importlib.util
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter

from flows.commands import asking, looking
from flows.commands.session import Session
from flows.prefect_client import UNTRACKED

HOME = Path(__file__).resolve().parents[1]
PACKAGES = ("attribution", "optimize", "schemas", "store", "tasks")
A_RUN_FAILED = 1
REQUEST_IS_WRONG = 2
INTERRUPTED = 130

GLOBAL = Group("Everywhere", sort_key=100)

app = App(
    name="winnow",
    help="Ask a model about its training data, and check the answer by retraining.",
    version=lambda: f"winnow {version('winnow')}",
    help_format="plaintext",
    default_parameter=Parameter(negative="", show_default=False),
)
app.meta.group_parameters = GLOBAL
app.meta.suppress_keyboard_interrupt = False  # `_answer` says what resumes

bank = App(name="bank", help="Show or enlarge the retrained models that everything is measured on.")
bank.command(asking.bank_status, name="status")
bank.command(asking.bank_extend, name="extend")

app.command(bank)
for command in (
    asking.check,
    asking.plan,
    asking.run,
    asking.forget,
    asking.debug,
    asking.screen,
    asking.certify,
    asking.poisoned,
    looking.init,
    looking.status,
    looking.sql,
    looking.methods,
    looking.doctor,
    looking.ui,
):
    app.command(command)


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
    os.environ.update(UNTRACKED)
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
        goes_on = {"run", "extend", "forget", "debug", "screen", "certify"} & set(tokens)
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
