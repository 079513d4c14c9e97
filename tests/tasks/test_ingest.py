import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from schemas.dataset import DatasetFacts
from schemas.errors import DataError, RecipeError
from schemas.manifest import Manifest
from schemas.spec import load_spec
from store.artifacts import Artifacts
from store.datasets import StoredDataset, load_dataset
from store.workspace import Workspace, open_workspace
from tasks.ingest import ingest

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_csv"


def run(folder: Path, data: str, *, seed: int = 0) -> tuple[Manifest, StoredDataset, Workspace]:
    spec = folder / "spec.toml"
    spec.write_text(
        f'name = "t"\nseed = {seed}\n[data]\n{data}\n[model]\nbuild = "linear"\n'
        '[[attribution]]\nmethod = "trak"\n'
    )
    workspace = open_workspace(spec)
    manifest = ingest(load_spec(spec), workspace)
    return manifest, load_dataset(Artifacts(workspace.artifacts).folder(manifest)), workspace


def table(folder: Path, rows: list[tuple[int, float, float, str]]) -> None:
    lines = [f"{key},{x},{y},{label}" for key, x, y, label in rows]
    (folder / "rows.csv").write_text("\n".join(["id,x,y,label", *lines]) + "\n")


def some_rows(n: int) -> list[tuple[int, float, float, str]]:
    draws = np.random.default_rng(0).standard_normal((n, 2)).round(4)
    labels = ["cat", "dog", "eel"]
    return [(3 * i, float(x), float(5 * y + 40), labels[i % 3]) for i, (x, y) in enumerate(draws)]


CSV = 'source = "csv:rows.csv"\ntarget = "label"\n'


def test_digits_are_sealed_with_their_facts(tmp_path: Path) -> None:
    manifest, stored, workspace = run(
        tmp_path, 'source = "sklearn:digits"\ncorrupt = { labels = 0.1 }'
    )
    facts = DatasetFacts.model_validate({**manifest.facts, "classes": tuple(stored.classes)})
    assert facts == stored.facts
    assert stored.classes == tuple("0123456789")
    assert facts.n_train + facts.n_test == 1797
    assert abs(facts.n_test - 359) < 60
    assert facts.n_corrupted == round(0.1 * facts.n_train)
    changed = stored.train.targets != stored.train.true_targets
    assert changed.sum() == facts.n_corrupted
    assert (stored.test.targets == stored.test.true_targets).all()
    assert 0 <= stored.inputs.min() <= stored.inputs.max() == 1
    Artifacts(workspace.artifacts).verify(manifest)


def test_the_same_data_are_found_and_not_read_again(tmp_path: Path) -> None:
    table(tmp_path, some_rows(30))
    first, _, _ = run(tmp_path, CSV)
    again, _, _ = run(tmp_path, CSV)
    assert again == first
    other_seed, _, _ = run(tmp_path, CSV, seed=1)
    assert other_seed.key != first.key
    table(tmp_path, some_rows(31))
    longer, _, _ = run(tmp_path, CSV)
    assert longer.key != first.key


