"""`winnow bank`: what it shows, what it does for good, what it refuses."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from attribution.power import lds_power
from flows.server import recorded_server
from store.artifacts import Artifacts
from store.workspace import Workspace
from tests.flows.conftest import CHECKOUT
from tests.tasks.pipeline import run_stages

pytestmark = [pytest.mark.flow, pytest.mark.slow]

Winnow = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    shutil.copy(CHECKOUT / "examples/tiny.toml", tmp_path)
    return tmp_path / "tiny.toml"


def trained(spec: Path) -> list[object]:
    artifacts = Artifacts(Workspace(spec.parent / ".winnow").artifacts)
    lists = [chunk.facts["retrainings"] for chunk in artifacts.manifests("bank")]
    return [name for names in lists for name in names]


def test_an_extended_bank_is_what_the_next_run_works_with(winnow: Winnow, spec: Path) -> None:
    workspace = Workspace(spec.parent / ".winnow")
    run_stages(spec, workspace.root, until="verdict")
    assert len(set(trained(spec))) == 33
    more = winnow("bank", "extend", spec, "--models", "48", "--verdicts")
    assert more.returncode == 0, more.stderr
    assert "48 drawn, 9 adopted" in more.stdout
    assert recorded_server(workspace) is None
    assert len(trained(spec)) == len(set(trained(spec))) == 57
    steps = {step["stage"]: step for step in json.loads(winnow("plan", spec, "--json").stdout)}
    assert (steps["bank"]["done"], steps["bank"]["total"]) == (57, 57)
    assert steps["bank"]["detail"] == "retrainings: 24 by extension, 9 adopted"
    due = [stage for stage, step in steps.items() if step["done"] < step["total"]]
    assert due == ["scores", "lds", "solution", "verdict", "run", "tracking"]
    refused = winnow("bank", "extend", spec, "--models", "48")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "48 drawn models already" in refused.stderr


def test_chosen_subsets_are_trained_and_what_they_bought_is_said(
    winnow: Winnow, spec: Path
) -> None:
    run_stages(spec, spec.parent / ".winnow", until="scores")
    more = winnow("bank", "extend", spec, "--next", "4")
    assert more.returncode == 0, more.stderr
    assert "24 drawn, 0 adopted, 4 chosen" in more.stdout
    assert "4 chosen subsets took the sd of the predicted margin" in more.stdout
    assert len(trained(spec)) == len(set(trained(spec))) == 28
    (receipt,) = json.loads(winnow("bank", "status", spec, "--json").stdout)["bought"]
    assert list(receipt) == ["error", "models", "output", "sd", "set"]
    assert list(receipt["sd"]) == ["after", "before", "foreseen", "random"]
    assert list(receipt["error"]) == ["after", "before"]
    steps = {step["stage"]: step for step in json.loads(winnow("plan", spec, "--json").stdout)}
    assert steps["bank"]["detail"] == "retrainings: 4 chosen"


def test_the_status_for_scripts_has_these_keys(winnow: Winnow, spec: Path) -> None:
    unread = winnow("bank", "status", spec)
    assert unread.returncode == 2
    assert "--only data" in unread.stderr
    assert not (spec.parent / ".winnow").exists()
    run_stages(spec, spec.parent / ".winnow", until="bank")
    found = json.loads(winnow("bank", "status", spec, "--json").stdout)
    assert list(found) == [
        "models",
        "drawn",
        "adopted",
        "chosen",
        "sealed",
        "missing",
        "extensions",
        "rows",
        "cost",
        "resolves",
        "bought",
    ]
    assert [list(entry) for entry in found["rows"]] == 4 * [
        ["kind", "origin", "alpha", "masks", "seeds", "models", "sealed", "missing"]
    ]
    assert list(found["cost"]) == ["models", "seconds", "models_per_second"]
    half_width = found["resolves"].pop("half_width")
    assert half_width == pytest.approx(lds_power(6, 2, 38))
    assert found["resolves"] == {"masks": 6, "seeds": 2, "queries": 38, "ceilings": []}
    shown = winnow("bank", "status", spec)
    assert "evaluates on 6 subsets × 2 seeds, 38 queries" in shown.stdout


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((), "--models N, --verdicts, or --next K"),
        (("--models", "50"), "write 48 or 52"),
        (("--verdicts",), "`winnow run` makes some"),
        (("--next", "0"), "give the number of subsets"),
        (("--next", "4"), "--only scores` makes them"),
        (("--next", "4", "--models", "48"), "which --models enlarges"),
        (("--next", "4", "--verdicts"), "which --verdicts enlarges"),
    ],
)
def test_an_extension_that_makes_no_sense_is_refused_in_one_line(
    winnow: Winnow, spec: Path, options: tuple[str, ...], found: str
) -> None:
    done = winnow("bank", "extend", spec, *options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert found in done.stderr
    assert not (spec.parent / ".winnow" / "prefect").exists()
