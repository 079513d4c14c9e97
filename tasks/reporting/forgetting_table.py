"""How the report shows unlearning: what was asked and predicted, and a table of all arms."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tasks.reporting.findings import Answer
from tasks.reporting.forgetting import (
    CHOSEN,
    FORGOTTEN,
    JUDGING,
    RETAINED,
    Forgetting,
    Unlearning,
)
from tasks.reporting.wording import number, texts


def asked(answer: Answer, unlearning: Unlearning) -> list[str]:
    """What had to be forgotten, and what that was predicted to do."""
    count = unlearning.requests
    named = f", {count:,} request{'s' if count > 1 else ''} among them" if count else ""
    return [
        f"{answer.problem} forgets {unlearning.n_forgotten:,} of {answer.pool:,} rows{named}.",
        answer.sentence,
    ]


def explained(unlearning: Unlearning) -> str:
    """What the table's numbers are."""
    first = unlearning.arm(CHOSEN).distance
    return (
        f"KLoM P95: how far the outputs of unlearned models are from those of {unlearning.oracles} "
        "models retrained without the rows, in nats, at the 95th percentile of rows; "
        f"{first.models} models a side, and 'retrained' is the floor. Attack: how often a "
        "likelihood ratio tells a model from a retrained one, 50% is ideal. Cost: examples, of "
        "those of a retraining; scoring is a part of it."
    )


def closeness_table(unlearning: Unlearning) -> Table:
    """The arms: untouched, retrained, chosen, and the others."""
    with_accuracy = unlearning.arm(CHOSEN).distances[JUDGING].accuracy is not None
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="")
    table.add_column("models", no_wrap=True)
    groups = (FORGOTTEN, RETAINED, JUDGING)
    counts = [unlearning.arm(CHOSEN).distances[group].n_rows for group in groups]
    headings = [f"{group} ({count:,})" for group, count in zip(groups, counts, strict=True)]
    headings += ["attack"] + (["accuracy, %"] if with_accuracy else []) + ["cost", "scoring"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for arm in unlearning.arms:
        cells = [arm.label, *(f"{arm.distances[group].klom_p95:.2f}" for group in groups)]
        cells.append(number(arm.membership, ".0%"))
        if with_accuracy:
            accuracy = arm.distances[JUDGING].accuracy
            cells.append(number(None if accuracy is None else 100 * accuracy, ".1f"))
        cells += [f"{arm.cost:.0%}", f"{_scoring(arm):.0%}"]
        table.add_row(*texts(*cells), style="bold" if arm.arm == CHOSEN else "")
    return table


def _scoring(arm: Forgetting) -> float:
    """The part of the cost that gradients, features and curvature are."""
    return arm.cost * arm.scoring / arm.examples if arm.examples else 0.0


def certificate_line(unlearning: Unlearning, root: Path) -> str:
    """Where the certificate is, for whoever asked."""
    return f"certificate: {root / unlearning.certificate}"
