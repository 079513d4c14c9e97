"""A diagnosis on a terminal: what was asked about, which rows move it, the cause, the retraining.

Lays out the report of `tasks.problems.evidence` and the verdict's facts; it computes nothing. Text
from data is never read as markup.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from schemas.methods import FALLING
from tasks.reporting.findings import Interval
from tasks.reporting.wording import cell, plain_interval, printable, signed_interval, texts

WIDTH = 96
ROWS, SLICES, ROW_PICTURES = 5, 6, 3
# Standard deviations over queries from which a query is apart from the others.
OUTSTANDING = 2.0

Report = Mapping[str, Any]
Pictures = Mapping[int, list[str]]


def render_diagnosis(
    report: Report,
    sentence: str,
    verdict: Mapping[str, Any] | None,
    pictures: Pictures,
) -> RenderableType:
    """Lay a diagnosis out.

    Args:
        report: The evidence.
        sentence: The proposal in words.
        verdict: Facts of the verdict; None where nothing has been retrained.
        pictures: Lines to show of some rows, by id.
    """
    parts = _query(report, pictures)
    falls = report["output"] in FALLING
    for side, verb in (
        ("harmful", "raise" if falls else "lower"),
        ("helpful", "lower" if falls else "raise"),
    ):
        heading = f"Most {side} rows: they {verb} the {report['output']}"
        parts += _rows(heading, report[side], report["output"], pictures)
    parts += _slices(report)
    parts += _groups(report)
    parts += _section("Hypothesis", [sentence])
    parts += _retrained(report, verdict)
    return Constrain(Group(*parts), WIDTH)


def ids_shown(report: Report) -> list[int]:
    """The rows of which a picture is shown: the query and the first of either side."""
    own = report["query"]["ids"][:1] if report["query"]["rows"] == 1 else []
    sides = [row["id"] for side in ("harmful", "helpful") for row in report[side][:ROW_PICTURES]]
    return list(dict.fromkeys([*own, *sides]))


def _query(report: Report, pictures: Pictures) -> list[RenderableType]:
    query, output = report["query"], report["output"]
    one = query["rows"] == 1
    what = (
        f"row {query['ids'][0]}, labelled {query['label']!r}" if one else f"{query['rows']:,} rows"
    )
    lines = [_said(query, output)]
    if votes := query.get("predictions"):
        said = ", ".join(f"{name!r} {share:.0%}" for name, share in votes)
        lines.append(f"They predict {said}.")
    if one and query["metadata"]:
        lines.append(_metadata(query["metadata"]))
    parts = _section(f"Asked about: {what}", lines)
    if one and query["ids"][0] in pictures:
        parts.append(_indented(Text("\n".join(pictures[query["ids"][0]]))))
    return parts


def _said(query: Report, output: str) -> str:
    return (
        f"{query['models']:,} models trained on {query['share']:.0%} of the rows: mean {output} "
        f"{query['value']:.2f} (sd {query['value_sd']:.2f} over models), mean loss "
        f"{query['loss']:.2f}."
    )


def _rows(
    heading: str, rows: list[Report], output: str, pictures: Pictures
) -> list[RenderableType]:
    table = _table("row", "label", "")
    table.add_column(Text(f"effect on {output}"), justify="right")
    table.add_column(Text("metadata"))
    for row in rows[:ROWS]:
        cells = (
            str(row["id"]),
            cell(row["label"]),
            "in doubt" if row["doubtful"] else "",
            f"{row['effect']:+.4f}",
            _metadata(row["metadata"]),
        )
        table.add_row(*texts(*cells))
    parts = [*_section(heading, []), _indented(table)]
    shown = [pictures[row["id"]] for row in rows[:ROW_PICTURES] if row["id"] in pictures]
    if shown:
        grid = Table.grid(padding=(0, 3))
        grid.add_row(*(Text("\n".join(lines)) for lines in shown))
        parts.append(_indented(grid))
    return parts


def _slices(report: Report) -> list[RenderableType]:
    rows = report["slices"]
    if not rows:
        return []
    table = _table("slice")
    for heading in ("rows", "without it", "of random rows", "sd beyond", "chance"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for row in [*rows[:SLICES], *rows[-1:]]:
        cells = (
            printable(row["name"]),
            f"{row['rows']:,}",
            _change(row["change"]),
            f"{-row['random']:+.2f}",
            f"{row['standing']:+.1f}",
            f"{row['chance']:.2g}",
        )
        table.add_row(*texts(*cells))
    said = (
        f"Predicted change of the {report['output']} without each, with its 95 % interval, and "
        "without as many random rows of the same classes; chance is that the most harmful of "
        f"{report['looked_at']} random slices is as harmful. 'sd beyond' is how far the slice "
        "lies from random ones: below 0 it is more harmful than they are, above 0 less."
    )
    return [*_section("Slices", [said]), _indented(table)]


def _groups(report: Report) -> list[RenderableType]:
    output, parts = report["output"], []
    if report["copies"]:
        lines = [_copies(group) for group in report["copies"]]
        parts += _section(f"Near-duplicates, and what they do to the {output} together", lines)
    if report["clusters"]:
        lines = [_cluster(group) for group in report["clusters"]]
        parts += _section("Rows that do alike to all queries", lines)
    if report["component"] and abs(report["component"]["standing"]) >= OUTSTANDING:
        parts += _section("What sets it apart from other queries", [_component(report)])
    if report["doubts"]["labels"]:
        parts += _section("Labels in doubt", [_doubts(report["doubts"])])
    return parts


def _copies(group: Report) -> str:
    return (
        f"{group['rows']:,} near-duplicates (rows {_listed(group['ids'])}) together "
        f"{group['effect']:+.4f}; without them {_change(group['change'])}."
    )


def _cluster(group: Report) -> str:
    return (
        f"{group['rows']:,} rows, together {group['effect']:+.2f}: {_named(group['traits'])} Such "
        f"as rows {_listed(row['id'] for row in group['exemplars'])}."
    )


def _component(report: Report) -> str:
    found = report["component"]
    return (
        f"Component {found['number']} of the scores holds {found['explained']:.0%} of them, and "
        f"the query lies {found['standing']:+.1f} sd out. At its harmful end are rows "
        f"{_listed(row['id'] for row in found['lowering'])}: {_named(found['traits'])}"
    )


def _doubts(doubts: Report) -> str:
    said = f"In doubt by {doubts['by']}: {doubts['labels']:,}, of which {doubts['harmful']:,} harm"
    rows = _listed(row["id"] for row in doubts["rows"])
    return f"{said} here{f', most of all rows {rows}' if rows else ''}."


def _retrained(report: Report, verdict: Mapping[str, Any] | None) -> list[RenderableType]:
    if verdict is None or not verdict["arms"]:
        why = "nothing was proposed" if report["hypothesis"] is None else "not retrained yet"
        return _section("Retraining", [f"No model was trained for this: {why}."])
    table = _table("trained on")
    for heading in ("rows", f"mean {report['output']}", "predicted change", "observed change"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    names = {"chosen": "all but the slice", "all": "all rows", "random": "all but random rows"}
    for arm in verdict["arms"]:
        value = Interval(mean=arm["value"][0], low=arm["value"][1], high=arm["value"][2])
        cells = (
            names[arm["arm"]],
            f"{arm['n_rows']:,}",
            plain_interval(value),
            _change(arm["predicted_change"]),
            _change(arm["observed_change"]),
        )
        table.add_row(*texts(*cells))
    seeds = verdict["arms"][0]["seeds"]
    line = f"Each trained {seeds} times; mean [95 % interval] over retrainings."
    return [
        *_section("Retraining", [line]),
        _indented(table),
        _indented(Text(printable(verdict["sentence"]))),
    ]


def _change(triple: list[float | None] | None) -> str:
    if triple is None or triple[0] is None:
        return "–"
    if triple[1] is None or triple[2] is None:
        return f"{triple[0]:+.2f}"
    return signed_interval(Interval(mean=triple[0], low=triple[1], high=triple[2]))


def _named(traits: list[str]) -> str:
    return f"{'; '.join(traits)}." if traits else "nothing in the metadata or labels names them."


def _listed(ids: Iterable[int]) -> str:
    return ", ".join(str(each) for each in ids)


def _metadata(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {cell(str(value))}" for name, value in values.items())


def _section(heading: str, lines: Iterable[str]) -> list[RenderableType]:
    title = Text("\n" + printable(heading).upper(), style="bold")
    return [title, *(_indented(Text(printable(line))) for line in lines if line)]


def _indented(what: RenderableType) -> RenderableType:
    return Padding(what, (0, 0, 0, 2))


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="")
    for column in columns:
        table.add_column(Text(column))
    return table
