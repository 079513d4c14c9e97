"""What a person sees on a terminal: tables, progress bars, one line for an error.

Results go to stdout, everything said meanwhile to stderr; colour and bars only on a terminal.
"""

import contextlib
import csv
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

# Wide enough for a table in a log, where rich would assume 80.
PIPE_WIDTH = 120


def out() -> Console:
    """The console for results."""
    return _console(stderr=False)


def err() -> Console:
    """The console for what is said meanwhile."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=not stream.isatty())


def say(text: str) -> None:
    """Tell something that is no result."""
    err().print(Text(text))


def show(renderable: RenderableType) -> None:
    """Print a result."""
    out().print(renderable, soft_wrap=False)


def show_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a query's rows: a table where it fits, else one block for each row.

    Into a pipe or a file they go as CSV: columns filled up with blanks are for eyes.
    """
    if not sys.stdout.isatty():
        show_csv(columns, rows)
        return
    console, layout = out(), table(columns, rows)
    width = Measurement.get(console, console.options.update(max_width=10_000), layout).maximum
    if width > console.width:
        for row in rows:
            console.print(table(("", ""), zip(columns, row, strict=True)))
            console.print()
        return
    console.print(layout)


def show_json(value: Any) -> None:
    """Print a result for scripts; what JSON does not know (dates, decimals) becomes text."""
    sys.stdout.write(json.dumps(value, indent=2, default=str, ensure_ascii=False) + "\n")


def show_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows as CSV with a header."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Lay out rows, without a head where no column has a name.

    Cell text is never read as markup; numbers stand on the right.
    """
    rows = [tuple(row) for row in rows]
    headed = any(columns)
    box = SIMPLE_HEAD if headed else None
    layout = Table(box=box, pad_edge=False, show_header=headed, header_style="bold")
    for place, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[place], int | float) for row in rows)
        layout.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        layout.add_row(*(Text(cell(value)) for value in row))
    return layout


def cell(value: Any) -> str:
    """One value as text: nothing for None, six digits for a float, JSON for what is nested."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, default=str)
    return str(value)


@contextlib.contextmanager
def progress_bars() -> Iterator[None]:
    """Show a bar for each stage that advances: on a terminal, and nowhere else."""
    from tasks.progress import StageProgress, listening

    console = err()
    if not console.is_terminal:
        yield
        return
    bars = Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        console=console,
    )
    known: dict[str, Any] = {}

    def follow(state: StageProgress) -> None:
        if state.stage not in known:
            known[state.stage] = bars.add_task(state.stage, total=state.total, unit=state.unit)
        bars.update(known[state.stage], completed=state.done, total=state.total, unit=state.unit)

    with bars, listening(follow):
        yield


def ago(timestamp: float) -> str:
    """How long ago a moment was, as in '5 min ago'."""
    seconds = max(0.0, time.time() - timestamp)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
