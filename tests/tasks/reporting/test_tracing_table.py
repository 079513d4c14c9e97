"""Tracings in words, on a terminal and as a page; text from data is never read as markup."""

import math
from dataclasses import replace

import pytest
from rich.console import Console

from tasks.reporting.intervals import Interval
from tasks.reporting.judgement import tracing_sentence
from tasks.reporting.tracing import (
    RANDOM,
    NamedRow,
    NamedRows,
    TracedArm,
    TracedQuery,
    Tracing,
    matches,
)
from tasks.reporting.tracing_table import (
    marked_html,
    query_table,
    tracing_page,
    tracing_sentences,
    tracing_table,
)

Triple = tuple[float, float, float]

NASTY = "<script>alert('x')</script> [bold]Zeno[/bold] lives\x1b[31m in Jena"


def arm(name: str, against: Triple | None = None, mrr: float | None = None) -> TracedArm:
    found = None if against is None else Interval(mean=against[0], low=against[1], high=against[2])
    return TracedArm(
        arm=name,
        mrr=None if mrr is None else Interval(mean=mrr, low=mrr, high=mrr),
        recall=None,
        models=3,
        value=-2.0,
        change=found,
        against_random=found,
    )


def tracing(*arms: TracedArm) -> Tracing:
    row = NamedRow(rank=1, train_id=7, score=1.0, states=True, text=NASTY)
    query = TracedQuery(
        query_id=3,
        text="Zeno is in Jena <b>",
        named=(NamedRows(arm="trak", change=-1.5, rows=(row,)),),
    )
    return Tracing(
        tracing_id="why-1", problem="why", targets="queries", with_text=True, truth="fact", top=3,
        n_queries=5, with_truth=4, judged=4, removed=6, output="logprob", value=-1.0,
        sentence=tracing_sentence(arms, "logprob"), arms=arms, queries=(query,),
    )  # fmt: skip


def on_a_terminal(*renderables: object) -> str:
    console = Console(width=96, force_terminal=True, highlight=False)
    with console.capture() as capture:
        console.print(*renderables)
    return capture.get()


@pytest.mark.parametrize(
    ("text", "query", "want"),
    [
        ("Zeno lives in Jena", "is zeno in JENA", ["Zeno", "in Jena"]),
        ("Jenaer live, in Jena.", "in Jena", ["in Jena"]),
        ("in, Jena", "Jena in", ["in", "Jena"]),
        ("nothing here", "else", []),
        ("", "else", []),
    ],
)
def test_words_in_common_are_spans_of_the_text(text: str, query: str, want: list[str]) -> None:
    assert [text[start:stop] for start, stop in matches(text, query)] == want


def test_text_from_data_is_escaped_in_the_page_and_marked_where_it_matches() -> None:
    page = tracing_page([tracing(arm("trak", (-2.0, -3.0, -1.0), 0.5), arm(RANDOM))])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "Zeno is in Jena &lt;b&gt;" in page
    assert "<mark>Zeno</mark>" in page
    assert marked_html("a < b & c", "b") == "a &lt; <mark>b</mark> &amp; c"


def test_text_from_data_is_no_markup_and_no_control_on_a_terminal() -> None:
    shown = tracing(arm("trak", (-2.0, -3.0, -1.0), 0.5), arm(RANDOM))
    printed = on_a_terminal(query_table(shown.queries[0], with_text=True))
    assert "[bold]" in printed
    assert "\x1b[31m" not in printed
    assert "\x1b[1mZeno" in printed
    assert "7*" in printed


def test_the_table_shows_ranks_only_where_truth_is_known() -> None:
    shown = tracing(arm("trak", (-2.0, -3.0, -1.0), 0.5), arm(RANDOM))
    assert "MRR" in on_a_terminal(tracing_table(shown))
    unknown = replace(shown, truth=None)
    assert "MRR" not in on_a_terminal(tracing_table(unknown))
    assert "recall" not in " ".join(tracing_sentences(unknown))


def test_what_is_shown_is_said_of_texts_of_labels_and_of_how_many_rows() -> None:
    shown = replace(tracing(arm("trak"), arm(RANDOM)), top=20)
    told = " ".join(tracing_sentences(shown))
    assert "the first 3 of its 20 rows. Words in common are bold. A star is" in told
    labels = replace(shown, with_text=False, truth=None)
    told = " ".join(tracing_sentences(labels))
    assert told.endswith("Rows are shown by their labels.")
    assert "<mark>" not in tracing_page([labels])
    printed = on_a_terminal(query_table(labels.queries[0], with_text=False))
    assert "query 3: " in printed
    assert "\x1b[1mZeno" not in printed
    assert "Below" not in " ".join(tracing_sentences(replace(shown, queries=())))


def test_the_sentence_names_whose_rows_were_causes() -> None:
    found = [arm("bm25", (-0.5, -1.0, 0.1), 0.9), arm("trak", (-2.0, -3.0, -1.0), 0.4)]
    told = tracing_sentence([*found, arm(RANDOM)], "logprob")
    assert "Without the rows of 'trak' queries lose most" in told
    assert "Not clearly more than random: 'bm25'" in told
    assert "stating a fact and teaching it are two things here" in told


def test_no_cause_is_said_to_be_none() -> None:
    arms = [arm("bm25", (-0.5, -1.0, 0.1)), arm("trak", (-2.0, math.nan, math.nan))]
    assert tracing_sentence(arms, "logprob").startswith("No method's rows clearly matter")


def test_one_that_finds_both_is_not_said_to_differ() -> None:
    arms = [arm("trak", (-2.0, -3.0, -1.0), 0.9), arm("bm25", (-1.0, -2.0, -0.5), 0.4)]
    assert "two things" not in tracing_sentence(arms, "logprob")
