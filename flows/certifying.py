"""`winnow certify`: how many training rows a poisoner would have to change."""

from typing import Any

from flows import terminal
from flows.running import failures_of_the_run
from schemas.spec import LoadedSpec
from store.workspace import Workspace
from tasks.job import Job, blueprint
from tasks.preflight import preflight
from tasks.progress import recording
from tasks.votes import certified_votes, check_votes

# Lines of the table: as many changes as make a difference, but not too many.
LINES = 12


def certify(
    loaded: LoadedSpec,
    workspace: Workspace,
    *,
    models: int,
    spread: int,
    judged: str | None,
    as_json: bool,
) -> None:
    """Let models vote, and print what is certified; what is sealed is only shown.

    Raises:
        LedgerHeld: Another process runs in this workspace.
        RequestError: The spec, the set or the numbers cannot be used.
    """
    job = Job(spec=loaded.path, workspace=workspace.root)
    rows = judged or loaded.spec.verdict.judge_on
    label = f"{loaded.spec.name} votes"
    with recording(workspace.progress, label), terminal.progress_bars():
        plan = blueprint(preflight(job))
        check_votes(plan, models, spread)
        _ = plan.sets.ids(rows)
        with failures_of_the_run():
            facts: Any = certified_votes(plan, models=models, spread=spread, judged=rows).facts
    if as_json:
        terminal.show_json(dict(facts))
        return
    out = terminal.out()
    for line in said(facts):
        out.print(line, markup=False, soft_wrap=True)
    certified = facts["certified"]
    step = max(1, -(-len(certified) // LINES))
    shown = range(0, len(certified), step)
    lines = [(changes, f"{100 * certified[changes]:.1f}") for changes in shown]
    terminal.show(terminal.table(("rows changed", "certainly right, %"), lines))


def said(facts: dict[str, Any]) -> list[str]:
    """What is certified, in sentences."""
    certified = facts["certified"]
    half = max((n for n, share in enumerate(certified) if share >= certified[0] / 2), default=0)
    voters = (
        f"{facts['models']} models vote, each trained on about {facts['each']:.0f} of "
        f"{facts['rows']:,} rows; judged on {facts['n_judged']:,} rows of '{facts['judged']}'. "
        f"They are right for {100 * certified[0]:.1f} %, models of all rows for "
        f"{100 * facts['whole']:.1f} %."
    )
    reach = (
        f"Whatever {half} training rows are inserted or deleted, or given another label, half of "
        "what they have right stays right. A row whose features change counts twice."
    )
    return [voters, reach]
