"""Where to look next: commands for one run, to be copied from its report."""

import shlex
from pathlib import Path

from store.workspace import locate_workspace
from tasks.reporting.findings import Findings


def next_steps(findings: Findings) -> list[tuple[str, str]]:
    """What each command shows, and the command, the most asked for first.

    Statements name attributions and answers by id: another spec may run in this workspace before
    the line is copied, under the same names.
    """
    where = _workspace_option(findings.path.parent)
    ids = [method.attribution_id for method in findings.methods][:1]
    of = f"attribution := '{ids[0]}'" if ids else ""
    statements = []
    if findings.a_query is not None:
        asked = ", ".join(part for part in (f"query := {findings.a_query}", of) if part)
        statements.append(
            ("which training rows move this answer most", f"FROM top_influences({asked})")
        )
    for tracing in findings.tracings[:1]:
        if tracing.queries:
            asked = f"{tracing.queries[0].query_id}, tracing := '{tracing.tracing_id}'"
            statements.append(("every method's rows", f"FROM traces({asked})"))
    for poisoning in findings.poisonings[:1]:
        asked = f"poisoning_id = '{poisoning.poisoning_id}'"
        statements.append(("the poisoned rows", f"FROM poisoned_examples WHERE {asked}"))
    if any(valuation.sources for valuation in findings.valuations):
        statements.append(("the values", "FROM values_by_source"))
    if findings.methods:
        statements.append(("more rows to look at", f"FROM harmful_examples({of})"))
    return [
        *((why, f"winnow sql {_quoted(statement)}{where}") for why, statement in statements),
        ("the runs in MLflow", f"winnow ui{where}"),
        ("for any DuckDB client, read-only", str(findings.path)),
    ]


def _quoted(sql: str) -> str:
    """SQL as one word of a shell, in double quotes, for it holds single ones."""
    return f'"{sql}"'


def _workspace_option(root: Path) -> str:
    """The option that a command needs to find this workspace from here; empty where none."""
    if locate_workspace().root == root.absolute():
        return ""
    here = Path.cwd()
    shown = root.relative_to(here) if root.is_relative_to(here) else root
    return f" --workspace {shlex.quote(str(shown))}"
