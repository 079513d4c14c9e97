"""The pictures: arrays in, a matplotlib Figure out, and no global state.

Every figure is a bare `matplotlib.figure.Figure`, drawn as `tasks.reporting.canvas` says. A title
states what the picture shows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    dressed,
    headline,
    note,
    plain,
    png,
)
from tasks.reporting.findings import ARM_ORDER
from tasks.reporting.gallery import gallery_panel

__all__ = [
    "Interval",
    "arms",
    "hero",
    "lds_per_query",
    "png",
    "predicted_against_observed",
]

HERO_BYTES = 200_000


def lds_per_query(per_query: np.ndarray, *, mean: Interval, ceiling: float | None) -> Figure:
    """Draw each query's rank correlation, sorted, with the mean and the noise ceiling.

    Args:
        per_query: [q] correlation of predicted and observed outputs; NaN is left out.
        mean: The mean over queries with its interval.
        ceiling: What a perfect prediction of the expected output would reach, if known.
    """
    middle, low, high = bounded(mean)
    values = np.sort(_vector(per_query, "per_query"))
    values = values[np.isfinite(values)]
    figure, axes = blank(7.0, 3.4)
    positions = np.arange(values.size)
    axes.vlines(positions, 0.0, values, color=CHOSEN, linewidth=_stem_width(values.size))
    axes.axhspan(low, high, color=CHOSEN, alpha=0.15, linewidth=0)
    axes.axhline(middle, color=CHOSEN, linewidth=1.2)
    note(axes, high, f"mean {middle:.2f} [{low:.2f}, {high:.2f}]", CHOSEN)
    title = f"Scores rank retrained models at {middle:.2f}"
    if ceiling is not None and np.isfinite(ceiling):
        axes.axhline(ceiling, color=ATTENTION, linewidth=1.2, linestyle=(0, (4, 3)))
        note(axes, ceiling, f"noise ceiling {ceiling:.2f}", ATTENTION)
        title += f"; noise allows {ceiling:.2f}"
    axes.axhline(0.0, color=INK, linewidth=0.8)
    axes.set_xlim(-1.0, max(values.size, 1))
    top = max(1e-3, *(abs(x) for x in (*values, high, ceiling or 0.0) if np.isfinite(x)))
    axes.set_ylim(min(0.0, *values, 0.0) - 0.05 * top, 1.15 * top)
    axes.set_xticks([])
    axes.set_xlabel(f"{values.size} queries, sorted")
    axes.set_ylabel("LDS (Spearman)")
    headline(axes, title)
    return figure


def predicted_against_observed(
    predicted: np.ndarray,
    observed: np.ndarray,
    *,
    output: str = "output",
    groups: Sequence[str] | None = None,
    arms: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Draw retrained models: the surrogate's prediction against what retraining gave.

    Args:
        predicted: [m] predicted output, averaged over the queries or the holdout.
        observed: [m] the same after retraining.
        output: What was measured, for the axes.
        groups: [m] a name for each model (its subset size, say); drawn in shades.
        arms: (predicted, observed) of each verdict arm, in the same unit, drawn larger.
    """
    figure, axes = blank(4.6, 4.4)
    _scatter(axes, predicted, observed, groups=groups, arms=arms or {})
    axes.set_xlabel(f"predicted mean {output}")
    axes.set_ylabel(f"mean {output} after retraining")
    headline(axes, _scatter_title(predicted, observed, groups))
    return figure


def arms(
    results: Mapping[str, Interval],
    *,
    title: str,
    measure: str = "accuracy",
    logprobs: Mapping[str, Interval] | None = None,
) -> Figure:
    """Draw the mean of each arm with its 95 % interval.

    Args:
        results: (mean, low, high) for each arm; 'chosen' is what the problem's solution keeps.
        title: What retraining said (`tasks.reporting.judgement.arms_title`).
        measure: The name of the axis; 'accuracy' is drawn in percent.
        logprobs: Mean log-probability of the same arms, drawn beside it.
    """
    height = 0.9 + 0.5 * max(len(results), 1)
    if not logprobs:
        figure, axes = blank(6.0, height)
        _arms(axes, results, measure)
    else:
        figure = Figure(figsize=(9.5, height), layout="constrained")
        axes, beside = (dressed(each) for each in figure.subplots(1, 2, width_ratios=(3, 2)))
        _arms(axes, results, measure)
        _arms(beside, logprobs, "mean logprob")
        beside.set_yticks([])
    headline(axes, title)
    return figure


