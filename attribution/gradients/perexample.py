"""One batched forward and backward pass that yields every example's own gradient.

Layers with a rule (`layers`) give theirs from (input, output gradient), with all weights frozen;
the other parameters take one more pass of ``vmap(grad(functional_call))`` over them alone.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attribution.gradients.blocks import GradientBlocks
from attribution.gradients.layers import Use, patch_entries
from attribution.gradients.plan import Layout, Plan, layout_of, make_plan, register
from attribution.outputs import OutputLike, of_examples, of_examples_unchecked
from attribution.rows import Inputs, call, call_at, n_rows, take, to
from schemas.errors import CheckpointError, RecipeError

BLOCK_ENTRIES = 2**24  # 64 MiB of float32: larger blocks gain nothing on a CPU


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One call of a hooked layer: what it was given, and a handle on what it returned."""

    given: Tensor
    version: int
    tap: Tensor


@dataclass(frozen=True, kw_only=True)
class GradientPass:
    """A batch after its passes; `blocks` may be read once or often.

    Attributes:
        logits: [B, K], or [B, T, K].
        n_rows: B.
    """

    logits: Tensor
    n_rows: int
    _owner: "PerExampleGradients" = field(repr=False)
    _uses: dict[nn.Module, list[Use]] = field(repr=False)
    _general: dict[str, Tensor] = field(repr=False)
    _asked: Tensor | None = field(repr=False)

    def blocks(self, limit: int = BLOCK_ENTRIES) -> GradientBlocks:
        """The gradients; iterate for (offset in the flat gradient, [B, entries]), without gaps.

        Args:
            limit: Entries of a block, as far as a row of a weight allows.
        """
        return GradientBlocks(
            n_rows=self.n_rows,
            layout=self._owner.layout,
            memo=self._owner.memo,
            plan=self._owner.plan,
            uses=self._uses,
            general=self._general,
            asked=self._asked,
            template=self.logits,
            dtype=self._owner.dtype,
            limit=limit,
        )


