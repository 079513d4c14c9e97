"""A row's input as a few lines: a picture in shades, a text of bytes; nothing for numbers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.spec import DataSpec
from store.datasets import StoredDataset

# From paper to ink; two characters a pixel, for a character is twice as high as wide.
SHADES = " .:-=+*#%@"
LARGEST = 16
SNIPPET = 72
# Sources whose flat rows are square pictures.
SQUARE = ("sklearn:digits",)


def glimpses(dataset: StoredDataset, data: DataSpec, ids: list[int]) -> dict[int, list[str]]:
    """Lines that show the input of some rows, by id; none where an input has no look.

    Args:
        dataset: The rows.
        data: Where they came from.
        ids: Their ids.
    """
    rows = dataset.subset(ids)
    if data.text is not None and data.text.tokens == "bytes":
        return {row: [_text(tokens)] for row, tokens in zip(ids, rows.inputs, strict=True)}
    if data.text is not None:
        return {}
    found = {}
    for row, values in zip(ids, rows.inputs, strict=True):
        picture = _picture(np.asarray(values), square=data.source in SQUARE)
        if picture is not None:
            found[row] = _shaded(picture)
    return found


def _text(tokens: NDArray[Any]) -> str:
    """The text of byte tokens, cut; a byte is its number less one, and 0 is padding."""
    raw = bytes((tokens[tokens > 0] - 1).astype(np.uint8).tolist())
    text = " ".join(raw.decode("utf-8", errors="replace").split())
    return text if len(text) <= SNIPPET else text[: SNIPPET - 1] + "…"


def _picture(values: NDArray[Any], *, square: bool) -> NDArray[np.float64] | None:
    """The brightness of a picture [height, width], or None."""
    if values.ndim == 1 and square:
        side = round(len(values) ** 0.5)
        values = values.reshape(side, side)
    if values.ndim == 3:  # channels first, or last where those are few
        values = values.mean(axis=-1 if values.shape[-1] <= 4 else 0)
    return values.astype(np.float64) if values.ndim == 2 else None


def _shaded(picture: NDArray[np.float64]) -> list[str]:
    step = max(1, -(-max(picture.shape) // LARGEST))
    height, width = (size // step * step for size in picture.shape)
    blocks = picture[:height, :width].reshape(height // step, step, width // step, step)
    small = blocks.mean(axis=(1, 3))
    low, spread = float(small.min()), float(np.ptp(small)) or 1.0
    levels = ((small - low) / spread * (len(SHADES) - 1)).round().astype(int)
    return ["".join(2 * SHADES[level] for level in row).rstrip() or " " for row in levels.tolist()]
