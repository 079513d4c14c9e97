"""Estimators: each turns checkpoints, or a bank of retrained models, into scores.

The package is also the function that lists them, `attribution.estimators()`: a package and a
function cannot share a name otherwise, for importing any module of the package would hide the
function.
"""

import sys
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorDescription:
    """One line of the list of estimators.

    Attributes:
        name: What `attribution.attribute` takes.
        needs: What it must be given.
        cost: Time and memory for n rows, m queries, C checkpoints and a sketch k wide.
        source: The paper.
        home: ``module:function`` that computes it; the function takes a `Request` and options by
            keyword, and returns scores [n_query, n_train] and what to record of them.
    """

    name: str
    needs: str
    cost: str
    source: str
    home: str


_DESCRIPTIONS = (
    EstimatorDescription(
        name="trak",
        needs="one checkpoint or more (independently seeded: 5 to 20); a bank tunes the damping",
        cost=(
            "C (n + m) gradients, C n k min(n, k) for the curvature, C m n k for the scores; "
            "4 C (n + m) k bytes"
        ),
        source="Park et al. 2023, with the curvature p(1-p) as an option",
        home="attribution.estimators.trak:estimate",
    ),
)


def describe() -> list[EstimatorDescription]:
    """Every estimator with what it needs, what it costs and where it comes from."""
    return list(_DESCRIPTIONS)


class _CallablePackage(ModuleType):
    def __call__(self) -> list[EstimatorDescription]:
        return describe()


sys.modules[__name__].__class__ = _CallablePackage