class PerExampleGradients:
    """A model at one checkpoint, ready to give per-example gradients.

    Args:
        model: Any module that maps rows to logits [n, K] or [n, T, K], rows independent in eval
            mode. It is copied; the original is left alone.
        state: The checkpoint's state dict, or None for the model's own weights.
        output: The output f, a name or a function of (logits, targets).
        device: "cpu" or "cuda".
        dtype: Floating type of weights and inputs.

    Raises:
        RecipeError: The model cannot be copied, has no trainable parameter, or mixes rows.
        CheckpointError: The state does not fit the model or holds NaN or infinity.
    """

    def __init__(
        self,
        model: nn.Module,
        state: Mapping[str, Any] | None,
        *,
        output: OutputLike,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._model = private_copy(model, state, device=device, dtype=dtype)
        self._output, self._device, self.dtype = output, device, dtype
        self.layout: Layout = layout_of(self._model)
        self.memo: dict[Any, Any] = {}
        self._plan: Plan | None = None

    @property
    def plan(self) -> Plan:
        """How each parameter is handled; known after the first batch."""
        if self._plan is None:
            raise RuntimeError("the plan exists after the first call of PerExampleGradients.run")
        return self._plan

    def run(self, inputs: Inputs, targets: Tensor) -> GradientPass:
        """Forward and backward of one batch.

        Args:
            inputs: [B, ...] or a mapping of such.
            targets: [B], class indices or numbers; or [B, T], a class index a token.
        """
        inputs = to(inputs, self._device, self.dtype)
        targets = targets.to(
            self._device, self.dtype if targets.is_floating_point() else torch.int64
        )
        # The plain attention kernel: the fused ones give gradients that depend on the batch, and
        # vmap would run them row by row.
        plain = sdpa_kernel(SDPBackend.MATH)
        with torch.inference_mode(False), torch.enable_grad(), plain:
            if self._plan is None:
                self._plan = make_plan(self._model, inputs)
                self._model.requires_grad_(False)
            logits, uses = self._hooked_pass(inputs, targets)
            general = self._general_pass(inputs, targets) if self.plan.general else {}
        tokens = logits.ndim > 2
        return GradientPass(
            logits=logits,
            n_rows=n_rows(inputs),
            _owner=self,
            _uses=uses,
            _general=general,
            _asked=targets >= 0 if tokens else None,
        )

    def row_bytes(self, inputs: Inputs, targets: Tensor) -> int:
        """Memory that one more row of a batch takes while its gradients are found, about.

        Inputs and output gradients of the layers are held, and what autograd saves beside them,
        taken to be as much again; a parameter without a rule is written down for each row.

        Args:
            inputs: A row or two of what is to come.
            targets: Theirs.
        """
        found = self.run(inputs, targets)
        held = [(use.given, use.delta) for uses in found._uses.values() for use in uses]
        layers = sum(given.nbytes + 2 * delta.nbytes for given, delta in held)
        general = sum(value.nbytes for value in found._general.values())
        patches = max(
            (patch_entries(use) for uses in found._uses.values() for use in uses), default=0
        )
        return 2 * (layers + general) // found.n_rows + patches * self.dtype.itemsize

    def _hooked_pass(
        self, inputs: Inputs, targets: Tensor
    ) -> tuple[Tensor, dict[nn.Module, list[Use]]]:
        calls: list[tuple[nn.Module, _Call]] = []

        def keep(module: nn.Module, given: Tensor, returned: Tensor) -> Tensor:
            tap = returned if returned.requires_grad else returned.detach().requires_grad_()
            calls.append((module, _Call(given=given.detach(), version=given._version, tap=tap)))
            # A copy goes on, for the model may write into it (ReLU in place, `x += y`).
            return tap.clone()

        handles = [register(module, keep) for module in self.plan.layers]
        try:
            logits = call(self._model, inputs)
        finally:
            for handle in handles:
                handle.remove()
        wide = _widened(logits)
        outputs = of_examples(self._output, wide, targets)
        uses: dict[nn.Module, list[Use]] = {}
        if calls:
            taps = [kept.tap for _, kept in calls]
            deltas = torch.autograd.grad(outputs.sum(), taps, allow_unused=True)
            for (module, kept), delta in zip(calls, deltas, strict=True):
                if delta is None:
                    continue
                if kept.given._version != kept.version:
                    raise RecipeError(
                        f"the model overwrites the input of a {type(module).__name__} layer after "
                        "using it; replace the in-place operation"
                    )
                use = Use(module=module, given=kept.given, delta=delta)
                uses.setdefault(module, []).append(use)
        return wide.detach(), uses

    def _general_pass(self, inputs: Inputs, targets: Tensor) -> dict[str, Tensor]:
        parameters = dict(self._model.named_parameters())
        chosen = {name: parameters[name].detach() for name in self.plan.general}

        def output_of(weights: dict[str, Tensor], row: Inputs, target: Tensor) -> Tensor:
            single = (
                {name: value.unsqueeze(0) for name, value in row.items()}
                if isinstance(row, dict)
                else row.unsqueeze(0)
            )
            logits = call_at(self._model, weights, single)
            target = target.unsqueeze(0)
            return of_examples_unchecked(self._output, _widened(logits), target).sum()

        each = torch.func.vmap(torch.func.grad(output_of), in_dims=(None, 0, 0))
        try:
            return {name: value.detach() for name, value in each(chosen, inputs, targets).items()}
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise RecipeError(
                f"parameters {', '.join(self.plan.general)} have no per-example gradient here: "
                f"torch.func could not run the model on one row ({reason}); freeze them, or use "
                "layers that torch.func supports"
            ) from error


def gradient_blocks(
    model: nn.Module,
    state: Mapping[str, Any] | None,
    inputs: Inputs,
    targets: Tensor,
    output: OutputLike,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[int, Tensor]]:
    """Per-example gradients of one batch, as (offset, [B, entries]).

    For several batches keep a `PerExampleGradients`: it copies and probes the model once.
    """
    owner = PerExampleGradients(model, state, output=output, device=device, dtype=dtype)
    yield from owner.run(inputs, targets).blocks()


def private_copy(
    model: nn.Module, state: Mapping[str, Any] | None, *, device: str, dtype: torch.dtype
) -> nn.Module:
    """A copy in eval mode, with the state's weights, on a device.

    Raises:
        RecipeError: The model cannot be copied.
        CheckpointError: The state does not fit or is not finite.
    """
    try:
        own = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise RecipeError(f"the model cannot be copied ({error}); build it afresh") from error
    if state is not None:
        tensors = {name: torch.as_tensor(value).detach() for name, value in state.items()}
        for name, value in tensors.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise CheckpointError(f"{name} holds NaN or infinity; train that checkpoint again")
        try:
            own.load_state_dict(tensors, strict=True)
        except RuntimeError as error:
            reasons = " ".join(line.strip() for line in str(error).splitlines())
            raise CheckpointError(f"the weights do not fit the model: {reasons}") from error
    return own.to(device=device, dtype=dtype).eval()


def flat_gradients(owner: PerExampleGradients, inputs: Inputs, targets: Tensor) -> Tensor:
    """The slow truth: [B, p] by one autograd call for each example. For tests."""
    model, rows = owner._model, []
    named = dict(model.named_parameters())
    wanted = [named[name] for name in owner.layout.names]
    before = [value.requires_grad for value in wanted]
    for value in wanted:
        value.requires_grad_()
    inputs = to(inputs, owner._device, owner.dtype)
    for row in range(n_rows(inputs)):
        logits = call(model, take(inputs, slice(row, row + 1)))
        output = of_examples(owner._output, logits, targets[row : row + 1]).sum()
        found = torch.autograd.grad(output, wanted, allow_unused=True)
        pairs = zip(wanted, found, strict=True)
        rows.append(
            torch.cat([(torch.zeros_like(v) if g is None else g).flatten() for v, g in pairs])
        )
    for value, flag in zip(wanted, before, strict=True):
        value.requires_grad_(flag)
    return torch.stack(rows)


def _widened(logits: Tensor) -> Tensor:
    """Logits in float32 at least: a margin is a difference of numbers that are nearly equal."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
