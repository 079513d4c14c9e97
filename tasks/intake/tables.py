"""CSV, Parquet and JSONL files read into `Rows` with Polars.

Numeric and boolean columns that have no other role are features, in the file's order; a list
column of numbers counts as as many features as its lists are long. Other columns must be named:
nothing is dropped, filled in or encoded silently. Polars' own errors are located in the file, for
they seldom say the line.
"""

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from schemas.errors import DataError
from schemas.frozen import nearest
from schemas.recipe import TextSpec
from tasks.intake.rows import Columns, Rows, to_float32
from tasks.intake.tokens import ask_answers, next_tokens, tokenise

MISSING_MARKERS = ("", "nan", "na", "n/a", "null", "none", "?", "-")


def read_table(kind: str, path: Path, columns: Columns) -> Rows:
    """Read one file.

    Args:
        kind: csv, parquet or jsonl.
        path: The file.
        columns: The roles of its columns. Without ``columns.id``, a column called ``id`` that has
            no other role is the id.

    Raises:
        DataError: The file cannot be parsed, a named column is not there, or a cell is missing or
            of the wrong kind; the message names the row (the first after the header is row 1).
    """
    return rows_of(read_frame(kind, path), columns, path)


def rows_of(frame: pl.DataFrame, columns: Columns, path: Path) -> Rows:
    """The rows of a table that was read; `path` is what messages call it.

    Raises:
        DataError: As `read_table`, but for a file that cannot be parsed.
    """
    columns = _check_columns(frame, columns, path)
    if not frame.height:
        raise DataError(f"{path} has no rows; give it at least one row for each side")
    ids, source_ids = _ids(frame, columns.id)
    parts = _inputs(frame, columns, path)
    return Rows(
        inputs=parts.inputs,
        targets=parts.targets,
        true_targets=None if columns.true_target is None else _targets(frame[columns.true_target]),
        ids=ids,
        source_ids=source_ids,
        metadata=_metadata(frame, (*columns.metadata, *_text_columns(columns))),
        split=None if columns.split is None else _text(frame[columns.split], "data.split"),
        features=parts.features,
        scalable=parts.scalable,
    )


def read_frame(kind: str, path: Path) -> pl.DataFrame:
    """Every column of a csv, parquet or jsonl file, as it is there.

    Raises:
        DataError: The file cannot be parsed; the message says the line.
    """
    try:
        if kind == "csv":
            # Types are taken from all rows: an odd cell late in the file must not be dropped.
            frame = pl.scan_csv(path, infer_schema_length=None).collect()
        elif kind == "parquet":
            frame = pl.scan_parquet(path).collect()
        else:
            frame = pl.scan_ndjson(path, infer_schema_length=None).collect()
    except (PolarsError, OSError) as error:
        raise DataError(f"{path}: {_explain(kind, path, error)}") from error
    except pl.exceptions.PanicException as error:  # it is a BaseException
        raise DataError(f"{path} is damaged; write the file again") from error
    twice = [name for name in frame.columns if name.endswith("_duplicated_0")]
    if kind == "csv" and twice:
        name = twice[0].removesuffix("_duplicated_0")
        raise DataError(f"{path} has two columns called {name!r}; rename one of them")
    return frame


def _explain(kind: str, path: Path, error: Exception) -> str:
    """Say what is wrong where, for a file that Polars refused."""
    if not path.is_file():
        return "does not exist; paths are relative to the spec file"
    if path.stat().st_size == 0:
        return "the file is empty"
    if kind == "parquet":
        return "is not a complete Parquet file, perhaps cut short; write it again"
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as bad:
                return f"line {number}, byte {bad.start + 1} is not UTF-8; save the file as UTF-8"
            if kind == "jsonl" and text.strip():
                problem = _json_problem(text)
                if problem:
                    return f"line {number} {problem}; write one JSON object on each line"
    if kind == "csv":
        ragged = _ragged_line(path)
        if ragged:
            return ragged
    return str(error).splitlines()[0]


def _json_problem(line: str) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as bad:
        return f"is not JSON ({bad.msg} at character {bad.colno})"
    return "" if isinstance(value, dict) else "holds no JSON object"


def _ragged_line(path: Path) -> str:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        width = len(next(reader, []))
        for row in reader:
            if row and len(row) != width:
                return (
                    f"line {reader.line_num} has {len(row)} cells, the header {width}; "
                    "quote cells that hold a comma"
                )
    return ""


