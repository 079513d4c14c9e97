"""`winnow run`: do what is due, start a server only for that, and show the answer."""

import contextlib
from collections.abc import Iterator, Sequence

from flows import terminal
from flows.plan import committed_run, plan, solved
from schemas.errors import NotFound, RequestError, WinnowError
from schemas.spec import LoadedSpec
from store.workspace import Workspace
from tasks.job import Job
from tasks.progress import recording, refuse_second_run
from tasks.versions import STAGES


def run_spec(
    loaded: LoadedSpec,
    workspace: Workspace,
    *,
    only: str | None,
    refresh: list[str],
    debug: bool,
    as_json: bool,
) -> None:
    """Run whatever a spec still needs, and print the summary of its last run.

    Raises:
        LedgerHeld: Another process runs in this workspace, or holds its ledger.
        NotFound: `only` or `refresh` names no stage.
        WinnowError: Whatever the run ends with.
    """
    steps = plan(loaded, workspace)
    _known(STAGES, [*refresh, *([only] if only else [])])
    due = [step.stage for step in steps if step.done < step.total]
    if due or refresh:
        refuse_held_ledger(workspace)
        todo = "everything" if due[:1] == ["data"] else ", ".join(due or refresh)
        terminal.say(f"{loaded.spec.name}: {todo} to do")
        _run_flow(loaded, workspace, only=only, refresh=refresh, debug=debug)
    else:
        terminal.say(f"{loaded.spec.name}: nothing to do, all is done already")
    _show_answer(loaded, workspace, only=only, as_json=as_json)


def refuse_held_ledger(workspace: Workspace) -> None:
    """Find out before a long run whether its results could be written at its end."""
    refuse_second_run(workspace.progress)
    if workspace.ledger.is_file():
        from store.connect import open_ledger

        open_ledger(workspace.ledger).close()


def _run_flow(
    loaded: LoadedSpec,
    workspace: Workspace,
    *,
    only: str | None,
    refresh: list[str],
    debug: bool,
) -> None:
    from flows.server import serving
    from tasks.preflight import preflight

    job = Job(spec=loaded.path, workspace=workspace.root)
    with recording(workspace.progress, loaded.spec.name), terminal.progress_bars():
        # What can be refused is refused here, before a server is started for it.
        preflight(job)
        with serving(workspace, debug=debug), failures_of_the_run():
            # Only now: Prefect reads where its server is when it is imported.
            from flows.curate import curate

            curate(
                str(loaded.path), workspace=str(workspace.root), refresh=refresh or None, only=only
            )


@contextlib.contextmanager
def failures_of_the_run() -> Iterator[None]:
    """Whatever is refused once the run has begun is a failed run, not a wrong request."""
    try:
        yield
    except RequestError as error:
        raise WinnowError(str(error)) from error


def _show_answer(
    loaded: LoadedSpec, workspace: Workspace, *, only: str | None, as_json: bool
) -> None:
    from tasks.reporting.report import render_summary, summary_json

    run_id = committed_run(loaded, workspace)
    if run_id is None:
        _show_part(loaded, workspace, only)
    elif as_json:
        terminal.out().print(summary_json(workspace.published, run_id), markup=False)
    else:
        terminal.show(render_summary(workspace.published, run_id))
    if loaded.spec.screens:
        terminal.say(f"batches of new rows are screened by `winnow screen {loaded.path} BATCH`")


def _show_part(loaded: LoadedSpec, workspace: Workspace, only: str | None) -> None:
    """What is there before anything is committed: what was solved, or that a stage is done."""
    if only is None:
        terminal.say("nothing has been committed for this spec yet")
        return
    for problem, sentence in solved(loaded, workspace):
        terminal.out().print(f"{problem}: {sentence}", markup=False)
    terminal.say(f"{only} done; `winnow run {loaded.path}` goes on")


def _known(stages: Sequence[str], asked: list[str]) -> None:
    for stage in asked:
        if stage not in stages:
            raise NotFound(f"there is no stage '{stage}'; stages are {', '.join(stages)}")
