"""The commands that ask something of a spec."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flows.commands.session import Here, Json, loaded_spec, opened


def check(spec: Path, /, *, as_json: Json = False) -> int:
    """Read a spec, say everything that is wrong with it, or what it means.

    Args:
        spec: The TOML file.
        as_json: Print JSON for scripts.
    """
    from flows import terminal
    from flows.summary import cautions, meaning

    loaded = loaded_spec(spec)
    if as_json:
        terminal.show_json(loaded.spec.model_dump(mode="json") | {"digest": loaded.digest})
    else:
        terminal.show(terminal.table(("", ""), meaning(loaded)))
        for caution in cautions(loaded):
            terminal.say(f"note: {caution}")
    return 0


def plan(spec: Path, /, *, here: Here, as_json: Json = False) -> int:
    """Show what is done already, and what `winnow run` would do.

    Args:
        spec: The TOML file.
        here: The session.
        as_json: Print JSON for scripts.
    """
    loaded, workspace = opened(spec, here, create=False)

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
    planning.say_cautions(loaded, workspace)
    planning.say_what_waits(loaded, workspace)
    return 0


def _due(done: int, total: int) -> str:
    return "done" if done >= total else f"{total - done} to do"


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
    loaded, workspace = opened(spec, here, create=True)

    from flows.running import run_spec

    run_spec(loaded, workspace, only=only, refresh=refresh or [], debug=here.debug, as_json=as_json)
    return 0


def bank_status(spec: Path, /, *, here: Here, as_json: Json = False) -> int:
    """Show what the bank holds by kind and size, what is missing, what it cost and can resolve.

    Args:
        spec: The TOML file.
        here: The session.
        as_json: Print JSON for scripts.
    """
    loaded, workspace = opened(spec, here, create=False)

    from flows.bank import show_bank

    show_bank(loaded, workspace, as_json=as_json)
    return 0


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
    loaded, workspace = opened(spec, here, create=True)

    from flows.bank import extend_bank

    extend_bank(
        loaded, workspace, models=models, verdicts=verdicts, subsets=subsets, debug=here.debug
    )
    return 0


def forget(
    spec: Path,
    /,
    *,
    here: Here,
    where: str | None = None,
    with_copies: bool = False,
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
        with_copies: Name the training rows with the same inputs, too.
        note: Why they must go, for the certificate.
        problem: The problem that is to answer it, where there are several.
        process: Answer what waits: each request once, with its own certificate.
        show: List the requests and how they stand.
        as_json: Print JSON for scripts.
    """
    from schemas.errors import RequestError

    if sum((where is not None, process, show)) != 1:
        raise RequestError("say one of --where SQL, --list and --process")
    if with_copies and where is None:
        raise RequestError("--with-copies is about the rows of --where SQL; give that")
    loaded, workspace = opened(spec, here, create=not show)

    from flows import requests

    if where is not None:
        requests.add_request(
            loaded, workspace, where=where, note=note, problem=problem, copies=with_copies
        )
    elif process:
        requests.process_requests(loaded, workspace, debug=here.debug, as_json=as_json)
    else:
        requests.show_requests(loaded, workspace, as_json=as_json)
    return 0


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
        query: A test row's id, the name of a set or of a debug problem, or SQL for test rows.
        here: The session.
        uses: Attribution to read; by default the one that the spec's problems use.
        seeds: Retrainings of each arm; by default 10, or those of the problem.
        no_retrain: Propose only.
        as_json: Print JSON for scripts.
    """
    loaded, workspace = opened(spec, here, create=True)

    from flows.diagnosis import diagnose, question

    ask = question(loaded, query, uses=uses, seeds=seeds)
    diagnose(loaded, workspace, ask, retrain=not no_retrain, as_json=as_json, debug=here.debug)
    return 0


def screen(
    spec: Path,
    batch: Path | None = None,
    /,
    *,
    here: Here,
    problem: str | None = None,
    inbox: bool = False,
    show: Annotated[bool, Parameter(name="--list")] = False,
    verify: bool = False,
    as_json: Json = False,
) -> int:
    """Let in the rows of a new batch that look like trusted ones, and hold up the others.

    Args:
        spec: The TOML file; a [[problem]] of kind "screen" says by what.
        batch: A csv, parquet or jsonl file of new rows, with the columns of the data.
        here: The session.
        problem: The problem that is asked, where there are several.
        inbox: Answer every file of the problem's inbox that waits, each once.
        show: List the batches and how they stand.
        verify: Retrain with and without what was held up.
        as_json: Print JSON for scripts.
    """
    from schemas.errors import RequestError

    if sum((batch is not None, inbox, show)) != 1:
        raise RequestError("say one of a batch's file, --inbox and --list")
    loaded, workspace = opened(spec, here, create=not show)

    from flows import arriving

    if batch is not None:
        arriving.answer_batch(
            loaded,
            workspace,
            batch,
            problem=problem,
            verify=verify,
            debug=here.debug,
            as_json=as_json,
        )
    elif inbox:
        arriving.answer_inbox(
            loaded, workspace, problem=problem, verify=verify, debug=here.debug, as_json=as_json
        )
    else:
        arriving.list_batches(loaded, workspace, problem=problem, as_json=as_json)
    return 0


def certify(
    spec: Path,
    /,
    *,
    here: Here,
    models: int = 50,
    spread: int = 1,
    on: str | None = None,
    as_json: Json = False,
) -> int:
    """Say how many training rows somebody would have to change to change an answer.

    Args:
        spec: The TOML file.
        here: The session.
        models: Models that vote, each trained on its own part of the rows.
        spread: Models that see each row; more than 1 is finite aggregation, with as many times
            more models.
        on: Set of test rows that judges; by default that of the verdict.
        as_json: Print JSON for scripts.
    """
    loaded, workspace = opened(spec, here, create=True)

    from flows.certifying import certify as ask

    ask(loaded, workspace, models=models, spread=spread, judged=on, as_json=as_json)
    return 0


def poisoned(spec: Path, folder: Path, /, *, here: Here, problem: str | None = None) -> int:
    """Write the rows that attacks poison as files, for research on defences.

    Args:
        spec: The TOML file; a [[problem]] of kind "poison" says what is attacked.
        folder: Where to; no file is ever replaced, and the data never touched.
        here: The session.
        problem: The problem whose attacks are meant, where there are several.
    """
    loaded, workspace = opened(spec, here, create=False)

    from flows.poisoned import export_poisoned

    export_poisoned(loaded, workspace, folder, problem=problem)
    return 0
