"""One Prefect server per workspace, and none left behind: every claim is checked by pid."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.server import recorded_server, serving
from schemas.errors import ServerUnavailable
from store.workspace import Workspace
from tests.flows.conftest import running

pytestmark = pytest.mark.flow

USER = """
import sys, time
from pathlib import Path
from flows.server import recorded_server, serving
from store.workspace import Workspace

workspace = Workspace(Path(sys.argv[1]))
with serving(workspace):
    print(recorded_server(workspace).pid, flush=True)
    if sys.argv[2] == "raise":
        raise ValueError("on purpose")
    if sys.argv[2] == "wait":
        time.sleep(120)
    if sys.argv[2] == "fork":
        import os
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        time.sleep(120)
"""

FLOW = """
import sys
from pathlib import Path
from flows.server import serving
from store.workspace import Workspace

with serving(Workspace(Path(sys.argv[1])), debug=sys.argv[2] == "debug"):
    from prefect import flow, get_run_logger, task
    from prefect.cache_policies import NO_CACHE

    @task(cache_policy=NO_CACHE)
    def double(number: int) -> int:
        get_run_logger().info("a word from the task")
        return 2 * number

    @flow
    def tiny() -> int:
        get_run_logger().warning("a warning from the flow")
        return sum(future.result() for future in double.map([1, 2, 3]))

    print("answer", tiny())
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One workspace for the module: Prefect's migrations take seconds in a new one."""
    return Workspace(tmp_path_factory.mktemp("served") / ".winnow")


@pytest.fixture
def user(workspace: Workspace) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], int]]]:
    """Start a process that uses the workspace's server; gives it and the server's pid."""
    started: list[subprocess.Popen[str]] = []

    def start(manner: str) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", USER, str(workspace.root), manner],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_the_server_ends_with_the_block_that_started_it(workspace: Workspace) -> None:
    before = dict(os.environ)
    with serving(workspace) as url:
        record = recorded_server(workspace)
        assert record is not None
        assert record.api_url == url == os.environ["PREFECT_API_URL"]
        assert running(record.pid)
    assert not running(record.pid)
    assert recorded_server(workspace) is None
    assert dict(os.environ) == before


@pytest.mark.parametrize("manner", ["end", "raise"])
def test_the_server_ends_when_its_user_ends_well_or_badly(
    user: Callable[[str], tuple[subprocess.Popen[str], int]],
    gone: Callable[[int], bool],
    manner: str,
) -> None:
    process, server = user(manner)
    process.wait(timeout=30)
    assert gone(server)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_server_ends_when_its_user_is_stopped(
    user: Callable[[str], tuple[subprocess.Popen[str], int]],
    gone: Callable[[int], bool],
    end: signal.Signals,
) -> None:
    process, server = user("wait")
    assert running(server)
    process.send_signal(end)
    process.wait(timeout=30)
    assert gone(server)


def test_a_forked_worker_of_a_killed_user_does_not_keep_the_server(
    user: Callable[[str], tuple[subprocess.Popen[str], int]], gone: Callable[[int], bool]
) -> None:
    process, server = user("fork")
    time.sleep(0.5)
    process.kill()
    process.wait()
    assert gone(server)


def test_a_user_killed_while_the_server_starts_leaves_nothing(
    workspace: Workspace, gone: Callable[[int], bool]
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(workspace.root), "wait"], stdout=subprocess.DEVNULL
    )
    while (record := recorded_server(workspace)) is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert gone(record.pid)


def test_two_users_share_one_server_and_it_outlives_the_first(
    user: Callable[[str], tuple[subprocess.Popen[str], int]], gone: Callable[[int], bool]
) -> None:
    first, server = user("wait")
    second, same = user("wait")
    assert same == server
    first.kill()
    first.wait()
    time.sleep(1)
    assert running(server)
    second.kill()
    second.wait()
    assert gone(server)


def test_a_record_that_names_a_strangers_pid_is_not_believed(workspace: Workspace) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        record = {"pid": stranger.pid, "port": 1}
        (workspace.prefect / "server.json").write_text(json.dumps(record))
        assert recorded_server(workspace) is None
        with serving(workspace):
            server = recorded_server(workspace)
            assert server is not None
            assert server.pid != stranger.pid
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize("manner", ["quiet", "debug"])
def test_flows_run_and_only_warnings_reach_the_terminal(workspace: Workspace, manner: str) -> None:
    log = workspace.prefect / "flow.log"
    log.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", FLOW, str(workspace.root), manner],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip().endswith("answer 12")
    shown = done.stdout + done.stderr
    assert "a warning from the flow" in shown
    assert ("a word from the task" in shown) == (manner == "debug")
    assert "Traceback" not in shown
    assert "a word from the task" in log.read_text()


def test_what_ran_is_still_there_when_the_server_is_started_again(workspace: Workspace) -> None:
    subprocess.run(
        [sys.executable, "-c", FLOW, str(workspace.root), "quiet"], check=True, capture_output=True
    )
    with serving(workspace):
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs()
            tasks = client.read_task_runs()
    assert {run.state_name for run in runs} == {"Completed"}
    assert tasks
    assert {run.state_name for run in tasks} == {"Completed"}


def test_a_server_of_ones_own_is_used_and_left_alone(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with serving(workspace) as url:
        assert url == "http://127.0.0.1:9/api"
        assert recorded_server(workspace) is None
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:9/api"


def test_a_server_that_cannot_start_is_one_clear_error(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / ".winnow")
    workspace.prefect.mkdir(parents=True)
    (workspace.prefect / "prefect.db").write_text("this is no database")
    with pytest.raises(ServerUnavailable, match=r"server\.log"), serving(workspace):
        pass
