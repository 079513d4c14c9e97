"""The commands that start a spec, or look at a workspace and the installation."""

from pathlib import Path

from flows.commands.session import Here, Json, found_workspace


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


def status(*, here: Here, as_json: Json = False) -> int:
    """Show the run that goes on, and the last ones; never disturbs a run.

    Args:
        here: The session.
        as_json: Print JSON for scripts.
    """
    from flows.summary import show_status

    show_status(found_workspace(here), as_json=as_json)
    return 0


def sql(
    query: str | None = None,
    /,
    *,
    here: Here,
    as_json: Json = False,
    csv: bool = False,
    limit: int = 1_000,
) -> int:
    """Run SQL on the published results, read-only.

    Args:
        query: One statement, as in "FROM top_influences(17)"; without one, what there is to ask.
        here: The session.
        as_json: Print JSON for scripts.
        csv: Print CSV, which is also what a pipe or a file gets.
        limit: Most rows to print; 0 for all.
    """
    from flows import terminal
    from store.connect import run_sql

    asked = "FROM contents" if query is None else query
    result = run_sql(found_workspace(here).published, asked, limit=limit or None)
    if as_json:
        terminal.show_json([dict(zip(result.columns, row, strict=True)) for row in result.rows])
    elif csv:
        terminal.show_csv(result.columns, result.rows)
    elif query is None:
        # Sentences may be wrapped, where values of a query are not to be.
        terminal.show(terminal.table(result.columns, result.rows))
    else:
        terminal.show_rows(result.columns, result.rows)
    if result.truncated:
        terminal.say(f"only the first {len(result.rows)} rows; --limit 0 gives all")
    return 0


def methods(*, as_json: Json = False) -> int:
    """List the attribution methods: what each needs, costs, and where it is published.

    Args:
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
        workspace = found_workspace(here)
    except NotFound:
        workspace = locate_workspace(override=here.workspace)
    findings = list(examine(workspace))
    if as_json:
        terminal.show_json([asdict(finding) for finding in findings])
    else:
        rows = [(each.level, each.what, each.found, each.advice) for each in findings]
        terminal.show(terminal.table(("", "", "found", "what to do"), rows))
    return int(any(each.level is Level.FAIL for each in findings))


def ui(*, here: Here) -> int:
    """Serve the pages of Prefect and MLflow over the workspace until Ctrl-C."""
    import signal

    from flows import terminal
    from flows.screens import screens

    terminal.say("starting the pages of Prefect and MLflow ...")
    with screens(found_workspace(here), debug=here.debug) as pages:
        # MLflow opens on traces of language models; runs are under model training.
        runs = f"{pages.mlflow}/#/experiments?workflowType=machine_learning"
        terminal.out().print(f"Prefect  {pages.prefect}\nMLflow   {runs}", soft_wrap=True)
        terminal.say("Ctrl-C ends both")
        try:
            signal.pause()
        except KeyboardInterrupt:
            return 0
    return 0
