"""The picture of an attack: damage by budget, predicted and retrained, beside random moves."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.reporting.canvas import (
    ATTENTION,
    CHOSEN,
    CONTROL,
    FAINT,
    INK,
    bounded,
    dressed,
    headline,
    plain,
)

# Shares of the widest budget by which points of one budget are moved apart.
_APART = 0.015
_KINDS = (("anywhere", -2.0, "o"), ("inside", 2.0, "s"))


def damage_by_budget(
    curve: Sequence[Mapping[str, float]],
    budgets: Sequence[Mapping[str, Any]],
    draws: pl.DataFrame,
    *,
    output: str,
) -> Figure:
    """Draw what attacks do to the targets' loss, and what they take from their mean output.

    Args:
        curve: What worst moves are predicted to take from the output, as a solution keeps it;
            empty where there are no such predictions.
        budgets: What a verdict holds of each budget.
        draws: Models of random moves: columns budget, kind, damage, output_damage.
        output: The output.
    """
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = (dressed(axes) for axes in figure.subplots(1, 2))
    apart = _APART * max(each["budget"] for each in budgets)
    _random(left, draws, "damage", apart)
    _attack(left, budgets, "predicted", (CHOSEN, "D"), -0.6 * apart)
    _attack(left, budgets, "observed", (ATTENTION, "o"), 0.6 * apart)
    left.set_ylabel("rise of the targets' mean loss, nats")
    last = budgets[-1]
    headline(left, f"{last['budget']:,} rows raise the loss by {last['observed'][0]:.1f}", size=10)
    if curve:
        _band(right, curve)
    _random(right, draws, "output_damage", apart)
    _attack(right, budgets, "observed_output", (ATTENTION, "o"), 0.0)
    right.set_ylabel(f"taken from the targets' mean {plain(output)}")
    headline(right, "Foreseen from clean models, and retrained" if curve else "Retrained", size=10)
    for axes in (left, right):
        axes.axhline(0.0, color=FAINT, linewidth=0.8, zorder=0)
        axes.set_xlim(0, last["budget"] + 6 * apart)
        axes.set_xlabel("rows that may be moved")
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left")
    return figure


def _band(axes: Axes, curve: Iterable[Mapping[str, float]]) -> None:
    names = ("budget", "damage", "low", "high")
    sizes, mean, low, high = np.array([[point[name] for name in names] for point in curve]).T
    axes.fill_between(sizes, low, high, color=CHOSEN, alpha=0.12, linewidth=0)
    axes.plot(sizes, mean, color=CHOSEN, linewidth=1.4, label="worst moves, foreseen")


def _random(axes: Axes, draws: pl.DataFrame, column: str, apart: float) -> None:
    for kind, shift, marker in _KINDS:
        own = draws.filter(kind=kind)
        axes.plot(
            own["budget"].to_numpy() + shift * apart,
            own[column].to_numpy(),
            linestyle="none",
            marker=marker,
            markersize=3,
            color=CONTROL,
            alpha=0.5,
            markeredgewidth=0,
            label=f"random moves {kind}" + (" the classes" if kind == "inside" else ""),
        )


def _attack(
    axes: Axes,
    budgets: Iterable[Mapping[str, Any]],
    name: str,
    style: tuple[str, str],
    shift: float,
) -> None:
    color, marker = style
    rows = [(each["budget"] + shift, *bounded(tuple(each[name]))) for each in budgets]
    places, middle, least, most = np.array(rows).T
    axes.errorbar(
        places,
        middle,
        yerr=[middle - least, most - middle],
        fmt=marker,
        markersize=5,
        color=color,
        elinewidth=1.4,
        label="attack, predicted" if name == "predicted" else "attack, retrained",
    )
