"""`winnow screen` and `winnow certify` from the shell: answered once, listed, killed, refused."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from store.artifacts import Artifacts
from store.workspace import Workspace
from tests.flows.conftest import WINNOW
from tests.tasks.arriving import mislabelled, stones, written

Winnow = Callable[..., subprocess.CompletedProcess[str]]


def batch(folder: Path, name: str, seed: int) -> Path:
    path = folder / "inbox" / name
    mislabelled(stones(np.random.default_rng(seed), 40), 8).write_csv(path)
    return path


@pytest.mark.flow
def test_a_batch_is_answered_shown_again_and_checked(winnow: Winnow, tmp_path: Path) -> None:
    spec = written(tmp_path)
    path = batch(tmp_path, "first.csv", 1)
    assert "1 batch waits to be screened" in winnow("plan", spec).stderr
    told = winnow("screen", spec, path, "--verify")
    assert told.returncode == 0, told.stderr
    assert "first.csv, 40 rows, compared with 250 trusted ones" in told.stdout
    shown = " ".join(told.stdout.split())
    assert "nearest trusted rows are" in shown
    assert "WHAT RETRAINING SAYS" in told.stdout
    accepted = next(line for line in told.stdout.splitlines() if line.startswith("accepted: "))
    kept = pl.read_parquet(accepted.removeprefix("accepted: "))
    again = winnow("screen", spec, path, "--json")
    assert "answered already" in again.stderr
    answer = json.loads(again.stdout)
    assert answer["accepted"] == len(kept)
    assert answer["verdict"]["sentence"] in shown
    held = winnow("sql", "SELECT batch, count(*) FROM quarantined_rows GROUP BY ALL", "--csv")
    assert held.stdout.splitlines()[1] == f"first.csv,{answer['quarantined']}"


@pytest.mark.flow
@pytest.mark.slow
def test_an_inbox_that_was_killed_goes_on_and_a_bad_file_keeps_no_other_waiting(
    winnow: Winnow, tmp_path: Path
) -> None:
    spec = written(tmp_path)
    for place, name in enumerate(("a.csv", "c.csv", "d.csv")):
        batch(tmp_path, name, place)
    (tmp_path / "inbox" / "b.csv").write_text("width,kind\n1,flint\n")
    (tmp_path / "inbox" / "copy.csv").write_bytes((tmp_path / "inbox" / "a.csv").read_bytes())
    artifacts = Artifacts(Workspace(tmp_path / ".winnow").artifacts)
    with subprocess.Popen(
        [WINNOW, "screen", spec, "--inbox"], cwd=tmp_path, stderr=subprocess.PIPE
    ) as process:
        while not artifacts.keys("screened"):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.kill()
    before = {each.key: each for each in artifacts.manifests("screening")}
    assert 1 <= len(before) < 3
    told = winnow("screen", spec, "--inbox", "--json")
    assert told.returncode == 1
    assert "b.csv" in told.stderr
    assert "data.metadata names column 'finder'" in told.stderr
    states = {each["batch"]: each["state"] for each in json.loads(told.stdout)}
    assert states == dict.fromkeys(("a.csv", "c.csv", "d.csv"), "answered") | {"b.csv": "waits"}
    after = {each.key: each for each in artifacts.manifests("screening")}
    assert before.items() <= after.items()
    assert len(after) == len(artifacts.keys("screened")) == 3
    (tmp_path / "inbox" / "b.csv").unlink()
    idle = winnow("screen", spec, "--inbox")
    assert (idle.returncode, "no batch waits" in idle.stderr) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say one of a batch's file, --inbox and --list"),
        (("inbox/first.csv", "--list"), "say one of"),
        (("inbox/nowhere.csv",), "does not exist"),
        (("inbox/first.csv", "--problem", "gates"), "did you mean 'gate'?"),
        (("inbox/short.csv",), "lacks the feature 'weight'"),
    ],
)
def test_a_wrong_request_exits_with_two(
    winnow: Winnow, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    spec = written(tmp_path)
    rows = pl.read_csv(batch(tmp_path, "first.csv", 1))
    rows.drop("weight").write_csv(tmp_path / "inbox" / "short.csv")
    refused = winnow("screen", spec, *arguments)
    assert refused.returncode == 2, refused.stderr
    assert message in refused.stderr


def test_votes_are_certified_and_too_many_are_refused(winnow: Winnow, tmp_path: Path) -> None:
    spec = written(tmp_path)
    told = winnow("certify", spec, "--models", "5")
    assert told.returncode == 0, told.stderr
    assert "5 models vote, each trained on about 50 of 250 rows" in told.stdout
    assert "rows changed" in told.stdout
    refused = winnow("certify", spec, "--models", "400")
    assert refused.returncode == 2
    assert "400 cells for 250 training rows" in refused.stderr
