"""A bank in a folder: nothing that is there is trained again, whatever happened in between."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from attribution.bank import RetrainBank, draw_masks, train_bank
from attribution.models import build
from attribution.training import Recipe
from schemas.errors import CheckpointError

FloatArray = npt.NDArray[np.float32]

RNG = np.random.default_rng(3)
N, Q = 40, 5
INPUTS = RNG.normal(size=(N + Q, 6)).astype(np.float32)
LABELS = (INPUTS[:, 0] > 0).astype(np.int64) + (INPUTS[:, 1] > 0)
RECIPE = Recipe(epochs=3, batch_size=8)


def bank_of(folder: Path | None, models: int = 100, **changed: Any) -> RetrainBank:
    masks, seeds, alpha = draw_masks(N, models, [0.5, 0.8], 2, seed=3)
    given: dict[str, Any] = {
        "train": (INPUTS[:N], LABELS[:N]),
        "queries": (INPUTS[N:], LABELS[N:]),
        "masks": masks,
        "seeds": seeds,
        "training": RECIPE,
        "alpha": alpha,
        "device": "cpu",
    }
    model = changed.pop("model", build("mlp", (6,), 3, hidden=[8]))
    return train_bank(model, folder=folder, **given | changed)


def kept(folder: Path) -> dict[Path, list[bytes]]:
    """Names of the models of each file."""
    return {
        path: [row.tobytes() for row in load_file(path)["names"]]
        for path in folder.glob("*.safetensors")
    }


def close(one: FloatArray, two: FloatArray) -> None:
    """Equal but for the order of sums, which follows from how many models are trained at once."""
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def models_in(files: dict[Path, list[bytes]]) -> int:
    """How many models some files hold; each may be in one only."""
    names = [name for rows in files.values() for name in rows]
    assert len(set(names)) == len(names)
    return len(names)


def test_a_folder_changes_no_number(tmp_path: Path) -> None:
    plain = bank_of(None)
    through = bank_of(tmp_path / "kept")
    close(through.outputs, plain.outputs)
    np.testing.assert_array_equal(through.masks, plain.masks)
    np.testing.assert_array_equal(bank_of(tmp_path / "kept").outputs, through.outputs)
    assert models_in(kept(tmp_path / "kept")) == 100
    assert sorted(len(rows) for rows in kept(tmp_path / "kept").values()) == [10, 10, 40, 40]


def test_a_larger_bank_and_another_output_train_only_what_is_new(tmp_path: Path) -> None:
    bank_of(tmp_path, 20)
    first = kept(tmp_path)
    grown = bank_of(tmp_path, 28)
    assert models_in({p: n for p, n in kept(tmp_path).items() if p not in first}) == 8
    close(grown.outputs, bank_of(None, 28).outputs)
    before = kept(tmp_path)
    loss = bank_of(tmp_path, 28, output="loss")
    small = bank_of(tmp_path, 12)
    assert kept(tmp_path) == before
    close(loss.outputs, bank_of(None, 28, output="loss").outputs)
    np.testing.assert_array_equal(small.outputs, grown.outputs[:12])


def test_rows_that_a_model_never_saw_do_not_retrain_it(tmp_path: Path) -> None:
    first = bank_of(tmp_path, 8)
    before = kept(tmp_path)
    masks, seeds, _ = draw_masks(N, 8, [0.5, 0.8], 2, seed=3)
    extra = np.concatenate([INPUTS[:N], INPUTS[:2] + 1]), np.concatenate([LABELS[:N], LABELS[:2]])
    wider = np.concatenate([masks, np.zeros((8, 2), dtype=bool)], axis=1)
    again = bank_of(tmp_path, train=extra, masks=wider, seeds=seeds, alpha=None)
    assert kept(tmp_path) == before
    np.testing.assert_array_equal(again.outputs, first.outputs)


@pytest.mark.parametrize(
    "changed",
    [
        {"training": Recipe(epochs=4, batch_size=8)},
        {"model": build("mlp", (6,), 3, hidden=[9])},
        {"model": build("mlp", (6,), 3, hidden=[8], activation="tanh")},
        {"train": (INPUTS[:N] * 2, LABELS[:N])},
        {"train": (INPUTS[:N], (LABELS[:N] + 1) % 3)},
        {"queries": (INPUTS[N:] * 2, LABELS[N:])},
        {"seeds": list(range(8))},
    ],
)
def test_whatever_logits_depend_on_is_trained_anew(tmp_path: Path, changed: dict[str, Any]) -> None:
    bank_of(tmp_path, 8)
    other = bank_of(tmp_path, 8, **changed)
    assert models_in(kept(tmp_path)) == 16
    close(other.outputs, bank_of(None, 8, **changed).outputs)


def test_a_file_that_is_no_chunk_is_named(tmp_path: Path) -> None:
    bank_of(tmp_path, 8)
    path = next(iter(kept(tmp_path)))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=path.name):
        bank_of(tmp_path, 8)


SCRIPT = """
import sys
from pathlib import Path
from tests.attribution.test_kept import RECIPE, bank_of, slow
bank_of(Path(sys.argv[1]), 200, training=slow())
"""


def slow() -> Recipe:
    """So many epochs that a process can be killed between two chunks."""
    return Recipe(epochs=60, batch_size=8)


def killed_after(chunks: int, folder: Path, command: Sequence[str]) -> None:
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while len(list(folder.glob("*.safetensors"))) < chunks:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.kill()


def test_a_killed_bank_goes_on_and_trains_no_model_twice(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    killed_after(2, folder, [sys.executable, "-c", SCRIPT, str(folder)])
    before = {path: path.stat().st_mtime_ns for path in kept(folder)}
    assert 80 <= models_in(kept(folder)) < 200
    resumed = bank_of(folder, 200, training=slow())
    assert models_in(kept(folder)) == 200
    assert {path: path.stat().st_mtime_ns for path in before} == before
    close(resumed.outputs, bank_of(None, 200, training=slow()).outputs)
