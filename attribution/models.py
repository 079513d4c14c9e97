"""Built-in models, and fresh parameters for any model as a function of a seed.

Every model maps inputs [n, ...] to outputs [n, n_outputs]. A model is given as a module, whose
parameters are drawn again through `reset_parameters`, or as a factory that is called under the
seed. Parameters are always drawn on the CPU: the device never changes an initialisation.
"""

import copy
import difflib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attribution.contrastive import two_tower
from attribution.convolutional import cnn, resnet
from attribution.streams import Purpose, torch_seed
from attribution.textual import bag, transformer
from schemas.errors import NotFound, RecipeError, ShapeError

ModelLike = nn.Module | Callable[[], nn.Module]

# The global generators are shared by all threads; chunks of models are made in several.
_GENERATORS = threading.RLock()

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def linear(input_shape: Sequence[int], n_outputs: int) -> nn.Sequential:
    """One linear layer over the flattened input: multinomial logistic or linear regression."""
    return nn.Sequential(nn.Flatten(), nn.Linear(_width(input_shape), n_outputs))


def mlp(
    input_shape: Sequence[int],
    n_outputs: int,
    *,
    hidden: Sequence[int] = (128, 64),
    activation: str = "relu",
) -> nn.Sequential:
    """Linear layers over the flattened input with an activation between them.

    Args:
        input_shape: Shape of one input.
        n_outputs: Classes, or 1 for regression.
        hidden: Width of each hidden layer.
        activation: A name of `ACTIVATIONS`.

    Raises:
        NotFound: The activation is unknown.
        RecipeError: A width is not a positive integer.
    """
    if activation not in ACTIVATIONS:
        raise NotFound(_unknown("activation", activation, ACTIVATIONS))
    if isinstance(hidden, str) or not all(type(width) is int and width > 0 for width in hidden):
        raise RecipeError(f"hidden = {hidden!r}; write a list of layer widths, as in [128, 64]")
    layers: list[nn.Module] = [nn.Flatten()]
    width = _width(input_shape)
    for wide in hidden:
        layers += [nn.Linear(width, wide), ACTIVATIONS[activation]()]
        width = wide
    return nn.Sequential(*layers, nn.Linear(width, n_outputs))


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
    "resnet": resnet,
    "bag": bag,
    "transformer": transformer,
    "two_tower": two_tower,
}
OPTIONS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "mlp": ("hidden", "activation"),
    "cnn": ("channels", "hidden"),
    "resnet": ("width", "blocks"),
    "bag": ("vocabulary", "width", "hidden"),
    "transformer": ("vocabulary", "width", "depth", "heads", "causal"),
    "two_tower": ("captions", "channels", "width"),
}


def build(name: str, input_shape: Sequence[int], n_outputs: int, **options: Any) -> nn.Module:
    """A built-in model by its name.

    Args:
        name: ``linear``, ``mlp``, ``cnn``, ``resnet``, ``bag``, ``transformer`` or
            ``two_tower``.
        input_shape: Shape of one input.
        n_outputs: Classes, or 1 for regression.
        options: Those of the builder, as `OPTIONS` lists them.

    Raises:
        NotFound: The model, or an option's value, is unknown.
        RecipeError: The model has no such option, or an option has a wrong value.
    """
    if name not in BUILDERS:
        raise NotFound(_unknown("model", name, BUILDERS))
    for option in options:
        if option not in OPTIONS[name]:
            known = ", ".join(OPTIONS[name]) or "none"
            raise RecipeError(f"model {name!r} has no option {option!r}; its options: {known}")
    if n_outputs < 1:
        raise ShapeError(f"a model needs at least 1 output; found {n_outputs}")
    return BUILDERS[name](input_shape, n_outputs, **options)


def fresh(model: ModelLike, seed: int) -> nn.Module:
    """A new model on the CPU whose initial parameters are a function of the seed alone.

    A module is copied and the parameters that train are drawn again in the order in which a
    constructor would draw them, so that the result equals a new construction under the seed.

    Raises:
        RecipeError: A parameter is not covered by any `reset_parameters`, the factory returns no
            module, or the model has no parameter to train.
    """
    with torch_stream(torch_seed(seed, Purpose.INIT)):
        if isinstance(model, nn.Module):
            made = copy.deepcopy(model).cpu()
            _reset(made)
        else:
            made = model()
    if not isinstance(made, nn.Module):
        raise RecipeError(f"the model factory returned {type(made).__name__}; return an nn.Module")
    if not any(parameter.requires_grad for parameter in made.parameters()):
        raise RecipeError("the model has no parameter that requires a gradient; nothing to train")
    return made.cpu()


def fresh_each(model: ModelLike, seeds: Iterable[int]) -> Iterator[nn.Module]:
    """`fresh` of several seeds; a module is drawn again in place, so read each before the next.

    The copy that this saves was half the time of a draw, 3 % of a small perceptron's training.
    """
    made: nn.Module | None = None
    for seed in seeds:
        if made is None or not isinstance(model, nn.Module):
            made = fresh(model, seed)
        else:
            with torch_stream(torch_seed(seed, Purpose.INIT)):
                _reset(made)
        yield made


@contextmanager
def torch_stream(seed: int, *, cuda: bool = False) -> Iterator[None]:
    """Torch's global generators under a seed; the caller's state comes back afterwards."""
    devices = [torch.cuda.current_device()] if cuda else []
    with _GENERATORS, torch.random.fork_rng(devices=devices):
        torch.random.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield


def _reset(model: nn.Module) -> None:
    frozen: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                # NaN marks what no reset reached: whether a module has the method says nothing
                # about whether the method draws all of its parameters.
                parameter.fill_(math.nan)
            else:
                frozen[name] = parameter.clone()
        _reset_tree(model)
        for name, parameter in model.named_parameters():
            if name in frozen:
                parameter.copy_(frozen[name])
            elif bool(parameter.isnan().any()):
                raise RecipeError(
                    f"parameter {name!r} is drawn by no reset_parameters method; "
                    "give a factory (a function that returns a new model) instead of a module"
                )


def _reset_tree(module: nn.Module) -> None:
    for child in module.children():
        _reset_tree(child)
    for method in ("reset_parameters", "_reset_parameters"):
        reset = getattr(module, method, None)
        if callable(reset):
            reset()
            return


def _width(input_shape: Sequence[int]) -> int:
    width = math.prod(input_shape)
    if width < 1:
        raise ShapeError(f"inputs of shape {tuple(input_shape)} hold no number; check the source")
    return width


def _unknown(what: str, name: str, known: dict[str, Any]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    if close:
        return f"unknown {what} {name!r}; did you mean {close[0]!r}?"
    return f"unknown {what} {name!r}; it must be one of {', '.join(known)}"