def _check_columns(frame: pl.DataFrame, columns: Columns, path: Path) -> Columns:
    if columns.target is None and columns.text is None:
        raise DataError(f"data.target is missing; name the column of {path} to predict")
    roles = {
        "target": columns.target,
        "true_target": columns.true_target,
        "id": columns.id,
        "split": columns.split,
    }
    named = [(f"data.{role}", name) for role, name in roles.items() if name is not None]
    named += [("data.metadata", name) for name in columns.metadata]
    roles_of_text = ("data.text.column", "data.text.answer")
    named += list(zip(roles_of_text, _text_columns(columns), strict=False))
    for role, name in named:
        if name not in frame.columns:
            raise DataError(
                f"{role} names column {name!r}, which {path} does not have"
                f"{nearest(name, frame.columns)}"
            )
    names = [name for _, name in named]
    for role, name in named:
        if names.count(name) > 1:
            raise DataError(f"{role} names column {name!r}, which has another role too; choose one")
    if columns.id is None and "id" in frame.columns and "id" not in names:
        return replace(columns, id="id")
    return columns


@dataclass(frozen=True, kw_only=True, eq=False)
class _Parts:
    """What the model sees of a table, and what it is to say."""

    inputs: NDArray[Any]
    targets: NDArray[Any]
    features: tuple[str, ...] = ()
    scalable: NDArray[np.bool_] | None = None


def _inputs(frame: pl.DataFrame, columns: Columns, path: Path) -> _Parts:
    if columns.text is not None:
        return _texts(frame, columns, columns.text, path)
    inputs, features, scalable = _features(frame, columns, path)
    targets = _targets(frame[str(columns.target)])
    return _Parts(inputs=inputs, targets=targets, features=features, scalable=scalable)


def _apart(columns: Columns) -> set[str | None]:
    """The columns that a model never sees as an input."""
    return {
        columns.target,
        columns.true_target,
        columns.id,
        columns.split,
        *columns.metadata,
    }


def _text_columns(columns: Columns) -> tuple[str, ...]:
    """The column of texts, and that of their answers where there is one."""
    if columns.text is None:
        return ()
    answer = columns.text.answer
    return (columns.text.column,) if answer is None else (columns.text.column, answer)


def _texts(frame: pl.DataFrame, columns: Columns, text: TextSpec, path: Path) -> _Parts:
    roles = {*_apart(columns), *_text_columns(columns)}
    other = [name for name in frame.columns if name not in roles]
    if other:
        raise DataError(
            f"{path}: column {other[0]!r} is beside the text ({len(other)} such columns); a text "
            "is the whole input: list the others under data.metadata"
        )
    tokens = tokenise(_text(frame[text.column], "text"), text, following=columns.target is None)
    if columns.target is None:
        inputs, following = next_tokens(tokens)
        if text.answer is not None:
            answers = frame[text.answer].cast(pl.String).fill_null("").to_list()
            following = ask_answers(following, answers, text)
        return _Parts(inputs=inputs, targets=following)
    return _Parts(inputs=tokens, targets=_targets(frame[columns.target]))


