"""Making models forget training rows: predicted logits, steps in parameters, fine-tuning.

What is asked and what it costs is `request`; the methods are `recipes`; `unlearn` runs any of them
on many models at once. How close the result is to retraining, `attribution.closeness` measures.
Importing this package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimize.unlearning.changes import RemovalChange, removal_change
    from optimize.unlearning.directions import Directions, forget_directions, unlearned_logits
    from optimize.unlearning.methods import Unlearned, unlearn
    from optimize.unlearning.recipes import METHODS, Method, Tuning, method_of
    from optimize.unlearning.request import Cost, forget_rows
    from optimize.unlearning.scale import RemovalSlopes, removal_slopes

_HOMES = {
    "Directions": "directions",
    "forget_directions": "directions",
    "unlearned_logits": "directions",
    "METHODS": "recipes",
    "Method": "recipes",
    "Tuning": "recipes",
    "method_of": "recipes",
    "Cost": "request",
    "forget_rows": "request",
    "RemovalChange": "changes",
    "removal_change": "changes",
    "RemovalSlopes": "scale",
    "removal_slopes": "scale",
    "Unlearned": "methods",
    "unlearn": "methods",
}

__all__ = [
    "METHODS",
    "Cost",
    "Directions",
    "Method",
    "RemovalChange",
    "RemovalSlopes",
    "Tuning",
    "Unlearned",
    "forget_directions",
    "forget_rows",
    "method_of",
    "removal_change",
    "removal_slopes",
    "unlearn",
    "unlearned_logits",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'optimize.unlearning' has no attribute {name!r}")
    return getattr(import_module(f"optimize.unlearning.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
