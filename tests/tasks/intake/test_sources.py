import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from schemas.errors import DataError, RecipeError
from tasks.intake.rows import Columns, Rows
from tasks.intake.sources import read_rows, source_digest

LABEL = Columns(target="label")


def csv(folder: Path, text: str | bytes, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path: Path, columns: Columns = LABEL) -> Rows:
    return read_rows(f"{path.suffix[1:]}:{path.name}", path, columns)


def test_csv_parquet_and_jsonl_give_the_same_rows(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "key": ["a", "b", "c"],
            "x": [1, 2, 3],
            "flag": [True, False, True],
            "y": [0.5, -1.5, 2.25],
            "who": ["p", None, "q"],
            "side": ["train", "test", "train"],
            "label": ["cat", "dog", "cat"],
        }
    )
    frame.write_csv(tmp_path / "rows.csv")
    frame.write_parquet(tmp_path / "rows.parquet")
    frame.write_ndjson(tmp_path / "rows.jsonl")
    columns = Columns(target="label", id="key", split="side", metadata=("who",))
    for kind in ("csv", "parquet", "jsonl"):
        rows = read(tmp_path / f"rows.{kind}", columns)
        assert rows.inputs.tolist() == [[1, 1, 0.5], [2, 0, -1.5], [3, 1, 2.25]]
        assert rows.inputs.dtype == np.float32
        assert rows.features == ("x", "flag", "y")
        assert rows.scalable is not None
        assert rows.scalable.tolist() == [True, False, True]
        assert rows.targets.tolist() == ["cat", "dog", "cat"]
        assert rows.source_ids == ("a", "b", "c")
        assert rows.example_ids.tolist() == [0, 1, 2]
        assert rows.split == ("train", "test", "train")
        assert rows.metadata is not None
        assert [dict(row) for row in rows.metadata] == [{"who": "p"}, {"who": None}, {"who": "q"}]


def test_a_column_called_id_is_the_id_and_no_feature(tmp_path: Path) -> None:
    rows = read(csv(tmp_path, "id,x,label\n7,1,a\n3,2,b\n"))
    assert rows.example_ids.tolist() == [7, 3]
    assert rows.features == ("x",)


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    assert read(csv(tmp_path, b"\xef\xbb\xbfx,label\n1,a\n")).features == ("x",)


