"""Which pictures belong to a run's findings, and what their captions say.

`tasks.figures` draws arrays; here findings are turned into those arrays. Rows that were dropped can
only be drawn where their inputs are given, and the bank's cloud only where its outputs are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from tasks import figures
from tasks.findings import Answer, Findings, Interval, Row


@dataclass(frozen=True, kw_only=True, eq=False)
class Cloud:
    """Retrained models of the bank: mean outputs over the same queries, predicted and observed.

    Attributes:
        predicted: [m] by the surrogate.
        observed: [m] after retraining.
        sizes: [m] the share of the training rows that each model saw, or None.
    """

    predicted: np.ndarray
    observed: np.ndarray
    sizes: np.ndarray | None = None

    @property
    def groups(self) -> list[str] | None:
        """A name for the size of each model's subset."""
        return None if self.sizes is None else [f"{size:.0%} of the rows" for size in self.sizes]


def draw_run(
    findings: Findings,
    *,
    inputs: Mapping[int, np.ndarray] | None = None,
    image_shape: tuple[int, ...] | None = None,
    per_query: Mapping[str, np.ndarray] | None = None,
    clouds: Mapping[str, Cloud] | None = None,
) -> dict[str, Figure]:
    """Draw all that the findings allow.

    Args:
        findings: Of one run.
        inputs: The inputs of (at least) the most harmful rows, by example id.
        image_shape: How an input is a picture, if its shape does not tell.
        per_query: [q] LDS of each query, by attribution id.
        clouds: The bank's models, by attribution id.

    Returns:
        Figures by a name that is safe as a file name.
    """
    drawn: dict[str, Figure] = {}
    for answer in findings.answers:
        name = _file_name(answer.problem)
        rows = [row for row in answer.worst if inputs is not None and row.example_id in inputs]
        if rows and inputs is not None:
            title = f"The most harmful of {answer.dropped:,} rows it would drop"
            drawn[f"{name}-dropped"] = figures.gallery(
                np.stack([inputs[row.example_id] for row in rows]),
                captions(rows),
                image_shape=image_shape,
                title=title,
            )
        if answer.arms:
            drawn[f"{name}-arms"] = _arms(answer)
    for method in findings.methods:
        name = _file_name(method.name)
        found = next(iter(method.fidelity), None)
        if found is not None and per_query and method.attribution_id in per_query:
            drawn[f"{name}-lds"] = figures.lds_per_query(
                per_query[method.attribution_id], mean=triple(found.lds), ceiling=found.ceiling
            )
        if clouds and method.attribution_id in clouds:
            cloud = clouds[method.attribution_id]
            drawn[f"{name}-predicted"] = figures.predicted_against_observed(
                cloud.predicted, cloud.observed, output=method.output, groups=cloud.groups
            )
    return drawn


def draw_hero(
    findings: Findings,
    inputs: Mapping[int, np.ndarray],
    cloud: Cloud,
    *,
    image_shape: tuple[int, ...] | None = None,
) -> Figure:
    """Draw the first answer of a run in one wide picture: rows, arms, predicted and observed."""
    answer = findings.answers[0]
    rows = [row for row in answer.worst if row.example_id in inputs]
    return figures.hero(
        np.stack([inputs[row.example_id] for row in rows]),
        captions(rows),
        {arm.name: triple(arm.accuracy) for arm in answer.arms if arm.accuracy},
        cloud.predicted,
        cloud.observed,
        image_shape=image_shape,
        output=answer.output,
        groups=cloud.groups,
        gallery_title=f"The most harmful of {answer.dropped:,} dropped rows",
    )


def captions(rows: Sequence[Row]) -> list[str]:
    """Write a row's label, and its true label where that differs."""
    return [
        f"{_short(row.label)} (true {_short(row.true_label)})" if row.is_flipped
        else f"{_short(row.label)}"
        for row in rows
    ]  # fmt: skip


def triple(interval: Interval) -> figures.Interval:
    """A mean with its bounds; where none are known, the mean stands for them."""
    if not interval.is_known:
        return (interval.mean, interval.mean, interval.mean)
    return (interval.mean, interval.low, interval.high)


def _arms(answer: Answer) -> Figure:
    accuracies = {arm.name: triple(arm.accuracy) for arm in answer.arms if arm.accuracy}
    if accuracies:
        return figures.arms(accuracies)
    values = {arm.name: triple(arm.value) for arm in answer.arms if arm.value}
    return figures.arms(values, measure=f"mean {answer.output}")


def _short(label: str | None) -> str:
    text = "?" if label is None else "".join(c if c.isprintable() else " " for c in label)
    return text if len(text) <= 12 else text[:11] + "…"


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
