"""`winnow poisoned`: the rows that attacks poison, as files for research on defences."""

from pathlib import Path

from flows import terminal
from flows.plan import sealed_blueprint
from schemas.errors import NotFound
from schemas.spec import LoadedSpec, PoisonSpec
from store.workspace import Workspace
from tasks.export import write_poisoned


def export_poisoned(
    loaded: LoadedSpec, workspace: Workspace, folder: Path, *, problem: str | None
) -> None:
    """Write the files and say where they are.

    Raises:
        NotFound: Nothing has been run yet, or there is no such problem.
        RequestError: A file is there already, or the folder is the data's own.
    """
    plan = sealed_blueprint(loaded, workspace)
    if plan is None:
        raise NotFound(f"{loaded.spec.name} has not been run yet; `winnow run` solves its problems")
    for path in write_poisoned(plan, plan.spec.problem_of(PoisonSpec, problem), folder):
        terminal.say(f"wrote {path}: poisoned rows, never to train on")
