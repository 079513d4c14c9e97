"""How the report shows values: sentences, and a table by source."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from schemas.methods import FALLING
from tasks.reporting.wording import cell, number, printable, signed, texts
from tasks.reporting.worth import Player, Valuation

# Of more players the table shows as many of the best as of the worst.
PLAYERS_SHOWN = 20


def section_title(valuation: Valuation) -> str:
    """What the section of a valuation is called."""
    return f"What each {valuation.sources or 'row'} is worth: {valuation.problem}"


def sentences(valuation: Valuation) -> list[str]:
    """What the table cannot say, in sentences."""
    output = f"mean {valuation.output}"
    less = " with its sign changed" if valuation.output in FALLING else ""
    meaning = (
        f"Value: what it adds to the {output} on '{valuation.targets}'{less}. The model of all "
        f"rows has {valuation.everything:.4g}, an untrained one {valuation.nothing:.4g}."
    )
    return [meaning, valuation.sentence]


def worth_table(valuation: Valuation) -> Table:
    """The players by falling value, with standard errors and shares."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="")
    table.add_column(escape(printable(valuation.sources or "row")))
    for title in ("rows", "value", "± s.e.", "share"):
        table.add_column(title, justify="right", no_wrap=True)
    for player in _shown(valuation.players):
        if player is None:
            table.add_row("…")
            continue
        error = number(player.standard_error, ".4f") if player.standard_error else "–"
        cells = (cell(player.name), f"{player.n_rows:,}", signed(player.value), error)
        table.add_row(*texts(*cells, number(valuation.share(player), ".0%")))
    return table


def _shown(players: Sequence[Player]) -> list[Player | None]:
    if len(players) <= PLAYERS_SHOWN:
        return list(players)
    half = PLAYERS_SHOWN // 2
    return [*players[:half], None, *players[-half:]]
