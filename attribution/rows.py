"""Rows of data as batches: (inputs, targets) arrays, or any map-style Dataset of such pairs.

It knows positions, never ids. Inputs are one array [n, ...] or a mapping of arrays that the model
takes as keyword arguments; targets are int64 class indices or float32 numbers [n].

Items of a Dataset may be sequences of whole numbers of several lengths: those that are taken
together are padded at the end to the longest, inputs with `PADDING` and targets with `UNASKED`.
Training takes all rows together, features a batch at a time, so a model must not mind how much
padding follows a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from attribution.outputs import UNASKED
from attribution.textual import PADDING
from schemas.errors import DataError, RecipeError, ShapeError

Inputs = Tensor | dict[str, Tensor]


class MapStyle(Protocol):
    """A data set whose items are (input, target); an input may be a mapping."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...


# Inputs [n, ...] or a mapping of them, and targets [n], as tensors or arrays; or a Dataset.
Source = tuple[Any, Any] | MapStyle


class Rows:
    """A checked view of a data set; nothing is copied until a batch is asked for.

    Args:
        source: (inputs, targets) as tensors or arrays, or an object with ``__len__`` and
            ``__getitem__`` whose items are (input, target).
        name: What messages call it, e.g. "train".

    Raises:
        ShapeError: It is neither, it is empty, or inputs and targets differ in length.
    """

    def __init__(self, source: Any, name: str) -> None:
        self.name = name
        self._dataset: Any = None
        if isinstance(source, Rows):
            self.__dict__.update(source.__dict__)
            return
        if isinstance(source, tuple | list) and len(source) == 2:
            self._inputs: Inputs = tensors(source[0], name)
            self._targets = _tensor(source[1], name)
            n_inputs, n_targets = n_rows(self._inputs), len(self._targets)
            if n_inputs != n_targets:
                raise ShapeError(
                    f"{name} has {n_inputs} inputs and {n_targets} targets; give one for each row"
                )
            self._length = n_inputs
        elif hasattr(source, "__getitem__") and hasattr(source, "__len__"):
            self._dataset, self._length = source, len(source)
        else:
            raise ShapeError(
                f"{name} is a {type(source).__name__}; give (inputs, targets) or a map-style "
                "Dataset of (input, target)"
            )
        if self._length == 0:
            raise ShapeError(f"{name} has no rows; give at least one")

    def __len__(self) -> int:
        return self._length

    def batch(self, start: int, stop: int) -> tuple[Inputs, Tensor]:
        """Rows start..stop on the host, targets as int64 or floating [rows].

        Raises:
            DataError: An input is NaN or infinite; the message names the row.
            ShapeError: Targets are neither one number a row nor one class index a token, or items
                of a Dataset differ in shape and are no sequences of whole numbers.
        """
        if self._dataset is None:
            inputs, targets = take(self._inputs, slice(start, stop)), self._targets[start:stop]
        else:
            inputs, targets = self._collated(range(start, stop))
        self._refuse_bad_numbers(inputs, start)
        # A Dataset's whole numbers in a sequence are a document, be it of one token.
        column = self._dataset is None or targets.is_floating_point()
        if column and targets.ndim == 2 and targets.shape[1] == 1:
            targets = targets[:, 0]
        if targets.ndim != 1 and (targets.ndim != 2 or targets.is_floating_point()):
            raise ShapeError(
                f"{self.name} targets have shape {tuple(targets.shape)}; give one class index or "
                "one number for each row, or a class index for each token"
            )
        return inputs, targets if targets.is_floating_point() else targets.long()

    def batches(self, batch_size: int) -> Iterator[tuple[slice, Inputs, Tensor]]:
        """All rows in order, as (positions, inputs, targets)."""
        for start in range(0, len(self), batch_size):
            stop = min(start + batch_size, len(self))
            yield (slice(start, stop), *self.batch(start, stop))

    def whole(self) -> tuple[Inputs, Tensor]:
        """All rows at once, as `batch` gives some."""
        return self.batch(0, len(self))

    def _collated(self, rows: range) -> tuple[Inputs, Tensor]:
        inputs, targets = zip(*(self._dataset[row] for row in rows), strict=True)
        if isinstance(inputs[0], Mapping):
            together: Inputs = {
                name: self._stacked([row[name] for row in inputs], rows, PADDING)
                for name in inputs[0]
            }
        else:
            together = self._stacked(inputs, rows, PADDING)
        return together, self._stacked(targets, rows, UNASKED)

    def _stacked(self, values: Sequence[Any], rows: range, padding: int) -> Tensor:
        tensors = [torch.as_tensor(value) for value in values]
        first = tensors[0].shape
        odd = next((place for place, each in enumerate(tensors) if each.shape != first), None)
        if odd is None:
            return torch.stack(tensors)
        if any(each.ndim != 1 or each.is_floating_point() for each in tensors):
            raise ShapeError(
                f"{self.name} rows {rows[0]} and {rows[odd]} have shapes {tuple(first)} and "
                f"{tuple(tensors[odd].shape)}; give one shape, or sequences of whole numbers, "
                "which are padded"
            )
        return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding)

    def _refuse_bad_numbers(self, inputs: Inputs, start: int) -> None:
        for values in inputs.values() if isinstance(inputs, Mapping) else (inputs,):
            if not values.is_floating_point():
                continue
            good = (
                torch.isfinite(values).flatten(1).all(1)
                if values.ndim > 1
                else (torch.isfinite(values))
            )
            if not bool(good.all()):
                row = start + int((~good).nonzero()[0, 0])
                raise DataError(
                    f"{self.name} row {row} (counted from 0) holds NaN or infinity; "
                    "drop or repair it"
                )


