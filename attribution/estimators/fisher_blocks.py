"""The blocks of a Fisher matrix: what each gathers, its eigenbasis, and the turn into it.

For a layer with inputs a_t and output gradients delta_t at positions t, G = sum_t delta_t a_t^T:
A = E sum_t a_t a_t^T with the bias as a column of ones in a, B = E sum_t delta_t delta_t^T / T.
With their eigenvectors Q_A and Q_B the rotated gradient is Q_B^T G Q_A. An embedding's inputs are
one-hot, so its Q_A is the identity; norms, grouped convolutions and other parameters of a module up
to `DENSE_LIMIT` entries have an exact dense block, larger ones a diagonal.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from attribution.gradients import GradientBlocks, OuterLayer
from attribution.gradients.layers import Rule, sides
from schemas.errors import DataError

# A dense block costs the cube of its size: 0.3 s for 1024 entries on one core.
DENSE_LIMIT = 1024


class Block(Protocol):
    """Some parameters that the Fisher matrix ties to one another and to no others.

    Attributes:
        size: How many.
    """

    size: int

    def gather(self, blocks: GradientBlocks) -> None:
        """Add one batch, at drawn labels, to the factors."""
        ...

    def settle(self, n_rows: int, n_passes: int) -> Tensor:
        """Find the eigenbases; the factored eigenvalues [size]."""
        ...

    def rotate(self, blocks: GradientBlocks) -> Tensor:
        """A batch of gradients in the eigenbases, [B, size]."""
        ...

    def turn(self, vectors: Tensor) -> Tensor:
        """The same of flat vectors [b, p]; entries that no row has a gradient in give 0."""
        ...

    def turn_back(self, rotated: Tensor, out: Tensor) -> None:
        """Write rotated vectors [b, size] to their places in flat ones [b, p]."""
        ...


class OuterBlock:
    """Linear or convolution: both factors."""

    def __init__(self, layer: OuterLayer) -> None:
        self.layer, self.size = layer, layer.size
        self._a: Any = 0.0
        self._b: Any = 0.0
        self._rows: Tensor | None = None
        self._columns: Tensor | None = None

    def gather(self, blocks: GradientBlocks) -> None:  # noqa: D102
        deltas, inputs = [], []
        for use, _ in blocks.uses_of(self.layer.name):
            left, right = (side.squeeze(1) for side in sides(use))
            if self.layer.bias_name is not None:
                right = torch.cat([right, torch.ones_like(right[:, :1])], dim=1)
            if blocks.asked is not None and blocks.asked.shape[1] == right.shape[2]:
                # No gradient comes from padding, whose inputs would only blur the factor.
                right = right * blocks.asked[:, None]
            deltas.append(left)
            inputs.append(right)
        if not deltas:
            return
        delta = torch.cat(deltas, dim=2).transpose(0, 1).flatten(1)
        given = torch.cat(inputs, dim=2).transpose(0, 1).flatten(1)
        positions = float(sum(part.shape[2] for part in deltas))
        if blocks.asked is not None:  # as many on average as there are tokens asked for
            positions *= float(blocks.asked.double().mean())
        self._a = self._a + (given @ given.T).double()
        self._b = self._b + (delta @ delta.T).double() / positions

    def settle(self, n_rows: int, n_passes: int) -> Tensor:  # noqa: D102
        if not isinstance(self._a, Tensor):
            return torch.zeros(self.size, dtype=torch.float64)
        columns, self._columns = _eigh(self._a / (n_rows * n_passes))
        rows, self._rows = _eigh(self._b / n_rows)
        self._a = self._b = 0.0
        return torch.outer(rows.clamp(min=0), columns.clamp(min=0)).flatten()

    def rotate(self, blocks: GradientBlocks) -> Tensor:  # noqa: D102
        zero = blocks.template.new_zeros(blocks.n_rows, self.size)
        if self._rows is None or self._columns is None:
            return zero
        left, right, bias = self._rows.to(zero), self._columns.to(zero), None
        if self.layer.bias_name is not None:
            right, bias = right[:-1], right[-1]
        found = blocks.project(self.layer, left, right, bias)
        return zero if found is None else found.flatten(1)

    def turn(self, vectors: Tensor) -> Tensor:  # noqa: D102
        if self._rows is None or self._columns is None:
            return vectors.new_zeros(len(vectors), self.size)
        layer, columns = self.layer, self._columns.to(vectors)
        flat = vectors[:, layer.offset : layer.offset + layer.rows * layer.columns]
        matrix = flat.reshape(len(vectors), layer.rows, layer.columns)
        if layer.bias_offset is not None:
            bias = vectors[:, layer.bias_offset : layer.bias_offset + layer.rows]
            matrix = torch.cat([matrix, bias.unsqueeze(2)], dim=2)
        return (self._rows.to(vectors).T @ matrix @ columns).flatten(1)

    def turn_back(self, rotated: Tensor, out: Tensor) -> None:  # noqa: D102
        if self._rows is None or self._columns is None:
            return
        layer, columns = self.layer, self._columns.to(rotated)
        matrix = self._rows.to(rotated) @ rotated.reshape(len(rotated), layer.rows, -1) @ columns.T
        if layer.bias_offset is not None:
            out[:, layer.bias_offset : layer.bias_offset + layer.rows] = matrix[:, :, -1]
            matrix = matrix[:, :, :-1]
        out[:, layer.offset : layer.offset + layer.rows * layer.columns] = matrix.flatten(1)


class TableBlock:
    """Embedding: a row for each token, whose gradients share the factor of the columns."""

    def __init__(self, layer: OuterLayer) -> None:
        self.layer, self.size = layer, layer.size
        self._b: Any = 0.0
        self._tokens: Any = 0.0
        self._columns: Tensor | None = None

    def gather(self, blocks: GradientBlocks) -> None:  # noqa: D102
        found = blocks.project(self.layer, None, None, None)
        if found is not None:
            flat = found.flatten(0, 1)
            self._b = self._b + (flat.T @ flat).double()
            self._tokens = self._tokens + found.double().square().sum((0, 2))

    def settle(self, n_rows: int, n_passes: int) -> Tensor:  # noqa: ARG002, D102
        if not isinstance(self._b, Tensor):
            return torch.zeros(self.size, dtype=torch.float64)
        columns, self._columns = _eigh(self._b / n_rows)
        shares = self._tokens / self._tokens.sum().clamp(min=torch.finfo(torch.float64).tiny)
        self._b = self._tokens = 0.0
        return torch.outer(shares, columns.clamp(min=0)).flatten()

    def rotate(self, blocks: GradientBlocks) -> Tensor:  # noqa: D102
        zero = blocks.template.new_zeros(blocks.n_rows, self.size)
        if self._columns is None:
            return zero
        found = blocks.project(self.layer, None, self._columns.to(zero), None)
        return zero if found is None else found.flatten(1)

    def turn(self, vectors: Tensor) -> Tensor:  # noqa: D102
        if self._columns is None:
            return vectors.new_zeros(len(vectors), self.size)
        flat = vectors[:, self.layer.offset : self.layer.offset + self.size]
        return (flat.unflatten(1, (self.layer.rows, -1)) @ self._columns.to(vectors)).flatten(1)

    def turn_back(self, rotated: Tensor, out: Tensor) -> None:  # noqa: D102
        if self._columns is None:
            return
        table = rotated.unflatten(1, (self.layer.rows, -1)) @ self._columns.to(rotated).T
        out[:, self.layer.offset : self.layer.offset + self.size] = table.flatten(1)


class SmallBlock:
    """Parameters with one dense matrix E[g g^T] (few of them) or its diagonal (many).

    Args:
        names: Of the parameters.
        columns: Where each lies in the flat gradient.
    """

    def __init__(self, names: tuple[str, ...], columns: tuple[slice, ...]) -> None:
        self.names, self._columns = names, columns
        size = self.size = sum(part.stop - part.start for part in columns)
        self.dense = size <= DENSE_LIMIT
        self._b: Any = 0.0
        self._basis: Tensor | None = None

    def gather(self, blocks: GradientBlocks) -> None:  # noqa: D102
        flat = self._plain(blocks)
        self._b = self._b + (
            (flat.T @ flat).double() if self.dense else flat.double().square().sum(0)
        )

    def settle(self, n_rows: int, n_passes: int) -> Tensor:  # noqa: ARG002, D102
        found = self._b / n_rows
        self._b = 0.0
        if not self.dense:
            return found
        values, self._basis = _eigh(found)
        return values.clamp(min=0)

    def rotate(self, blocks: GradientBlocks) -> Tensor:  # noqa: D102
        flat = self._plain(blocks)
        return flat if self._basis is None else flat @ self._basis.to(flat)

    def turn(self, vectors: Tensor) -> Tensor:  # noqa: D102
        flat = torch.cat([vectors[:, part] for part in self._columns], dim=1)
        return flat if self._basis is None else flat @ self._basis.to(flat)

    def turn_back(self, rotated: Tensor, out: Tensor) -> None:  # noqa: D102
        flat = rotated if self._basis is None else rotated @ self._basis.to(rotated).T
        parts = flat.split([part.stop - part.start for part in self._columns], dim=1)
        for columns, part in zip(self._columns, parts, strict=True):
            out[:, columns] = part

    def _plain(self, blocks: GradientBlocks) -> Tensor:
        parts = [part for name in self.names for _, part in blocks.parameter(name)]
        return torch.cat(parts, dim=1)


def blocks_of(blocks: GradientBlocks) -> tuple[Block, ...]:
    """The blocks of a model, of which `blocks` is any batch."""
    found: list[Block] = []
    covered: set[str] = set()
    for layer in blocks.outer_layers():
        rules = {use.rule for use, _ in blocks.uses_of(layer.name)}
        if len(rules) > 1:
            continue  # an embedding tied to a linear layer: no common factors
        table = rules == {Rule.LOOKUP}
        found.append(TableBlock(layer) if table else OuterBlock(layer))
        covered |= {layer.name} | ({layer.bias_name} if layer.bias_name else set())
    places = zip(blocks.layout.names, blocks.layout.offsets, blocks.layout.shapes, strict=True)
    columns = {
        name: slice(offset, offset + shape.numel())
        for name, offset, shape in places
        if name not in covered
    }
    modules: dict[str, list[str]] = {}
    for name in columns:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    small = (
        SmallBlock(tuple(names), tuple(columns[name] for name in names))
        for names in modules.values()
    )
    return (*found, *small)


def refuse_overflow(values: Tensor) -> None:
    """Raise DataError where a value is NaN or infinite."""
    if not bool(torch.isfinite(values).all()):
        raise DataError(
            "the Fisher matrix holds NaN or infinity; the model overflows on a training row: "
            "train the checkpoint again, or use dtype=torch.float64"
        )


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    refuse_overflow(matrix)
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors
