"""`winnow forget` from the shell: recorded, listed, answered once, and refused with exit code 2."""

import json
import os
import pty
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect._internal.analytics.ci_detection import CI_ENV_VARS

from store.artifacts import Artifacts
from store.workspace import Workspace
from tasks.forget import record_request, waiting
from tasks.preflight import open_job, preflight
from tests.flows.conftest import WINNOW
from tests.tasks.forgetful import written

Winnow = Callable[..., subprocess.CompletedProcess[str]]
FOUR = "SELECT example_id FROM examples WHERE split = 'train' ORDER BY example_id DESC LIMIT 4"


@pytest.mark.flow
def test_a_request_is_recorded_answered_once_and_certified(winnow: Winnow, tmp_path: Path) -> None:
    spec = written(tmp_path)
    assert "nobody has asked" in winnow("forget", spec, "--list").stderr
    asked = winnow("forget", spec, "--where", FOUR, "--note", "they moved away")
    assert (asked.returncode, asked.stdout) == (0, "")
    assert "4 rows to forget" in asked.stderr
    assert "1 request to forget rows waits" in winnow("plan", spec).stderr
    answered = winnow("forget", spec, "--process", "--json")
    assert answered.returncode == 0, answered.stderr
    (state,) = json.loads(answered.stdout)
    assert (state["state"], state["new rows"], state["note"]) == ("answered", 4, "they moved away")
    page = (tmp_path / ".winnow" / state["certificate"]).read_text()
    assert "they moved away" in page
    assert "13 of 107 training rows" in page
    again = winnow("forget", spec, "--process")
    assert "no request waits" in again.stderr
    assert state["request"] in again.stdout
    told = winnow("run", spec)
    assert "nothing to do" in told.stderr
    assert "1 request among them" in told.stdout


def test_a_new_user_reads_no_notice_of_telemetry(tmp_path: Path) -> None:
    # Prefect prints it where it is imported first on a terminal, for whoever has not opted out.
    spec, told = written(tmp_path), (WINNOW, "forget", "wines.toml", "--where", FOUR)
    unset = ("DO_NOT_TRACK", *CI_ENV_VARS)
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    ours, theirs = pty.openpty()
    try:
        process = subprocess.run(
            told,
            cwd=spec.parent,
            env=environment | {"HOME": str(tmp_path / "home"), "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            timeout=120,
            check=True,
        )
        text = os.read(ours, 65_536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 0
    assert "4 rows to forget" in text
    assert "usage data" not in text


@pytest.mark.flow
@pytest.mark.slow
def test_answers_that_were_killed_go_on_and_each_request_is_answered_once(
    winnow: Winnow, tmp_path: Path
) -> None:
    smaller = (("models = 40", "models = 24"), ("models = 8", "models = 4"))
    alone = (('compare = ["finetune"]', "compare = []"), ("finetune = { epochs = 1 }", ""))
    spec = written(tmp_path, ('forget = "withdrawn"\n', ""), *smaller, *alone)
    workspace = Workspace(tmp_path / ".winnow")
    job = preflight(open_job(spec, workspace.root))
    for offset in (0, 4):
        where = (
            "SELECT example_id FROM examples WHERE split = 'train' "
            f"ORDER BY example_id LIMIT 4 OFFSET {offset}"
        )
        record_request(job, where=where, note="", problem=None)
    artifacts = Artifacts(workspace.artifacts)

    with subprocess.Popen(
        [WINNOW, "forget", spec, "--process"], cwd=tmp_path, stderr=subprocess.PIPE
    ) as process:
        # The first is answered; of the second nothing but its solution is there.
        while len(artifacts.keys("solution")) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.kill()
    assert waiting(job) == [2]
    stages = ("bank", "solution", "verdict", "run", "request")
    before = {stage: {m.key: m for m in artifacts.manifests(stage)} for stage in stages}
    assert len(before["verdict"]) == len(before["request"]) == 1

    again = winnow("forget", spec, "--process", "--json")
    assert again.returncode == 0, again.stderr
    assert [each["state"] for each in json.loads(again.stdout)] == ["answered"] * 2
    assert waiting(job) == []
    after = {stage: {m.key: m for m in artifacts.manifests(stage)} for stage in stages}
    for stage in stages:
        assert before[stage].items() <= after[stage].items(), stage
    assert len(after["solution"]) == len(after["verdict"]) == len(after["request"]) == 2
    trained = [name for chunk in after["bank"].values() for name in chunk.facts["retrainings"]]
    assert len(trained) == len(set(trained))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say one of --where SQL, --list and --process"),
        (("--list", "--process"), "say one of"),
        (("--list", "--with-copies"), "--with-copies is about the rows of --where SQL"),
        (("--where", "SELECT example_id FROM examples"), "is a test row"),
        (("--where", "SELECT 5 AS example_id WHERE false"), "no example matches"),
        (("--where", FOUR, "--problem", "withdraw"), "did you mean 'withdrawn'?"),
    ],
)
def test_a_wrong_request_exits_with_two_and_leaves_no_request(
    winnow: Winnow, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    spec = written(tmp_path)
    refused = winnow("forget", spec, *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not list((tmp_path / ".winnow" / "requests").glob("*.json"))
