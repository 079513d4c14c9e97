"""Where a workspace keeps its things: one folder, `.winnow` beside the spec unless told otherwise.

Paths only; nothing here opens a database or reads an artifact.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import NotFound, StorageError

DEFAULT_NAME = ".winnow"
VARIABLE = "WINNOW_WORKSPACE"


@dataclass(frozen=True, slots=True)
class Workspace:
    """The paths of one workspace.

    Attributes:
        root: The folder itself, absolute.
    """

    root: Path

    @property
    def ledger(self) -> Path:
        """The private database; one process writes it."""
        return self.root / "ledger.duckdb"

    @property
    def published(self) -> Path:
        """The snapshot of the ledger that anyone may read."""
        return self.root / "winnow.duckdb"

    @property
    def artifacts(self) -> Path:
        """The root of the sealed artifacts."""
        return self.root / "artifacts"

    @property
    def requests(self) -> Path:
        """The requests that rows be forgotten, a file each."""
        return self.root / "requests"

    @property
    def mlflow_db(self) -> Path:
        """MLflow's own tracking database."""
        return self.root / "mlflow.db"

    @property
    def mlartifacts(self) -> Path:
        """MLflow's own artifacts."""
        return self.root / "mlartifacts"

    @property
    def prefect(self) -> Path:
        """The local Prefect server's home."""
        return self.root / "prefect"

    @property
    def progress(self) -> Path:
        """The small file that a run writes its progress to."""
        return self.root / "progress.json"


def locate_workspace(
    spec_path: Path | None = None,
    override: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Workspace:
    """Say where the workspace is, without creating it.

    The first that is given: `override` (the --workspace option), WINNOW_WORKSPACE, `.winnow`
    beside the spec, `.winnow` in the current folder.

    Args:
        spec_path: The spec file.
        override: A folder named on the command line.
        environment: Where WINNOW_WORKSPACE is looked up; the process's own by default.
    """
    variable = (os.environ if environment is None else environment).get(VARIABLE)
    if override is not None:
        root = override
    elif variable:
        root = Path(variable)
    elif spec_path is not None:
        root = spec_path.absolute().parent / DEFAULT_NAME
    else:
        root = Path(DEFAULT_NAME)
    return Workspace(root=root.expanduser().resolve())


def open_workspace(
    spec_path: Path | None = None,
    override: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Workspace:
    """Locate the workspace, as `locate_workspace` does, and create its folder.

    Raises:
        NotFound: The spec's folder does not exist, or a file stands where the folder should be.
        StorageError: The folder cannot be created.
    """
    workspace = locate_workspace(spec_path, override, environment)
    root = workspace.root
    if root.exists() and not root.is_dir():
        raise NotFound(f"{root} is a file; name a folder with --workspace or {VARIABLE}")
    if spec_path is not None and not spec_path.absolute().parent.is_dir():
        raise NotFound(f"{spec_path.absolute().parent} does not exist; check the spec's path")
    try:
        workspace.artifacts.mkdir(parents=True, exist_ok=True)
        ignore = root / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"cannot create the workspace {root} ({error.strerror}); "
            f"name another folder with --workspace or {VARIABLE}"
        ) from error
    return workspace