def test_table_columns_are_standardised_by_the_training_rows(tmp_path: Path) -> None:
    rows = some_rows(60)
    table(tmp_path, rows)
    _, stored, workspace = run(tmp_path, CSV)
    np.testing.assert_allclose(stored.train.inputs.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(stored.train.inputs.std(axis=0), 1, atol=1e-5)
    (path,) = workspace.artifacts.glob("data/*/scaling.json")
    scaling = json.loads(path.read_text())
    assert scaling["features"] == ["x", "y"]
    assert stored.facts.features == ("x", "y")
    raw = {key: (x, y) for key, x, y, _ in rows}
    np.testing.assert_allclose(
        stored.inputs * np.asarray(scaling["scale"]) + np.asarray(scaling["mean"]),
        [raw[int(key)] for key in stored.example_ids],
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_constant_column_becomes_zero(tmp_path: Path) -> None:
    table(tmp_path, [(key, x, 0.1, label) for key, x, _, label in some_rows(30)])
    _, stored, _ = run(tmp_path, CSV)
    assert np.abs(stored.inputs[:, 1]).max() < 1e-6


def test_a_column_of_true_labels_says_which_are_wrong(tmp_path: Path) -> None:
    rows = some_rows(60)
    lines = [f"{key},{x},{y},{label},{label}" for key, x, y, label in rows]
    lines[4] = lines[4].replace("dog,dog", "eel,dog")
    lines[9] = lines[9].replace("cat,cat", "dog,cat")
    (tmp_path / "rows.csv").write_text("\n".join(["id,x,y,label,known", *lines]) + "\n")
    _, stored, _ = run(tmp_path, CSV + 'true_target = "known"')
    assert stored.facts.features == ("x", "y")
    wrong = stored.examples.filter(pl.col("target") != pl.col("true_target"))
    assert set(wrong["example_id"]) == {12, 27}
    assert stored.facts.n_corrupted == wrong["split"].eq("train").sum()
    assert stored.classes == ("cat", "dog", "eel")
    (tmp_path / "rows.csv").write_text("id,x,y,label,known\n1,1,2,cat,7\n2,1,3,dog,8\n")
    with pytest.raises(DataError, match="of different types"):
        run(tmp_path, CSV + 'true_target = "known"')


def test_permuted_rows_give_the_same_data_set(tmp_path: Path) -> None:
    data = CSV + "corrupt = { labels = 0.2 }"
    table(tmp_path, some_rows(60))
    _, first, _ = run(tmp_path, data)
    table(tmp_path, some_rows(60)[::-1])
    _, second, _ = run(tmp_path, data)
    assert second.facts.dataset_id == first.facts.dataset_id
    assert second.facts.source_digest != first.facts.source_digest
    np.testing.assert_array_equal(second.inputs, first.inputs)
    np.testing.assert_array_equal(second.targets, first.targets)
    assert second.hashes == first.hashes


def test_appended_rows_move_no_others_and_change_no_hash(tmp_path: Path) -> None:
    def sides(n: int) -> dict[int, tuple[str, str]]:
        table(tmp_path, some_rows(n))
        _, stored, _ = run(tmp_path, CSV)
        columns = zip(stored.split.tolist(), stored.hashes, strict=True)
        return dict(zip(stored.example_ids.tolist(), columns, strict=True))

    before, after = sides(40), sides(55)
    assert {key: after[key] for key in before} == before


def test_the_data_set_is_named_by_all_that_is_used(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(
        "who,x,label,side\n"
        + "".join(f"p{i % 2},{i},{'ab'[i % 2]},train\n" for i in range(6))
        + "p0,9,a,test\n"
    )
    data = 'source = "csv:rows.csv"\ntarget = "label"\nsplit = "side"\nmetadata = ["who"]'
    _, first, _ = run(tmp_path, data)
    assert first.facts.n_test == 1
    assert first.test.example_ids.tolist() == [6]
    assert json.loads(first.examples["metadata"][0]) == {"who": "p0"}
    text = (tmp_path / "rows.csv").read_text()
    for old, new in (("p1,1,b", "p0,1,b"), ("p1,1,b", "p1,1,a"), ("p1,1,b", "p1,7,b")):
        (tmp_path / "rows.csv").write_text(text.replace(old, new))
        _, changed, _ = run(tmp_path, data)
        assert changed.facts.dataset_id != first.facts.dataset_id


def test_a_recipes_arrays_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(
        "import numpy as np\ndef data():\n"
        "    x = np.arange(60.0).reshape(30, 1, 2)\n"
        "    return dict(inputs=x, targets=x.sum((1, 2)) / 7, ids=[f'k{i}' for i in range(30)],\n"
        "                metadata=[{'w': float('nan')}] * 30)\n"
    )
    _, stored, _ = run(tmp_path, 'source = "python:r.py:data"')
    assert stored.facts.task == "regression"
    assert stored.facts.features == ()
    assert stored.facts.input_shape == (1, 2)
    row = int(np.flatnonzero(stored.example_ids == 4)[0])
    assert stored.inputs[row].tolist() == [[8, 9]]
    assert stored.targets[row] == np.float32(17 / 7)
    assert stored.examples["source_id"][row] == "k4"
    assert json.loads(stored.examples["metadata"][row]) == {"w": None}


def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    table(tmp_path, [*some_rows(30), (1, 0.0, 0.0, "emu")])
    with pytest.raises(DataError, match="have no training rows"):
        run(tmp_path, CSV + "test_fraction = 0.95")
    (tmp_path / "rows.csv").write_text("x,label\n" + "".join(f"{i},{i / 7}\n" for i in range(30)))
    with pytest.raises(DataError, match="swaps classes, and these targets are numbers"):
        run(tmp_path, CSV + "corrupt = { labels = 0.1 }")
    with pytest.raises(RecipeError, match="does not exist"):
        run(tmp_path, 'source = "python:gone.py:data"')
    assert list((tmp_path / ".winnow" / "artifacts").rglob("*.npy")) == []


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(
        "import pathlib\n"
        "def data():\n"
        "    path = pathlib.Path(__file__)\n"
        "    path.write_text(path.read_text() + '#')\n"
        "    return [[1], [2], [3]], [0, 1, 0]\n"
    )
    with pytest.raises(DataError, match="changed while it was read"):
        run(tmp_path, 'source = "python:r.py:data"')


def test_the_example_with_ones_own_csv_is_ingested(tmp_path: Path) -> None:
    loaded = load_spec(EXAMPLE / "own_csv.toml")
    workspace = open_workspace(loaded.path, tmp_path / "w")
    manifest = ingest(loaded, workspace)
    stored = load_dataset(Artifacts(workspace.artifacts).folder(manifest))
    assert stored.facts.n_train + stored.facts.n_test == 400
    assert stored.classes == ("abalone", "mussel", "oyster")
    from tasks.intake.recipes import build_user_model

    model = build_user_model(
        loaded.spec.model.build,
        loaded.spec.model.options,
        stored.facts.input_shape,
        stored.facts.n_outputs,
        path=loaded.model_path,
    )
    assert sum(parameter.numel() for parameter in model.parameters()) > 0
