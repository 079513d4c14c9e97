"""The certificate of unlearning: one HTML file that needs nothing else and says what was measured.

Every text that came from data, a spec or a request is escaped; the page allows itself no script and
no resource, so it may be opened from a mail. It computes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tasks.reporting.forgetting import (
    CHOSEN,
    FORGOTTEN,
    JUDGING,
    RETAINED,
    UNTOUCHED,
    Unlearning,
    closed,
    is_forgotten,
)

Pairs = Sequence[tuple[str, str]]

STYLE = """
:root { color-scheme: light; --ink: #24292f; --faint: #e4e7eb; --grey: #6b7580; --blue: #1f5fa8;
  --orange: #b34e17; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 46rem; color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--faint); }
p { margin: .5rem 0; }
.state { border-left: 5px solid var(--orange); padding: .5rem .9rem; background: #f7f8f9; }
.state.reached { border-color: var(--blue); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: right; padding: .3rem .5rem; border-bottom: 1px solid var(--faint);
  vertical-align: top; white-space: nowrap; }
th { color: var(--grey); font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr.chosen td { font-weight: 700; }
dl { display: grid; grid-template-columns: minmax(7rem, 11rem) 1fr; gap: .2rem 1rem; margin: 0; }
dt { color: var(--grey); overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
.digests { grid-template-columns: 1fr; gap: 0; }
.digests dd { font: .85rem/1.45 ui-monospace, monospace; margin-bottom: .4rem; }
figure { margin: 1rem 0; }
figcaption, .note { color: var(--grey); font-size: .88rem; }
svg { width: 100%; height: auto; display: block; }
footer { margin-top: 2.5rem; color: var(--grey); font-size: .85rem; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; } table { font-size: .8rem; } th, td { padding: .25rem .2rem; } }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } h2 { break-after: avoid; }
  tr, figure, .state { break-inside: avoid; } .scroll { overflow: visible; } }
"""

MEANING = (
    "KLoM compares, row by row, how the outputs of unlearned and of retrained models are "
    "distributed: 0 nats is alike, and few models never look quite alike. The floor is the same "
    "number between halves of the retrained models. P95 is the row at the 95th percentile."
)
OTHERS = "#8b95a1"

# What the page may load: its own style, nothing else.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What a certificate says, as text and records that nobody has escaped yet.

    Attributes:
        title: Of which data and problem.
        date: When it was measured.
        asked: What had to be forgotten: SQL, notes, numbers, digests.
        done: How the models were changed.
        sentences: The verdict in words; the first is its headline.
        unlearning: What was measured.
        checkpoints: Of each model handed over: name, file, digests, outputs before and after.
        folder: Where these files are, relative to the workspace.
        output: The output that checkpoints are described by.
        provenance: Digests of data and model, versions, seeds.
        preface: What must be known first: that the rows had gone already, for instance.
    """

    title: str
    date: str
    asked: Pairs
    done: Pairs
    sentences: Sequence[str]
    unlearning: Unlearning
    checkpoints: Sequence[Mapping[str, Any]]
    folder: str
    output: str
    provenance: Pairs
    preface: str = ""


def certificate(said: Statement) -> str:
    """The page."""
    kind = "state reached" if is_forgotten(said.unlearning) else "state"
    sentences = [sentence for sentence in said.sentences if sentence]
    parts = [
        f"<h1>Certificate of unlearning</h1><p>{escape(said.title)}<br>{escape(said.date)}</p>",
        f"<p><strong>{escape(said.preface)}</strong></p>" if said.preface else "",
        f'<div class="{kind}">{_paragraphs(sentences)}</div>',
        _section("What was asked", _list(said.asked)),
        _section("What was done", _list(said.done)),
        _section("How far from retraining", _closeness(said.unlearning)),
        _section("What it cost", _costs(said.unlearning)),
        _section("The models handed over", _handed(said)),
        _section("What this rests on", _list(said.provenance)),
        _limits(said.unlearning),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Certificate of unlearning: {escape(said.title)}</title>"
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(filter(None, parts)) + "\n"
        "</body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _paragraphs(sentences: Iterable[str]) -> str:
    return "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)


def _list(pairs: Pairs, kind: str = "") -> str:
    inside = "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in pairs)
    return f'<dl class="{kind}">{inside}</dl>' if kind else f"<dl>{inside}</dl>"


def _table(columns: Sequence[str], rows: Iterable[tuple[Sequence[str], bool]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        ('<tr class="chosen">' if strong else "<tr>")
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for cells, strong in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _closeness(unlearning: Unlearning) -> str:
    groups = (
        (FORGOTTEN, "The forgotten rows"),
        (RETAINED, "A sample of the rows that stay"),
        (JUDGING, "Rows that no model trained on"),
    )
    parts = [
        _figure(unlearning),
        f"<p>{escape(MEANING)}</p>",
    ]
    for group, title in groups:
        first = unlearning.arm(CHOSEN).distances[group]
        caption = f"{title}: {first.n_rows:,} rows, {first.models} models a side"
        rows = []
        for arm in unlearning.arms:
            own = arm.distances[group]
            cells = [
                arm.label,
                f"{own.klom:.2f}",
                f"{own.klom_p95:.2f}",
                f"{own.null_p95:.2f}",
                "–" if own.accuracy is None else f"{own.accuracy:.1%}",
            ]
            if group == FORGOTTEN:
                way = closed(unlearning, arm)
                cells.append("–" if way is None else f"{way:.0%}")
                cells.append("–" if arm.membership is None else f"{arm.membership:.0%}")
            rows.append((cells, arm.arm == CHOSEN))
        columns = ["models", "KLoM", "P95", "floor P95", "accuracy"]
        columns += ["way to the floor", "attack"] if group == FORGOTTEN else []
        parts.append(f'<p class="note">{escape(caption)}</p>{_table(columns, rows)}')
    parts.append(
        '<p class="note">Attack: how often a likelihood ratio on the forgotten rows (U-LiRA) tells '
        "a model from a retrained one; 50% is ideal.</p>"
    )
    return "".join(parts)


def _figure(unlearning: Unlearning) -> str:
    """Bars of the forgotten rows' 95th percentile, and the floor as a line; drawn as inline SVG."""
    arms = unlearning.measured
    floor = unlearning.floor
    most = max([floor, *(arm.distance.klom_p95 for arm in arms)]) or 1.0
    left, width, step = 150.0, 400.0, 30.0
    height = step * len(arms) + 26
    at = left + width * floor / most
    colors = {CHOSEN: "#1f5fa8", UNTOUCHED: "#b34e17"}
    bars = "".join(
        f'<text x="{left - 10:.0f}" y="{step * place + 20:.0f}" text-anchor="end" '
        f'font-size="15">{escape(arm.label)}</text>'
        f'<rect x="{left:.0f}" y="{step * place + 6:.0f}" height="18" '
        f'width="{max(1.0, width * arm.distance.klom_p95 / most):.1f}" '
        f'fill="{colors.get(arm.arm, OTHERS)}"/>'
        f'<text x="{left + width + 12:.1f}" y="{step * place + 20:.0f}" font-size="15">'
        f"{arm.distance.klom_p95:.2f}</text>"
        for place, arm in enumerate(arms)
    )
    said = "KLoM P95 on the forgotten rows; the dashed line is the floor of retrained models"
    return (
        f'<figure><svg viewBox="0 0 610 {height:.0f}" role="img" aria-label="{escape(said)}" '
        f'font-family="system-ui, sans-serif" fill="#24292f">{bars}'
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{step * len(arms) + 4:.0f}" '
        'stroke="#24292f" stroke-width="1.5" stroke-dasharray="5 4"/>'
        f'<text x="{at:.1f}" y="{height - 6:.0f}" text-anchor="middle" font-size="13">'
        f"floor {floor:.2f}</text></svg><figcaption>{escape(said)}.</figcaption></figure>"
    )


def _costs(unlearning: Unlearning) -> str:
    rows = [
        (
            (
                arm.label,
                f"{arm.examples:,.0f}",
                f"{arm.scoring:,.0f}",
                f"{arm.cost:.1%}",
            ),
            arm.arm == CHOSEN,
        )
        for arm in unlearning.arms
    ]
    columns = ("models", "examples", "of these scoring", "of a retraining")
    note = (
        "Examples processed to change one model; a forward and backward pass of one example is 1. "
        "The bank of models on random subsets, by which predictions are calibrated, is made once "
        "for all requests and is not counted; nor are the retrained models, which only judge."
    )
    return f'{_table(columns, rows)}<p class="note">{escape(note)}</p>'


def _handed(said: Statement) -> str:
    rows, digests = [], []
    for each in said.checkpoints:
        low, high = each["retrained"]
        before, after = f"{each['before']:.3g}", f"{each['after']:.3g}"
        rows.append(((str(each["file"]), before, after, f"{low:.3g} to {high:.3g}"), False))
        digests += [
            (f"{each['name']}, before", str(each["sha256_before"])),
            (f"{each['file']}", str(each["sha256_after"])),
        ]
    columns = ("file", f"mean {said.output} before", "after", "retrained models")
    note = (
        f"The files are in {said.folder} of the workspace. Mean output over the forgotten rows. "
        "Below, sha256 of each safetensors file."
    )
    return f'{_table(columns, rows)}<p class="note">{escape(note)}</p>{_list(digests, "digests")}'


def _limits(unlearning: Unlearning) -> str:
    n = unlearning.arm(CHOSEN).distance.models
    text = (
        f"This page reports measurements on {unlearning.models} models of one recipe. "
        f"It is no proof: with {n} models a side, differences smaller than the floor cannot be "
        "seen, the single models handed over are not the distribution that was judged, and what "
        "others keep (copies of the rows, outputs, older checkpoints) is beyond its reach."
    )
    return f"<footer>{escape(text)}</footer>"
