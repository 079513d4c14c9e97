"""The pictures of unlearning: predicted against retrained changes, and how far each arm is."""

import numpy as np
from matplotlib.figure import Figure

from tasks.reporting.canvas import ATTENTION, CHOSEN, CONTROL, FAINT, INK, blank, headline, plain
from tasks.reporting.forgetting import CHOSEN as CHOSEN_ARM
from tasks.reporting.forgetting import (
    FORGOTTEN,
    JUDGING,
    RETAINED,
    UNTOUCHED,
    Unlearning,
    is_forgotten,
)


def changes(
    predicted: np.ndarray, observed: np.ndarray, unlearning: Unlearning, *, output: str
) -> Figure:
    """Draw each query's change: as predicted, and as retraining without the rows made it.

    Args:
        predicted: [q].
        observed: [q].
        unlearning: What was measured, for the title.
        output: What changed.
    """
    figure, axes = blank(4.8, 4.6)
    axes.scatter(predicted, observed, s=16, color=CHOSEN, alpha=0.6, linewidths=0)
    both = np.concatenate([predicted, observed, [0.0]])
    low, high = float(both.min()), float(both.max())
    pad = 0.06 * (high - low) or 0.5
    limits = (low - pad, high + pad)
    axes.plot(limits, limits, color=INK, linewidth=0.8)
    axes.axhline(0.0, color=FAINT, linewidth=0.8)
    axes.axvline(0.0, color=FAINT, linewidth=0.8)
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlabel(f"predicted change of {plain(output)}")
    axes.set_ylabel("change after retraining without the rows")
    said = "Predicted against retrained changes"
    if unlearning.correlation is not None and unlearning.slope is not None:
        said += f":\nr = {unlearning.correlation:.2f}, slope {unlearning.slope:.2f}"
        if unlearning.ceiling is not None:
            said += f"; noise allows r = {unlearning.ceiling:.2f}"
    headline(axes, said, size=10)
    return figure


def distances(unlearning: Unlearning) -> Figure:
    """Draw the KLoM P95 of every arm on each group of rows, with the floor of retrained models."""
    groups = (FORGOTTEN, RETAINED, JUDGING)
    arms = unlearning.measured
    figure, axes = blank(7.0, 1.2 + 0.75 * len(arms))
    shades = dict(zip(groups, (1.0, 0.6, 0.35), strict=True))
    colors = {CHOSEN_ARM: CHOSEN, UNTOUCHED: ATTENTION}
    height = 0.25
    for row, arm in enumerate(arms):
        for place, group in enumerate(groups):
            at = row + (place - 1) * height
            color = colors.get(arm.arm, CONTROL)
            width = arm.distances[group].klom_p95
            axes.barh(at, width, height=height, color=color, alpha=shades[group], linewidth=0)
            axes.annotate(
                f"{group} {width:.2f}", (width, at), xytext=(3, 0), textcoords="offset points",
                fontsize=7.5, color=INK, va="center",
            )  # fmt: skip
    floor = unlearning.floor
    axes.axvline(floor, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(arms)), [plain(arm.label) for arm in arms])
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_xlabel(f"KLoM, 95th percentile of rows, nats; dashed: retrained models, {floor:.2f}")
    state = is_forgotten(unlearning)
    said = {
        True: "The unlearned models are as if retrained",
        False: "The unlearned models are not as if retrained",
        None: "Untouched and retrained models cannot be told apart",
    }
    headline(axes, said[state])
    return figure
