"""What one run found, as frozen records, joined and named for people.

Everything is optional that a spec may leave out: a problem, a verdict, true labels, accuracy.
`tasks.reporting.gathering` reads them from the published database.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tasks.reporting.forgetting import Unlearning
from tasks.reporting.intervals import Interval
from tasks.reporting.poisoning import Poisoning
from tasks.reporting.tracing import Tracing
from tasks.reporting.worth import Valuation

# How reports and pictures list the arms of a verdict; others follow by name.
ARM_ORDER = (
    "chosen", "all", "random", "balanced", "similar", "highest_loss", "lowest_loss", "clean",
)  # fmt: skip
# What no method could choose: a ceiling, and no control that a choice must beat.
ORACLES = ("clean",)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training row with its utility: the predicted effect of keeping it, > 0 is helpful."""

    example_id: int
    label: str | None
    true_label: str | None
    utility: float
    copy_of: int | None = None

    @property
    def is_flipped(self) -> bool | None:
        """Whether the given label is known to be wrong; None where no true label is known."""
        return None if self.true_label is None else self.label != self.true_label


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How the dropped rows coincide with the labels known to be wrong."""

    flipped: int
    dropped: int
    found: int
    pool: int
    auroc: float | None

    @property
    def precision(self) -> float:
        """The share of the dropped rows whose label is wrong."""
        return self.found / self.dropped if self.dropped else math.nan

    @property
    def recall(self) -> float:
        """The share of the wrong labels that are dropped."""
        return self.found / self.flipped if self.flipped else math.nan


@dataclass(frozen=True, kw_only=True)
class Reasons:
    """Dropped rows, counted by why: predicted to harm; else copies of chosen rows; else no room."""

    harmful: int
    copies: int
    no_room: int


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm of a verdict: a set of rows, retrained several times. Changes are against 'all'.

    Advantages are those of the arm 'chosen' over this one. Log-probabilities are unknown for a
    regression, and of problems that select nothing.
    """

    verdict_id: str
    name: str
    n_rows: int
    seeds: int
    output: str
    accuracy: Interval | None
    value: Interval | None
    predicted: Interval | None
    observed: Interval | None
    advantage: Interval | None
    sentence: str
    logprob: Interval | None = None
    logprob_advantage: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A problem, what was chosen for it, and what retraining said."""

    solution_id: str
    attribution_id: str | None
    problem: str
    kind: str
    status: str
    output: str
    size: int
    pool: int
    gap: float | None
    predicted: Interval | None
    targets: str
    sentence: str
    dropped: int
    worst: tuple[Row, ...]
    detection: Detection | None
    arms: tuple[Arm, ...]
    unlearning: Unlearning | None = None
    prices: Mapping[str, float] = field(default_factory=dict)
    reasons: Reasons | None = None


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How well scores rank retrained models (LDS); `alpha` is None for all sizes together."""

    attribution_id: str
    alpha: float | None
    lds: Interval
    ceiling: float | None
    relative: float | None
    null_sd: float | None
    n_masks: int
    n_seeds: int
    n_queries: int


@dataclass(frozen=True, kw_only=True)
class Method:
    """One attribution method of the run."""

    attribution_id: str
    name: str
    method: str
    output: str
    damping: float | None
    damping_from: str
    device: str
    seconds: float | None
    n_query: int
    worst: tuple[Row, ...]
    fidelity: tuple[Fidelity, ...]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that one run found."""

    path: Path
    run_id: str
    dataset_id: str
    spec_name: str
    spec_digest: str
    status: str
    seed: int | None
    device: str
    code_version: str
    seconds: float | None
    n_train: int
    n_test: int
    n_flipped: int
    methods: tuple[Method, ...]
    answers: tuple[Answer, ...]
    a_query: int | None
    valuations: tuple[Valuation, ...] = ()
    tracings: tuple[Tracing, ...] = ()
    poisonings: tuple[Poisoning, ...] = ()
