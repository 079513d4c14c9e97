"""The rows by which unlearned models are compared with retrained ones, and what models say there.

Three groups: the forgotten rows, a sample of the rows that stay, and the set that judges. All arms
are observed on the same rows, and by their weights: the bank keeps outputs on test rows only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import TrainingDiverged
from tasks.blueprint import Blueprint
from tasks.reporting.forgetting import FORGOTTEN, JUDGING, RETAINED
from tasks.sets import IntArray

if TYPE_CHECKING:
    from torch import Tensor

# Of a group of training rows; a 95th percentile of so many is steady enough.
MOST_ROWS = 1_000
FEWEST_RETAINED = 200
# Models that are observed at once, so that a stack of large ones is never copied whole.
STEP = 40

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Witnesses:
    """Rows on which models are compared.

    Attributes:
        inputs: Of all rows [n, ...].
        targets: [n] or [n, T].
        groups: Places of each group's rows among them.
        own_output: The task's own output: margin, prediction or log-probability.
        output: What is observed on the judging rows besides.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]
    groups: Mapping[str, IntArray]
    own_output: str
    output: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What M models say.

    Attributes:
        own: The task's own output (margin, prediction, log-probability), float64 [M, n].
        values: The asked output on the judging rows, float64 [M, n_judging].
        hits: Whether each row is classified rightly, bool [M, n]; None without classes.
    """

    own: FloatArray
    values: FloatArray
    hits: NDArray[np.bool_] | None


def witnesses(plan: Blueprint, gone: NDArray[np.bool_], output: str) -> Witnesses:
    """The rows for one forget set, bool [n_train]; the same set always gives the same rows."""
    from attribution.outputs import task_output
    from attribution.streams import Purpose, stream

    out, stay = np.flatnonzero(gone), np.flatnonzero(~gone)
    draw = stream(plan.spec.seed, Purpose.FORGET, 2)
    forgotten = np.sort(draw.permutation(out)[:MOST_ROWS])
    most = min(MOST_ROWS, max(FEWEST_RETAINED, len(forgotten)))
    retained = np.sort(draw.permutation(stay)[:most])
    judging = plan.dataset.positions(plan.sets.ids(plan.spec.verdict.judge_on))
    parts = {FORGOTTEN: forgotten, RETAINED: retained, JUDGING: judging}
    places = np.concatenate(list(parts.values()))
    edges = np.cumsum([len(part) for part in parts.values()])[:-1]
    spans = np.split(np.arange(len(places), dtype=np.int64), edges)
    return Witnesses(
        inputs=np.asarray(plan.dataset.inputs[places]),
        targets=plan.dataset.targets[places],
        groups=dict(zip(parts, spans, strict=True)),
        own_output=str(task_output(plan.dataset.facts.task)),
        output=output,
    )


def observe(
    plan: Blueprint, states: "Mapping[str, Tensor]", rows: Witnesses, *, what: str = "a model"
) -> Seen:
    """What models say on the rows.

    Args:
        plan: The blueprint.
        states: Weights of M models, [M, ...] by name.
        rows: The rows.
        what: How the models came about, for an error.

    Raises:
        TrainingDiverged: An output is NaN or infinite.
    """
    from attribution.outputs import of_models
    from attribution.training import predict

    task, judging = plan.dataset.facts.task, rows.groups[JUDGING]
    own, values, hits = [], [], []
    count = len(next(iter(states.values())))
    for start in range(0, count, STEP):
        some = {name: value[start : start + STEP] for name, value in states.items()}
        logits = predict(plan.build_model, some, rows.inputs, device=plan.spec.compute.device)
        said = logits.float().numpy()
        own.append(of_models(rows.own_output, said, rows.targets, task=task))
        asked = rows.targets[judging]
        values.append(of_models(rows.output, said[:, judging], asked, task=task))
        if plan.dataset.classes:
            hits.append(said.argmax(axis=-1) == rows.targets)
    found = Seen(
        own=np.concatenate(own).astype(np.float64),
        values=np.concatenate(values).astype(np.float64),
        hits=np.concatenate(hits) if hits else None,
    )
    if not (np.isfinite(found.own).all() and np.isfinite(found.values).all()):
        raise TrainingDiverged(
            f"{what} says NaN or infinity on some row; lower its lr or its epochs, or choose "
            "another method"
        )
    return found
