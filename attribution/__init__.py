"""Which training data made a model do this: the numerics, without the application around them.

Importing this package is cheap; the names below load Torch when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attribution.api import Scores, attribute
    from attribution.bank import RetrainBank, train_bank
    from attribution.estimators import describe as estimators
    from attribution.evaluate import lds

__all__ = ["RetrainBank", "Scores", "attribute", "estimators", "lds", "train_bank"]

_HOMES = {
    "attribute": "attribution.api",
    "Scores": "attribution.api",
    "RetrainBank": "attribution.bank",
    "train_bank": "attribution.bank",
    "lds": "attribution.evaluate",
}


def __getattr__(name: str) -> Any:
    if name == "estimators":  # the package, which is callable
        return import_module("attribution.estimators")
    if name not in _HOMES:
        raise AttributeError(f"module 'attribution' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
