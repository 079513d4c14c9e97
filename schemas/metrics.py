"""The metrics that MLflow may get: declared in metrics.toml before anything logs them.

A declaration says which direction is better, the unit, and what one number means. Tracking asks
`metric` for each name and so refuses what nobody declared; the documentation is written from the
same file.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from schemas.errors import NotFound
from schemas.frozen import nearest


class Better(StrEnum):
    """Which direction is an improvement."""

    HIGHER = "higher"
    LOWER = "lower"
    NEITHER = "neither"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One declared metric.

    Attributes:
        name: Dotted, the general before the particular: ``lds.mean``.
        better: The direction of improvement.
        unit: What one unit is.
        means: One sentence.
    """

    name: str
    better: Better
    unit: str
    means: str


@cache
def declared() -> Mapping[str, Metric]:
    """All declared metrics by name, in the order of metrics.toml."""
    text = files("schemas").joinpath("metrics.toml").read_text(encoding="utf-8")
    entries = tomllib.loads(text)["metrics"]
    return MappingProxyType(
        {
            name: Metric(name=name, **{**entry, "better": Better(entry["better"])})
            for name, entry in entries.items()
        }
    )


def metric(name: str) -> Metric:
    """The declaration of a metric.

    Raises:
        NotFound: If nothing by that name is declared.
    """
    if name in declared():
        return declared()[name]
    raise NotFound(
        f"metric '{name}' is not declared in schemas/metrics.toml{nearest(name, declared())}"
    )
