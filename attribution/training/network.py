"""A chain of layers as tables of addresses, for the compiled kernels.

Between two stages an example is a picture [height, width, channels], channels padded to whole
vectors, with a border of zeros where the next convolution pads. A vector is a picture of one
pixel. Weights are stored as [taps, outputs], outputs padded with zeros that stay zero. One room of
numbers holds all pictures of one batch: what goes into each stage, what comes out before pooling,
the derivatives by both, and the weights turned over for the way back.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from attribution.training import kernels
from attribution.training.chain import Link, Sides, chain_of
from attribution.training.optimizers import Layout

Table = npt.NDArray[np.int64]


def product_reference(
    a: npt.NDArray[np.floating],
    p: Table,
    q: Table,
    b: npt.NDArray[np.floating],
    s: Table,
    c: npt.NDArray[np.floating],
    r: Table,
    wide: int,
    beta: float,
) -> npt.NDArray[np.floating]:
    """What `kernels.product` leaves in ``c``, the slow way."""
    lanes = np.arange(wide)
    into = r[:, None] + lanes
    after = c.copy()
    after[into] = beta * c[into] + a[p[:, None] + q] @ b[s[:, None] + lanes]
    return after


@dataclass(frozen=True, kw_only=True)
class Network:
    """A chain that `kernels.train_epoch` runs.

    Args:
        stages: Records of `kernels.STAGE`.
        tables: Addresses.
        layout: Where each parameter lies in a model's row of numbers.
        room: Numbers between the links of one batch.
        winners: Places of the pooling windows of one batch.
        first_rows: Rows of the first product of one batch.
        picture: Channels, height and width of an example.
        border: Zeros above and left of an example.
        batch_size: Rows of the largest batch.
    """

    stages: npt.NDArray[np.void]
    tables: Table
    layout: Layout
    room: int
    winners: int
    first_rows: int
    picture: tuple[int, int, int]
    border: tuple[int, int]
    batch_size: int

    def examples(self, inputs: Tensor) -> Tensor:
        """Inputs as the first stage reads them: [n, height, width, channels] with its border."""
        pictures = inputs.reshape(len(inputs), *self.picture).permute(0, 2, 3, 1)
        (top, left), (_, height, width) = self.border, self.picture
        bordered = inputs.new_zeros(
            (len(inputs), height + 2 * top, width + 2 * left, self.picture[0])
        )
        bordered[:, top : top + height, left : left + width] = pictures
        return bordered.reshape(len(inputs), -1)


def network_of(
    model: nn.Module, input_shape: Sequence[int], batch_size: int, dtype: torch.dtype
) -> Network | None:
    """The chain of a model, or None where it is no chain of what the kernels know.

    That is a chain of `attribution.training.chain` in float32 or float64.
    """
    if dtype not in (torch.float32, torch.float64):
        return None
    links = chain_of(model, tuple(input_shape))
    return None if links is None else _Writer(links, batch_size, dtype).network()


@dataclass
class _Picture:
    """Addresses of a batch of pictures in the room, with borders."""

    start: int
    height: int
    width: int
    channels: int

    @property
    def size(self) -> int:
        return self.height * self.width * self.channels

    def grid(self, rows: Table, columns: Table) -> Table:
        """Addresses [len(rows) * len(columns)] of pixels within one picture."""
        return ((rows[:, None] * self.width + columns) * self.channels).reshape(-1)

    def batch(self, places: Table, n: int) -> Table:
        """Addresses [n * len(places)] of the same places in all pictures."""
        return (self.start + np.arange(n)[:, None] * self.size + places).reshape(-1)


@dataclass
class _Writer:
    """Writes the stages of a chain."""

    links: list[Link]
    batch_size: int
    dtype: torch.dtype
    pieces: list[Table] = field(default_factory=list)
    written: int = 0
    room: int = 0
    winners: int = 0
    params: int = 0

    def network(self) -> Network:
        layout: dict[str, tuple[int, tuple[int, ...]]] = {}
        stages = np.zeros(len(self.links), dtype=kernels.STAGE)
        inputs = [self._input(number, link) for number, link in enumerate(self.links)]
        for number, link in enumerate(self.links):
            stage = stages[number]
            self._parameters(stage, link, layout)
            self._taps(stage, link, inputs[number], first=number == 0)
            into = inputs[number + 1] if number + 1 < len(self.links) else None
            above = self.links[number + 1] if into is not None else None
            self._outputs(stage, link, into, (0, 0) if above is None else above.padding)
            deltas = self._deltas(stage, link, first=number == 0)
            if number:
                self._way_back(stage, link, inputs[number], deltas)
        first = self.links[0]
        return Network(
            stages=stages,
            tables=np.concatenate(self.pieces),
            layout=Layout(size=self.params, places=layout),
            room=self.room,
            winners=self.winners,
            first_rows=self.batch_size * math.prod(first.made),
            picture=(first.channels, *first.sides),
            border=first.padding,
            batch_size=self.batch_size,
        )

    def _input(self, number: int, link: Link) -> _Picture:
        height, width = (side + 2 * pad for side, pad in zip(link.sides, link.padding, strict=True))
        if number == 0:
            return _Picture(0, height, width, link.channels)
        return self._picture(height, width, link.channels)

    def _parameters(
        self, stage: Any, link: Link, layout: dict[str, tuple[int, tuple[int, ...]]]
    ) -> None:
        wide, weight = self._padded(link.outputs), link.module.weight
        stage["outputs"], stage["wide"] = link.outputs, wide
        stage["n_taps"] = weight[0].numel()
        stage["activation"] = link.activation
        stage["weight"], stage["bias"] = self.params, -1
        inner = [wide * step for step in weight[0].contiguous().stride()]
        layout[f"{link.name}weight"] = (self.params, (1, *inner))
        self.params += stage["n_taps"] * wide
        if link.module.bias is not None:
            stage["bias"] = self.params
            layout[f"{link.name}bias"] = (self.params, (1,))
            self.params += wide

    def _taps(self, stage: Any, link: Link, into: _Picture, *, first: bool) -> None:
        """Windows of the input, and the places at which they start."""
        window = _inside(into, link.window, (0, 0))
        # In the order of the weight: channel, row, column.
        taps = np.arange(link.channels)[:, None] + window
        stage["taps"] = self._table(taps.reshape(-1))
        stage["lines"] = self._table(np.arange(stage["n_taps"]) * stage["wide"])
        places = _inside(into, link.made, (0, 0), link.stride)
        stage["places"] = len(places)
        stage["in_rows"] = self._table(places if first else into.batch(places, self.batch_size))

    def _outputs(self, stage: Any, link: Link, into: _Picture | None, border: Sides) -> None:
        """Where the rows of the product go: to the next stage, or to be pooled on the way."""
        if into is None or link.pool is None:
            own = into or self._picture(*link.made, link.outputs)
            places = _inside(own, link.made, border)
        else:
            own = self._picture(*link.made, link.outputs)
            places = _inside(own, link.made, (0, 0))
            kept = into.batch(_inside(into, link.pooled, border), self.batch_size)
            stage["next_rows"] = self._table(kept)
            windows = _windows(places, link)
            stage["pool_out"] = self._table(own.batch(windows, self.batch_size))
            stage["pooled"], stage["window"] = math.prod(link.pooled), math.prod(link.pool)
            stage["averaged"] = link.averaged
            stage["winners"] = self.winners
            self.winners += len(kept) * int(stage["wide"])
        stage["out_rows"] = self._table(own.batch(places, self.batch_size))

    def _deltas(self, stage: Any, link: Link, *, first: bool) -> _Picture:
        """The derivative by the outputs, spread by the stride, with the border of the way back."""
        if first or isinstance(link.module, nn.Linear):
            deltas = self._picture(*link.made, link.outputs)
            places = _inside(deltas, link.made, (0, 0))
        else:
            tall, broad = link.window
            deltas = self._picture(
                link.sides[0] + tall - 1, link.sides[1] + broad - 1, link.outputs
            )
            border = (tall - 1 - link.padding[0], broad - 1 - link.padding[1])
            places = _inside(deltas, link.made, border, link.stride)
        stage["delta_rows"] = self._table(deltas.batch(places, self.batch_size))
        if link.pool is not None:
            windows = deltas.batch(_windows(places, link), self.batch_size)
            stage["pool_delta"] = self._table(windows)
        return deltas

    def _way_back(self, stage: Any, link: Link, into: _Picture, deltas: _Picture) -> None:
        """A convolution of the derivatives with the weights turned over; a linear layer's rows."""
        channels = np.arange(link.channels)[:, None]
        if isinstance(link.module, nn.Conv2d):
            wide = line = into.channels
            window = _inside(deltas, link.window, (0, 0))
            taps = (window[:, None] + np.arange(link.outputs)).reshape(-1)
            places = _inside(deltas, link.sides, (0, 0))
            turned = channels + np.arange(len(window))[::-1] * (link.outputs * line)
        else:
            wide, places = into.size, np.zeros(1, dtype=np.int64)
            # One vector more a line: lines of a power of two would share a few cache sets.
            line = wide + self._padded(1)
            taps = np.arange(link.outputs)
            turned = channels + _inside(into, link.sides, (0, 0))
        stage["in_wide"], stage["back_places"], stage["n_back"] = wide, len(places), len(taps)
        stage["turned"] = self._take(len(taps) * line)
        stage["line"] = line
        stage["turned_rows"] = self._table(turned.reshape(-1))
        stage["back_taps"] = self._table(taps)
        stage["back_lines"] = self._table(stage["turned"] + np.arange(len(taps)) * line)
        stage["back_rows"] = self._table(deltas.batch(places, self.batch_size))
        stage["grad"] = self._take(self.batch_size * len(places) * wide)
        grads = stage["grad"] + np.arange(self.batch_size * len(places)) * wide
        stage["grad_rows"] = self._table(grads)

    def _picture(self, height: int, width: int, channels: int) -> _Picture:
        wide = self._padded(channels)
        start = self._take(self.batch_size * height * width * wide)
        return _Picture(start, height, width, wide)

    def _padded(self, channels: int) -> int:
        lanes = kernels.VECTOR_BYTES // self.dtype.itemsize
        return -(-channels // lanes) * lanes

    def _take(self, size: int) -> int:
        start, self.room = self.room, self.room + int(size)
        return start

    def _table(self, numbers: Table) -> int:
        start, self.written = self.written, self.written + len(numbers)
        self.pieces.append(np.asarray(numbers, dtype=np.int64))
        return start


def _inside(picture: _Picture, size: Sides, border: Sides, step: Sides = (1, 1)) -> Table:
    """Addresses of size[0] * size[1] pixels that start at a border, some steps apart."""
    rows, columns = (
        start + by * np.arange(n) for start, by, n in zip(border, step, size, strict=True)
    )
    return picture.grid(rows, columns)


def _windows(places: Table, link: Link) -> Table:
    """Of the places of a picture, those of each pooling window in turn."""
    (rows, columns), (tall, broad) = link.pooled, link.pool or (1, 1)
    grid = places.reshape(link.made)[: rows * tall, : columns * broad]
    return grid.reshape(rows, tall, columns, broad).transpose(0, 2, 1, 3).reshape(-1)
