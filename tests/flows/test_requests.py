"""`winnow forget` from the shell: recorded, listed, answered once, and refused with exit code 2."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say one of --where SQL, --list and --process"),
        (("--list", "--process"), "say one of"),
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
