"""How the report shows tracings: sentences, a table of methods, and texts with matched words."""

import html
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tasks.reporting.tracing import (
    RANDOM,
    ROWS_SHOWN,
    NamedRow,
    TracedArm,
    TracedQuery,
    Tracing,
    matches,
)
from tasks.reporting.wording import number, plain_interval, printable, signed_interval, texts

TEXT_WIDTH = 66  # longer texts are cut


def tracing_title(tracing: Tracing) -> str:
    """What the section of a tracing is called."""
    return f"Which rows made the model say it: {tracing.problem}"


def tracing_sentences(tracing: Tracing) -> list[str]:
    """What the tables cannot say, in sentences."""
    stated = ""
    if tracing.truth is not None:
        stated = (
            f" {tracing.with_truth} queries have rows of the same '{tracing.truth}', which state "
            f"what is asked: MRR and recall@{tracing.top} count those; intervals are over queries."
        )
    judged = (
        f"For {tracing.judged} queries the {tracing.top} rows of each method were left out and "
        f"models retrained, each short of {tracing.removed} rows, those of several queries; of all "
        f"rows they have mean {tracing.output} {tracing.value:.4g}. A change below 0 is for the "
        "worse, of a loss too: the rows had helped."
    )
    traced = f"{tracing.n_queries} queries of '{tracing.targets}'.{stated}"
    return [traced, judged, tracing.sentence, _shown(tracing)]


def _shown(tracing: Tracing) -> str:
    """What the tables of single queries show; empty without any."""
    if not tracing.queries:
        return ""
    count = len(tracing.queries)
    queries = "the query that lost most" if count == 1 else f"the {count} queries that lost most"
    rows = min(ROWS_SHOWN, tracing.top)
    parts = [
        f"Below are {queries}, and of each method the first {rows} of its {tracing.top} rows.",
        "Words in common are bold." if tracing.with_text else "Rows are shown by their labels.",
        "A star is a row that states what is asked." if tracing.truth is not None else "",
    ]
    return " ".join(part for part in parts if part)


def tracing_table(tracing: Tracing) -> Table:
    """The methods: what they find, and what queries lose without it."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="")
    table.add_column("method")
    with_truth = tracing.truth is not None
    headings = ["MRR", f"recall@{tracing.top}"] if with_truth else []
    headings += [f"mean {tracing.output}", "more than random"]
    for heading in headings:
        table.add_column(Text(printable(heading)), justify="right", no_wrap=True)
    for arm in tracing.arms:
        table.add_row(*texts(arm.arm, *_cells(arm, with_truth=with_truth)), style=_style(arm))
    return table


def _cells(arm: TracedArm, *, with_truth: bool) -> list[str]:
    found = [plain_interval(arm.mrr), plain_interval(arm.recall)] if with_truth else []
    against = "" if arm.arm == RANDOM else signed_interval(arm.against_random)
    return [*found, number(arm.value, ".3f"), against]


def _style(arm: TracedArm) -> str:
    return "bold" if arm.is_cause else ""


def query_table(query: TracedQuery, *, with_text: bool) -> Table:
    """One query's rows by every method; words of a text that the query has too are bold."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="")
    title = Text.assemble(f"query {query.query_id}: ", (_cut(printable(query.text)), "italic"))
    table.add_column("method")
    table.add_column("row", justify="right")
    table.add_column(title, no_wrap=True, overflow="ellipsis")
    table.add_column("change", justify="right")
    asked = query.text if with_text else ""
    for named in query.named:
        for place, row in enumerate(named.rows):
            first = place == 0
            change = "" if not first else number(named.change, "+.2f")
            cells = texts(named.arm if first else "", f"{row.train_id}{_mark(row)}")
            table.add_row(*cells, _marked(row.text, asked), Text(change))
    return table


def _mark(row: NamedRow) -> str:
    """A star after a row that states what is asked."""
    return "*" if row.states else " "


def _marked(text: str, query: str) -> Text:
    shown = _cut(printable(text))
    marked = Text(shown)
    for start, stop in matches(shown, query):
        marked.stylize("bold", start, stop)
    return marked


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_WIDTH else text[: TEXT_WIDTH - 1] + "…"


def tracing_page(tracings: Sequence[Tracing]) -> str:
    """Tracings as one HTML page that needs nothing else; all text from data is escaped."""
    body = "\n".join(_section(tracing) for tracing in tracings)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Traces</title>'
        "<style>body{font:15px/1.4 sans-serif;max-width:60em;margin:2em auto}"
        "td,th{padding:.1em .7em;text-align:left;vertical-align:top}"
        f"</style>\n{body}\n</html>\n"
    )


def _section(tracing: Tracing) -> str:
    with_truth = tracing.truth is not None
    head = ["method", *(["MRR", f"recall@{tracing.top}"] if with_truth else [])]
    head += [f"mean {tracing.output}", "more than random"]
    rows = [[arm.arm, *_cells(arm, with_truth=with_truth)] for arm in tracing.arms]
    parts = [f"<h1>{html.escape(tracing_title(tracing))}</h1>"]
    parts += [f"<p>{html.escape(line)}</p>" for line in tracing_sentences(tracing)]
    parts.append(_html_table(head, [[html.escape(cell) for cell in row] for row in rows]))
    for query in tracing.queries:
        parts.append(f"<h2>Query {query.query_id}: {html.escape(query.text)}</h2>")
        asked = query.text if tracing.with_text else ""
        lines = [
            [
                html.escape(named.arm) if place == 0 else "",
                f"{row.train_id}{_mark(row)}",
                marked_html(row.text, asked),
                number(named.change, "+.2f") if place == 0 else "",
            ]
            for named in query.named
            for place, row in enumerate(named.rows)
        ]
        shown = "text" if tracing.with_text else "label"
        parts.append(_html_table(["method", "row", shown, "change"], lines))
    return "\n".join(parts)


def marked_html(text: str, query: str) -> str:
    """A text as HTML, escaped, with the words that the query has too in <mark>."""
    parts, done = [], 0
    for start, stop in matches(text, query):
        parts += [html.escape(text[done:start]), f"<mark>{html.escape(text[start:stop])}</mark>"]
        done = stop
    return "".join([*parts, html.escape(text[done:])])


def _html_table(head: list[str], rows: list[list[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return f"<table><tr>{top}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
