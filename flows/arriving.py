"""`winnow screen`: batches of new rows, answered, shown and listed."""

from pathlib import Path

from flows import terminal
from flows.running import failures_of_the_run, refuse_held_ledger
from schemas.errors import CorruptArtifact
from schemas.spec import LoadedSpec, ScreenSpec
from store.artifacts import Artifacts
from store.workspace import Workspace
from tasks.job import Job, blueprint
from tasks.preflight import preflight
from tasks.progress import recording
from tasks.reporting.screening import render_screening
from tasks.screening.answer import answer_of
from tasks.screening.batches import batch_digest, read_batch
from tasks.screening.inbox import (
    CHECK,
    STAGE,
    answers,
    checked_key,
    inbox_files,
    screening_key,
    waiting,
)

COLUMNS = ("batch", "rows", "accepted", "quarantined", "expected", "screened", "state")


def answer_batch(
    loaded: LoadedSpec,
    workspace: Workspace,
    path: Path,
    *,
    problem: str | None,
    verify: bool,
    debug: bool,
    as_json: bool,
) -> None:
    """Answer one batch and show the answer; one that was answered is only shown.

    Raises:
        LedgerHeld: Another process runs in this workspace.
        RequestError: The batch, the spec or its problem cannot be used.
        WinnowError: Whatever the flow ends with.
    """
    asked = loaded.spec.problem_of(ScreenSpec, problem)
    artifacts, path = Artifacts(workspace.artifacts), path.resolve()
    verify = verify or asked.verify
    if waiting(loaded, artifacts, asked, [path], verify=verify):
        refuse_held_ledger(workspace)
        _run(loaded, workspace, asked, [path], verify=verify, debug=debug)
    else:
        terminal.say(f"{path.name}: answered already, nothing to do")
    _show(loaded, workspace, asked, path, as_json=as_json)


def answer_inbox(
    loaded: LoadedSpec,
    workspace: Workspace,
    *,
    problem: str | None,
    verify: bool,
    debug: bool,
    as_json: bool,
) -> None:
    """Answer every batch of the inbox that waits, then list all.

    Raises:
        LedgerHeld: Another process runs in this workspace.
        RequestError: The spec or its problem cannot be used.
        WinnowError: Some batch cannot be used; the others are answered.
    """
    asked = loaded.spec.problem_of(ScreenSpec, problem)
    files = inbox_files(loaded, asked)
    verify = verify or asked.verify
    todo = waiting(loaded, Artifacts(workspace.artifacts), asked, files, verify=verify)
    try:
        if todo:
            refuse_held_ledger(workspace)
            count = "1 batch" if len(todo) == 1 else f"{len(todo)} batches"
            terminal.say(f"{loaded.spec.name}: {count} to answer")
            _run(loaded, workspace, asked, None, verify=verify, debug=debug)
        else:
            terminal.say(f"{loaded.spec.name}: no batch waits")
    finally:
        list_batches(loaded, workspace, problem=asked.name, as_json=as_json)


def list_batches(
    loaded: LoadedSpec, workspace: Workspace, *, problem: str | None, as_json: bool
) -> None:
    """Print every batch that was answered or waits, and how it stands; nothing is read in."""
    asked = loaded.spec.problem_of(ScreenSpec, problem)
    artifacts = Artifacts(workspace.artifacts)
    rows = []
    for each in answers(loaded, artifacts, asked):
        facts = answer_of(artifacts, each)
        checked = artifacts.find(CHECK, checked_key(loaded, each.key))
        rows.append(
            {
                "batch": facts["batch"],
                "rows": facts["n_rows"],
                "accepted": facts["accepted"],
                "quarantined": facts["quarantined"],
                "expected": round(float(facts["expected"]), 1),
                "screened": facts["screened_at"],
                "state": "checked" if checked else "answered",
                "accepted_file": facts["accepted_file"],
                "quarantined_file": facts["quarantined_file"],
            }
        )
    if asked.inbox is not None:
        files = inbox_files(loaded, asked)
        left = waiting(loaded, artifacts, asked, files, verify=asked.verify)
        rows += [{"batch": path.name, "state": "waits"} for path in left]
    if as_json:
        terminal.show_json(rows)
    elif rows:
        lines = [[row.get(column) for column in COLUMNS] for row in rows]
        terminal.show(terminal.table(COLUMNS, lines))
    else:
        terminal.say(f"{loaded.spec.name}: no batch was answered, and none waits")


def _run(
    loaded: LoadedSpec,
    workspace: Workspace,
    asked: ScreenSpec,
    files: list[Path] | None,
    *,
    verify: bool,
    debug: bool,
) -> None:
    from flows.server import serving

    job = Job(spec=loaded.path, workspace=workspace.root)
    label = f"{loaded.spec.name} {asked.name}"
    with recording(workspace.progress, label), terminal.progress_bars():
        # What can be refused is refused here, before a server is started for it.
        plan = blueprint(preflight(job))
        for path in files or ():
            read_batch(plan, path)
        with serving(workspace, debug=debug), failures_of_the_run():
            # Only now: Prefect reads where its server is when it is imported.
            from flows.screen import screen

            screen(
                str(loaded.path),
                workspace=str(workspace.root),
                batches=None if files is None else list(map(str, files)),
                problem=asked.name,
                verify=verify,
            )


def _show(
    loaded: LoadedSpec, workspace: Workspace, asked: ScreenSpec, path: Path, *, as_json: bool
) -> None:
    artifacts = Artifacts(workspace.artifacts)
    key = screening_key(loaded, asked, batch_digest(path))
    screening = artifacts.find(STAGE, key)
    if screening is None:
        raise CorruptArtifact(f"the answer to {path.name} disappeared; screen it again")
    checked = artifacts.find(CHECK, checked_key(loaded, key))
    verdict = dict(checked.facts) if checked else None
    answer = answer_of(artifacts, screening)
    if as_json:
        terminal.show_json({**answer, "verdict": verdict})
        return
    terminal.show(render_screening(answer, verdict))
    for name in ("accepted", "quarantined"):
        place = workspace.root / str(answer[f"{name}_file"])
        terminal.out().print(f"\n{name}: {place}", markup=False, soft_wrap=True, end="")
    terminal.out().print()
