"""The report: what a person should know when a run has ended, on a terminal of 80 to 100 columns.

Six parts, in the order of the questions people ask: which rows, do they help, was that predicted,
what is each source worth, how far to trust the scores, where to look next. It is readable without
colour, leaves out what a spec left out, and computes no result: numbers and intervals come from
the published tables. Text that came from data or from a spec is never read as markup.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from schemas.methods import FALLING
from tasks.reporting.arms_table import arms_table, changes_table, explained_arms, has_changes
from tasks.reporting.findings import Answer, Findings, Method, Row
from tasks.reporting.forgetting import Unlearning
from tasks.reporting.forgetting_table import (
    asked,
    certificate_line,
    closeness_table,
    explained,
)
from tasks.reporting.gathering import gather, open_source
from tasks.reporting.judgement import confirmed, judgement, verdict_sentence
from tasks.reporting.next_steps import next_steps
from tasks.reporting.poisoning_table import poisoning_parts, poisoning_title
from tasks.reporting.prices_table import dropped_for, has_prices, priced, prices_table
from tasks.reporting.tracing_table import (
    query_table,
    tracing_sentences,
    tracing_table,
    tracing_title,
)
from tasks.reporting.wording import (
    cell,
    duration,
    number,
    plain_interval,
    printable,
    signed,
    texts,
)
from tasks.reporting.worth_table import section_title, sentences, worth_table

ROWS_SHOWN = 5
WIDTH = 96


def render_summary(published_path: Path, run_id: str | None = None) -> RenderableType:
    """Read one run (by default the last) and lay it out for a terminal.

    Raises:
        NotFound: There is no published database, no such run, or no run at all.
    """
    return render(read_findings(published_path, run_id))


def summary_json(published_path: Path, run_id: str | None = None) -> str:
    """Give the facts of `render_summary` as JSON; unknown and non-finite numbers are null."""
    findings = read_findings(published_path, run_id)
    document = asdict(findings) | {"path": str(findings.path)}
    for answer, record in zip(findings.answers, document["answers"], strict=True):
        record["confirmed"] = confirmed(answer)
        record["verdict"] = judgement(answer)
        if answer.detection is not None:
            record["detection"] |= {
                "precision": answer.detection.precision,
                "recall": answer.detection.recall,
            }
    return json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False)


def summary_text(findings: Findings, *, width: int = WIDTH) -> str:
    """Render without colour, for files and for MLflow."""
    console = Console(width=width, no_color=True, force_terminal=False, highlight=False)
    with console.capture() as capture:
        console.print(render(findings))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def read_findings(published_path: Path, run_id: str | None = None) -> Findings:
    """Open the published database, read one run, and close it."""
    with open_source(published_path) as source:
        return gather(source, run_id)


def render(findings: Findings) -> RenderableType:
    """Lay findings out as a rich renderable."""
    parts: list[RenderableType] = [_headline(findings)]
    for answer in findings.answers:
        if answer.unlearning is not None:
            parts += _forgotten(answer, answer.unlearning, findings.path.parent)
            continue
        if answer.kind == "debug":
            parts += _diagnosis(answer)
            continue
        parts += _choice(answer)
        if has_prices(answer):
            parts += _section("What the constraints cost", [priced(answer)])
            parts.append(_indented(prices_table(answer)))
        if answer.arms:
            parts += _arms(answer)
            parts += _changes(answer)
    for valuation in findings.valuations:
        parts += _section(section_title(valuation), sentences(valuation))
        parts.append(_indented(worth_table(valuation)))
    for tracing in findings.tracings:
        parts += _section(tracing_title(tracing), tracing_sentences(tracing))
        parts.append(_indented(tracing_table(tracing)))
        parts += [
            _indented(query_table(query, with_text=tracing.with_text)) for query in tracing.queries
        ]
    for poisoning in findings.poisonings:
        parts += _section(poisoning_title(poisoning), [])
        parts += [_indented(part) for part in poisoning_parts(poisoning)]
    answered = (findings.answers, findings.valuations, findings.tracings, findings.poisonings)
    if not any(answered):
        for method in findings.methods:
            parts += _suspects(method)
    parts += _trust(findings.methods)
    parts += _next_steps(findings)
    return Constrain(Group(*parts), WIDTH)


def _headline(findings: Findings) -> RenderableType:
    parts = [f"{findings.n_train:,} training rows, {findings.n_test:,} test rows"]
    if findings.n_flipped:
        parts.append(f"{findings.n_flipped:,} labels known to be wrong")
    if findings.seed is not None:
        parts.append(f"seed {findings.seed}")
    if findings.device:
        parts.append(findings.device)
    if findings.seconds is not None:
        parts.append(f"{duration(findings.seconds)} from the rows to the ledger")
    name = Text(printable(findings.spec_name), style="bold")
    status = "" if findings.status in ("", "done", "committed", "ok") else f" ({findings.status})"
    return Text.assemble(name, f"  run {findings.run_id}{status}\n", "; ".join(parts))


def _diagnosis(answer: Answer) -> list[RenderableType]:
    lines = [
        f"{answer.problem} asks what holds '{_one_line(answer.targets)}' down.",
        answer.sentence,
    ]
    lines += [arm.sentence for arm in answer.arms[:1]] or ["Nothing was retrained for it."]
    return _section("What holds it down", lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _choice(answer: Answer) -> list[RenderableType]:
    pool, dropped = answer.pool, answer.dropped
    said = f"{answer.problem} keeps {pool - dropped:,} of {pool:,} rows and drops {dropped:,}."
    lines = [said]
    if answer.sentence:
        lines.append(answer.sentence)
    found = answer.detection
    if found is not None:
        lines.append(
            f"Of the {found.flipped:,} wrong labels, {found.found:,} are among the dropped rows: "
            f"recall {found.recall:.0%}, precision {found.precision:.0%} (chance "
            f"{found.flipped / max(found.pool, 1):.0%})"
            + (f"; AUROC of the ranking {found.auroc:.3f}." if found.auroc is not None else ".")
        )
    bound = has_prices(answer)
    if bound and answer.reasons is not None and answer.worst:
        lines.append(dropped_for(answer.reasons))
    parts = _section("Which rows it would drop", lines)
    if answer.worst:
        # Utility is better when higher; the effect on a loss is the other way round.
        sign = -1.0 if answer.output in FALLING else 1.0
        effects = [replace(row, utility=sign * row.utility) for row in answer.worst]
        why = [_dropped_as(row) for row in answer.worst] if bound else ()
        parts.append(_row_table(effects, f"effect on mean {answer.output}", why))
    return parts


def _dropped_as(row: Row) -> str:
    reasons = ["harmful"] if row.utility < 0 else []
    reasons += [] if row.copy_of is None else [f"copy of {row.copy_of}"]
    return ", ".join(reasons) or "no room"


def _forgotten(answer: Answer, unlearning: Unlearning, root: Path) -> list[RenderableType]:
    return [
        *_section("What must be forgotten", asked(answer, unlearning)),
        *_section("How far from retraining", [explained(unlearning)]),
        _indented(closeness_table(unlearning)),
        _indented(Text(printable(judgement(answer)))),
        _indented(Text(certificate_line(unlearning, root), overflow="fold")),
    ]


def _suspects(method: Method) -> list[RenderableType]:
    if not method.worst:
        return []
    heading = f"Most harmful rows by {method.name}"
    return [
        *_section(heading, ["No problem was solved; these rows hurt the queries most."]),
        _row_table(method.worst, f"mean score ({method.output})"),
    ]


def _row_table(rows: Iterable[Row], effect: str, why: Sequence[str] = ()) -> RenderableType:
    rows = list(rows)[:ROWS_SHOWN]
    with_truth = any(row.is_flipped for row in rows)
    table = _table()
    table.add_column("row", justify="right")
    table.add_column("label")
    if with_truth:
        table.add_column("true label")
    table.add_column(escape(printable(effect)), justify="right")
    if why:
        table.add_column("dropped as")
    for place, row in enumerate(rows):
        cells = [str(row.example_id), cell(row.label)]
        if with_truth:
            cells.append(cell(row.true_label) + ("  wrong" if row.is_flipped else ""))
        table.add_row(*texts(*cells, signed(row.utility), *why[place : place + 1]))
    return _indented(table)


def _arms(answer: Answer) -> list[RenderableType]:
    return [
        *_section("What retraining says", explained_arms(answer)),
        _indented(arms_table(answer)),
    ]


def _changes(answer: Answer) -> list[RenderableType]:
    said = verdict_sentence(answer.arms)
    if not has_changes(answer):
        return _section("Verdict", [said])
    output = answer.arms[0].output
    heading = f"Predicted and observed change of mean {output}, against training on all"
    return [
        *_section(heading, []),
        _indented(changes_table(answer)),
        _indented(Text(printable(said))),
    ]


def _trust(methods: Iterable[Method]) -> list[RenderableType]:
    pairs = [(method, found) for method in methods for found in method.fidelity]
    if not pairs:
        return []
    table = _table()
    table.add_column("scores")
    for heading in ("rows", "LDS", "ceiling", "reached", "damping", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for method, found in pairs:
        whole = found is method.fidelity[0]
        size = "all" if found.alpha is None else f"{found.alpha:.0%}"
        cells = (
            method.name if whole else "",
            size,
            plain_interval(found.lds),
            number(found.ceiling, ".2f"),
            number(None if found.relative is None else min(found.relative, 1.0), ".0%"),
            number(method.damping, ".2g") if whole else "",
            number(method.seconds, ".1f") if whole else "",
        )
        table.add_row(*texts(*cells))
    first = max((found for _, found in pairs), key=lambda found: found.n_masks)
    outputs = " or ".join(dict.fromkeys(method.output for method, _ in pairs))
    said = (
        f"LDS: rank correlation of predicted and retrained {outputs} on subsets that tuned nothing "
        f"({first.n_masks} subsets × {first.n_seeds:g} seeds, {first.n_queries} queries). Scores "
        f"without information vary by ±{number(first.null_sd, '.2g')} about 0; noise of training "
        "sets the ceiling. Over few subsets an LDS is small on average; its interval allows for "
        "it. Seconds are those of gradients, damping and scores."
    )
    return [*_section("How far to trust the scores", [said]), _indented(table)]


def _next_steps(findings: Findings) -> list[RenderableType]:
    parts = _section("Where to look next", [])
    for why, line in next_steps(findings):
        parts += [_indented(Text(f"# {why}", style="dim")), _indented(Text(line, overflow="fold"))]
    return parts


def _section(heading: str, lines: Iterable[str]) -> list[RenderableType]:
    title = Text("\n" + printable(heading).upper(), style="bold")
    return [title, *(_indented(Text(printable(line))) for line in lines if line)]


def _indented(what: RenderableType) -> RenderableType:
    return Padding(what, (0, 0, 0, 2))


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="")


def _finite(value: Any) -> Any:
    """Replace NaN and infinities by None: JSON has neither."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
