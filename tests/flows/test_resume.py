"""A run that is killed goes on where it was, and ends with the tables of one that was not."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from store.artifacts import Artifacts
from store.connect import run_sql
from store.workspace import Workspace
from tests.flows.conftest import CHECKOUT, WINNOW
from tests.tasks.pipeline import run_stages

pytestmark = [pytest.mark.flow, pytest.mark.slow]

TABLES = {
    "runs": "SELECT run_id, dataset_id, spec_digest, status, seed, device FROM runs",
    "examples": "FROM examples ORDER BY example_id",
    "attributions": "SELECT * EXCLUDE (seconds) FROM attributions",
    "scores": "FROM scores ORDER BY query_id, train_id",
    "example_effects": "FROM example_effects ORDER BY example_id",
    "bank": "FROM bank ORDER BY retrain_id",
    "bank_outputs": "FROM bank_outputs ORDER BY retrain_id, query_id",
    "lds": "FROM lds ORDER BY alpha",
    "solutions": "FROM solutions",
    "solution_rows": "FROM solution_rows ORDER BY example_id",
    "verdicts": "FROM verdicts ORDER BY verdict_id",
}


def tables(workspace: Workspace) -> dict[str, list[tuple[object, ...]]]:
    return {
        name: run_sql(workspace.published, sql, limit=None).rows for name, sql in TABLES.items()
    }


def sealed(workspace: Workspace) -> dict[str, object]:
    artifacts = Artifacts(workspace.artifacts)
    return {m.key: m for stage in ("data", "bank") for m in artifacts.manifests(stage)}


def test_a_killed_run_goes_on_and_ends_with_the_same_tables(
    tmp_path: Path, winnow: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    spec = tmp_path / "spec.toml"
    text = (CHECKOUT / "examples/tiny.toml").read_text()
    # A few hundred small models in six chunks: long enough to be killed between two of them.
    text = text.replace("models = 24", "models = 240").replace("epochs = 10", "epochs = 40")
    spec.write_text(text)
    killed, whole = Workspace(tmp_path / ".winnow"), Workspace(tmp_path / "whole")

    with subprocess.Popen([WINNOW, "run", spec], stderr=subprocess.PIPE) as process:
        while len(Artifacts(killed.artifacts).manifests("bank")) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.kill()
    before = sealed(killed)
    assert not killed.published.exists()

    again = winnow("run", spec)
    assert again.returncode == 0, again.stderr
    after = sealed(killed)
    assert {key: after[key] for key in before} == before
    assert len(after) > len(before)

    run_stages(spec, whole.root)
    resumed, uninterrupted = tables(killed), tables(whole)
    for name in TABLES:
        assert resumed[name] == uninterrupted[name], name
