"""One local Prefect server per workspace, for as long as somebody uses it.

``serving`` knows where the API is: the user's own (PREFECT_API_URL) or a local server over the
workspace's SQLite file, started when needed and shared by every process of that workspace.

    prefect/users.lock     shared lock = "I use the server"; the server itself waits for the
                           exclusive one and leaves when it gets it (flows/prefect_server.py)
    prefect/start.lock     exclusive lock = "I look for the server, or start it"
    prefect/server.json    pid and port of the last server; a hint, verified before it is believed

Locks are flock(2): the kernel drops them with their process, so nothing has to be cleaned up after
``kill -9``. Start-up took 6.5 s in a new workspace (of which 3.5 s of Prefect's migrations) and 3 s
in a known one (of which 2.1 s of imports) on 2 cores with Prefect 3.8.8; switching services off
changed nothing measurable, so this process imports Prefect meanwhile.
"""

import contextlib
import fcntl
import http.client
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.locks import convert_lock, lock_held
from flows.prefect_client import LOOPBACK, UNTRACKED, drain, logging_to, pointed_at
from schemas.errors import ServerUnavailable
from store.processes import alive
from store.workspace import Workspace

START_SECONDS = 120.0
STOP_SECONDS = 6.0
LAUNCHER = Path(__file__).resolve().with_name("prefect_server.py")

# Servers that outlive their starter because another process uses them: kept, so that Popen does
# not warn about a child that is still running.
_left_running: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRecord:
    """Where the workspace's last server was."""

    pid: int
    port: int

    @property
    def api_url(self) -> str:
        """The address that Prefect calls PREFECT_API_URL."""
        return f"http://{LOOPBACK}:{self.port}/api"


@contextlib.contextmanager
def serving(workspace: Workspace, *, debug: bool = False) -> Iterator[str]:
    """Give the API URL of a running Prefect server, and point this process at it.

    A server of one's own, named by PREFECT_API_URL, is used as it is. Otherwise the workspace's
    local server is joined or started; it ends when its last user leaves or dies.

    Args:
        workspace: Whose server; its ``prefect`` folder holds all of the server's state.
        debug: Show Prefect's own messages on the terminal instead of its warnings only.

    Raises:
        ServerUnavailable: The server does not start, or the user's own does not answer.
    """
    log = workspace.prefect / "flow.log"
    workspace.prefect.mkdir(parents=True, exist_ok=True)
    own = os.environ.get("PREFECT_API_URL")
    if own:
        with pointed_at(own, home=None, debug=debug), logging_to(log, debug=debug):
            yield own
        return
    with lock_held(workspace.prefect / "users.lock", fcntl.LOCK_SH) as users:
        started = None
        try:
            record, started = _join_or_start(workspace)
            with (
                pointed_at(record.api_url, home=workspace.prefect, debug=debug),
                logging_to(log, debug=debug),
            ):
                importlib.import_module("prefect.flow_engine")  # 2 s, as the server does the same

                _await_health(record, workspace, started)
                try:
                    yield record.api_url
                finally:
                    drain()
        finally:
            _leave(workspace, users, started)


def recorded_server(workspace: Workspace) -> ServerRecord | None:
    """Return the server that the workspace's record names, if it is alive and really ours."""
    record = _read_record(workspace)
    return record if record is not None and _is_our_server(record.pid, workspace) else None


# -- finding and starting ----------------------------------------------------------------------


def _join_or_start(workspace: Workspace) -> tuple[ServerRecord, subprocess.Popen[bytes] | None]:
    """Return the live server of the workspace, or start one; one process at a time decides."""
    with lock_held(workspace.prefect / "start.lock", fcntl.LOCK_EX):
        record = recorded_server(workspace)
        if record is not None:
            if _healthy(record, START_SECONDS):
                return record, None
            _kill(record.pid)
        return _start(workspace)


