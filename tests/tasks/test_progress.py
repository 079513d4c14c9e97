"""Progress: what another process reads, and what listeners hear."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from schemas.errors import LedgerHeld
from tasks.progress import (
    Outcome,
    StageProgress,
    advance,
    listening,
    read_progress,
    recording,
    refuse_second_run,
)


def test_another_process_reads_how_far_each_stage_is(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    with recording(path, "digits"):
        advance("train", 2, 5)
        advance("bank", 0, 120)
        code = (
            "import sys; from pathlib import Path; from tasks.progress import read_progress; "
            "p = read_progress(Path(sys.argv[1])); "
            "print(p.label, p.outcome, [(s.stage, s.done, s.total) for s in p.stages])"
        )
        seen = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        ).stdout
    assert seen.strip() == "digits running [('train', 2, 5), ('bank', 0, 120)]"


def test_a_stage_that_ends_is_written_at_once_and_one_that_races_is_not(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    with recording(path):
        for done in range(1, 1_000):
            advance("train", done, 1_000)
        racing = json.loads(path.read_text())["stages"][0]["done"]
        advance("train", 1_000, 1_000)
        ended = json.loads(path.read_text())["stages"][0]["done"]
    assert racing < 999
    assert ended == 1_000


def test_the_outcome_is_written_when_the_run_ends(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    with recording(path):
        pass
    done = read_progress(path)
    with pytest.raises(ZeroDivisionError), recording(path):
        advance("train", 1, 1 // 0)
    failed = read_progress(path)
    assert done is not None
    assert failed is not None
    assert (done.outcome, failed.outcome) == (Outcome.DONE, Outcome.FAILED)


def test_a_run_whose_process_was_killed_reads_as_stopped(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    code = (
        "import os, signal, sys; from pathlib import Path; from tasks.progress import *\n"
        "with recording(Path(sys.argv[1])):\n"
        "    advance('train', 1, 5); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    progress = read_progress(path)
    assert progress is not None
    assert progress.outcome is Outcome.STOPPED
    assert progress.stages[0].done == 1


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"stages": [{}]}', '{"stages": []}'])
def test_a_missing_or_foreign_progress_file_is_no_progress(
    tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "progress.json"
    if text is not None:
        path.write_text(text)
    assert read_progress(path) is None


def test_listeners_hear_every_advance_from_any_thread_until_they_leave() -> None:
    heard: list[StageProgress] = []
    with listening(heard.append):
        threads = [threading.Thread(target=advance, args=("score", i, 8)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    advance("score", 8, 8)
    assert sorted(state.done for state in heard) == list(range(8))


SECOND = (
    "import sys; from pathlib import Path; from tasks.progress import recording\n"
    "with recording(Path(sys.argv[1]), 'second'): pass"
)


def test_a_recording_within_a_recording_of_the_same_run_is_the_same_run(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    with recording(path, "digits"):
        with recording(path, "digits again"):
            advance("train", 1, 2)
        progress = read_progress(path)
    assert progress is not None
    assert (progress.label, progress.outcome) == ("digits", Outcome.RUNNING)
    assert progress.stages[0].done == 1


def test_a_workspace_has_one_run_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    with recording(path, "digits"):
        with pytest.raises(LedgerHeld, match=f"process {os.getpid()} runs 'digits'"):
            refuse_second_run(path)
        second = subprocess.run(
            [sys.executable, "-c", SECOND, str(path)], capture_output=True, text=True, check=False
        )
        advance("train", 1, 2)
    assert f"LedgerHeld: process {os.getpid()} runs 'digits'" in second.stderr
    refuse_second_run(path)
    with recording(path, "other"):
        pass
