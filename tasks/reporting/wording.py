"""How the report writes numbers and text from data: intervals, percentages, harmless cells.

An interval shows two significant digits of its half width, so that no digit claims more than was
measured. Text from data loses line breaks and control characters, and is never read as markup.
"""

import math

from rich.text import Text

from tasks.reporting.findings import Arm, Interval

LABEL_WIDTH = 24  # longer class names are cut


def cell(text: str | None) -> str:
    """Make text from data harmless: one line, no control characters, no markup, not too long."""
    if text is None:
        return "–"
    plain = printable(text)
    return plain if len(plain) <= LABEL_WIDTH else plain[: LABEL_WIDTH - 1] + "…"


def printable(text: str) -> str:
    """Replace line breaks and control characters, which could rewrite the terminal."""
    return "".join(mark if mark.isprintable() else " " for mark in text)


def texts(*cells: str) -> list[Text]:
    """Wrap cells so that rich never reads them as markup."""
    return [Text(printable(cell)) for cell in cells]


def number(value: float | None, form: str) -> str:
    """Write a number, or a dash where it is unknown."""
    return "–" if value is None or not math.isfinite(value) else f"{value:{form}}"


def percent(interval: Interval | None) -> str:
    """Write a share as a percentage with its interval."""
    if interval is None:
        return "–"
    text = f"{100 * interval.mean:.1f}"
    return text + _bounds(interval, 100.0, ".1f")


def advantage(arm: Arm, unit: str = " points") -> str:
    """Write (chosen - arm): percentage points of accuracy, or the output's own unit without it."""
    if arm.accuracy is None:
        return signed_interval(arm.advantage)
    return signed_interval(arm.advantage, 100.0) + unit


def plain_interval(interval: Interval | None) -> str:
    """Write a mean with its interval."""
    if interval is None:
        return "–"
    form = f".{_decimals(interval)}f"
    return f"{interval.mean:{form}}" + _bounds(interval, 1.0, form)


def signed_interval(interval: Interval | None, scale: float = 1.0) -> str:
    """Write a change with its interval; a scale of 100 turns shares into points."""
    if interval is None:
        return "–"
    form = "+.1f" if scale != 1.0 else f"+.{_decimals(interval)}f"
    return f"{scale * interval.mean:{form}}" + _bounds(interval, scale, form)


def _decimals(interval: Interval) -> int:
    """Show two significant digits of the half width, and no more than it supports."""
    half = (interval.high - interval.low) / 2 if interval.is_known else 0.0
    return 3 if half <= 0 else min(max(1 - math.floor(math.log10(half)), 0), 6)


def _bounds(interval: Interval, scale: float, form: str) -> str:
    if not interval.is_known:
        return ""
    return f" [{scale * interval.low:{form}}, {scale * interval.high:{form}}]"


def signed(value: float) -> str:
    """Write a small effect with its sign."""
    return f"{value:+.4f}" if math.isfinite(value) else "–"


def duration(seconds: float) -> str:
    """Write seconds as a person would."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
