"""What `winnow doctor` looks at: is this installation whole, and what state is the workspace in?

Each check returns a finding; none changes anything.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from flows.locks import is_locked
from flows.server import recorded_server
from schemas.errors import WinnowError
from store.workspace import Workspace
from tasks.progress import read_progress

CHECKOUT = Path(__file__).resolve().parents[1]
ROOT_PACKAGES = ("attribution", "flows", "optimize", "schemas", "store", "tasks")
SHOWN = ("torch", "prefect", "mlflow", "duckdb", "polars", "numpy", "numba", "cyclopts")
LOW_DISK_BYTES = 2 * 10**9


class Level(StrEnum):
    """How good a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's: what was looked at, what was found, and what to do about it."""

    level: Level
    what: str
    found: str
    advice: str = ""


def ok(what: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(level=Level.OK, what=what, found=found)


def warn(what: str, found: str, advice: str) -> Finding:
    """It works, but somebody should know."""
    return Finding(level=Level.WARN, what=what, found=found, advice=advice)


def fail(what: str, found: str, advice: str) -> Finding:
    """It cannot work."""
    return Finding(level=Level.FAIL, what=what, found=found, advice=advice)


def examine(workspace: Workspace) -> Iterator[Finding]:
    """Look at the installation, the machine and one workspace."""
    yield ok("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from versions()
    yield fastapi_pin()
    yield from root_packages()
    yield mlflow_package()
    yield from machine()
    yield prefect_api()
    yield from workspace_state(workspace)


def versions() -> Iterator[Finding]:
    """Tell which releases of the heavy dependencies are installed."""
    for name in SHOWN:
        try:
            yield ok(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield fail(name, "not installed", f"run `pip install -e {CHECKOUT}`")


def fastapi_pin() -> Finding:
    """Prefect 3.8 cannot start its server on newer FastAPI releases that it says it allows."""
    advice = "run `pip install 'fastapi<0.151'`"
    try:
        version = importlib.metadata.version("fastapi")
    except importlib.metadata.PackageNotFoundError:
        return fail("fastapi", "not installed", advice)
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) >= (0, 151):
        return fail("fastapi", f"{version}, on which Prefect's server may not start", advice)
    return ok("fastapi", version)


def root_packages() -> Iterator[Finding]:
    """Each root package must be the one of this checkout, whatever the working directory holds."""
    foreign = {name: place for name in ROOT_PACKAGES if (place := foreign_home(name)) is not None}
    for name, place in foreign.items():
        yield fail(name, f"comes from {place}", f"it must come from {CHECKOUT}; see PYTHONPATH")
    if not foreign:
        yield ok("root packages", f"all from {CHECKOUT}")


def foreign_home(name: str) -> str | None:
    """Return where a root package comes from when that is not this checkout."""
    spec = importlib.util.find_spec(name)
    origin = None if spec is None else spec.origin
    if origin is not None and Path(origin).resolve().parent == CHECKOUT / name:
        return None
    return origin or "nowhere"


def mlflow_package() -> Finding:
    """A folder called mlflow must not stand before the package of that name."""
    advice = "run `pip install mlflow`, and see PYTHONPATH"
    try:
        distribution = importlib.metadata.distribution("mlflow")
    except importlib.metadata.PackageNotFoundError:
        return fail("mlflow package", "not installed", advice)
    installed = Path(str(distribution.locate_file("mlflow/__init__.py"))).resolve()
    spec = importlib.util.find_spec("mlflow")
    origin = None if spec is None else spec.origin
    if origin is None or Path(origin).resolve() != installed:
        found = f"{origin or 'a folder without code'} stands before {installed.parent}"
        return fail("mlflow package", found, advice)
    return ok("mlflow package", str(installed.parent))


def machine() -> Iterator[Finding]:
    """Device and threads."""
    import torch

    if torch.cuda.is_available():
        yield ok("device", f"cuda: {torch.cuda.get_device_name(0)}")
    else:
        yield ok("device", "cpu (no CUDA device is visible)")
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    found = f"{threads} of {cores} cores"
    if threads > cores:
        yield warn("threads", found, f"set OMP_NUM_THREADS to {cores} or less")
    else:
        yield ok("threads", found)


def prefect_api() -> Finding:
    """Where Prefect's API will be."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return ok("prefect server", "a local one per workspace, started when needed")
    return warn("prefect server", f"PREFECT_API_URL={url} is used", "unset it for a local one")


def workspace_state(workspace: Workspace) -> Iterator[Finding]:
    """Locks, leftovers and size of one workspace."""
    if not workspace.root.is_dir():
        yield ok("workspace", f"{workspace.root} does not exist yet")
        return
    size = sum(file.stat().st_size for file in workspace.artifacts.rglob("*") if file.is_file())
    yield ok("workspace", f"{workspace.root}, {size / 1e6:,.1f} MB of artifacts")
    yield disk(workspace)
    yield ledger(workspace)
    if workspace.published.is_file():
        yield ok("published", f"{workspace.published.stat().st_size / 1e6:,.1f} MB")
    else:
        yield ok("published", "nothing yet")
    progress = read_progress(workspace.progress)
    if progress is not None and progress.outcome == "stopped":
        advice = "run `winnow run SPEC` again: it continues with what is missing"
        yield warn("last run", f"'{progress.label}' was stopped before it ended", advice)
    yield server(workspace)


def disk(workspace: Workspace) -> Finding:
    """Room for more artifacts."""
    free = shutil.disk_usage(workspace.root).free
    if free < LOW_DISK_BYTES:
        return warn("disk", f"{free / 1e9:.1f} GB free", "make room, or move with --workspace")
    return ok("disk", f"{free / 1e9:,.1f} GB free")


def ledger(workspace: Workspace) -> Finding:
    """Whether the ledger can be written; opening it is the only honest test."""
    if not workspace.ledger.is_file():
        return ok("ledger", "nothing yet")
    from store.connect import open_ledger

    try:
        open_ledger(workspace.ledger).close()
    except WinnowError as error:
        found, _, advice = str(error).partition("; ")
        return (warn if error.exit_code == 2 else fail)("ledger", found, advice)
    return ok("ledger", f"{workspace.ledger.stat().st_size / 1e6:,.1f} MB, held by nobody")


def server(workspace: Workspace) -> Finding:
    """Whether the local Prefect server runs, and somebody uses it."""
    record = recorded_server(workspace)
    if record is None:
        return ok("local server", "none is running")
    if is_locked(workspace.prefect / "users.lock"):
        return ok("local server", f"pid {record.pid} at {record.api_url}, in use")
    advice = f"it ends by itself or at the next run; if it stays, `kill {record.pid}`"
    return warn("local server", f"pid {record.pid} is used by nobody", advice)
