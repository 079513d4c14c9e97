import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from schemas.errors import RecipeError
from tasks.intake.recipes import build_user_model, load_function, recipe_digest


def write(folder: Path, text: str, name: str = "recipe.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


MODEL = """
from torch import nn

def build_model(input_shape, n_outputs, *, width=4):
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, n_outputs))

def flat(n_outputs):
    return nn.Linear(3, n_outputs + 1)

def nothing():
    return "a model"

def tuple_model(n_outputs):
    class Pair(nn.Module):
        def forward(self, x):
            return x, x
    return Pair()
"""


def test_a_function_is_loaded_by_path_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write(tmp_path, "def f():\n    return 7\n", "numbers.py")
    import numbers

    before = set(sys.modules)
    assert load_function(path, "f")() == 7
    assert sys.modules["numbers"] is numbers
    assert [name for name in set(sys.modules) - before if not name.startswith("_winnow")] == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["numbers.py"]
    assert str(tmp_path) not in sys.path


def test_the_same_bytes_give_the_same_class_and_new_bytes_a_new_one(tmp_path: Path) -> None:
    path = write(tmp_path, "class A:\n    x = 1\n")
    first, again = load_function(path, "A"), load_function(path, "A")
    assert first is again
    write(tmp_path, "class A:\n    x = 2\n")  # same size, likely the same mtime second
    assert load_function(path, "A")().x == 2


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    assert recipe_digest(path).startswith("e3b0c44298fc1c149afb")


def test_dataclasses_work_in_a_recipe(tmp_path: Path) -> None:
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass P:\n    x: int = 3\n"
    )
    assert load_function(write(tmp_path, text), "P")().x == 3


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("def f(:\n", "f", "line 1 is not valid Python"),
        ("x = 1\ny = 1 / 0\n", "f", "line 2, raised ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)\n", "f", "line 1, raised SystemExit: 3"),
        ("def build_model(): ...\n", "bild_model", "did you mean 'build_model'"),
        ("f = 3\n", "f", "'f' in .* is of type int; make it a function"),
        ("import surely_not_installed\n", "f", "raised ModuleNotFoundError"),
    ],
)
def test_a_bad_recipe_is_refused_with_its_line(
    tmp_path: Path, text: str, name: str, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_function(path, name)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_null_bytes_and_bad_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.py"
    for content in (b"x = '\xff'\n", b"x = 1\0\n"):
        path.write_bytes(content)
        with pytest.raises(RecipeError, match="not valid Python"):
            load_function(path, "f")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gone\.py: does not exist"):
        load_function(tmp_path / "gone.py", "f")
    with pytest.raises(RecipeError, match="does not exist"):
        recipe_digest(tmp_path / "gone.py")


def test_a_recipe_model_gets_the_options_and_the_shapes(tmp_path: Path) -> None:
    write(tmp_path, MODEL)
    model = build_user_model(
        "python:recipe.py:build_model", {"width": 6}, [5], 3, path=tmp_path / "recipe.py"
    )
    assert isinstance(model, nn.Sequential)
    assert model.training
    assert model(torch.zeros(2, 5)).shape == (2, 3)
    assert model[0].out_features == 6


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("flat", {}, r"gives shape \(1, 4\) for one row of shape \(3,\); expected \(1, 3\)"),
        ("nothing", {}, "returned str; return a torch.nn.Module"),
        ("tuple_model", {}, r"returns tuple .* return a tensor of shape \(1, 3\)"),
        ("build_model", {"widht": 3}, "unexpected keyword argument 'widht'"),
        ("build_model", {"width": "a"}, "line 5, raised TypeError"),
        ("build_model", {"input_shape": [9]}, r"fails on one row of shape \(3,\)"),
    ],
)
def test_a_recipe_model_is_held_to_its_shapes(
    tmp_path: Path, name: str, options: dict[str, object], message: str
) -> None:
    write(tmp_path, MODEL)
    with pytest.raises(RecipeError, match=message) as caught:
        build_user_model(f"python:recipe.py:{name}", options, (3,), 3, path=tmp_path / "recipe.py")
    assert "\n" not in str(caught.value)


def test_a_built_in_model_comes_by_its_name() -> None:
    model = build_user_model("mlp", {"hidden": [8]}, (2, 3), 4)
    assert model(torch.zeros(5, 2, 3)).shape == (5, 4)
