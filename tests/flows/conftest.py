"""Shared by the tests of flows: workspaces, the installed command, processes by pid."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
WINNOW = Path(sys.executable).with_name("winnow")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may speak to a Prefect server or workspace that the developer uses."""
    for name in list(os.environ):
        if name.startswith(("PREFECT_", "WINNOW_")):
            monkeypatch.delenv(name)


@pytest.fixture
def winnow(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the installed command in ``tmp_path`` (or ``cwd``)."""

    def call(
        *arguments: str | Path, cwd: Path = tmp_path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [WINNOW, *map(str, arguments)],
            cwd=cwd,
            env=os.environ | {"COLUMNS": "100", "NO_COLOR": "1"} | environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return call


@pytest.fixture
def gone() -> Callable[[int], bool]:
    """Tell whether a process ends within ten seconds (a zombie has ended)."""

    def wait(pid: int) -> bool:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if not running(pid):
                return True
            time.sleep(0.05)
        return False

    return wait


def running(pid: int) -> bool:
    """Tell whether a process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
