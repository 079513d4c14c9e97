"""What holds for every command, and where a command finds its spec and its workspace."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from schemas.spec import LoadedSpec
    from store.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What holds for every command."""

    workspace: Path | None = None
    debug: bool = False


Here = Annotated[Session, Parameter(parse=False)]
Json = Annotated[bool, Parameter(name="--json")]


def loaded_spec(path: Path) -> "LoadedSpec":
    """The spec, when every file that it names is there.

    Raises:
        SpecError: It cannot be read, says something impossible, or names a file that is not there.
    """
    from flows.summary import missing_files
    from schemas.errors import SpecError
    from schemas.spec import load_spec

    loaded = load_spec(path)
    if missing := missing_files(loaded):
        raise SpecError(str(path), missing)
    return loaded


def opened(path: Path, here: Session, *, create: bool) -> "tuple[LoadedSpec, Workspace]":
    """The spec and its workspace, which is made where there is none if it is to be.

    Raises:
        SpecError: As `loaded_spec`.
    """
    from store.workspace import locate_workspace, open_workspace

    loaded = loaded_spec(path)
    place = open_workspace if create else locate_workspace
    return loaded, place(loaded.path, here.workspace)


def found_workspace(here: Session) -> "Workspace":
    """The workspace of a command that names no spec.

    Raises:
        NotFound: There is none.
    """
    from flows.places import find_workspace

    return find_workspace(here.workspace)
