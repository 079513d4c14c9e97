"""What a model's layer is given: the last hidden representation [n, d] of each row.

By default the input of the linear layer that is called last, its head; or of any module, by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attribution.estimators.features import batch_rows
from attribution.estimators.request import Request
from attribution.gradients import layout_of
from attribution.gradients.perexample import private_copy
from attribution.gradients.plan import register
from attribution.outputs import UNASKED
from attribution.rows import Inputs, Rows, call, to
from schemas.errors import DataError, NotFound, RecipeError


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """Rows before and after the head.

    Attributes:
        inputs: What the layer was given, [n, d].
        logits: What the model returned, [n, K]; [0, K] unless asked for.
        targets: [n].
    """

    inputs: Tensor
    logits: Tensor
    targets: Tensor


class HiddenLayer:
    """A model at one checkpoint whose layer's inputs are kept.

    Args:
        model: Maps rows to logits [n, K]; copied, in eval mode.
        state: The checkpoint.
        rows: One or more rows to find the layer with.
        layer: Name of a module, or None for the linear layer that is called last.
        device: "cpu" or "cuda".
        dtype: Of weights and activations.

    Attributes:
        name: The layer's.
        module: The layer, of the copy.

    Raises:
        NotFound: There is no module of that name.
        RecipeError: No linear layer is called; name another.
    """

    def __init__(
        self,
        model: nn.Module,
        state: Mapping[str, Any],
        rows: Rows,
        *,
        layer: str | None,
        device: str,
        dtype: torch.dtype,
    ) -> None:
        self._model = private_copy(model, state, device=device, dtype=dtype)
        self._device, self._dtype = device, dtype
        self._size = layout_of(model).size
        modules = dict(self._model.named_modules())
        if layer is not None and layer not in modules:
            known = ", ".join(name for name in modules if name)
            raise NotFound(f"the model has no module {layer!r}; its modules: {known}")
        self.name = layer if layer is not None else self._last_linear(rows)
        self.module = modules[self.name]

    @classmethod
    def of(
        cls, request: Request, state: Mapping[str, Any], *, layer: str | None = None
    ) -> "HiddenLayer":
        """The layer of a request's model at one of its checkpoints."""
        return cls(
            request.model,
            state,
            request.train,
            layer=layer,
            device=request.device,
            dtype=request.dtype,
        )

    def run(self, rows: Rows, batch_size: int | str, *, with_logits: bool = False) -> Hidden:
        """The representation of each row: of several positions [T, d] the mean, of maps all.

        Of a document only the tokens whose prediction is asked for count.

        Raises:
            RecipeError: The layer is not called once in each pass, or gets no tensor [n, ..., d].
            DataError: A representation or a logit is NaN or infinite.
        """
        inputs, logits, targets = [], [], []
        for positions, batch, wanted in rows.batches(batch_rows(batch_size, self._size)):
            given, returned = self._pass(batch)
            if len(given) != 1 or given[0].ndim < 2 or len(given[0]) != len(wanted):
                raise RecipeError(
                    f"layer {self.name!r} is called {len(given)} times in a pass, or is not given "
                    "[n, ..., d] for n rows; name another layer"
                )
            hidden = self._flat(given[0], wanted.to(self._device))
            bad = ~(torch.isfinite(hidden).all(1) & torch.isfinite(returned).flatten(1).all(1))
            if bool(bad.any()):
                row = positions.start + int(bad.nonzero()[0, 0])
                raise DataError(
                    f"the representation of {rows.name} row {row} (counted from 0) is NaN or "
                    "infinite; the model overflows on it: look at the row, or train the checkpoint "
                    "again"
                )
            inputs.append(hidden)
            logits.append(returned if with_logits else returned[:0])
            targets.append(wanted.to(self._device))
        return Hidden(
            inputs=torch.cat(inputs), logits=torch.cat(logits), targets=torch.cat(targets)
        )

    def _flat(self, given: Tensor, targets: Tensor) -> Tensor:
        if given.ndim != 3 or isinstance(self.module, nn.Conv1d):
            return given.flatten(1)
        if given.shape[:2] != targets.shape:
            return given.mean(1)
        asked = (targets != UNASKED).to(given).unsqueeze(2)
        return (given * asked).sum(1) / asked.sum(1).clamp(min=1)

    def _pass(self, inputs: Inputs) -> tuple[list[Tensor], Tensor]:
        given: list[Tensor] = []

        def keep(_: nn.Module, value: Tensor, returned: Tensor) -> Tensor:
            given.append(value.detach())
            return returned

        handle = register(self.module, keep)
        try:
            with torch.no_grad():
                logits = call(self._model, to(inputs, self._device, self._dtype))
        finally:
            handle.remove()
        return given, logits

    def _last_linear(self, rows: Rows) -> str:
        called: list[nn.Module] = []

        def note(module: nn.Module, _: Tensor, returned: Tensor) -> Tensor:
            called.append(module)
            return returned

        named = {module: name for name, module in self._model.named_modules()}
        handles = [register(module, note) for module in named if isinstance(module, nn.Linear)]
        try:
            with torch.no_grad():
                call(self._model, to(rows.batch(0, 1)[0], self._device, self._dtype))
        finally:
            for handle in handles:
                handle.remove()
        if not called:
            raise RecipeError(
                "the model calls no linear layer, so its last hidden layer is not known; name the "
                "module whose input it is: layer='...'"
            )
        return named[called[-1]]
