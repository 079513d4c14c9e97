"""The folder mlflow/ is data: it must neither shadow the package nor be shipped over it."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from store.workspace import Workspace
from tasks.reporting import tracking
from tests.tasks.reporting.published_sample import SPEC, write_published

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "mlflow"
PACKAGES = ("attribution", "flows", "optimize", "schemas", "store", "tasks")


def test_the_folder_holds_nothing_that_python_could_import() -> None:
    files = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert {"MLproject", "README.md", "searches.toml", "serve.sh"} <= files
    assert not [name for name in files if name.endswith((".py", ".pyc", ".pyi", ".so", ".pth"))]


def test_the_real_mlflow_is_imported_from_the_root() -> None:
    code = "import mlflow, sys; print(mlflow.__file__)"
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert found.endswith("__init__.py")
    assert not Path(found).is_relative_to(FOLDER)


def test_the_entry_point_runs_a_spec() -> None:
    project = yaml.safe_load((FOLDER / "MLproject").read_text(encoding="utf-8"))
    main = project["entry_points"]["main"]
    assert main["command"] == "winnow run {spec}"
    assert main["parameters"]["spec"]["type"] == "path"


def test_every_saved_search_is_understood_by_mlflow(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_published(workspace.published)
    receipt = tracking.log_run(workspace.published, workspace, "run-1", SPEC)
    searches = tomllib.loads((FOLDER / "searches.toml").read_text(encoding="utf-8"))["searches"]
    found = {}
    with tracking._quietly():
        client = tracking._client(receipt["uri"])
        for name, search in searches.items():
            runs = client.search_runs(
                [receipt["experiment"]], search["filter"], order_by=[search["order"]]
            )
            found[name] = len(runs)
    assert found == {
        "verdicts": 1,
        "confirmed": 1,
        "not_confirmed": 0,
        "arms": 3,
        "methods": 1,
        "finds_wrong_labels": 1,
    }


def test_the_serve_script_refuses_a_folder_without_runs(tmp_path: Path) -> None:
    done = subprocess.run([FOLDER / "serve.sh", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert "mlflow.db" in done.stderr


@pytest.mark.slow
def test_a_wheel_ships_schemas_and_kernels_and_not_this_folder(tmp_path: Path) -> None:
    # Built from a copy: setuptools would leave a build/ folder here, and ship what it holds later.
    source = tmp_path / "source"
    files = ("pyproject.toml", "README.md", "LICENSE")
    source.mkdir()
    for name in (*files, *PACKAGES, "mlflow", "tests"):
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
    command = f"{sys.executable} -m pip wheel --no-deps --no-build-isolation -w {tmp_path} ."
    subprocess.run(command.split(), cwd=source, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == set(PACKAGES)
    data = (
        ("schemas", "*.toml"),
        ("schemas", "*.json"),
        ("schemas/sql", "*.sql"),
        ("attribution/projection/kernels", "*.cu"),
        ("attribution/projection/kernels", "*.cuh"),
    )
    for folder, pattern in data:
        expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob(pattern)}
        assert expected, f"{folder}/{pattern} is gone"
        assert expected <= set(names)
    code = {
        path.relative_to(ROOT).as_posix()
        for top in sorted(tops)
        for path in ROOT.glob(f"{top}/**/*.py")
    }
    assert code <= set(names), "a package is missing in [tool.setuptools] packages"
