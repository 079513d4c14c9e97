"""Manifests, data set facts and declared metrics."""

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.dataset import DatasetFacts
from schemas.errors import CorruptArtifact, NotFound
from schemas.manifest import FileRecord, Manifest
from schemas.metrics import Better, declared, metric

DIGEST = "ab" * 32
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("aé\n"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab"), inner, max_size=2),
    max_leaves=4,
)


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "stage": "scores",
        "key": "0123456789abcdef0123",
        "version": 1,
        "inputs": {"train": "f" * 20},
        "facts": {"rho": 0.5},
        "files": (FileRecord(name="parts/scores.npy", bytes=3, sha256=DIGEST),),
    }
    return Manifest(**{**values, **changes})


def test_a_manifest_survives_json() -> None:
    receipt = manifest()
    assert Manifest.from_json(receipt.to_json()) == receipt
    assert receipt.to_json().count("\n") == 1


@given(facts=st.dictionaries(st.text("abc"), JSON, max_size=3))
def test_whatever_json_the_facts_hold_comes_back(facts: dict[str, Any]) -> None:
    receipt = manifest(facts=facts, created_at=datetime(2030, 1, 2, tzinfo=UTC))
    assert Manifest.from_json(receipt.to_json()) == receipt


@pytest.mark.parametrize("name", ["/etc/passwd", "../up.npy", "a/../../b", "", "a\\b"])
def test_a_file_of_an_artifact_stays_in_its_folder(name: str) -> None:
    with pytest.raises(ValidationError, match="own folder"):
        FileRecord(name=name, bytes=1, sha256=DIGEST)


def test_a_file_is_listed_once() -> None:
    record = FileRecord(name="a.npy", bytes=1, sha256=DIGEST)
    with pytest.raises(ValidationError, match=re.escape("a.npy is listed twice")):
        manifest(files=(record, record))


def test_a_file_is_found_by_name_or_the_artifact_is_corrupt() -> None:
    assert manifest().file("parts/scores.npy").bytes == 3
    with pytest.raises(CorruptArtifact, match=r"has no file 'x\.npy'; delete its folder"):
        manifest().file("x.npy")


@pytest.mark.parametrize("text", ["", "{", '{"stage": "scores"}', "[1]", "null"])
def test_a_broken_manifest_says_how_to_go_on(text: str) -> None:
    with pytest.raises(CorruptArtifact, match="delete the artifact's folder and run again"):
        Manifest.from_json(text)


def facts(**changes: Any) -> DatasetFacts:
    values: dict[str, Any] = {
        "dataset_id": "d1",
        "task": "classification",
        "n_train": 10,
        "n_test": 2,
        "classes": ("no", "yes"),
        "input_shape": (8, 8),
        "source_digest": "s1",
    }
    return DatasetFacts(**{**values, **changes})


def test_a_model_has_an_output_for_each_class_or_one_number() -> None:
    assert facts().n_outputs == 2
    assert facts(task="regression", classes=()).n_outputs == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "regression"},
        {"classes": ("yes",)},
        {"classes": ("yes", "yes")},
        {"n_corrupted": 11},
        {"n_train": 0},
        {"input_shape": (0,)},
    ],
)
def test_facts_that_contradict_each_other_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        facts(**changes)


def test_facts_survive_json() -> None:
    assert DatasetFacts.model_validate_json(facts().model_dump_json()) == facts()


def test_every_metric_says_what_it_means() -> None:
    for name, entry in declared().items():
        assert re.fullmatch(r"[a-z]+(\.[a-z_]+)*", name)
        assert entry.name == name
        assert entry.unit
        assert len(entry.means) > 10
        assert not entry.means.endswith(".")


def test_a_declared_metric_is_found_by_its_name() -> None:
    assert metric("lds.mean").better is Better.HIGHER
    assert metric("lds.mean") is declared()["lds.mean"]


@pytest.mark.parametrize("name", ["lds.meen", "lds.mean.", "lds", ""])
def test_an_undeclared_metric_is_refused(name: str) -> None:
    with pytest.raises(NotFound, match=r"is not declared in schemas/metrics\.toml"):
        metric(name)


def test_a_misspelt_metric_is_told_its_neighbour() -> None:
    with pytest.raises(NotFound, match=r"did you mean 'lds\.mean'\?"):
        metric("lds.meen")


def test_errors_can_be_had_without_pydantic() -> None:
    code = "import sys, schemas.errors; sys.exit('pydantic' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
