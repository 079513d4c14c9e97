import json
import tomllib
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from schemas.errors import SpecError
from schemas.spec import (
    SCHEMA_PATH,
    BankSpec,
    ComputeSpec,
    CurationSpec,
    SelectSpec,
    TrainSpec,
    TrakSpec,
    load_spec,
    parse_spec,
    python_reference,
    schema_text,
)
from tests.schemas.specs import FULL, MINIMAL


def write(folder: Path, text: str) -> Path:
    path = folder / "spec.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_source_a_model_and_an_attribution_are_enough(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, MINIMAL)).spec
    assert spec.train == TrainSpec()
    assert spec.bank == BankSpec()
    assert spec.attribution == (TrakSpec(method="trak"),)
    assert spec.problem == ()
    assert list(spec.sets) == ["queries", "holdout"]


def test_every_key_of_a_full_spec_arrives(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, FULL)).spec
    assert spec.data.corrupt.labels == 0.1
    assert spec.model.options == {"hidden": [128, 64], "activation": "tanh"}
    assert (spec.bank.models, spec.bank.alpha, spec.bank.subsets) == (48, (0.5, 0.75), 8)
    assert spec.attribution_named("published").projection.dim == 512
    assert spec.problem[0].quotas["class"]["3"].max == 200
    assert spec.compute.memory_bytes == 3 * 2**29


@pytest.mark.parametrize("text", [MINIMAL, FULL])
def test_a_spec_that_is_written_out_and_read_again_is_the_same(tmp_path: Path, text: str) -> None:
    spec = load_spec(write(tmp_path, text)).spec
    assert CurationSpec.model_validate_json(spec.model_dump_json()) == spec
    assert CurationSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert parse_spec(spec.model_dump(mode="json")).digest() == spec.digest()


def test_the_digest_ignores_comments_order_and_spelt_out_defaults(tmp_path: Path) -> None:
    terse = load_spec(write(tmp_path, MINIMAL))
    wordy = load_spec(
        write(
            tmp_path,
            """
            seed = 0   # the default
            name = "tiny"
            [[attribution]]
            damping = "auto"
            method = "trak"
            [model]
            build = "linear"
            [data]
            source = "sklearn:digits"
            """,
        )
    )
    assert terse.digest == wordy.digest == terse.spec.digest()
    assert terse.text != wordy.text


def test_a_section_has_its_own_digest() -> None:
    spec = parse_spec({**minimal(), "train": {"lr": 0.1}})
    other = parse_spec({**minimal(), "train": {"lr": 0.1}, "seed": 1})
    assert spec.digest() != other.digest()
    assert spec.train.digest() == other.train.digest() != TrainSpec().digest()


@given(seed=st.integers(0, 2**63 - 1), lr=st.floats(1e-9, 1e3), epochs=st.integers(1, 10**6))
def test_the_digest_is_a_function_of_the_values(seed: int, lr: float, epochs: int) -> None:
    data = {**minimal(), "seed": seed, "train": {"lr": lr, "epochs": epochs}}
    spec = parse_spec(data)
    assert spec.digest() == parse_spec(dict(reversed(data.items()))).digest()
    assert spec.digest() == CurationSpec.model_validate_json(spec.model_dump_json()).digest()


def test_paths_are_relative_to_the_folder_of_the_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "specs").mkdir()
    write(tmp_path / "specs", FULL)
    loaded = load_spec(Path("specs/spec.toml"))
    assert loaded.path == tmp_path / "specs" / "spec.toml"
    assert loaded.source_path == tmp_path / "specs" / "rows" / "digits.csv"
    assert loaded.model_path is None
    assert loaded.checkpoint_paths == (
        tmp_path / "specs" / "weights" / "a.safetensors",
        Path("/elsewhere/b.pt"),
    )
    assert loaded.resolve("../up.txt") == tmp_path / "up.txt"


def test_a_recipe_file_is_found_beside_the_spec(tmp_path: Path) -> None:
    text = MINIMAL.replace('"sklearn:digits"', '"python:my.recipe.py:rows"').replace(
        '"linear"', '"python:my.recipe.py:net"'
    )
    loaded = load_spec(write(tmp_path, text))
    assert loaded.source_path == loaded.model_path == tmp_path / "my.recipe.py"
    assert loaded.spec.model.reference == ("my.recipe.py", "net")
    assert load_spec(write(tmp_path, MINIMAL)).source_path is None


@pytest.mark.parametrize("text", ["python:a.py", "python:a.py:", "python::f", "a.py:f", "mlp"])
def test_a_reference_names_a_file_and_a_function(text: str) -> None:
    assert python_reference(text) is None


def test_a_spec_cannot_be_changed() -> None:
    spec = parse_spec(minimal())
    with pytest.raises(ValidationError):
        spec.seed = 3


def models_within(model: type[BaseModel]) -> set[type[BaseModel]]:
    found = {model}
    for field in model.model_fields.values():
        for value in [field.get_default(call_default_factory=True, validated_data={})]:
            if isinstance(value, BaseModel):
                found |= models_within(type(value))
    return found


def test_every_section_is_frozen_closed_and_every_key_is_described() -> None:
    for model in models_within(CurationSpec) | models_within(TrakSpec) | {SelectSpec}:
        assert model.model_config["frozen"]
        assert model.model_config["extra"] == "forbid"
        for key, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{key}"


def test_one_set_of_ones_own_beside_the_defaults_keeps_them() -> None:
    spec = parse_spec({**minimal(), "sets": {"threes": "FROM examples"}})
    assert set(spec.sets) == {"queries", "holdout", "threes"}


def test_ones_own_queries_never_stand_beside_a_default_holdout() -> None:
    with pytest.raises(SpecError, match="there is no set 'holdout'"):
        parse_spec({**minimal(), "sets": {"queries": "FROM examples"}})


def test_auto_output_follows_the_task() -> None:
    trak = TrakSpec(method="trak")
    assert (trak.output_for("classification"), trak.output_for("regression")) == (
        "margin",
        "prediction",
    )
    assert TrakSpec(method="trak", output="loss").output_for("regression") == "loss"


def test_a_size_is_rows_or_a_fraction_of_them() -> None:
    assert SelectSpec(kind="select", uses="trak", size=30).rows(1000) == 30
    assert SelectSpec(kind="select", uses="trak", size=0.9).rows(1000) == 900


@pytest.mark.parametrize(
    ("memory", "n_bytes"), [(None, None), ("4 GB", 4 * 10**9), ("512MiB", 2**29)]
)
def test_memory_is_spelled_with_its_unit(memory: str | None, n_bytes: int | None) -> None:
    assert ComputeSpec(memory=memory).memory_bytes == n_bytes


def test_the_checked_in_json_schema_is_current() -> None:
    assert SCHEMA_PATH.read_text(encoding="utf-8") == schema_text(), "run python -m schemas.spec"


@pytest.mark.parametrize("text", [MINIMAL, FULL])
def test_the_json_schema_accepts_what_loads(tmp_path: Path, text: str) -> None:
    jsonschema.validate(tomllib.loads(text), json.loads(schema_text()))


def minimal() -> dict[str, object]:
    return {
        "name": "tiny",
        "data": {"source": "sklearn:digits"},
        "model": {"build": "linear"},
        "attribution": [{"method": "trak"}],
    }
