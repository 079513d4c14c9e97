"""What runs by itself: prefect.yaml against the flow it names, and against a real server."""

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.server import serving
from store.workspace import Workspace
from tests.flows.conftest import CHECKOUT

PREFECT = Path(sys.executable).with_name("prefect")


@pytest.fixture(scope="module")
def declared() -> list[dict[str, Any]]:
    return yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]


def test_the_declared_deployments_are_these(declared: list[dict[str, Any]]) -> None:
    surface = {
        each["name"]: (each["entrypoint"], each["schedules"][0]["cron"], each["work_pool"]["name"])
        for each in declared
    }
    assert surface == {
        "nightly": ("flows.curate:curate", "0 2 * * *", "winnow"),
        "requests": ("flows.unlearn:unlearn", "30 3 * * *", "winnow"),
        "inbox": ("flows.screen:screen", "*/30 * * * *", "winnow"),
    }


def test_each_deployment_fits_its_flow(declared: list[dict[str, Any]]) -> None:
    for each in declared:
        module, _, name = each["entrypoint"].partition(":")
        # Dotted: a path would put flows/ on sys.path and load the module a second time.
        assert "/" not in module
        flow = getattr(import_module(module), name)
        flow.validate_parameters(each["parameters"])
        assert (CHECKOUT / each["parameters"]["spec"]).is_file()
        assert each["description"]


@pytest.mark.flow
@pytest.mark.slow
def test_a_deployed_curation_is_run_by_a_worker(tmp_path: Path) -> None:
    shutil.copy(CHECKOUT / "examples/tiny.toml", tmp_path)
    workspace = Workspace(tmp_path / "results")
    with serving(workspace):
        prefect("work-pool", "create", "winnow", "--type", "process")
        prefect("deploy", "--all")
        prefect(
            *("deployment", "run", "curate/nightly"),
            *("--param", f"spec={tmp_path / 'tiny.toml'}"),
            *("--param", f"workspace={workspace.root}"),
        )
        prefect("worker", "start", "--pool", "winnow", "--run-once", "--name", "test")
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("curate/nightly")
            found = client.read_flow_runs()
            runs = [run for run in found if run.deployment_id and not run.auto_scheduled]
    assert deployment.pull_steps == [
        {"prefect.deployments.steps.set_working_directory": {"directory": str(CHECKOUT)}}
    ]
    assert [run.state_name for run in runs] == ["Completed"]
    assert workspace.published.is_file()


def prefect(*arguments: str) -> str:
    """Run Prefect's own command in the checkout."""
    done = subprocess.run(
        [PREFECT, "--no-prompt", *arguments],
        cwd=CHECKOUT,
        env=os.environ | {"PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
