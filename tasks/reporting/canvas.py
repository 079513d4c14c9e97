"""What every picture is drawn on: a bare figure in the house's colours, and what it is sent as.

pyplot, its registry and its backends are never touched, so figures may be drawn in any thread.
Blue is what winnow chose, grey what it is compared with, orange what deserves a look.
"""

from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

CHOSEN = "#1f5fa8"
CONTROL = "#8b95a1"
ATTENTION = "#cc5a1e"
INK = "#24292f"
FAINT = "#e4e7eb"

# Mean, low, high; where no bounds are known (None or NaN), the mean is drawn alone.
Interval = tuple[float, float | None, float | None]


def png(figure: Figure, *, dpi: int = 150) -> bytes:
    """Render to PNG without metadata, so that the same figure gives the same bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this size in inches, with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, dressed(figure.add_subplot())


def dressed(axes: Axes) -> Axes:
    """The axes in the house's colours, open at the top and on the right."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(CONTROL)
    axes.tick_params(colors=INK, labelsize=8.5, length=3)
    axes.xaxis.label.set(color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)
    return axes


def headline(axes: Axes, text: str, *, size: float = 11) -> None:
    """Say above the axes what they show."""
    axes.set_title(
        plain(text), loc="left", fontsize=size, color=INK, fontweight="bold", wrap=False, pad=8
    )


def plain(text: str) -> str:
    """Keep matplotlib from reading a dollar sign in a label as mathematics."""
    return text.replace("$", r"\$")


def note(axes: Axes, height: float, text: str, color: str) -> None:
    """Name a horizontal line at its left end."""
    axes.annotate(
        text,
        (0.01, height),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        fontsize=8.5,
        color=color,
        va="bottom",
    )


def bounded(interval: Interval) -> tuple[float, float, float]:
    """Mean, low and high; three times the mean where no bounds are known."""
    mean, low, high = interval
    known = low is not None and high is not None and np.isfinite([low, high]).all()
    return (float(mean), float(low), float(high)) if known else (float(mean),) * 3  # type: ignore
