"""What one run leaves in a real MLflow on SQLite."""

import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from schemas.errors import NotFound, RequestError, ServerUnavailable
from store.workspace import Workspace
from tasks.reporting import tracking
from tasks.reporting.entries import Entry, digest_of, entries, flatten, refuse_undeclared
from tasks.reporting.tracking import log_run, tracking_uri
from tests.tasks.reporting.published_sample import SPEC, write_published
from tests.tasks.reporting.sample_findings import FINDINGS

CHILDREN = 4  # one method, three arms


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: its tables take two seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with tracking._quietly():
        tracking._client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def workspace(tmp_path: Path, empty_database: Path) -> Workspace:
    root = tmp_path / "a workspace"
    root.mkdir()
    shutil.copy(empty_database, root / "mlflow.db")
    write_published(root / "winnow.duckdb")
    return Workspace(root)


@pytest.fixture(autouse=True)
def no_tracking_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client(workspace: Workspace) -> Iterator[Any]:
    with tracking._quietly():
        yield tracking._client(tracking_uri(workspace))


def all_runs(client: Any, experiment: str) -> list[Any]:
    return list(client.search_runs([experiment]))


def send(workspace: Workspace, **options: object) -> tracking.Receipt:
    return log_run(workspace.published, workspace, "run-1", SPEC, **options)  # type: ignore[arg-type]


