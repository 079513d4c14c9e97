"""`winnow forget`: requests that rows be forgotten, recorded, shown and answered."""

from collections.abc import Mapping
from typing import Any

from flows import terminal
from flows.plan import sealed_blueprint
from flows.running import failures_of_the_run, refuse_held_ledger
from schemas.spec import LoadedSpec
from store.workspace import Workspace
from tasks.forget import job_upto, record_request, request_copies, request_states, waiting
from tasks.job import Job, blueprint
from tasks.preflight import preflight
from tasks.progress import recording

COLUMNS = ("request", "problem", "rows", "new rows", "recorded", "state", "verdict", "note")


def add_request(
    loaded: LoadedSpec,
    workspace: Workspace,
    *,
    where: str,
    note: str,
    problem: str | None,
    copies: bool = False,
) -> None:
    """Record a request, or refuse it at once; say which copies of its rows stay.

    Raises:
        RequestError: The spec, its problem or the rows cannot be used; nothing was recorded.
    """
    job = preflight(Job(spec=loaded.path, workspace=workspace.root))
    request = record_request(job, where=where, note=note, problem=problem, copies=copies)
    count = len(request.example_ids)
    terminal.say(f"request {request.id}: {count:,} row{'s' if count > 1 else ''} to forget")
    if staying := request_copies(blueprint(job), request, upto=request.number).sentence:
        terminal.say(f"{staying} The same request with --with-copies names them too")
    terminal.say(f"`winnow forget {loaded.path} --process` answers it")


def show_requests(loaded: LoadedSpec, workspace: Workspace, *, as_json: bool) -> None:
    """Print every request of a spec and how it stands; nothing is read in for it."""
    plan = sealed_blueprint(loaded, workspace)
    states = request_states(plan) if plan else []
    if as_json:
        terminal.show_json(states)
        return
    if not states:
        terminal.say(f"{loaded.spec.name}: nobody has asked to forget anything")
        return
    terminal.show(terminal.table(COLUMNS, [[state[name] for name in COLUMNS] for state in states]))
    for state in states:
        for what in ("certificate", "checkpoints"):
            if state[what]:
                _line(state, f"{what} {workspace.root / str(state[what])}")
        if state["copies_that_stay"]:
            _line(state, str(state["copies_that_stay"]))


def _line(state: Mapping[str, Any], text: str) -> None:
    terminal.out().print(f"{state['request']}: {text}", markup=False, soft_wrap=True)


def process_requests(
    loaded: LoadedSpec, workspace: Workspace, *, debug: bool, as_json: bool
) -> None:
    """Answer every request that waits, then show them all.

    Raises:
        LedgerHeld: Another process runs in this workspace.
        WinnowError: Whatever the flow ends with; what is answered stays answered.
    """
    from flows.server import serving

    refuse_held_ledger(workspace)
    job = Job(spec=loaded.path, workspace=workspace.root)
    with recording(workspace.progress, f"{loaded.spec.name} requests"), terminal.progress_bars():
        # What can be refused is refused here, before a server is started for it.
        ready = preflight(job)
        todo = waiting(ready)
        if todo:
            preflight(job_upto(job, todo[-1]))
            asked = "1 request" if len(todo) == 1 else f"{len(todo)} requests"
            terminal.say(f"{loaded.spec.name}: {asked} to answer")
            with serving(workspace, debug=debug), failures_of_the_run():
                # Only now: Prefect reads where its server is when it is imported.
                from flows.unlearn import unlearn

                unlearn(str(loaded.path), workspace=str(workspace.root))
        else:
            terminal.say(f"{loaded.spec.name}: no request waits")
    show_requests(loaded, workspace, as_json=as_json)