def _start(workspace: Workspace) -> tuple[ServerRecord, subprocess.Popen[bytes]]:
    # Bound here and inherited: the port is ours before the server runs, and an early request waits
    # in the socket's queue instead of being refused.
    with socket.create_server((LOOPBACK, 0), backlog=128) as listener:
        port = listener.getsockname()[1]
        users_lock = workspace.prefect / "users.lock"
        with (workspace.prefect / "server.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", str(LAUNCHER), str(listener.fileno()), str(users_lock)],
                pass_fds=[listener.fileno()],
                env=os.environ | server_settings(workspace, port),
                cwd=workspace.prefect,  # Prefect reads .env and pyproject.toml of its directory
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the flow; the server goes after it
            )
    record = ServerRecord(pid=process.pid, port=port)
    draft = workspace.prefect / "server.json.draft"
    draft.write_text(json.dumps(asdict(record)))
    draft.replace(workspace.prefect / "server.json")
    return record, process


def server_settings(workspace: Workspace, port: int) -> dict[str, str]:
    """Return the environment of a local server: this workspace's files, loopback, no telemetry."""
    home = workspace.prefect
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        "PREFECT_SERVER_API_HOST": LOOPBACK,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_API_URL": f"http://{LOOPBACK}:{port}/api",
        **UNTRACKED,
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }


def _await_health(
    record: ServerRecord, workspace: Workspace, started: subprocess.Popen[bytes] | None
) -> None:
    if _healthy(record, START_SECONDS):
        return
    ended = "" if started is None or started.poll() is None else f" (exit {started.returncode})"
    raise ServerUnavailable(
        f"the local Prefect server did not start{ended}; its log is "
        f"{workspace.prefect / 'server.log'}, and `winnow doctor` checks the versions it needs"
    )


def _healthy(record: ServerRecord, seconds: float) -> bool:
    """Ask for /api/health; http.client, because urllib and httpx would obey a proxy setting."""
    connection = http.client.HTTPConnection(LOOPBACK, record.port, timeout=seconds)
    try:
        connection.request("GET", "/api/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# -- leaving -----------------------------------------------------------------------------------


def _leave(workspace: Workspace, users: int, started: subprocess.Popen[bytes] | None) -> None:
    """Give up this process's use; if it was the last, see the server off."""
    record = recorded_server(workspace)
    if record is not None and convert_lock(users, fcntl.LOCK_EX):
        # Nobody else: newcomers wait for this lock until the server has gone.
        _terminate(record.pid, started)
        (workspace.prefect / "server.json").unlink(missing_ok=True)
    elif record is not None and not convert_lock(users, fcntl.LOCK_SH):
        # The server saw the lock drop first and is on its way out.
        _wait_for_end(record.pid, started)
    if started is not None and started.poll() is None:
        _left_running.append(started)


def _terminate(pid: int, started: subprocess.Popen[bytes] | None) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    if not _wait_for_end(pid, started):
        _kill(pid)
        _wait_for_end(pid, started)


def _wait_for_end(pid: int, started: subprocess.Popen[bytes] | None) -> bool:
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        if started is not None and started.pid == pid:
            if started.poll() is not None:
                return True
        elif not alive(pid):
            return True
        time.sleep(0.02)
    return False


def _kill(pid: int) -> None:
    """End a server that was verified to be ours, with every process of its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _is_our_server(pid: int, workspace: Workspace) -> bool:
    """Tell whether the pid is this workspace's server: pids are reused, so its command is read."""
    users_lock = str(workspace.prefect / "users.lock")
    proc = Path(f"/proc/{pid}/cmdline")
    try:
        if Path("/proc/self").exists():
            command = proc.read_bytes().decode(errors="replace")
        else:
            command = subprocess.run(  # noqa: S603
                ["/bin/ps", "-o", "command=", "-p", str(pid)],
                capture_output=True,
                text=True,
                check=False,
            ).stdout
    except OSError:
        return False
    return LAUNCHER.name in command and users_lock in command


def _read_record(workspace: Workspace) -> ServerRecord | None:
    try:
        fields = json.loads((workspace.prefect / "server.json").read_text())
        return ServerRecord(pid=int(fields["pid"]), port=int(fields["port"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
