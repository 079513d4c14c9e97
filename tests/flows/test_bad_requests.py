"""A wrong request ends with one clear line and exit code 2, and nothing has been trained."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.cli import main

SPEC = """
name = "shells"

[data]
source = "csv:rows.csv"
target = "kind"
id = "id"

[sets]
queries = "SELECT example_id FROM examples WHERE split = 'test' AND example_id % 2 = 0"
holdout = "SELECT example_id FROM examples WHERE split = 'test' AND example_id % 2 = 1"

[model]
build = "linear"

[train]
epochs = 2
seeds = 2

[bank]
models = 24

[[attribution]]
name = "trak"
method = "trak"
projection = { dim = 16 }

[[problem]]
name = "clean"
kind = "select"
uses = "trak"
size = 20
"""


def rows(n: int = 60) -> list[list[str]]:
    table = [["id", "length", "width", "kind"]]
    for i in range(n):
        side = i % 2
        table.append([str(i), f"{side + i * 0.01:.2f}", f"{1 - side + i * 0.02:.2f}", "ab"[side]])
    return table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "spec.toml").write_text(SPEC)
    write_rows(tmp_path, rows())
    return tmp_path


def write_rows(folder: Path, table: list[list[str]]) -> None:
    (folder / "rows.csv").write_text("\n".join(",".join(row) for row in table) + "\n")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr after a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    complaint = capsys.readouterr().err
    assert ended.value.code == 2, complaint
    assert "Traceback" not in complaint
    lines = [line for line in complaint.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, complaint
    return lines[0]


def nothing_was_trained(folder: Path) -> bool:
    made = folder / ".winnow" / "artifacts"
    stages = {each.name for each in made.iterdir()} if made.exists() else set()
    return stages <= {"data"}


def replace(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        spec = folder / "spec.toml"
        assert old in spec.read_text()
        spec.write_text(spec.read_text().replace(old, new))

    return change


def cell(row: int, column: int, value: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        table = rows()
        table[row][column] = value
        write_rows(folder, table)

    return change


def sold(problem: str) -> Callable[[Path], None]:
    """Rows from two shops at 5 cents each, and a problem."""

    def change(folder: Path) -> None:
        head, *table = rows()
        shops = [[*row, ("mill", "inn")[i % 3 == 0], "5"] for i, row in enumerate(table)]
        write_rows(folder, [[*head, "shop", "cents"], *shops])
        where = "SELECT example_id FROM examples WHERE split = 'train'"
        sets = [
            f"{name} = \"{where} AND metadata->>'shop' = '{name}'\"" for name in ("mill", "inn")
        ]
        listed = "\n".join(["[sets]", *sets, f'both = "{where}"'])
        replace('id = "id"', 'id = "id"\nmetadata = ["shop", "cents"]')(folder)
        replace("[sets]", listed)(folder)
        replace("size = 20", problem)(folder)

    return change


def recipe(body: str, build: str = "build") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "recipe.py").write_text(textwrap.dedent(body))
        replace('build = "linear"', f'build = "python:recipe.py:{build}"')(folder)

    return change


def broken_checkpoint(folder: Path) -> None:
    (folder / "mine.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00 no weights here")
    replace('build = "linear"', 'build = "linear"\ncheckpoints = ["mine.safetensors"]')(folder)


def one_class(folder: Path) -> None:
    write_rows(folder, [[*row[:3], "a"] if place else row for place, row in enumerate(rows())])


WRONG = {
    "an unknown key": (replace("epochs = 2", "epoch = 2"), "did you mean 'epochs'"),
    "a wrong type": (replace("epochs = 2", 'epochs = "two"'), "train.epochs"),
    "no TOML": (replace("[model]", "[model"), "not TOML"),
    "an unknown method": (replace('method = "trak"', 'method = "track"'), "trak"),
    "an unknown source": (replace("csv:rows", "cvs:rows"), "csv"),
    "a missing file": (replace("rows.csv", "other.csv"), "other.csv"),
    "a missing target": (replace('target = "kind"', 'target = "kid"'), "kind"),
    "a row that is no number": (cell(7, 1, "nan"), "; fill it in or remove the row"),
    "a marker for nothing": (cell(7, 1, "n/a"), "row 7 has 'n/a' in feature column 'length'"),
    "a duplicate id": (cell(9, 0, "3"), "3"),
    "a missing label": (cell(5, 3, ""), "kind"),
    "a single class": (one_class, "class"),
    "a size over the pool": (replace("size = 20", "size = 2000"), "larger than the pool"),
    "a quota for no class": (
        replace("size = 20", "size = 20\nquotas = { class = { c = { min = 3 } } }"),
        "no class 'c'",
    ),
    "quotas in conflict": (
        replace("size = 20", "size = 20\nquotas.class = { a = { max = 5 }, b = { max = 5 } }"),
        "at most 10 rows",
    ),
    "quotas without a column": (
        replace("size = 20", "size = 20\nquotas = { a = { max = 5 } }"),
        "quotas are by column; write { class = { a = { ... } } }",
    ),
    "a quota by no column": (
        sold("size = 20\nquotas = { shops = { mill = { max = 5 } } }"),
        "there is no metadata column 'shops'; did you mean 'shop'?",
    ),
    "a quota for no source": (
        sold("size = 20\nquotas = { shop = { hill = { max = 5 } } }"),
        "there is no shop 'hill'; there are inn, mill",
    ),
    "a quota and what must be left out": (
        sold("size = 3\nexclude = 'mill'\nquotas = { shop = { mill = { min = 1 } } }"),
        "these cannot all hold: shop mill needs at least 1 of its ",
    ),
    "a budget that the size breaks": (
        sold("size = 20\nbudget = { column = 'cents', most = 99 }"),
        "cents may be at most 99, the other demands cost at least 100",
    ),
    "a budget of what is no number": (
        sold("size = 20\nbudget = { column = 'shop', most = 99 }"),
        "is 'inn'; give a number, 0 or more",
    ),
    "rows that must and must not be chosen": (
        sold("size = 20\ninclude = 'mill'\nexclude = ['inn', 'both']"),
        "must be chosen",
    ),
    "test rows to choose": (
        sold("size = 20\ninclude = 'queries'"),
        "only what is trained on can be chosen",
    ),
    "an oracle without wrong labels": (
        replace("size = 20", "size = 20\n[verdict]\narms = ['all', 'clean']"),
        "no label is known to be wrong",
    ),
    "an unknown set": (replace("size = 20", 'size = 20\ntargets = "query"'), "queries"),
    "a solver that sees its judge": (
        replace("example_id % 2 = 1", "example_id % 4 = 0"),
        "never saw",
    ),
    "a set of training rows": (
        replace("split = 'test' AND example_id % 2 = 0", "true"),
        "training row",
    ),
    "a set that is no SQL": (replace("example_id % 2 = 0", "example_id %% 2"), "sets.queries"),
    "a set that reads files": (
        replace("FROM examples WHERE split = 'test' AND example_id % 2 = 0", "FROM '/etc/passwd'"),
        "sets.queries",
    ),
    "a missing recipe": (replace('"linear"', '"python:nowhere.py:build"'), "nowhere.py"),
    "a recipe without the function": (recipe("def builds(): ...\n"), "builds"),
    "a recipe that fails": (recipe("def build():\n    1 / 0\n"), "ZeroDivisionError"),
    "a model of another shape": (
        recipe("from torch import nn\ndef build():\n    return nn.Linear(2, 7)\n"),
        "7",
    ),
    "a corrupt checkpoint": (broken_checkpoint, "mine.safetensors"),
    "an output that classes do not have": (
        replace('method = "trak"', 'method = "trak"\noutput = "squared_error"'),
        "a classification has no output 'squared_error'",
    ),
    "a model whose rows depend on each other": (
        recipe(
            """
            import torch

            class Mixing(torch.nn.Linear):
                def forward(self, rows):
                    return super().forward(rows - rows.mean(0))

            def build():
                return Mixing(2, 2)
            """
        ),
        "rows",
    ),
    "batch norm without statistics to be asked by": (
        recipe(
            """
            from torch import nn

            def build():
                norm = nn.BatchNorm1d(1, track_running_stats=False)
                return nn.Sequential(
                    nn.Unflatten(1, (1, 2)), norm, nn.Flatten(), nn.Linear(2, 2)
                )
            """
        ),
        "'1' is a BatchNorm1d without running statistics",
    ),
    "a derivative through batch norm": (
        lambda folder: [
            change(folder)
            for change in (
                recipe(
                    """
                    from torch import nn

                    def build():
                        return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
                    """
                ),
                replace('method = "trak"\nprojection = { dim = 16 }', 'method = "metagradient"'),
                replace('name = "trak"', 'name = "exact"'),
                replace('uses = "trak"', 'uses = "exact"'),
            )
        ],
        "attribution 'exact': '1' is a BatchNorm1d: it ties the rows of a batch together",
    ),
    "cuda where there is none": (
        replace("[bank]", '[compute]\ndevice = "cuda"\n\n[bank]'),
        "device='cuda'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_spec_is_one_line_and_exit_code_2(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    change, expected = WRONG[name]
    change(folder)
    assert expected in refused(capsys, "run", str(folder / "spec.toml"))
    assert nothing_was_trained(folder)


def test_a_missing_spec_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no such file" in refused(capsys, "run", str(tmp_path / "none.toml"))


def test_an_unknown_stage_is_answered_with_those_there_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complaint = refused(capsys, "run", str(folder / "spec.toml"), "--only", "scoring")
    assert "scores" in complaint
    assert nothing_was_trained(folder)


def test_a_mistyped_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "rnu" in refused(capsys, "rnu")


def test_sql_without_results_says_what_makes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = refused(capsys, "sql", "FROM runs", "--workspace", str(tmp_path / "w"))
    assert "does not exist" in nowhere
    assert "winnow run" in refused(capsys, "sql", "FROM runs", "--workspace", str(tmp_path))


def test_a_held_ledger_is_refused_before_anything_runs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = folder / ".winnow"
    workspace.mkdir()
    code = (
        "import sys, duckdb; c = duckdb.connect(sys.argv[1]); print('held', flush=True);"
        " sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(workspace / "ledger.duckdb")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        complaint = refused(capsys, "run", str(folder / "spec.toml"))
        assert str(holder.pid) in complaint
        assert nothing_was_trained(folder)
    finally:
        holder.communicate("")


def test_a_runner_that_is_not_installed_says_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.runners import task_runner
    from schemas.errors import RequestError
    from schemas.settings import ComputeSpec

    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    with pytest.raises(RequestError, match=r"pip install -e '\.\[ray\]'"):
        task_runner(ComputeSpec(runner="ray"))
