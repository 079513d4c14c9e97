"""Rows as pictures where they are pictures, and as their oddest features where they are not."""

from collections.abc import Sequence
from math import isqrt
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from schemas.errors import ShapeError
from tasks.reporting.canvas import ATTENTION, CONTROL, FAINT, INK, dressed, plain

MAX_BARS = 8  # features shown for a row that is not a picture


def gallery(
    inputs: np.ndarray,
    captions: Sequence[str],
    *,
    image_shape: tuple[int, ...] | None = None,
    background: np.ndarray | None = None,
    feature_names: Sequence[str] | None = None,
    title: str = "The rows that hurt most",
) -> Figure:
    """Draw rows as pictures where they are pictures, and as their oddest features where not.

    Args:
        inputs: [n, ...] the rows, most harmful first.
        captions: [n] text under each, such as its label and true label.
        image_shape: (h, w) or (h, w, 3 or 4) or (1 or 3, h, w); found from a square size if absent.
        background: [m, ...] rows to standardise features by; without it, `inputs` themselves.
        feature_names: Names of the flattened features.
        title: What the picture shows.

    Raises:
        ShapeError: There are not as many captions as rows, or the rows do not have `image_shape`.
    """
    inputs = np.asarray(inputs, dtype=np.float64)
    if len(captions) != len(inputs):
        raise ShapeError(f"{len(captions)} captions for {len(inputs)} rows; give one for each row")
    shape = image_shape or image_shape_of(inputs.shape[1:])
    columns = max(1, min(len(inputs), 8 if shape else 3))
    rows = max(1, -(-len(inputs) // columns))
    height = rows * (1.35 if shape else 1.9) + 0.5
    figure = Figure(figsize=(columns * (1.1 if shape else 3.0), height), layout="constrained")
    figure.suptitle(title, color=INK, fontsize=11, x=0.01, ha="left", fontweight="bold")
    if len(inputs):
        scores = None if shape else _standard_scores(inputs, background)
        _fill(figure, (rows, columns), inputs, captions, shape, scores, feature_names)
    return figure


def gallery_panel(
    panel: SubFigure,
    inputs: np.ndarray,
    captions: Sequence[str],
    *,
    image_shape: tuple[int, ...] | None,
    feature_names: Sequence[str] | None = None,
    title: str,
) -> None:
    """Draw the first rows into a part of a figure: at most 12 pictures, or 4 rows of features."""
    inputs = np.asarray(inputs, dtype=np.float64)[:12]
    shape = image_shape or image_shape_of(inputs.shape[1:])
    scores = None if shape else _standard_scores(inputs, None)
    shown, columns = (inputs, 4) if shape else (inputs[:4], 2)
    rows = max(1, -(-len(shown) // columns))
    panel.suptitle(title, color=INK, fontsize=10, x=0.02, ha="left", fontweight="bold")
    _fill(panel, (rows, columns), shown, captions, shape, scores, feature_names)


def image_shape_of(shape: Sequence[int]) -> tuple[int, ...] | None:
    """Guess how a row of this shape is a picture: [h, w], [c, h, w], or a flat square; else None.

    A flat row must have at least 49 = 7 x 7 values: a table of 4 or 9 columns is not a picture.
    """
    shape = tuple(shape)
    if len(shape) == 3 and (shape[0] in (1, 3) or shape[2] in (1, 3)):
        return shape
    if len(shape) == 2 and min(shape) >= 4 and max(shape) <= 4 * min(shape):
        return shape
    if len(shape) == 1:
        side = isqrt(shape[0])
        if side >= 7 and side * side == shape[0]:
            return (side, side)
    return None


def _fill(
    panel: Figure | SubFigure,
    size: tuple[int, int],
    inputs: np.ndarray,
    captions: Sequence[str],
    shape: tuple[int, ...] | None,
    scores: np.ndarray | None,
    names: Sequence[str] | None,
) -> None:
    """Fill a grid (rows, columns): pictures of a shape, or bars of the scores."""
    grid, columns = panel.add_gridspec(*size), size[1]
    for index, row in enumerate(inputs):
        axes = panel.add_subplot(grid[index // columns, index % columns])
        if shape:
            _picture(axes, row, shape)
        elif scores is not None:
            _bars(axes, scores[index], names)
        axes.set_title(plain(captions[index]), fontsize=8, color=INK, pad=3)


def _picture(axes: Axes, row: np.ndarray, shape: tuple[int, ...]) -> None:
    if row.size != int(np.prod(shape)):
        raise ShapeError(f"a row of {row.size} values is no picture of shape {shape}")
    image = row.reshape(shape)
    if image.ndim == 3 and image.shape[0] in (1, 3):
        image = np.moveaxis(image, 0, -1)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim == 3:
        low, high = float(image.min()), float(image.max())
        image = (image - low) / (high - low or 1.0)
    options: dict[str, Any] = {} if image.ndim == 3 else {"cmap": "gray_r"}
    axes.imshow(image, interpolation="nearest", **options)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _bars(axes: Axes, scores: np.ndarray, names: Sequence[str] | None) -> None:
    dressed(axes)
    top = np.argsort(-np.abs(scores), kind="stable")[:MAX_BARS][::-1]
    colors = [ATTENTION if abs(value) > 2 else CONTROL for value in scores[top]]
    axes.barh(np.arange(top.size), scores[top], color=colors, height=0.7)
    labels = [plain(names[i])[:14] if names is not None else f"x{i}" for i in top]
    axes.set_yticks(np.arange(top.size), labels, fontsize=7)
    axes.axvline(0.0, color=INK, linewidth=0.6)
    axes.set_xlabel("standard deviations", fontsize=7)
    axes.tick_params(labelsize=7)


def _standard_scores(rows: np.ndarray, background: np.ndarray | None) -> np.ndarray:
    flat = rows.reshape(len(rows), -1)
    base = (
        flat if background is None else np.asarray(background, float).reshape(len(background), -1)
    )
    spread = base.std(axis=0)
    return (flat - base.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
