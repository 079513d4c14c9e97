"""How the report shows the arms of a selection's verdict: what each comes to, and what it changed.

Where accuracy and log-probability are known, the output that was predicted stands beside its
changes: four intervals in a row are wider than a terminal.
"""

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from tasks.reporting.findings import ARM_ORDER, Answer, Arm
from tasks.reporting.judgement import LIKELIHOODS
from tasks.reporting.prices_table import has_prices
from tasks.reporting.wording import (
    advantage,
    cell,
    percent,
    plain_interval,
    printable,
    signed_interval,
    texts,
)


def explained_arms(answer: Answer) -> list[str]:
    """What the table of the arms cannot say."""
    seeds = sorted({arm.seeds for arm in answer.arms})
    counted = " to ".join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))
    lines = [
        f"Each arm was trained {counted} times; mean [95 % interval] on rows kept for judging."
    ]
    if has_prices(answer):
        lines.append("The constraints bind 'chosen' only: rivals need not keep to them.")
    return lines


def arms_table(answer: Answer) -> Table:
    """The arms with their rows, how good their models are, and how far the choice is ahead."""
    arms = _ordered(answer.arms)
    with_accuracy, with_logprob = _has_accuracy(arms), _has_logprob(arms)
    with_value = not _value_is_apart(arms)
    table = _table()
    table.add_column("rows", justify="right")
    if with_accuracy:
        table.add_column("accuracy, %", justify="right")
    if with_logprob:
        table.add_column("mean logprob", justify="right")
    if with_value:
        table.add_column(escape(printable(f"mean {arms[0].output}")), justify="right")
    # Without accuracy it is the gain in the output: of a loss, how much lower the choice's is.
    table.add_column(
        "chosen − arm, pts" if with_accuracy else "chosen is better by", justify="right"
    )
    for arm in arms:
        cells = [cell(arm.name), f"{arm.n_rows:,}"]
        cells += [percent(arm.accuracy)] if with_accuracy else []
        cells += [plain_interval(arm.logprob)] if with_logprob else []
        cells += [plain_interval(arm.value)] if with_value else []
        ahead = "" if arm.name == "chosen" else advantage(arm, unit="")
        table.add_row(*texts(*cells, ahead), style=_style(arm))
    return table


def has_changes(answer: Answer) -> bool:
    """Whether the change of some arm was predicted and observed."""
    return bool(_changed(answer.arms))


def changes_table(answer: Answer) -> Table:
    """The arms with the predicted and the observed change of the output against all rows."""
    arms = _ordered(answer.arms)
    with_value = _value_is_apart(arms)
    shown = [arm for arm in arms if arm in _changed(arms) or (with_value and arm.name == "all")]
    table = _table()
    if with_value:
        table.add_column(escape(printable(f"mean {arms[0].output}")), justify="right")
    table.add_column("predicted", justify="right")
    table.add_column("observed", justify="right")
    for arm in shown:
        cells = [cell(arm.name)] + ([plain_interval(arm.value)] if with_value else [])
        if arm.name != "all":
            cells += [signed_interval(arm.predicted), signed_interval(arm.observed)]
        table.add_row(*texts(*cells), style=_style(arm))
    return table


def _has_accuracy(arms: Iterable[Arm]) -> bool:
    return any(arm.accuracy for arm in arms)


def _has_logprob(arms: Iterable[Arm]) -> bool:
    """Whether a column of log-probability says what that of the output does not."""
    return any(arm.logprob and arm.output not in LIKELIHOODS for arm in arms)


def _value_is_apart(arms: Iterable[Arm]) -> bool:
    arms = list(arms)
    return _has_accuracy(arms) and _has_logprob(arms) and bool(_changed(arms))


def _changed(arms: Iterable[Arm]) -> list[Arm]:
    return [arm for arm in arms if arm.predicted and arm.observed and arm.name != "all"]


def _ordered(arms: Iterable[Arm]) -> Sequence[Arm]:
    rank = {name: index for index, name in enumerate(ARM_ORDER)}
    return sorted(arms, key=lambda arm: (rank.get(arm.name, len(rank)), arm.name))


def _table() -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="")
    table.add_column("arm")
    return table


def _style(arm: Arm) -> str:
    return "bold" if arm.name == "chosen" else ""