def test_a_run_becomes_a_parent_with_a_child_for_each_method_and_arm(workspace, client) -> None:
    receipt = send(workspace, flow_run="flow-7")
    parent = client.get_run(receipt["run_id"])
    children = [run for run in all_runs(client, receipt["experiment"]) if run is not parent]
    children = [run for run in children if run.info.run_id != parent.info.run_id]
    names = {run.info.run_name for run in children}
    assert names == {"attribution: trak", "clean: all", "clean: random", "clean: chosen"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    tags = parent.data.tags
    assert tags["winnow.run_id"] == "run-1"
    assert tags["winnow.spec"] == "spec-1"
    assert tags["winnow.dataset"] == "data-1"
    assert tags["winnow.code_version"] == "0.1.0"
    assert tags["prefect.flow_run"] == "flow-7"
    assert tags["winnow.verdict"] == "confirmed"
    assert parent.data.params["train.lr"] == "0.05"
    assert parent.data.params["attribution.trak.projection.dim"] == "2048"
    assert parent.data.metrics["lds.mean"] == pytest.approx(0.2)  # the largest subset size
    assert parent.data.metrics["detection.recall"] == 1.0
    chosen = next(run for run in children if run.info.run_name == "clean: chosen")
    assert chosen.data.metrics["accuracy.mean"] == pytest.approx(0.95)
    assert chosen.data.metrics["logprob.mean"] == parent.data.metrics["logprob.mean"] == -0.4
    assert parent.data.metrics["advantage.logprob.high"] == pytest.approx(-0.17)
    assert chosen.data.tags["winnow.verdict_id"] == "verdict-chosen"
    assert chosen.data.tags["winnow.solution_id"] == "solution-1"


def test_the_data_sets_carry_our_digest_and_true_sizes(workspace, client) -> None:
    parent = client.get_run(send(workspace)["run_id"])
    inputs = {entry.dataset.name: entry for entry in parent.inputs.dataset_inputs}
    assert set(inputs) == {"digits/train", "digits/test"}
    assert inputs["digits/train"].dataset.digest == "data-1-train"
    tags = {tag.key: tag.value for tag in inputs["digits/train"].tags}
    assert tags == {"mlflow.data.context": "training", "winnow.rows": "40"}


def test_the_spec_the_report_figures_and_files_are_kept(workspace, client, tmp_path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("a note")
    figure = Figure(figsize=(2, 2))
    figure.add_subplot().plot([0, 1])
    receipt = send(workspace, figures={"arms": figure}, files={"notes": note})
    kept = {item.path for item in client.list_artifacts(receipt["run_id"])}
    assert kept == {"figures", "notes", "report.txt", "spec.toml"}
    run_folder = workspace.mlartifacts / receipt["run_id"] / "artifacts"
    assert (run_folder / "spec.toml").read_text() == SPEC
    assert "Confirmed" in (run_folder / "report.txt").read_text()
    assert (run_folder / "figures" / "arms.png").read_bytes().startswith(b"\x89PNG")


def test_sending_the_same_verdict_again_adds_nothing(workspace, client) -> None:
    first, second = send(workspace), send(workspace)
    assert (first["sent"], second["sent"]) == (True, False)
    assert second["run_id"] == first["run_id"]
    assert len(all_runs(client, first["experiment"])) == 1 + CHILDREN


def test_another_verdict_is_another_run(workspace, client) -> None:
    first = send(workspace)
    workspace.published.unlink()
    write_published(workspace.published, accuracy=0.97)
    second = send(workspace)
    assert second["sent"]
    assert second["digest"] != first["digest"]
    assert len(all_runs(client, first["experiment"])) == 2 * (1 + CHILDREN)


def test_what_a_crash_left_is_cleared_and_sent_again(workspace, client, monkeypatch) -> None:
    calls = []
    write = tracking._write

    def die_at_the_third(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tracking, "_write", die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        send(workspace)
    monkeypatch.setattr(tracking, "_write", write)
    half = client.search_experiments(filter_string="name = 'digits'")[0].experiment_id
    assert 0 < len(all_runs(client, half)) < 1 + CHILDREN
    receipt = send(workspace)
    assert receipt["sent"]
    runs = all_runs(client, receipt["experiment"])
    assert len(runs) == 1 + CHILDREN
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_the_run_of_mlflow_run_is_adopted_as_the_parent(workspace, client, monkeypatch) -> None:
    experiment = client.create_experiment("project", workspace.mlartifacts.as_uri())
    opened = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(workspace))
    receipt = send(workspace, uri="sqlite:////nowhere/else.db")
    assert receipt["run_id"] == opened
    parent = client.get_run(opened)
    assert parent.info.status == "RUNNING", "whoever opened a run ends it"
    assert parent.data.tags["winnow.run_id"] == "run-1"
    assert len(all_runs(client, experiment)) == 1 + CHILDREN
    assert not send(workspace)["sent"]


def test_a_second_adopted_run_points_at_the_first(workspace, client, monkeypatch) -> None:
    experiment = client.create_experiment("project", workspace.mlartifacts.as_uri())
    first, second = (client.create_run(experiment).info.run_id for _ in range(2))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(workspace))
    monkeypatch.setenv("MLFLOW_RUN_ID", first)
    send(workspace)
    monkeypatch.setenv("MLFLOW_RUN_ID", second)
    assert send(workspace)["run_id"] == first
    assert client.get_run(second).data.tags["winnow.same_as"] == first


def test_a_run_id_that_the_store_lacks_is_refused(workspace, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(NotFound, match="MLFLOW_RUN_ID"):
        send(workspace)


def test_a_server_that_is_away_is_told_within_seconds(workspace) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(ServerUnavailable, match=re.escape(f"127.0.0.1:{port}")):
        send(workspace, uri=f"http://127.0.0.1:{port}")
    assert time.monotonic() - started < 5


def test_a_database_that_mlflow_cannot_open_is_our_error(workspace) -> None:
    workspace.mlflow_db.write_bytes(b"not a database" * 100)
    with pytest.raises(ServerUnavailable, match=r"mlflow\.db"):
        send(workspace)


def test_a_deleted_experiment_is_taken_up_again(workspace, client) -> None:
    place = workspace.mlartifacts.as_uri()
    client.delete_experiment(client.create_experiment("digits", place))
    assert send(workspace)["sent"]


def test_nothing_is_printed_nor_written_where_one_stands(
    workspace, tmp_path, monkeypatch, capfd
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    capfd.readouterr()
    before = dict(os.environ)
    send(workspace)
    assert list(elsewhere.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == before | {"MLFLOW_DISABLE_TELEMETRY": "true"}


def test_the_default_store_is_absolute_and_the_specs_uri_wins(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(Path(".winnow"))
    assert tracking_uri(workspace) == f"sqlite:///{tmp_path}/.winnow/mlflow.db"
    assert tracking_uri(workspace, "http://host:5000") == "http://host:5000"


def test_every_metric_that_a_run_has_is_declared() -> None:
    parent, children = entries(FINDINGS, SPEC)
    refuse_undeclared((parent, *children))
    assert sum(len(entry.metrics) for entry in (parent, *children)) > 30


def test_a_metric_that_nobody_declared_is_refused() -> None:
    with pytest.raises(NotFound, match="magic"):
        refuse_undeclared([Entry(name="x", tags={}, metrics=(("magic.number", 1.0, 0),))])


def test_numbers_that_are_not_finite_are_left_out() -> None:
    method = replace(FINDINGS.methods[0], damping=float("nan"), seconds=None)
    _, (child, *_) = entries(replace(FINDINGS, methods=(method,)), SPEC)
    assert not {"damping", "run.seconds"} & {name for name, _, _ in child.metrics}


def test_a_run_without_a_problem_is_a_parent_with_methods_only() -> None:
    parent, children = entries(replace(FINDINGS, answers=()), SPEC)
    assert [child.name for child in children] == ["attribution: trak"]
    assert "winnow.verdict" not in parent.tags


def test_the_digest_follows_what_was_found() -> None:
    digest = digest_of(*entries(FINDINGS, SPEC))
    assert digest == digest_of(*entries(FINDINGS, SPEC))
    assert digest != digest_of(*entries(replace(FINDINGS, dataset_id="other"), SPEC))


def test_a_spec_is_flattened_with_tables_by_name() -> None:
    params = flatten('a = [1, 2]\n[sets]\n"odd $name" = "SELECT 1"\n[[problem]]\nsize = 0.5\n')
    assert params == {"a": "[1, 2]", "sets.odd _name": "SELECT 1", "problem.0.size": "0.5"}


def test_a_spec_that_is_no_toml_is_refused() -> None:
    with pytest.raises(RequestError, match="not TOML"):
        flatten("name = ")
