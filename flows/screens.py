"""The two web pages over a workspace, for as long as somebody looks: Prefect's and MLflow's."""

import contextlib
import fcntl
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.locks import lock_held
from flows.server import LOOPBACK, serving
from schemas.errors import ServerUnavailable
from store.workspace import Workspace

LEASH = Path(__file__).resolve().with_name("leash.py")
START_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Screens:
    """Where to look."""

    prefect: str
    mlflow: str


@contextlib.contextmanager
def screens(workspace: Workspace, *, debug: bool = False) -> Iterator[Screens]:
    """Serve both pages on loopback until the block ends; nothing stays behind.

    Raises:
        ServerUnavailable: One of the two does not start; the message names its log.
    """
    with mlflow_page(workspace) as mlflow, serving(workspace, debug=debug) as api:
        yield Screens(prefect=api.removesuffix("/api"), mlflow=mlflow)


@contextlib.contextmanager
def mlflow_page(workspace: Workspace) -> Iterator[str]:
    """Serve MLflow's page over the workspace's own tracking database."""
    workspace.mlartifacts.mkdir(parents=True, exist_ok=True)
    lock, log_path = workspace.root / "mlflow-page.lock", workspace.root / "mlflow-page.log"
    port = _free_port()
    command = [
        *(sys.executable, "-P", str(LEASH), str(lock)),
        *(sys.executable, "-P", "-m", "mlflow", "server", "--workers", "1"),
        *("--host", LOOPBACK, "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{workspace.mlflow_db}"),
        *("--default-artifact-root", str(workspace.mlartifacts)),
    ]
    quiet = {
        # Without it the server starts job consumers that outlive it, and takes twice as long
        # (20 s instead of 10 s, MLflow 3.17.2 on 2 cores).
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
    }
    with lock_held(lock, fcntl.LOCK_SH), log_path.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603
            command,
            env=os.environ | quiet,
            cwd=workspace.root,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _await_page(port, process, log_path)
            yield f"http://{LOOPBACK}:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()  # the leash sees our lock drop, and ends the command
                process.wait()


def _await_page(port: int, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == http.client.OK:
                return
        except (OSError, http.client.HTTPException):
            time.sleep(0.1)
        finally:
            connection.close()
    raise ServerUnavailable(f"MLflow's server did not start; its log is {log_path}")


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as probe:
        port: int = probe.getsockname()[1]
    return port
