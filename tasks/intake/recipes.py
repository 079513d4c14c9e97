"""A user's Python file: loaded by path, named privately, and held to what was agreed.

A recipe is one file. It is compiled from the very bytes that its digest covers, so no bytecode
cache can stand between the digest and what ran, and nothing is written beside the user's file. It
runs under a private module name and its folder is not put on the import path: a recipe cannot
import its siblings, because their contents would be in no digest.
"""

import difflib
import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from schemas.errors import RecipeError
from schemas.recipe import python_reference

if TYPE_CHECKING:
    from torch import nn


def recipe_digest(path: Path) -> str:
    """Sha256 of the recipe file's bytes, in hex.

    Raises:
        RecipeError: The file cannot be read.
    """
    return hashlib.sha256(_read(path)).hexdigest()


def load_function(path: Path, name: str) -> Callable[..., Any]:
    """Load one function (or class) from a recipe file.

    The same file with the same bytes gives the same module again, so that its classes stay
    identical within a process; edited bytes give a new one.

    Raises:
        RecipeError: The file is missing, does not compile, raises while it is imported, or holds
            no callable of that name.
    """
    module = _load_module(path)
    if not hasattr(module, name):
        own = sorted(
            key for key, value in vars(module).items() if callable(value) and key[0] != "_"
        )
        near = difflib.get_close_matches(name, own, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(own) or 'none'}"
        raise RecipeError(f"{path} has no function {name!r}; {hint}")
    function = getattr(module, name)
    if not callable(function):
        raise RecipeError(
            f"{name!r} in {path} is of type {type(function).__name__}; make it a function"
        )
    return function


def call(function: Callable[..., Any], path: Path, options: Mapping[str, Any]) -> Any:
    """Call a recipe's function with keywords, and turn whatever it raises into one line.

    Raises:
        RecipeError: The keywords do not fit its signature, or it raises; the message has the
            exception's type and text, and the last line of the recipe that ran.
    """
    name = getattr(function, "__name__", str(function))
    signature = _signature(function)
    if signature is not None:
        try:
            signature.bind(**options)
        except TypeError as error:
            raise RecipeError(
                f"{name}{signature} in {path} cannot be called with "
                f"({', '.join(options) or 'no arguments'}): {error}; change the options or it"
            ) from error
    try:
        return function(**options)
    # Code of others may raise anything; SystemExit is what a script that calls exit() raises.
    except (Exception, SystemExit) as error:
        raise RecipeError(f"{name} in {describe_failure(error, path)}") from error


def build_user_model(
    build: str,
    options: Mapping[str, Any],
    input_shape: Sequence[int],
    n_outputs: int,
    *,
    path: Path | None = None,
) -> "nn.Module":
    """Build the spec's model and pass one row of zeros through it.

    A recipe's function is called with the options as keywords, and with ``input_shape`` (a tuple)
    and ``n_outputs`` where its signature takes them and the options do not give them.

    Args:
        build: A built-in name, or ``python:recipe.py:build_model``.
        options: The spec's ``model.options``.
        input_shape: Shape of one example.
        n_outputs: Number of classes; 1 for regression.
        path: The recipe's file, as ``LoadedSpec.model_path`` has it.

    Raises:
        RecipeError: The recipe fails, returns no ``nn.Module``, or its output for one row has
            another shape than [1, n_outputs].
    """
    shape = tuple(int(size) for size in input_shape)
    reference = python_reference(build)
    if reference is None:
        from attribution.models import build as build_builtin

        return build_builtin(build, shape, n_outputs, **options)

    from torch import nn

    path, name = path or Path(reference.file), reference.function
    function = load_function(path, name)
    given = {"input_shape": shape, "n_outputs": n_outputs}
    taken = {key: given[key] for key in given if key not in options and _takes(function, key)}
    model = call(function, path, {**options, **taken})
    if not isinstance(model, nn.Module):
        raise RecipeError(
            f"{name} in {path} returned {type(model).__name__}; return a torch.nn.Module"
        )
    _check_forward(model, shape, n_outputs, where=f"the model of {name} in {path}", path=path)
    return model


def describe_failure(error: BaseException, path: Path) -> str:
    """Where in the recipe an exception came from, with its type and first line."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    where = f"{path}, line {lines[-1]}" if lines else str(path)
    text = str(error).strip().splitlines()
    return f"{where}, raised {type(error).__name__}" + (f": {text[0]}" if text else "")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise RecipeError(
            f"recipe {path}: {reason}; paths are relative to the spec file"
        ) from error


def _load_module(path: Path) -> ModuleType:
    source = _read(path)
    place = str(path.resolve()).encode()
    name = f"_winnow_recipe_{hashlib.sha256(source + b'@' + place).hexdigest()[:20]}"
    if name in sys.modules:
        return sys.modules[name]
    try:
        code = compile(source, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise RecipeError(f"{path}{line} is not valid Python: {reason}") from error
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        exec(code, module.__dict__)  # noqa: S102 -- to run the user's recipe is the purpose
    except (Exception, SystemExit) as error:  # code of others may raise anything
        del sys.modules[name]
        raise RecipeError(f"importing {describe_failure(error, path)}") from error
    except BaseException:
        del sys.modules[name]  # an interrupt must not leave half a module behind
        raise
    return module


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some callables written in C have none
        return None


def _takes(function: Callable[..., Any], keyword: str) -> bool:
    signature = _signature(function)
    if signature is None:
        return False
    positional_only = inspect.Parameter.POSITIONAL_ONLY
    return any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD
        or (parameter.name == keyword and parameter.kind is not positional_only)
        for parameter in signature.parameters.values()
    )


def _check_forward(
    model: "nn.Module", shape: tuple[int, ...], n_outputs: int, *, where: str, path: Path
) -> None:
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(torch.zeros((1, *shape)))
    except Exception as error:  # the forward pass is the user's code too
        raise RecipeError(
            f"{where} fails on one row of shape {shape}: {describe_failure(error, path)}"
        ) from error
    finally:
        model.train(was_training)
    if not isinstance(outputs, torch.Tensor):
        raise RecipeError(
            f"{where} returns {type(outputs).__name__} for one row of shape {shape}; "
            f"return a tensor of shape (1, {n_outputs})"
        )
    if tuple(outputs.shape) != (1, n_outputs):
        raise RecipeError(
            f"{where} gives shape {tuple(outputs.shape)} for one row of shape {shape}; "
            f"expected (1, {n_outputs}), one output per class and 1 for regression"
        )
