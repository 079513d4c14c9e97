"""The SQL of winnow, read from the package's `schemas/sql`: from a checkout or from a wheel."""

import re
from functools import cache
from importlib.resources import files

_NAMED = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def sql_text(name: str) -> str:
    """The text of one file of `schemas/sql`."""
    return files("schemas").joinpath("sql", name).read_text(encoding="utf-8")


def sql_files() -> list[str]:
    """The names of the files of `schemas/sql`, sorted."""
    return sorted(
        entry.name
        for entry in files("schemas").joinpath("sql").iterdir()
        if entry.name.endswith(".sql")
    )


@cache
def named_statements(name: str) -> dict[str, str]:
    """The statements of a file in which each begins with a line `-- name: <its name>`."""
    parts = _NAMED.split(sql_text(name))[1:]
    return dict(zip(parts[::2], (text.strip() for text in parts[1::2]), strict=True))
