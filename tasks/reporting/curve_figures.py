"""The picture of how much data is needed: predicted output by the size of the best subset."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tasks.reporting.canvas import CHOSEN, FAINT, INK, blank, headline, plain


def size_curve(facts: Mapping[str, Any]) -> Figure:
    """Draw the predicted change against all rows with its 90 % band, and the best size.

    Args:
        facts: The curve as a solution keeps it (`tasks.aiming.curve_facts`).
    """
    sizes = np.asarray(facts["sizes"])
    mean, low, high = np.asarray(facts["change"], dtype=np.float64).T
    figure, axes = blank(5.6, 3.8)
    axes.fill_between(sizes, low, high, color=CHOSEN, alpha=0.2, linewidth=0)
    axes.plot(sizes, mean, color=CHOSEN, linewidth=1.6)
    axes.axhline(0.0, color=FAINT, linewidth=0.8)
    axes.axvline(facts["best"], color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("training rows, the best of their number")
    axes.set_ylabel(f"predicted change of {plain(facts['output'])}\nagainst all rows")
    said = f"Predicted best: {facts['best']} of {sizes[-1]} rows"
    if facts["enough"] < facts["best"]:
        said += f"; {facts['enough']} may do as well"
    if not facts["beats_all"]:
        said += "\nNo size is sure to beat all rows"
    headline(axes, said, size=10)
    return figure
