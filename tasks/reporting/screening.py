"""A screened batch for people: on a terminal, as text, and as an entry for MLflow.

Lays out the answer that `tasks.screening.answer` sealed and the facts of its check; it computes
nothing. Text from data is never read as markup.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tasks.reporting.entries import NOTE_TAG, SOURCE_TAG, Entry
from tasks.reporting.findings import Interval
from tasks.reporting.wording import (
    cell,
    number,
    percent,
    plain_interval,
    printable,
    signed_interval,
    texts,
)

WIDTH = 96
ROWS_SHOWN = 6
CONTENTS = {
    "copy": "copies of rows that are there",
    "test_copy": "copies of test rows",
    "unknown_label": "unknown labels",
}
ARMS = {
    "trusted": "trusted, {rows:,}",
    "accepted": "+ {added:,} accepted",
    "batch": "+ all {added:,}",
    "random": "+ {added:,} random",
}

Answer = Mapping[str, Any]


def render_screening(answer: Answer, verdict: Answer | None) -> RenderableType:
    """Lay an answer out.

    Args:
        answer: As `tasks.screening.answer.answer_of` gives it.
        verdict: Facts of the retraining that checked it; None where nobody asked.
    """
    beside = (
        f"{answer['batch']}, {answer['n_rows']:,} rows, compared with {answer['n_trusted']:,} "
        "trusted ones: every row by models that did not train on it."
    )
    parts = _section(f"Which rows may come in: {answer['problem']}", [beside, answer["sentence"]])
    parts.append(_indented(_screens(answer)))
    parts += _worst(answer)
    parts += _checked(verdict)
    return Constrain(Group(*parts), WIDTH)


def text_of(answer: Answer, verdict: Answer | None) -> str:
    """The same as plain text."""
    console = Console(file=io.StringIO(), width=WIDTH, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(render_screening(answer, verdict))
    return captured.get()


def entry_of(facts: Answer, verdict: Answer | None) -> Entry:
    """The answer as an MLflow run."""
    metrics: list[tuple[str, float, int]] = [
        ("screening.rows", facts["n_rows"], 0),
        ("screening.accepted", facts["accepted"], 0),
        ("screening.quarantined", facts["quarantined"], 0),
        ("screening.expected", facts["expected"], 0),
    ]
    metrics += [
        ("screening.held", each["held"], place) for place, each in enumerate(facts["screens"])
    ]
    if verdict and verdict["gains"]:
        names = ("mean", "low", "high")
        gain = zip(names, verdict["gains"]["batch"], strict=True)
        metrics += [(f"screening.gain.{name}", value, 0) for name, value in gain]
    params = {
        "batch": facts["batch"],
        "batch_digest": facts["batch_digest"],
        "screens": ", ".join(each["screen"] for each in facts["screens"]),
        "rates": ", ".join(f"{each['rate']:g}" for each in facts["screens"]),
        "targets": facts["targets"],
        "n_trusted": str(facts["n_trusted"]),
    }
    note = f"**{facts['problem']}**: {facts['sentence']}"
    note += f" {verdict['sentence']}" if verdict else ""
    tags = {
        "winnow.kind": "screening",
        "winnow.problem": str(facts["problem"]),
        "winnow.dataset": str(facts["dataset_id"]),
        NOTE_TAG: note,
        SOURCE_TAG: "winnow",
    }
    name = f"screening: {facts['batch']}"
    return Entry(name=name, tags=tags, params=params, metrics=tuple(metrics))


def _screens(answer: Answer) -> Table:
    table = _table("held up by")
    for heading in ("rows", "expected of good rows", "declared share"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for each in answer["screens"]:
        expected = f"{each['expected']:.1f}" if each["asked"] else "not asked"
        table.add_row(
            *texts(each["screen"], f"{each['held']:,}", expected, f"{100 * each['rate']:g} %")
        )
    for code, count in answer["contents"].items():
        table.add_row(*texts(CONTENTS[code], f"{count:,}", "", ""))
    return table


def _worst(answer: Answer) -> list[RenderableType]:
    held = [row for row in answer["rows"] if not row["accepted"]]
    if not held:
        return _section("Quarantined", ["No row."])
    # Those for what they are first, then by how few trusted rows are like them.
    ordered = sorted(held, key=lambda row: (-row["codes"].count(","), row["place"] or 0.0))
    table = _table("row", "label")
    table.add_column(Text("place"), justify="right")
    table.add_column(Text("why"))
    for row in ordered[:ROWS_SHOWN]:
        cells = (str(row["batch_row"]), cell(row["label"]), number(row["place"], ".4f"))
        table.add_row(*texts(*cells), Text(printable(row["reasons"])))
    more = len(held) - ROWS_SHOWN
    said = (
        "Place: the smallest share, over screens, of trusted rows that are at least as suspicious."
    )
    parts = [*_section("Quarantined, those with most reasons first", [said]), _indented(table)]
    if more > 0:
        parts.append(
            _indented(Text(f"... and {more:,} more, all in the file of quarantined rows."))
        )
    return parts


def _checked(verdict: Answer | None) -> list[RenderableType]:
    if verdict is None:
        return []
    classes = verdict["arms"][0]["accuracy"] is not None
    output = verdict["output"]
    table = _table()
    table.add_column(Text("trained on"), no_wrap=True)
    headings = [*(["accuracy, %"] if classes else []), f"mean {output}"]
    for heading in [*headings, "predicted", "observed"]:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for arm in verdict["arms"]:
        accuracy = [percent(_interval(arm, "accuracy"))] if classes else []
        added = arm["n_rows"] - verdict["arms"][0]["n_rows"]
        cells = (
            ARMS[arm["arm"]].format(rows=arm["n_rows"], added=added),
            *accuracy,
            plain_interval(_interval(arm, "value")),
            number(arm["predicted"], "+.3g"),
            signed_interval(_interval(arm, "observed")),
        )
        table.add_row(*texts(*cells))
    said = (
        f"Each was trained {verdict['arms'][0]['seeds']} times and judged on "
        f"'{verdict['judge_on']}'; mean [95 % interval]. Predicted and observed are changes "
        "against the trusted rows alone; random rows are of the batch, as many as were accepted."
    )
    sentence = Text(verdict["sentence"])
    return [
        *_section("What retraining says", [said]),
        _indented(table),
        _indented(sentence),
    ]


def _interval(arm: Answer, name: str) -> Interval | None:
    mean, low, high = (arm[column] for column in (name, f"{name}_low", f"{name}_high"))
    return None if mean is None else Interval(mean=mean, low=low, high=high)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="")
    for column in columns:
        table.add_column(Text(column))
    return table


def _section(title: str, lines: Sequence[str]) -> list[RenderableType]:
    heading = Text(printable(title).upper(), style="bold")
    return [Text(), heading, *(_indented(Text(printable(line))) for line in lines)]


def _indented(renderable: RenderableType) -> Padding:
    return Padding(renderable, (0, 0, 0, 2))