def _ids(
    frame: pl.DataFrame, name: str | None
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    if name is None:
        return None, None
    column = frame[name]
    if column.dtype.is_integer():
        _refuse_nulls(column, "id")
        try:
            return column.cast(pl.Int64).to_numpy(), None
        except PolarsError as error:
            raise DataError(f"ids in column {name!r} do not fit in 64 bits") from error
    return None, _text(column, "id")


def _features(
    frame: pl.DataFrame, columns: Columns, path: Path
) -> tuple[NDArray[np.float32], tuple[str, ...], NDArray[np.bool_]]:
    roles = _apart(columns)
    names = [name for name in frame.columns if name not in roles]
    if not names:
        raise DataError(f"{path} has no feature columns beside those with a role")
    odd = [name for name in names if not _is_numeric(frame[name].dtype)]
    for name in odd:
        if frame[name].dtype == pl.String:
            _refuse_markers(frame[name], "feature")
    if odd:
        raise DataError(
            f"{path}: {'; '.join(_describe_odd(frame[name]) for name in odd[:5])}"
            f"{f'; and {len(odd) - 5} more columns' if len(odd) > 5 else ''}. Features must be "
            "numbers: list such columns under data.metadata, or encode them in a python: recipe"
        )
    blocks, titles, scalable = [], [], []
    for name in names:
        block = _block(frame[name])
        blocks.append(block)
        wide = block.shape[1] > 1 or frame[name].dtype.is_nested()
        titles += [f"{name}[{i}]" for i in range(block.shape[1])] if wide else [name]
        # A flag keeps its 0 and 1, and a vector (an embedding, say) its own geometry.
        plain = not wide and frame[name].dtype != pl.Boolean
        scalable += [plain] * block.shape[1]
    inputs = np.ascontiguousarray(np.concatenate(blocks, axis=1))
    return inputs, tuple(titles), np.asarray(scalable, dtype=bool)


def _is_numeric(dtype: pl.DataType) -> bool:
    if isinstance(dtype, pl.List | pl.Array):
        return _is_numeric(dtype.inner) if not dtype.inner.is_nested() else False  # type: ignore[arg-type]
    return dtype.is_numeric() or dtype == pl.Boolean


def _describe_odd(column: pl.Series) -> str:
    if column.dtype != pl.String:
        return f"column {column.name!r} is of type {column.dtype}"
    numbers = column.cast(pl.Float64, strict=False)
    text = column.filter(numbers.is_null() & column.is_not_null())
    if text.len() == 0:
        odd = numbers.is_nan().arg_true()
        if len(odd):
            row = int(odd[0])
            return f"column {column.name!r} holds {column[row]!r} in row {row + 1}"
        return f"column {column.name!r} holds numbers as text"
    row = int((numbers.is_null() & column.is_not_null()).arg_true()[0]) + 1
    return f"column {column.name!r} holds text ({text[0][:40]!r} in row {row})"


def _block(column: pl.Series) -> NDArray[np.float32]:
    """One column as float32 [n, width]."""
    _refuse_nulls(column, "feature")
    if not column.dtype.is_nested():
        return to_float32(column.cast(pl.Float64).to_numpy()).reshape(-1, 1)
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    lengths = column.list.len()
    odd = (lengths != lengths[0]).arg_true()
    if len(odd):
        row = int(odd[0])
        raise DataError(
            f"row {row + 1} has {lengths[row]} numbers in {column.name!r}, row 1 has "
            f"{lengths[0]}; make all lists equally long"
        )
    if lengths[0] == 0:
        raise DataError(f"column {column.name!r} holds empty lists; remove it")
    values = column.explode()
    holes = values.is_null().arg_true()
    if len(holes):
        row = int(holes[0]) // int(lengths[0])
        raise DataError(f"row {row + 1} has an empty place in {column.name!r}; fill it in")
    return to_float32(values.cast(pl.Float64).to_numpy()).reshape(-1, int(lengths[0]))


def _targets(column: pl.Series) -> NDArray[Any]:
    _refuse_nulls(column, "target")
    if column.dtype == pl.Boolean:
        return np.where(column.to_numpy(), "true", "false")
    if column.dtype.is_integer():
        return column.cast(pl.Int64, strict=False).to_numpy()
    if column.dtype.is_numeric():
        return column.cast(pl.Float64).to_numpy()
    if column.dtype in (pl.String, pl.Categorical, pl.Enum):
        _refuse_markers(column.cast(pl.String), "target")
        return np.asarray(column.cast(pl.String).to_list(), dtype=str)
    raise DataError(
        f"target column {column.name!r} is of type {column.dtype}; give numbers, text or booleans"
    )


def _refuse_markers(column: pl.Series, role: str) -> None:
    """Refuse "n/a" among numbers: as a class of its own it would turn a regression into classes.

    Among other words it may be a class ("none" is a plausible one).
    """
    marked = column.str.strip_chars().str.to_lowercase().is_in(MISSING_MARKERS)
    rest = column.filter(~marked)
    if marked.any() and rest.len() and rest.cast(pl.Float64, strict=False).null_count() == 0:
        row = int(marked.arg_true()[0])
        raise DataError(
            f"row {row + 1} has {column[row]!r} in {role} column {column.name!r}, where other "
            "rows have numbers; fill it in or remove the row"
        )


def _metadata(frame: pl.DataFrame, names: tuple[str, ...]) -> tuple[dict[str, Any], ...] | None:
    if not names:
        return None
    return tuple(frame.select(names).to_dicts())


def _text(column: pl.Series, role: str) -> tuple[str, ...]:
    _refuse_nulls(column, role)
    return tuple(column.cast(pl.String).to_list())


def _refuse_nulls(column: pl.Series, role: str) -> None:
    if column.null_count():
        row = int(column.is_null().arg_true()[0]) + 1
        raise DataError(
            f"row {row} has no value in column {column.name!r} ({role}); "
            "fill it in or remove the row"
        )