def test_lists_of_numbers_are_features(tmp_path: Path) -> None:
    frame = pl.DataFrame({"e": [[1.0, 2.0], [3.0, 4.0]], "x": [5, 6], "label": [0, 1]})
    frame.write_ndjson(tmp_path / "rows.jsonl")
    frame.with_columns(pl.col("e").list.to_array(2)).write_parquet(tmp_path / "rows.parquet")
    for kind in ("jsonl", "parquet"):
        rows = read(tmp_path / f"rows.{kind}")
        assert rows.inputs.tolist() == [[1, 2, 5], [3, 4, 6]]
        assert rows.features == ("e[0]", "e[1]", "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("x,label\n", "has no rows"),
        ("x,label\n1,a\n2,b,c\n", "line 3 has 3 cells, the header 2"),
        ("x,label\n1,a\n,b\n", r"row 2 has no value in column 'x' \(feature\)"),
        ("x,label\n1,a\n2\n", r"row 2 has no value in column 'label' \(target\)"),
        ("x,label\n1,a\nNaN,b\n", r"row 2 \(id 1\) has nan in feature 'x'"),
        ("id,x,label\n4,1,a\n9,inf,b\n", r"row 2 \(id 9\) has inf in feature 'x'"),
        ("x,label\n1,a\n1e300,b\n", r"row 2 \(id 1\) has inf in feature 'x'"),
        ("x,label\n1,0.5\n1,NaN\n", r"row 2 \(id 1\) has target nan"),
        ("x,label\n1,0.5\n1,n/a\n", "row 2 has 'n/a' in target column 'label', where other"),
        ("x,lable\n1,a\n", "data.target names column 'label', .*did you mean 'lable'"),
        ("id,x,label\n4,1,a\n5,1,a\n4,1,b\n", "rows 1 and 3 share the id 4"),
        ("id,x,label\nk,1,a\nk,1,b\n", "rows 1 and 2 share the id k"),
        ("id,x,label\n-4,1,a\n", r"row 1 \(id -4\): integer ids must lie in 0\.\."),
        ("id,x,label\n,1,a\n3,1,a\n", r"row 1 has no value in column 'id' \(id\)"),
        (
            "x,z,label\n1,n/a,a\n2,3,b\n",
            "row 1 has 'n/a' in feature column 'z', where other rows have numbers; fill",
        ),
        ("x,z,label\n1,2,a\n1,nan,b\n", "row 2 has 'nan' in feature column 'z', .* or remove the"),
        ("x,z,label\n1,n/a,a\n2,web,b\n", "'z' holds text \\('n/a' in row 1\\).* data.metadata"),
        ("label\na\n", "has no feature columns"),
        ("x,x,label\n1,2,a\n", "two columns called 'x'"),
        (b"x,label\n1,a\n2,\xff\n", "line 3, byte 3 is not UTF-8"),
    ],
)
def test_a_bad_csv_is_refused_with_row_and_column(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(csv(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"x":1,"label":"a"}\n{"label":"b"}\n', "row 2 has no value in column 'x'"),
        ('{"x":1,"label":"a"}\n{"x":2}\n', "row 2 has no value in column 'label'"),
        ('{"x":[1,2],"label":"a"}\n{"x":[1],"label":"b"}\n', "row 2 has 1 numbers in 'x'"),
        ('{"x":[1,null],"label":"a"}\n', "row 1 has an empty place in 'x'"),
        ('{"x":1,"label":"a"}\n{"x":\n', "line 2 is not JSON"),
        ("[1,2]\n", "line 1 holds no JSON object"),
        ('{"x":{"y":1},"label":"a"}\n', "column 'x' is of type Struct"),
        ('{"x":1,"label":[1]}\n', "target column 'label' is of type List"),
        ("", "the file is empty"),
    ],
)
def test_a_bad_jsonl_is_refused_with_its_line(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(csv(tmp_path, lines, "rows.jsonl"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_parquet_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"x": range(1000), "label": ["a", "b"] * 500}).write_parquet(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"rows\.parquet: "):
        read(path)


def test_a_column_has_one_role(tmp_path: Path) -> None:
    path = csv(tmp_path, "x,label,who\n1,a,p\n")
    with pytest.raises(DataError, match="which has another role too"):
        read(path, Columns(target="label", split="who", metadata=("who",)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: does not exist"):
        source_digest("csv:gone.csv", tmp_path / "gone.csv")
    with pytest.raises(DataError, match=r"gone\.csv: does not exist"):
        read(tmp_path / "gone.csv")


def test_the_digest_follows_bytes_and_function(tmp_path: Path) -> None:
    path = csv(tmp_path, "x,label\n1,a\n")
    before = source_digest("csv:rows.csv", path)
    assert before == source_digest("csv:elsewhere/rows.csv", path)
    csv(tmp_path, "x,label\n2,a\n")
    assert source_digest("csv:rows.csv", path) != before
    assert source_digest("sklearn:wine", None) != source_digest("sklearn:digits", None)
    recipe = csv(tmp_path, "def f(): ...\n", "r.py")
    assert source_digest("python:r.py:f", recipe) != source_digest("python:r.py:g", recipe)


@pytest.mark.parametrize(
    ("name", "shape", "first"),
    [
        ("digits", (1797, 64), "0"),
        ("breast_cancer", (569, 30), "malignant"),
        ("wine", (178, 13), "class_0"),
        ("diabetes", (442, 10), 151.0),
    ],
)
def test_sklearns_sets_are_read(name: str, shape: tuple[int, int], first: object) -> None:
    rows = read_rows(f"sklearn:{name}", None, Columns())
    assert rows.inputs.shape == shape
    assert rows.targets[0] == first
    if name == "digits":
        assert (rows.inputs.min(), rows.inputs.max()) == (0.0, 1.0)
        assert rows.scalable is None


def recipe(folder: Path, body: str) -> Rows:
    path = csv(folder, f"import numpy as np\ndef data():\n    return {body}\n", "r.py")
    return read_rows("python:r.py:data", path, Columns())


def test_a_recipe_returns_a_pair_or_a_dict(tmp_path: Path) -> None:
    rows = recipe(tmp_path, "(np.ones((3, 1, 2, 2)), ['a', 'b', 'a'])")
    assert rows.inputs.shape == (3, 1, 2, 2)
    assert rows.targets.tolist() == ["a", "b", "a"]
    rows = recipe(
        tmp_path,
        "dict(inputs=np.ones((2, 3)), targets=np.array([0, 1]), ids=[5, 4], "
        "split=['train', 'test'], metadata={'who': np.array(['p', 'q'])})",
    )
    assert rows.example_ids.tolist() == [5, 4]
    assert rows.split == ("train", "test")
    assert rows.metadata == ({"who": "p"}, {"who": "q"})
    assert recipe(tmp_path, "dict(inputs=[[1], [2]], targets=[0, 1], ids=['s', 't'])").source_ids


def test_a_recipe_may_return_tensors(tmp_path: Path) -> None:
    rows = recipe(tmp_path, "__import__('torch').ones(2, 3), __import__('torch').tensor([0, 1])")
    assert rows.inputs.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert rows.targets.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("3", "returned int; return"),
        ("(1, 2, 3)", "returned tuple of 3; return"),
        ("{}", "gives nothing; give inputs and targets"),
        ("dict(inputs=[[1]], targets=[1], idz=[1])", "gives inputs, targets, idz"),
        ("([[1, 2], [3]], [0, 1])", "inputs of data .* do not form an array"),
        ("(np.array([[1, None]], dtype=object), [0])", "inputs .* of type object"),
        ("([[1], [2]], [0, None])", "targets .* of type object"),
        ("([1, 2], [0, 1])", r"inputs .* of shape \(2,\)"),
        ("([['a'], ['b']], [0, 1])", r"give numbers of shape \[n, \.\.\.\]"),
        ("([[1], [2]], [0, 1, 1])", "gives 2 inputs but 3 targets"),
        ("([[1], [2]], [[0], [1]])", r"targets .* shape \(2, 1\); give one value"),
        ("dict(inputs=[[1], [2]], targets=[0, 1], metadata=[{}])", "2 inputs but 1 metadata"),
        ("dict(inputs=[[1], [2]], targets=[0, 1], metadata=3)", "metadata .* is int"),
        ("dict(inputs=[[1], [2]], targets=[0, 1], ids=[0.5, 1.5])", "ids .* give integers"),
        ("1 / 0", "line 3, raised ZeroDivisionError"),
    ],
)
def test_what_a_recipe_returns_is_checked(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        recipe(tmp_path, body)
    assert "\n" not in str(caught.value)


def test_a_recipes_rows_are_checked_like_any_others(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 2 \(id 1\) has nan in feature \[0, 1\]"):
        recipe(tmp_path, "(np.array([[[0, 1.0]], [[2, np.nan]]]), [0, 1])")
    with pytest.raises(DataError, match="has no rows"):
        recipe(tmp_path, "(np.ones((0, 2)), np.ones(0))")
    with pytest.raises(DataError, match="there are no features"):
        recipe(tmp_path, "(np.ones((2, 0)), [0, 1])")
    path = csv(tmp_path, "def data(): ...\n", "r.py")
    with pytest.raises(DataError, match="a recipe returns them itself"):
        read_rows("python:r.py:data", path, Columns(id="x"))


def test_metadata_keeps_what_json_keeps(tmp_path: Path) -> None:
    path = csv(tmp_path, "x,label,when\n1,a,2024-01-02\n2,b,2024-01-03\n")
    rows = read(path, Columns(target="label", metadata=("when",)))
    assert rows.metadata is not None
    assert json.dumps([str(row["when"]) for row in rows.metadata]) == '["2024-01-02", "2024-01-03"]'
