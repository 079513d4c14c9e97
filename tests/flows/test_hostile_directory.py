"""A working directory may hold anything, our own names included, and must change nothing."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.conftest import CHECKOUT

Winnow = Callable[..., subprocess.CompletedProcess[str]]
POISON = "raise RuntimeError('imported from the working directory')\n"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with modules named like ours and like our dependencies."""
    for name in ("tasks.py", "store.py", "optimize.py", "server.py", "prefect.py", "torch.py"):
        (tmp_path / name).write_text(POISON)
    for name in ("schemas", "flows", "attribution", "mlflow", "cyclopts"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(POISON)
    return tmp_path


@pytest.mark.parametrize("arguments", [["--help"], ["doctor"], ["init", "new"], ["check", "spec"]])
def test_the_command_never_imports_from_the_working_directory(
    winnow: Winnow, hostile: Path, arguments: list[str]
) -> None:
    (hostile / "spec").write_text((CHECKOUT / "examples/tiny.toml").read_text())
    done = winnow(*arguments, cwd=hostile)
    assert "imported from the working directory" not in done.stdout + done.stderr
    assert done.returncode == 0


@pytest.mark.flow
def test_the_server_never_imports_from_the_working_directory(hostile: Path) -> None:
    code = (
        "import sys; sys.path = [p for p in sys.path if p]\n"
        "from pathlib import Path\n"
        "from flows.server import serving\nfrom store.workspace import Workspace\n"
        "with serving(Workspace(Path('.winnow').resolve())) as url: print(url)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=hostile, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("http://127.0.0.1:"), done.stderr


@pytest.mark.parametrize("name", ["attribution", "optimize", "schemas", "store", "tasks"])
def test_a_package_from_elsewhere_is_refused_before_it_is_imported(
    winnow: Winnow, tmp_path: Path, name: str
) -> None:
    (tmp_path / f"{name}.py").write_text(POISON)
    for done in (
        winnow("check", "spec.toml", PYTHONPATH=str(tmp_path)),
        subprocess.run(
            [sys.executable, "-m", "flows.cli", "check", "spec.toml"],
            cwd=tmp_path,
            env=os.environ,
            capture_output=True,
            text=True,
            check=False,
        ),
    ):
        assert done.returncode == 2
        assert f"`{name}` would be imported from {tmp_path / name}.py" in done.stderr
        assert done.stderr.count("\n") == 1


def test_run_as_a_module_it_works_from_a_harmless_directory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("winnow ")


def test_no_folder_of_the_checkout_shadows_a_dependency() -> None:
    assert not list((CHECKOUT / "mlflow").rglob("*.py"))
    modules = {path.stem for path in (*CHECKOUT.glob("flows/*.py"), *CHECKOUT.glob("tasks/*.py"))}
    packages = {
        "attribution",
        "flows",
        "optimize",
        "schemas",
        "store",
        "tasks",
        "mlflow",
        "prefect",
    }
    assert not modules & packages
