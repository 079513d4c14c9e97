import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.errors import DataError
from tasks.intake.rows import Columns, Rows
from tasks.intake.sources import read_rows, source_digest

IDX_NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def write_idx(path: Path, values: NDArray[np.uint8], *, cut: int = 0) -> None:
    head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    content = head + values.tobytes()
    content = content[: len(content) - cut]
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def idx_set(folder: Path, *, prefix: str = "", suffix: str = ".gz") -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    made = {}
    for side, n in (("train", 7), ("test", 3)):
        images, labels = IDX_NAMES[side]
        made[side] = rng.integers(0, 256, (n, 4, 5), dtype=np.uint8)
        write_idx(folder / f"{prefix}{images}{suffix}", made[side])
        write_idx(folder / f"{prefix}{labels}{suffix}", np.arange(n, dtype=np.uint8) % 2)
    return made


def read_npz(folder: Path, columns: Columns | None = None, /, **arrays: object) -> Rows:
    path = folder / "rows.npz"
    np.savez(path, **{name: np.asarray(value) for name, value in arrays.items()})
    return read_rows("npz:rows.npz", path, columns or Columns())


@pytest.mark.parametrize(("prefix", "suffix"), [("", ".gz"), ("", ""), ("letters-", ".gz")])
def test_an_idx_set_keeps_its_pictures_and_its_split(
    tmp_path: Path, prefix: str, suffix: str
) -> None:
    made = idx_set(tmp_path, prefix=prefix, suffix=suffix)
    rows = read_rows("idx:set", tmp_path / prefix.rstrip("-") if prefix else tmp_path, Columns())
    assert rows.inputs.shape == (10, 1, 4, 5)
    assert rows.inputs.dtype == np.float32
    np.testing.assert_array_equal(rows.inputs[:7, 0], made["train"].astype(np.float32) / 255)
    np.testing.assert_array_equal(rows.inputs[7:, 0], made["test"].astype(np.float32) / 255)
    assert rows.targets.tolist() == [0, 1, 0, 1, 0, 1, 0, 0, 1, 0]
    assert rows.split == ("train",) * 7 + ("test",) * 3


def test_the_digest_of_an_idx_set_follows_all_four_files(tmp_path: Path) -> None:
    idx_set(tmp_path)
    before = source_digest("idx:set", tmp_path)
    assert before == source_digest("idx:elsewhere", tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.ones(3, dtype=np.uint8))
    assert source_digest("idx:set", tmp_path) != before


def test_a_broken_idx_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no gone-train-images.*; give a folder"):
        read_rows("idx:set", tmp_path / "gone", Columns())
    idx_set(tmp_path)
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((1, 2, 2), dtype=np.uint8))
    with pytest.raises(DataError, match="2 files match train-images"):
        source_digest("idx:set", tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    for content, message in [
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x07abc"), r"11 bytes, and its header \(7,\) says 15"),
        (gzip.compress(b"GIF89a"), "no idx file"),
        (labels.read_bytes()[:-9], "cannot be read"),
        (b"plain", "cannot be read"),
    ]:
        labels.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            read_rows("idx:set", tmp_path, Columns())
        assert "\n" not in str(caught.value)
    write_idx(labels, np.zeros(6, dtype=np.uint8))
    with pytest.raises(DataError, match="one label for each image"):
        read_rows("idx:set", tmp_path, Columns())


@pytest.mark.parametrize("names", ["x_{} y_{}", "{}_images {}_labels", "inputs_{} targets_{}"])
def test_an_archive_with_two_sides_keeps_them(tmp_path: Path, names: str) -> None:
    arrays = {}
    for side, n in (("train", 4), ("test", 2)):
        inputs, targets = names.format(side, side).split()
        arrays[inputs] = np.full((n, 6, 5, 3), 51, dtype=np.uint8)
        arrays[targets] = np.arange(n).reshape(n, 1)
    rows = read_npz(tmp_path, **arrays)
    assert rows.inputs.shape == (6, 3, 6, 5)
    np.testing.assert_allclose(rows.inputs, 0.2, rtol=1e-6)
    assert rows.targets.tolist() == [0, 1, 2, 3, 0, 1]
    assert rows.split == ("train",) * 4 + ("test",) * 2


def test_an_archive_with_one_side_may_declare_it(tmp_path: Path) -> None:
    rows = read_npz(tmp_path, data=np.ones((3, 4)), label=["a", "b", "a"], id=[5, 3, 4])
    assert rows.inputs.tolist() == np.ones((3, 4)).tolist()
    assert rows.targets.tolist() == ["a", "b", "a"]
    assert rows.example_ids.tolist() == [5, 3, 4]
    assert rows.split is None
    columns = Columns(target="fine", split="side", id="key", metadata=("who",))
    rows = read_npz(
        tmp_path, columns, inputs=np.zeros((2, 1, 3, 3)), fine=[0.5, 1.5], side=["test", "train"],
        key=["p", "q"], who=[1, 2],
    )  # fmt: skip
    assert rows.inputs.shape == (2, 1, 3, 3)
    assert rows.targets.tolist() == [0.5, 1.5]
    assert rows.split == ("test", "train")
    assert rows.source_ids == ("p", "q")
    assert rows.metadata == ({"who": 1}, {"who": 2})


def test_a_bad_archive_is_refused(tmp_path: Path) -> None:
    good = {"x": np.ones((2, 3)), "y": [0, 1]}
    for change, message in [
        ({"x": np.ones(2)}, r"inputs have shapes \(2,\)"),
        ({"y": [0, 1, 2]}, r"targets have shape \(3,\) for 2 inputs"),
        ({"y": np.array([0, None], dtype=object)}, "holds objects"),
        ({"y": np.array([1j, 2])}, "'y' is of type complex128"),
        ({"x": np.array([[1.0], [np.nan]])}, r"row 2 \(id 1\) has nan"),
    ]:
        with pytest.raises(DataError, match=message):
            read_npz(tmp_path, **(good | change))
    with pytest.raises(DataError, match=r"no targets \(looked for targets, y.*the file holds x, q"):
        read_npz(tmp_path, x=np.ones((2, 3)), q=[0, 1])
    with pytest.raises(DataError, match=r"no targets \(looked for fine\)"):
        read_npz(tmp_path, Columns(target="fine"), **good)
    path = tmp_path / "rows.npz"
    content = path.read_bytes()
    for bad in (b"", content[: len(content) // 2], b"no archive"):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=r"rows\.npz: "):
            read_rows("npz:rows.npz", path, Columns())
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        read_rows("npz:rows.npz", path, Columns())


@pytest.mark.skipif(
    "WINNOW_DATA" not in os.environ, reason="set WINNOW_DATA to a folder with fashion_mnist"
)
def test_fashion_mnist_is_read_as_it_was_published() -> None:
    rows = read_rows("idx:set", Path(os.environ["WINNOW_DATA"]) / "fashion_mnist", Columns())
    assert rows.inputs.shape == (70_000, 1, 28, 28)
    assert (float(rows.inputs.min()), float(rows.inputs.max())) == (0.0, 1.0)
    assert np.bincount(rows.targets[:60_000]).tolist() == [6000] * 10
    assert rows.split is not None
    assert rows.split.count("test") == 10_000