def hero(
    inputs: np.ndarray,
    captions: Sequence[str],
    results: Mapping[str, Interval],
    predicted: np.ndarray,
    observed: np.ndarray,
    *,
    image_shape: tuple[int, ...] | None = None,
    output: str = "margin",
    groups: Sequence[str] | None = None,
    points: Mapping[str, tuple[float, float]] | None = None,
    arms_title: str = "",
    feature_names: Sequence[str] | None = None,
    gallery_title: str = "The rows it would drop",
) -> Figure:
    """Draw the whole answer in one wide picture: the rows, the arms, predicted against observed.

    Args:
        inputs: [n, ...] dropped rows, most harmful first; the first are shown.
        captions: [n] text above each row.
        results: Arms as in `arms`.
        predicted: [m] as in `predicted_against_observed`.
        observed: [m] likewise.
        image_shape: As in `gallery`.
        output: What was measured.
        groups: [m] as in `predicted_against_observed`.
        points: The arms of `predicted_against_observed`.
        arms_title: As the title of `arms`.
        feature_names: As in `gallery`.
        gallery_title: What the rows on the left are.
    """
    figure = Figure(figsize=(13.0, 3.7), layout="constrained")
    # matplotlib types subfigures() as one SubFigure; for several columns it is an array of them.
    panels: Any = figure.subfigures(1, 3, width_ratios=(1.1, 1.15, 1.0), wspace=0.03)
    left, middle, right = panels
    gallery_panel(
        left,
        inputs,
        captions,
        image_shape=image_shape,
        feature_names=feature_names,
        title=gallery_title,
    )
    axes = dressed(middle.add_subplot())
    _arms(axes, results, "accuracy")
    headline(axes, arms_title, size=10)
    axes = dressed(right.add_subplot())
    _scatter(axes, predicted, observed, groups=groups, arms=points or {})
    axes.set_xlabel(f"predicted mean {output}")
    axes.set_ylabel(f"mean {output} after retraining")
    headline(axes, _scatter_title(predicted, observed, groups), size=10)
    return figure


def _stem_width(n: int) -> float:
    return float(np.clip(260.0 / max(n, 1), 0.5, 6.0))


def _arms(axes: Axes, results: Mapping[str, Interval], measure: str) -> None:
    scale = 100.0 if measure == "accuracy" else 1.0
    names = [name for name in ARM_ORDER if name in results]
    names += [name for name in results if name not in names]
    for row, name in enumerate(names):
        mean, low, high = (scale * value for value in bounded(results[name]))
        color = CHOSEN if name == "chosen" else CONTROL
        axes.plot([low, high], [row, row], color=color, linewidth=3, solid_capstyle="butt")
        axes.plot([mean], [row], "o", color=color, markersize=8, markeredgecolor="white")
        axes.annotate(
            f"{mean:.1f}" if measure == "accuracy" else f"{mean:.3g}",
            (mean, row),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=color,
            fontweight="bold" if name == "chosen" else "normal",
        )
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.7)
    axes.margins(x=0.12)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    label = "holdout accuracy, %" if measure == "accuracy" else measure
    axes.set_xlabel(f"{label} (mean and 95 % interval)")


def _scatter(
    axes: Axes,
    predicted: np.ndarray,
    observed: np.ndarray,
    *,
    groups: Sequence[str] | None,
    arms: Mapping[str, tuple[float, float]],
) -> None:
    predicted, observed = _vector(predicted, "predicted"), _vector(observed, "observed")
    if predicted.shape != observed.shape:
        raise ShapeError(
            f"{predicted.size} predicted and {observed.size} observed outputs; give pairs"
        )
    names = list(dict.fromkeys(groups)) if groups is not None else [""]
    marks = np.asarray(groups if groups is not None else [""] * predicted.size)
    for shade, name in zip(np.linspace(0.35, 0.85, len(names)), names, strict=True):
        rows = marks == name
        axes.scatter(
            predicted[rows], observed[rows], s=16, color=CONTROL, alpha=shade, linewidths=0,
            label=name or None,
        )  # fmt: skip
    # Controls lie close together: the higher ones are named on their left, the others on the right.
    ranked = sorted(arms, key=lambda name: -arms[name][1])
    for place, name in enumerate(ranked):
        x, y = arms[name]
        color = CHOSEN if name == "chosen" else INK
        right = place % 2 == 1
        axes.scatter([x], [y], s=60, color=color, edgecolors="white", zorder=3)
        axes.annotate(
            plain(name),
            (x, y),
            xytext=(7 if right else -7, -1),
            textcoords="offset points",
            fontsize=8.5,
            color=color,
            ha="left" if right else "right",
            va="top" if right else "bottom",
        )
    xs, ys = [x for x, _ in arms.values()], [y for _, y in arms.values()]
    everything = np.concatenate([predicted, observed, xs, ys])
    everything = everything[np.isfinite(everything)]
    if everything.size:
        low, high = float(everything.min()), float(everything.max())
        pad = 0.06 * (high - low) or 0.5
        # More below: names on the left of the lowest points would lie over the axis.
        limits = (low - 2.5 * pad, high + pad)
        axes.plot(limits, limits, color=INK, linewidth=0.8)
        axes.set_xlim(limits)
        axes.set_ylim(limits)
    axes.set_aspect("equal", adjustable="box")
    if len(names) > 1:
        axes.legend(frameon=False, fontsize=8, loc="upper left", handletextpad=0.1)


def _scatter_title(
    predicted: np.ndarray, observed: np.ndarray, groups: Sequence[str] | None
) -> str:
    """State the correlation within groups: between subset sizes it would flatter any method."""
    x, y = np.asarray(predicted, float), np.asarray(observed, float)
    marks = np.asarray(groups if groups is not None else [""] * x.size)
    found = []
    for name in dict.fromkeys(marks.tolist()):
        rows = (marks == name) & np.isfinite(x) & np.isfinite(y)
        if rows.sum() >= 3 and np.ptp(x[rows]) > 0 and np.ptp(y[rows]) > 0:
            found.append((float(np.corrcoef(x[rows], y[rows])[0, 1]), int(rows.sum())))
    if not found:
        return "Predicted against observed"
    r = sum(value * n for value, n in found) / sum(n for _, n in found)
    within = " among subsets of one size" if len(found) > 1 else ""
    return f"Predicted against retrained:\nr = {r:.2f}{within}"


def _vector(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ShapeError(f"{name} has shape {values.shape}; give one number for each")
    return values
