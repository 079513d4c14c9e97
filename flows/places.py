"""Which workspace is meant by a command that names no spec."""

import os
from pathlib import Path

from schemas.errors import NotFound
from store.workspace import DEFAULT_NAME, VARIABLE, Workspace, locate_workspace


def find_workspace(override: Path | None = None, folder: Path | None = None) -> Workspace:
    """Find the workspace: as named, in the folder, or the only one in a folder below it.

    Args:
        override: What --workspace says; WINNOW_WORKSPACE comes after it.
        folder: Where to look; the current folder by default.

    Raises:
        NotFound: There is none, or there are several; the message names them.
    """
    if override is not None or os.environ.get(VARIABLE):
        workspace = locate_workspace(override=override)
        if not workspace.root.is_dir():
            raise NotFound(f"{workspace.root} does not exist; check --workspace or {VARIABLE}")
        return workspace
    folder = Path.cwd() if folder is None else folder
    below = sorted(folder.glob(f"*/{DEFAULT_NAME}"))
    found = [place for place in (folder / DEFAULT_NAME, *below) if place.is_dir()]
    # The one right here is meant, whatever lies below.
    if found and (len(found) == 1 or found[0].parent == folder):
        return locate_workspace(override=found[0])
    if found:
        names = ", ".join(str(place.relative_to(folder)) for place in found)
        raise NotFound(f"there are {len(found)} workspaces ({names}); name one with --workspace")
    raise NotFound(
        f"no workspace in {folder} or one folder below; `winnow run SPEC` makes one, "
        "--workspace names one elsewhere"
    )
