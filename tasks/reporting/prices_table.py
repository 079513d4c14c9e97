"""How the report shows what the constraints of a selection cost."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from schemas.methods import FALLING
from tasks.reporting.findings import Answer, Reasons
from tasks.reporting.wording import cell, texts

# The dearest constraints are shown; SQL has them all.
SHOWN = 12


def has_prices(answer: Answer) -> bool:
    """Whether anything beside the size binds an answer; the price of that is in its sentence."""
    return bool(set(answer.prices) - {"size"})


def priced(answer: Answer) -> str:
    """What the table cannot say."""
    falls = " (a gain is a fall)" if answer.output in FALLING else ""
    return (
        f"Predicted gain of the mean {answer.output} on '{answer.targets}'{falls} if a limit were "
        "one looser. Of rows that must be chosen or left out, and of duplicates, it is the gain if "
        "all of them were free."
    )


def dropped_for(reasons: Reasons) -> str:
    """What the list of dropped rows is of, where more than a size may have dropped them."""
    counts = (
        (reasons.harmful, "predicted to harm"),
        (reasons.copies, "copies of chosen rows"),
        (reasons.no_room, "without room in the size and the constraints"),
    )
    said = ", ".join(f"{count:,} {what}" for count, what in counts if count)
    return f"Dropped are {said}. Those of the lowest effects, whatever dropped them:"


def prices_table(answer: Answer) -> Table:
    """The constraints, the dearest first, with what one more unit of each is worth."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="")
    table.add_column("constraint")
    table.add_column("one more adds", justify="right", no_wrap=True)
    table.add_column("")
    ordered = sorted(answer.prices.items(), key=lambda entry: (-abs(entry[1]), entry[0]))
    for name, price in ordered[:SHOWN]:
        told = "does not bind" if not price else "" if price > 0 else "it costs"
        table.add_row(*texts(cell(name), f"{price:+.3g}" if price else "0", told))
    if len(ordered) > SHOWN:
        table.add_row(f"and {len(ordered) - SHOWN} more")
    return table
