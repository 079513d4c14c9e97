"""How the report shows attacks: what each budget did, where weak spots are, what screens see."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tasks.reporting.poisoning import Budget, Poisoning
from tasks.reporting.wording import (
    cell,
    number,
    percent,
    plain_interval,
    printable,
    texts,
)

# Values of a column that the report lists, the weakest.
SPOTS_SHOWN = 5


def poisoning_title(poisoning: Poisoning) -> str:
    """What the section of a poisoning is called."""
    return f"What a contributor could do: {poisoning.problem}"


def poisoning_parts(poisoning: Poisoning) -> Iterator[RenderableType]:
    """Sentences and tables, in the order in which they are read."""
    yield _text(_asked(poisoning))
    yield budget_table(poisoning)
    yield _text(poisoning.sentence)
    yield _text(_read(poisoning))
    yield accuracy_table(poisoning)
    columns = dict.fromkeys(spot.column_name for spot in poisoning.weak_spots)
    if columns and poisoning.budgets[-1].inside_linear is False:
        yield Text()
        yield _text(
            "Weak spots are what clean models foresee. They did not foresee the attack above: read "
            "the order of the values, and not how much each could do."
        )
    for column in columns:
        yield Text()
        yield _text(f"Where {poisoning.budgets[-1].budget:,} moves would hurt most, by {column}:")
        yield spot_table(poisoning, column)
    if poisoning.screens:
        yield Text()
        yield _text("Would one notice? " + poisoning.notice)
        yield screen_table(poisoning)


def _text(said: str) -> Text:
    return Text(printable(said))


def _asked(poisoning: Poisoning) -> str:
    budgets = " or ".join(f"{each.budget:,}" for each in poisoning.budgets)
    does = {
        "flip": "flips the labels of",
        "insert": "adds, under any label, copies of",
        "perturb": "keeps the labels and moves the inputs of",
        "match": "keeps the labels and moves the inputs of",
    }
    far = "" if poisoning.radius is None else f", each input by at most {poisoning.radius:g}"
    aim = "" if poisoning.taken_for is None else f" and taken for '{poisoning.taken_for}'"
    bound = (
        ""
        if poisoning.stealth is None
        else f" The mean {poisoning.output} of {poisoning.n_elsewhere:,} other rows may get worse "
        f"by {poisoning.stealth:g}."
    )
    targets = " ".join(poisoning.targets.split())
    return (
        f"Somebody {does[poisoning.move]} at most {budgets} of {poisoning.n_movable:,} rows{far}, "
        f"to make the outputs of {poisoning.n_targets:,} test rows worse{aim} ({targets}).{bound} "
        f"Damage is the rise of their mean loss from {poisoning.loss:.2f} nats, with 95 % "
        "intervals, beside the 95th percentile of random moves anywhere, and inside the classes of "
        "the targets."
    )


def budget_table(poisoning: Poisoning) -> Table:
    """Predicted and retrained damage of each budget, beside random moves."""
    table = _table()
    for heading in ("moves", "predicted", "retrained", "random anywhere", "inside"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in poisoning.budgets:
        cells = (
            _moves(each),
            plain_interval(each.predicted),
            plain_interval(each.observed),
            number(each.random_p95, ".2f"),
            number(each.inside_p95, ".2f"),
        )
        table.add_row(*texts(*cells), style="bold" if each.exceeds else "")
    return table


def _moves(attack: Budget) -> str:
    """How many moves there are, and how many there might be where more would do less."""
    of = "" if attack.moves == attack.budget else f" of {attack.budget:,}"
    return f"{attack.moves:,}{of}"


def accuracy_table(poisoning: Poisoning) -> Table:
    """What a person sees who watches accuracy: of the targets, and of everything else."""
    table = _table()
    for heading in (
        "moves",
        "targets right, %",
        "others right, %",
        f"their {poisoning.output} worse by",
    ):
        table.add_column(Text(printable(heading)), justify="right", no_wrap=True)
    before = (100 * poisoning.accuracy, 100 * poisoning.accuracy_elsewhere)
    table.add_row(*texts("none", *(f"{share:.1f}" for share in before), ""))
    for each in poisoning.budgets:
        shares = (percent(each.accuracy), percent(each.accuracy_elsewhere))
        cells = (_moves(each), *shares, plain_interval(each.observed_elsewhere))
        table.add_row(*texts(*cells))
    return table


def _read(poisoning: Poisoning) -> str:
    """What the clean models alone would have said of the largest budget."""
    last, output = poisoning.budgets[-1], poisoning.output
    taken = plain_interval(last.observed_output)
    found = (
        "It was found there"
        if last.round == 0
        else f"It was found in round {last.round}, at models of an earlier attack"
    )
    said = f"The mean {output} of the targets gets worse by {taken}."
    if last.linear is None or last.bound is None:
        return f"{said} What moved inputs do has no linear prediction. {found}."
    side = "inside" if last.inside_linear else "outside"
    return (
        f"{said} Seen from clean models alone the worst {last.budget:,} moves take "
        f"{plain_interval(last.linear)} from it, none more than {last.bound:.2f} by that "
        f"sight; the attack is {side} that interval. {found}."
    )


def spot_table(poisoning: Poisoning, column: str) -> Table:
    """The weakest values of a column."""
    table = _table()
    table.add_column(Text(printable(column)))
    for heading in ("rows", "moves", f"off the mean {poisoning.output}"):
        table.add_column(Text(printable(heading)), justify="right", no_wrap=True)
    spots = [spot for spot in poisoning.weak_spots if spot.column_name == column]
    for spot in spots[:SPOTS_SHOWN]:
        counts = (f"{spot.n_rows:,}", f"{spot.moves:,}")
        table.add_row(*texts(cell(spot.value or "–"), *counts, plain_interval(spot.damage)))
    return table


def screen_table(poisoning: Poisoning) -> Table:
    """What each screen found, by budget; in the order of the largest."""
    table = _table()
    table.add_column("screen")
    budgets = [each.budget for each in poisoning.budgets]
    for each in poisoning.budgets:
        table.add_column(f"found of {each.moves:,}", justify="right", no_wrap=True)
        table.add_column("AUROC", justify="right", no_wrap=True)
    found = {(each.budget, each.screen): each for each in poisoning.screens}
    last = [each for each in poisoning.screens if each.budget == budgets[-1]]
    for named in last:
        cells: list[str] = []
        for budget in budgets:
            own = found.get((budget, named.screen))
            cells.append("–" if own is None else f"{round(own.recall * own.looked_at):,}")
            cells.append(number(None if own is None else own.auroc, ".2f"))
        table.add_row(*texts(named.screen, *cells))
    return table


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="")
