"""The bake-off in one picture: how well each method predicts retraining, and what it costs.

Names stand in a column beside the axes, each at the height of its point or as near as the others
leave room, so that they never overlap however many methods end up at one place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy.optimize import isotonic_regression

from schemas.errors import ShapeError
from tasks.reporting.canvas import (
    ATTENTION,
    CHOSEN,
    CONTROL,
    FAINT,
    INK,
    Interval,
    blank,
    bounded,
    headline,
    note,
    plain,
)

LINE = 0.185  # inches from one name to the next
MOST_NAME = 28  # characters of a name that are shown


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One method: seconds of gradients, damping and scores; LDS with its interval; its ceiling."""

    name: str
    seconds: float
    lds: Interval
    ceiling: float | None = None


def bake_off(contenders: Sequence[Contender]) -> Figure:
    """Draw LDS against seconds, on a logarithmic axis, with the ceiling that noise sets.

    Methods of several outputs have several ceilings, which are drawn as a band.

    Raises:
        ShapeError: There is no method, or one took no time.
    """
    if not contenders:
        raise ShapeError("there is no method to draw; give at least one")
    for each in contenders:
        if not each.seconds > 0:
            raise ShapeError(f"{each.name} took {each.seconds} s; give its seconds, above 0")
    height = max(3.6, 1.4 + LINE * len(contenders))
    figure, axes = blank(8.2, height)
    best = max(contenders, key=lambda each: each.lds[0])
    for each in contenders:
        mean, low, high = bounded(each.lds)
        color = CHOSEN if each is best else CONTROL
        axes.plot([each.seconds] * 2, [low, high], color=color, linewidth=2.2, zorder=2)
        axes.plot([each.seconds], [mean], "o", color=color, markersize=6, markeredgecolor="white")
    top = _ceiling(axes, contenders)
    bounds = np.array([bounded(each.lds) for each in contenders])
    low, high = min(0.0, float(bounds.min())), max(top, float(bounds.max()))
    pad = 0.08 * (high - low) or 0.1
    axes.set_ylim(low - (pad if low < 0 else 0.0), high + pad)
    axes.axhline(0.0, color=INK, linewidth=0.8)
    seconds = np.array([each.seconds for each in contenders])
    axes.set_xscale("log")
    axes.set_xlim(seconds.min() / 2, seconds.max() * 2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.set_xlabel("seconds of gradients, damping and scores (training not counted)")
    axes.set_ylabel("LDS (mean and 95 % interval)")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    _names(axes, contenders, best, height)
    headline(axes, _title(contenders, best))
    return figure


def _ceiling(axes: Axes, contenders: Sequence[Contender]) -> float:
    known = [each.ceiling for each in contenders if each.ceiling is not None]
    known = [ceiling for ceiling in known if np.isfinite(ceiling)]
    if not known:
        return 0.0
    low, high = min(known), max(known)
    if high - low > 0.005:
        axes.axhspan(low, high, color=ATTENTION, alpha=0.12, linewidth=0)
        text = f"noise ceilings {low:.2f} to {high:.2f}"
    else:
        axes.axhline(high, color=ATTENTION, linewidth=1.2, linestyle=(0, (4, 3)))
        text = f"noise ceiling {high:.2f}"
    note(axes, high, text, ATTENTION)
    return high


def _names(axes: Axes, contenders: Sequence[Contender], best: Contender, height: float) -> None:
    ranked = sorted(contenders, key=lambda each: each.lds[0])
    low, high = axes.get_ylim()
    wanted = (np.array([each.lds[0] for each in ranked]) - low) / (high - low)
    places = spread(wanted, LINE / (height - 1.0))
    for each, place in zip(ranked, places, strict=True):
        color = CHOSEN if each is best else INK
        name = each.name if len(each.name) <= MOST_NAME else each.name[: MOST_NAME - 1] + "…"
        axes.annotate(
            plain(f"{name}  {each.lds[0]:.2f}"),
            (each.seconds, each.lds[0]),
            xytext=(1.02, float(place)),
            textcoords="axes fraction",
            fontsize=8.5,
            color=color,
            va="center",
            fontweight="bold" if each is best else "normal",
            arrowprops={"arrowstyle": "-", "color": CONTROL, "linewidth": 0.4, "shrinkB": 4},
            annotation_clip=False,
        )


def spread(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Ascending places at least `gap` apart, as near to the wanted ones as that allows.

    With y_i = place_i - i gap the condition is that y ascends: a regression that has an exact
    solution. Places keep inside [0, 1] where there is room for all.
    """
    steps = gap * np.arange(len(wanted))
    free = isotonic_regression(np.asarray(wanted) - steps).x
    room = max(1.0 - float(steps[-1]), 0.0)
    return np.clip(free, 0.0, room) + steps


def _title(contenders: Sequence[Contender], best: Contender) -> str:
    """Name a winner only where its interval lies above all others."""
    others = [each for each in contenders if each is not best]
    if not others:
        return f"{best.name} ranks retrained models at {best.lds[0]:.2f}"
    floor = bounded(best.lds)[1]
    rivals = sum(bounded(each.lds)[2] >= floor for each in others)
    if rivals == 0:
        return f"{best.name} predicts retraining best"
    worse = "1 other is not clearly worse" if rivals == 1 else f"{rivals} are not clearly worse"
    return f"{best.name} has the highest LDS; {worse}"
