"""`winnow run` as a person or a scheduler meets it: again, interrupted, refused, failed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.server import recorded_server
from store.connect import open_ledger
from store.workspace import Workspace
from tasks.progress import Outcome, read_progress, recording
from tests.flows.conftest import CHECKOUT, WINNOW

pytestmark = [pytest.mark.flow, pytest.mark.slow]

Winnow = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    shutil.copy(CHECKOUT / "examples/tiny.toml", tmp_path)
    return tmp_path / "tiny.toml"


@pytest.fixture
def workspace(spec: Path) -> Workspace:
    return Workspace(spec.parent / ".winnow")


@pytest.fixture
def long_spec(spec: Path) -> Path:
    """A bank that takes much longer than the test."""
    text = spec.read_text().replace("models = 24", "models = 4000")
    spec.write_text(text.replace("epochs = 10", "epochs = 200"))
    return spec


def test_a_run_answers_and_the_next_one_finds_nothing_to_do(
    winnow: Winnow, spec: Path, workspace: Workspace
) -> None:
    first = winnow("run", spec)
    assert first.returncode == 0, first.stderr
    assert "Traceback" not in first.stderr
    assert first.stdout
    assert recorded_server(workspace) is None
    log = (workspace.prefect / "server.log").stat().st_mtime_ns
    again = winnow("run", spec)
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    assert again.stdout == first.stdout
    # No server was started: its log would have been opened.
    assert (workspace.prefect / "server.log").stat().st_mtime_ns == log
    code = (
        "import sys, flows.cli\n"
        f"try:\n    flows.cli.main(['run', {str(spec)!r}])\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', sorted({'torch', 'prefect', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout  # a finished run is looked at in a second
    steps = json.loads(winnow("plan", spec, "--json").stdout)
    assert all(step["done"] == step["total"] for step in steps)
    assert json.loads(winnow("run", spec, "--json").stdout)
    assert json.loads(winnow("sql", "FROM runs", "--json").stdout)[0]["spec_name"] == "tiny"


def test_a_run_up_to_a_stage_says_what_was_solved_and_what_goes_on(
    winnow: Winnow, spec: Path
) -> None:
    done = winnow("run", spec, "--only", "data")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == f"data done; `winnow run {spec}` goes on"
    done = winnow("run", spec, "--only", "solution")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == f"solution done; `winnow run {spec}` goes on"
    assert done.stdout.startswith("clean: ")
    assert "No other choice of this size has a higher total utility" in " ".join(
        done.stdout.split()
    )


def test_a_stage_that_does_not_exist_is_refused(
    winnow: Winnow, spec: Path, workspace: Workspace
) -> None:
    for option in ("--only", "--refresh"):
        done = winnow("run", spec, option, "bnak")
        assert done.returncode == 2
        assert "bank" in done.stderr
        assert done.stderr.count("\n") == 1
    assert not workspace.prefect.exists()


def test_a_held_ledger_is_found_before_anything_runs(
    winnow: Winnow, spec: Path, workspace: Workspace
) -> None:
    workspace.root.mkdir()
    held = open_ledger(workspace.ledger)
    done = winnow("run", spec)
    held.close()
    assert done.returncode == 2
    assert str(os.getpid()) in done.stderr
    assert not workspace.prefect.exists()


def test_a_second_run_in_a_workspace_is_refused(
    winnow: Winnow, spec: Path, workspace: Workspace
) -> None:
    with recording(workspace.progress, "another"):
        done = winnow("run", spec)
    assert done.returncode == 2
    assert f"process {os.getpid()} runs 'another'" in done.stderr
    assert not workspace.prefect.exists()


@pytest.mark.parametrize(
    ("end", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_run_that_is_stopped_leaves_no_server_and_says_what_resumes(
    long_spec: Path,
    workspace: Workspace,
    gone: Callable[[int], bool],
    end: signal.Signals,
    code: int,
) -> None:
    with subprocess.Popen([WINNOW, "run", long_spec], stderr=subprocess.PIPE, text=True) as process:
        while not in_the_bank(workspace):
            assert process.poll() is None
            time.sleep(0.1)
        server = recorded_server(workspace)
        assert server is not None
        process.send_signal(end)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert gone(server.pid)
    if end is signal.SIGINT:
        assert "goes on with what is missing" in said
        assert "Traceback" not in said
    progress = read_progress(workspace.progress)
    assert progress is not None
    assert progress.outcome is Outcome.STOPPED


def in_the_bank(workspace: Workspace) -> bool:
    progress = read_progress(workspace.progress)
    return progress is not None and any(stage.stage == "bank" for stage in progress.stages)


def test_a_run_that_fails_is_one_line_and_exit_code_1(
    winnow: Winnow, spec: Path, workspace: Workspace
) -> None:
    # So large a step that the loss overflows.
    spec.write_text(spec.read_text().replace("lr = 0.05", "lr = 1e30"))
    done = winnow("run", spec)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" in (workspace.prefect / "flow.log").read_text()