def tensors(source: Any, name: str) -> Inputs:
    """Inputs as tensors, from an array or a mapping of arrays.

    Raises:
        ShapeError: A value is no array of numbers, or those of a mapping differ in length.
    """
    if isinstance(source, Mapping):
        named = {key: _tensor(values, name) for key, values in source.items()}
        if len({len(values) for values in named.values()}) != 1:
            lengths = {key: len(values) for key, values in named.items()}
            raise ShapeError(f"{name} inputs differ in length: {lengths}; give n rows of each")
        return named
    return _tensor(source, name)


def n_rows(inputs: Inputs) -> int:
    """How many examples a batch of inputs holds."""
    if isinstance(inputs, Mapping):
        return len(next(iter(inputs.values())))
    return len(inputs)


def take(inputs: Inputs, rows: slice | int | Tensor) -> Inputs:
    """Some rows of inputs, as a tensor is indexed."""
    if isinstance(inputs, Mapping):
        return {name: values[rows] for name, values in inputs.items()}
    return inputs[rows]


def to(inputs: Inputs, device: str, dtype: torch.dtype) -> Inputs:
    """Inputs on a device; floating ones in a type, tokens as they are."""
    if isinstance(inputs, Mapping):
        return {name: _to(values, device, dtype) for name, values in inputs.items()}
    return _to(inputs, device, dtype)


def call(model: nn.Module, inputs: Inputs) -> Tensor:
    """The model's logits [n, K], or [n, T, K] where it answers for each token.

    Raises:
        RecipeError: The model returns something else.
    """
    logits = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    if not isinstance(logits, Tensor) or logits.ndim not in (2, 3):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise RecipeError(
            f"the model returned {found}; it must return one tensor [n, outputs] for n rows, or "
            "[n, tokens, outputs]"
        )
    return logits


def call_at(model: nn.Module, weights: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
    """What the model returns with other weights, for use inside ``torch.func`` transforms."""
    if isinstance(inputs, Mapping):
        return functional_call(model, dict(weights), (), dict(inputs))
    return functional_call(model, dict(weights), (inputs,))


def _to(values: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    return values.to(device, dtype if values.is_floating_point() else values.dtype)


def _tensor(source: Any, name: str) -> Tensor:
    if isinstance(source, Tensor):
        tensor = source.detach()
    else:
        array = np.asarray(source)
        if array.dtype.kind not in "biuf":
            raise ShapeError(f"{name} has values of type {array.dtype}; give numbers")
        # Torch warns about read-only arrays (memory maps); it is never written to, but a warning
        # is an error in tests, and a filter would not be safe between threads.
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if tensor.ndim == 0:
        raise ShapeError(f"{name} is a single number; give one row for each example")
    return tensor
