"""What one run traced, as frozen records.

A `Tracing` holds how each method did, and some queries with the rows that each method names for
them. Text is kept as it was written: whoever shows it escapes it.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.reporting.intervals import Interval

# Queries that a report shows, those that lost most; and rows of each method.
QUERIES_SHOWN, ROWS_SHOWN = 3, 3
RANDOM = "random"
WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class NamedRow:
    """A training row that a method names; `states` is whether it states what is asked, if known."""

    rank: int
    train_id: int
    score: float
    states: bool | None
    text: str


@dataclass(frozen=True, kw_only=True)
class NamedRows:
    """What one method names for one query, and what the query lost without them, if judged."""

    arm: str
    change: float | None
    rows: tuple[NamedRow, ...]


@dataclass(frozen=True, kw_only=True)
class TracedQuery:
    """One query and each method's rows."""

    query_id: int
    text: str
    named: tuple[NamedRows, ...]


@dataclass(frozen=True, kw_only=True)
class TracedArm:
    """One method, or random rows: what it finds, and what retraining without it did.

    A change is for the better: negative where the rows had helped, of a loss too.
    """

    arm: str
    mrr: Interval | None
    recall: Interval | None
    models: int
    value: float
    change: Interval | None
    against_random: Interval | None

    @property
    def is_cause(self) -> bool:
        """Whether queries clearly lose more without its rows than without random ones."""
        found = self.against_random
        return found is not None and found.is_known and found.high < 0


@dataclass(frozen=True, kw_only=True)
class Tracing:
    """A problem of kind trace; arms in the spec's order, random rows last.

    Rows that are no texts are shown by their labels.
    """

    tracing_id: str
    problem: str
    targets: str
    with_text: bool
    truth: str | None
    top: int
    n_queries: int
    with_truth: int
    judged: int
    removed: int
    output: str
    value: float
    sentence: str
    arms: tuple[TracedArm, ...]
    queries: tuple[TracedQuery, ...]


def tracings_of(
    rows: Iterable[Mapping[str, Any]],
    arms: Iterable[Mapping[str, Any]],
    named: Iterable[Mapping[str, Any]],
) -> tuple[Tracing, ...]:
    """Records from rows of `tracings`, of `tracing_arms` and of the statement `tracing_rows`."""
    own_arms: dict[str, list[TracedArm]] = {}
    for row in arms:
        own_arms.setdefault(row["tracing_id"], []).append(traced_arm(row))
    own_rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in named:
        own_rows.setdefault(row["tracing_id"], []).append(row)
    return tuple(
        Tracing(
            **row,
            arms=tuple(own_arms.get(row["tracing_id"], ())),
            queries=_queries(own_rows.get(row["tracing_id"], ())),
        )
        for row in rows
    )


def traced_arm(row: Mapping[str, Any]) -> TracedArm:
    """An arm from a row of `tracing_arms`."""

    def triple(name: str) -> Interval | None:
        mean, low, high = (row[column] for column in (name, f"{name}_low", f"{name}_high"))
        if mean is None:
            return None
        bounds = [math.nan if bound is None else bound for bound in (low, high)]
        return Interval(mean=mean, low=bounds[0], high=bounds[1])

    intervals = ("mrr", "recall", "change", "against_random")
    return TracedArm(
        arm=row["arm"],
        models=row["models"],
        value=row["value"],
        **{name: triple(name) for name in intervals},
    )


def matches(text: str, query: str) -> list[tuple[int, int]]:
    """Spans of a text whose words the query has too; spans with only space between are one."""
    wanted = set(WORD.findall(query.lower()))
    spans: list[tuple[int, int]] = []
    for word in WORD.finditer(text):
        if word.group().lower() not in wanted:
            continue
        if spans and not text[spans[-1][1] : word.start()].strip():
            spans[-1] = (spans[-1][0], word.end())
        else:
            spans.append(word.span())
    return spans


def _queries(rows: Iterable[Mapping[str, Any]]) -> tuple[TracedQuery, ...]:
    """Queries from rows of the statement `tracing_rows`, in its order."""
    found: dict[int, dict[str, list[Mapping[str, Any]]]] = {}
    texts: dict[int, str] = {}
    for row in rows:
        found.setdefault(row["query_id"], {}).setdefault(row["arm"], []).append(row)
        texts[row["query_id"]] = row["query_text"] or ""
    return tuple(
        TracedQuery(
            query_id=query,
            text=texts[query],
            named=tuple(
                NamedRows(arm=arm, change=own[0]["change"], rows=tuple(map(_named, own)))
                for arm, own in arms.items()
            ),
        )
        for query, arms in found.items()
    )


def _named(row: Mapping[str, Any]) -> NamedRow:
    return NamedRow(
        rank=row["rank"],
        train_id=row["train_id"],
        score=row["score"],
        states=row["states"],
        text=row["text"] or "",
    )
