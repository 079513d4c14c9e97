"""The command line as a person or a script meets it: through the installed command."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.places import find_workspace
from flows.starter import write_starter
from schemas.errors import NotFound
from schemas.spec import load_spec
from store.connect import open_ledger, run
from store.migrate import migrate
from store.workspace import Workspace
from tasks.progress import advance, recording
from tests.flows.conftest import CHECKOUT, WINNOW, running

Winnow = Callable[..., subprocess.CompletedProcess[str]]
COMMANDS = (
    "bank", "certify", "check", "debug", "doctor", "forget", "init", "methods", "plan", "poisoned",
    "run", "screen", "sql", "status", "ui",
)  # fmt: skip


@pytest.fixture
def published(tmp_path: Path) -> Workspace:
    """A workspace with something to read."""
    workspace = Workspace(tmp_path / ".winnow")
    workspace.root.mkdir()
    connection = open_ledger(workspace.published)
    run(connection, "CREATE TABLE answers AS SELECT 42 AS number, 'a, [b]' AS text, NULL AS gap")
    run(
        connection,
        "CREATE TABLE runs AS SELECT 'r1' AS run_id, 'digits' AS spec_name, 'd1' AS spec_digest, "
        "'committed' AS status, TIMESTAMP '2026-01-02 03:04:05' AS committed_at, 1.5 AS seconds",
    )
    connection.close()
    return workspace


def test_help_names_every_command_and_the_global_options(winnow: Winnow) -> None:
    shown = winnow("--help")
    assert shown.returncode == 0
    assert winnow().stdout == shown.stdout
    for word in (*COMMANDS, "--workspace", "--debug", "--version"):
        assert word in shown.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(winnow: Winnow, command: str) -> None:
    shown = winnow(command, "--help")
    assert shown.returncode == 0
    assert f"Usage: winnow {command}" in shown.stdout


def test_every_command_that_a_message_or_a_page_names_is_there() -> None:
    named = {
        (command, path.name)
        for folder in ("flows", "tasks", "store", "schemas", "attribution", "optimize", "docs", ".")
        for path in (CHECKOUT / folder).glob("*.md" if folder == "." else "**/*")
        if path.suffix in (".py", ".sql", ".md")
        for command in re.findall(r"`winnow (\w+)", path.read_text(encoding="utf-8"))
    }
    assert len(named) > len(COMMANDS)
    assert {found for found in named if found[0] not in COMMANDS} == set()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, flows.cli\n"
        "try:\n    flows.cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'prefect', 'mlflow', 'polars', 'duckdb', 'numpy', 'pydantic'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_importing_the_commands_modules_stays_clear_of_torch_and_prefect() -> None:
    code = (
        "import sys, flows.doctor, flows.places, flows.screens, flows.server, flows.starter\n"
        "import flows.terminal\n"
        "print(sorted({'torch', 'prefect', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["foo"], 'Unknown command "foo"'),
        (["run"], "SPEC"),
        (["run", "a.toml", "b.toml"], "b.toml"),
        (["sql", "SELECT 1", "--lmit", "3"], "--limit"),
        (["sql", "SELECT 1", "--limit", "few"], '"few"'),
        (["check", "nowhere.toml"], "there is no such file"),
        (["run", "nowhere.toml"], "there is no such file"),
        (["plan", "nowhere.toml"], "there is no such file"),
        (["status"], "no workspace"),
        (["sql", "SELECT 1"], "no workspace"),
        (["--workspace", "nowhere", "status"], "does not exist"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    winnow: Winnow, tmp_path: Path, arguments: list[str], found: str
) -> None:
    done = winnow(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert found in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [["--debug", "check"], ["check", "--debug"]])
def test_debug_adds_the_traceback_wherever_it_stands(winnow: Winnow, place: list[str]) -> None:
    done = winnow(*place, "nowhere.toml")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "error: nowhere.toml" in done.stderr


def test_init_writes_a_spec_that_loads_and_never_overwrites(winnow: Winnow, tmp_path: Path) -> None:
    assert winnow("init", "My first").returncode == 0
    spec = tmp_path / "My first" / "winnow.toml"
    assert load_spec(spec).spec.name == "my-first"
    spec.write_text("mine")
    again = winnow("init", "My first")
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert spec.read_text() == "mine"


def test_the_starters_own_data_and_model_can_be_switched_on(tmp_path: Path) -> None:
    from tasks.intake.recipes import build_user_model
    from tasks.intake.rows import Columns
    from tasks.intake.sources import read_rows

    spec, recipe = write_starter(tmp_path)
    text = spec.read_text().replace('source = "sklearn:digits"', 'source = "sklearn:wine"')
    spec.write_text(text.replace('build = "mlp"', 'build = "python:recipe.py:build_model"'))
    spec.write_text(spec.read_text().replace("options = { hidden = [64] }", ""))
    loaded = load_spec(spec)
    rows = read_rows("python:recipe.py:dataset", recipe, Columns())
    model = build_user_model(loaded.spec.model.build, {}, (8,), 2, path=loaded.model_path)
    assert rows.inputs.shape == (500, 8)
    assert model is not None


def test_check_says_what_a_spec_means(winnow: Winnow, tmp_path: Path) -> None:
    spec, _ = write_starter(tmp_path)
    shown = winnow("check", spec)
    assert shown.stdout.startswith("spec ")
    assert shown.returncode == 0
    assert "sklearn:digits, 10% of the training labels flipped" in shown.stdout
    assert "80 retrainings on 50% and 90% of the rows" in shown.stdout
    as_json = json.loads(winnow("check", spec, "--json").stdout)
    assert as_json["digest"] == load_spec(spec).digest


def test_check_names_every_problem_and_every_missing_file(winnow: Winnow, tmp_path: Path) -> None:
    spec, recipe = write_starter(tmp_path)
    text = spec.read_text()
    spec.write_text(text.replace("epochs = 20", "epochs = 0").replace("seed = 0", "sead = 0"))
    wrong = winnow("check", spec)
    assert wrong.returncode == 2
    assert "train.epochs" in wrong.stderr
    assert "'seed'" in wrong.stderr or "seed" in wrong.stderr
    spec.write_text(text.replace("sklearn:digits", "python:recipe.py:dataset"))
    recipe.unlink()
    missing = winnow("check", spec)
    assert missing.returncode == 2
    assert "data.source" in missing.stderr
    assert "recipe.py does not exist" in missing.stderr


def test_sql_answers_as_a_table_as_json_and_as_csv(winnow: Winnow, published: Workspace) -> None:
    row = {"number": 42, "text": "a, [b]", "gap": None}
    assert json.loads(winnow("sql", "FROM answers", "--json").stdout) == [row]
    lines = list(csv.reader(io.StringIO(winnow("sql", "FROM answers", "--csv").stdout)))
    assert lines == [["number", "text", "gap"], ["42", "a, [b]", ""]]
    # A pipe gets no table: nothing reads its blanks.
    assert winnow("sql", "FROM answers").stdout == winnow("sql", "FROM answers", "--csv").stdout


def test_sql_without_a_statement_lists_what_there_is_to_ask(
    winnow: Winnow, published: Workspace
) -> None:
    connection = open_ledger(published.published)
    run(connection, "DROP TABLE runs")
    migrate(connection)
    connection.close()
    shown = winnow("sql").stdout
    assert "top_influences(query, n, attribution)" in shown
    assert max(map(len, shown.splitlines())) <= 120
    names = {row["name"] for row in json.loads(winnow("sql", "--json").stdout)}
    assert {"mislabel_candidates", "scores", "traces(query, n, tracing)"} <= names


def test_sql_says_when_there_is_more(winnow: Winnow, published: Workspace) -> None:
    some = winnow("sql", "SELECT * FROM range(10)", "--csv", "--limit", "3")
    assert len(some.stdout.splitlines()) == 4
    assert "--limit 0 gives all" in some.stderr
    every = winnow("sql", "SELECT * FROM range(2000)", "--csv", "--limit", "0")
    assert len(every.stdout.splitlines()) == 2_001


@pytest.mark.parametrize(
    "query", ["DROP TABLE answers", "FROM read_text('/etc/hostname')", "FROM nothing", "SELEC 1"]
)
def test_sql_that_may_not_run_is_one_line(winnow: Winnow, published: Workspace, query: str) -> None:
    done = winnow("sql", query)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_status_reads_the_progress_and_the_snapshot_while_the_ledger_is_held(
    winnow: Winnow, published: Workspace
) -> None:
    held = open_ledger(published.ledger)
    with recording(published.progress, "digits"):
        advance("train", 2, 5, "epochs")
        shown = winnow("status")
        as_json = json.loads(winnow("status", "--json").stdout)
    held.close()
    assert shown.returncode == 0
    assert f"digits is running (process {os.getpid()}" in shown.stdout
    assert "2 of 5 epochs" in shown.stdout
    assert "r1" in shown.stdout
    assert as_json["progress"]["stages"][0]["done"] == 2
    assert as_json["runs"][0]["run_id"] == "r1"


def test_doctor_finds_this_installation_whole(winnow: Winnow, published: Workspace) -> None:
    done = winnow("doctor", "--json")
    findings = {each["what"]: each for each in json.loads(done.stdout)}
    assert done.returncode == 0
    assert {each["level"] for each in findings.values()} <= {"ok", "warn"}
    for what in ("fastapi", "root packages", "mlflow package", "device", "threads", "ledger"):
        assert what in findings


def test_doctor_names_who_holds_the_ledger_and_what_was_stopped(
    winnow: Winnow, published: Workspace
) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from tasks.progress import *\n"
        "with recording(Path(sys.argv[1]), 'digits'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, published.progress], check=False)
    held = open_ledger(published.ledger)
    findings = {each["what"]: each for each in json.loads(winnow("doctor", "--json").stdout)}
    held.close()
    assert str(os.getpid()) in findings["ledger"]["found"]
    assert findings["ledger"]["level"] == "warn"
    assert "was stopped" in findings["last run"]["found"]


def test_doctor_fails_when_a_folder_stands_before_mlflow(winnow: Winnow, tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "__init__.py").write_text("raise RuntimeError('shadow')")
    done = winnow("doctor", "--json", PYTHONPATH=str(tmp_path))
    finding = next(each for each in json.loads(done.stdout) if each["what"] == "mlflow package")
    assert finding["level"] == "fail"
    assert done.returncode == 1


def test_a_workspace_is_found_here_or_one_folder_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFound, match="no workspace"):
        find_workspace(folder=tmp_path)
    below = tmp_path / "examples" / ".winnow"
    below.mkdir(parents=True)
    assert find_workspace(folder=tmp_path).root == below
    (tmp_path / "other" / ".winnow").mkdir(parents=True)
    with pytest.raises(NotFound, match=r"examples/\.winnow, other/\.winnow"):
        find_workspace(folder=tmp_path)
    (tmp_path / ".winnow").mkdir()
    assert find_workspace(folder=tmp_path).root == tmp_path / ".winnow"
    monkeypatch.setenv("WINNOW_WORKSPACE", str(below))
    assert find_workspace(folder=tmp_path).root == below
    assert find_workspace(tmp_path / "other" / ".winnow").root == tmp_path / "other" / ".winnow"


@pytest.mark.flow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_ui_serves_both_pages_and_leaves_no_process(
    published: Workspace, gone: Callable[[int], bool], end: signal.Signals
) -> None:
    import http.client

    with subprocess.Popen(
        [WINNOW, "ui"],
        cwd=published.root.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        pages = [process.stdout.readline().split()[1] for _ in range(2)]
        for page in pages:
            connection = http.client.HTTPConnection(page.split("/")[2], timeout=30)
            connection.request("GET", "/")
            assert connection.getresponse().status in (200, 307)
            connection.close()
        family = descendants(process.pid)
        assert len(family) >= 3
        process.send_signal(end)
        process.wait(timeout=30)
        assert process.returncode == (0 if end == signal.SIGINT else -signal.SIGKILL)
    assert all(gone(pid) for pid in family)


def descendants(pid: int) -> list[int]:
    """Every living process below a process."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and running(int(entry.name)):
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def test_methods_lists_what_each_needs_and_where_it_is_published(winnow: Winnow) -> None:
    assert "trak" in winnow("methods").stdout
    trak = json.loads(winnow("methods", "--json").stdout)[0]
    assert trak["name"] == "trak"
    assert "Park" in trak["source"]
    assert trak["needs"]
    assert trak["cost"]
