"""How far the arms of an unlearning verdict are from retraining, as records for manifests.

Closeness is taken of the task's own output: margins of classes, predictions, log-probabilities of
texts. KLoM does not change when an output is shifted and stretched, but it clips at +-100, which is
far for a margin and nothing for a price; what is no margin is measured in standard deviations of
the oracles.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.blueprint import Blueprint
from tasks.problems.shape import ALL, CHOSEN, RETRAINED
from tasks.reporting.forgetting import FORGOTTEN, JUDGING
from tasks.surrogate import finite
from tasks.unlearning.witnesses import FloatArray, Seen, Witnesses

if TYPE_CHECKING:
    from attribution.changes import Agreement

# Random halvings of the oracles. An arm is as close as retrained models are to each other where
# its 95th percentile is no higher than that of the widest apart of so many pairs of halves, and the
# attack's accuracy is not above one half by more than its error.
SPLITS = 20
# Accuracy of U-LiRA and its spread over models; None for the oracles.
Attack = tuple[float | None, float | None]
CHANCE, ERRORS = 0.5, 1.96


def closeness_records(
    plan: Blueprint, seen: Mapping[str, Seen], rows: Witnesses
) -> list[dict[str, Any]]:
    """Closeness of each arm on each group of rows, beside the null."""
    from attribution.closeness import closeness

    records = []
    oracle = seen[RETRAINED].own
    for arm, models in seen.items():
        found = closeness(
            *_scaled(plan, models.own, oracle),
            groups=rows.groups,
            splits=SPLITS,
            seed=plan.spec.seed,
        )
        for group, each in found.items():
            same = arm == RETRAINED
            hits = models.hits
            records.append(
                {
                    "arm": arm,
                    "rows": group,
                    "n_rows": each.points,
                    "models": each.models,
                    "klom": each.null_mean if same else each.mean,
                    "klom_p95": each.null_p95 if same else each.p95,
                    "null_klom": each.null_mean,
                    "null_p95": each.null_p95,
                    "accuracy": None if hits is None else float(hits[:, rows.groups[group]].mean()),
                }
            )
    return records


def membership_of(plan: Blueprint, seen: Mapping[str, Seen], rows: Witnesses, arm: str) -> Attack:
    """Accuracy of U-LiRA on the forgotten rows of one arm, and its spread; None for the oracles."""
    from attribution.closeness import u_lira

    if arm == RETRAINED:
        return None, None
    group = rows.groups[FORGOTTEN]
    ours, oracle = (seen[name].own[:, group] for name in (arm, RETRAINED))
    folds = min(5, len(ours) // 2)
    found = u_lira(*_scaled(plan, ours, oracle), folds=folds, seed=plan.spec.seed)
    return found.accuracy, found.sd


def reaching(
    plan: Blueprint,
    seen: Mapping[str, Seen],
    records: list[dict[str, Any]],
    attacks: Mapping[str, Attack],
    rows: Witnesses,
) -> set[str]:
    """The arms that are as close on the forgotten rows as oracles are to each other."""
    from attribution.closeness import klom_null

    oracle = seen[RETRAINED].own
    (scaled, _) = _scaled(plan, oracle, oracle)
    null = klom_null(scaled[:, rows.groups[FORGOTTEN]], splits=SPLITS, seed=plan.spec.seed)
    widest = float(np.quantile(null, 0.95, axis=1).max())
    own = [record for record in records if record["rows"] == FORGOTTEN]
    close = {record["arm"] for record in own if record["klom_p95"] <= widest}
    return {arm for arm in close if not _is_told(attacks[arm], len(seen[arm].own))}


def _is_told(attack: Attack, models: int) -> bool:
    accuracy, spread = attack
    if accuracy is None or spread is None:
        return False
    return accuracy - ERRORS * spread / math.sqrt(models) > CHANCE


def arm_records(
    seen: Mapping[str, Seen], sizes: Mapping[str, int], rows: Witnesses, predicted: list[Any]
) -> list[dict[str, Any]]:
    """What each arm did on the judging rows, as a selection's verdict says it.

    The models of a method are those of all rows, changed one by one; their change is paired.
    """
    from attribution.evaluate import mean_interval, welch_interval

    judging = rows.groups[JUDGING]
    values = {arm: models.values.mean(axis=1) for arm, models in seen.items()}
    quality = {
        arm: None if models.hits is None else models.hits[:, judging].mean(axis=1)
        for arm, models in seen.items()
    }
    records = []
    for arm in (ALL, RETRAINED, *(name for name in seen if name not in (ALL, RETRAINED))):
        own, best = quality[arm], quality[CHOSEN]
        change = None
        if arm == RETRAINED:
            change = list(welch_interval(values[arm], values[ALL]))
        elif arm != ALL:
            change = list(mean_interval(values[arm] - values[ALL]))
        advantage = None
        if arm != CHOSEN and own is not None and best is not None:
            advantage = list(welch_interval(best, own))
        records.append(
            {
                "arm": arm,
                "n_rows": sizes[arm],
                "seeds": len(values[arm]),
                "accuracy": None if own is None else list(mean_interval(own)),
                "value": list(mean_interval(values[arm])),
                "predicted_change": predicted if arm == RETRAINED else None,
                "observed_change": change,
                "advantage": advantage,
            }
        )
    return records


def query_record(found: "Agreement") -> dict[str, Any]:
    """Predicted against retrained changes of single queries; what is unknown is null."""
    low, high = found.slope_interval
    return {"n_queries": len(found.observed)} | finite(
        {
            "correlation": found.correlation,
            "ceiling": found.ceiling,
            "slope": found.slope,
            "slope_low": low,
            "slope_high": high,
            "error": found.error,
            "error_unchanged": found.error_unchanged,
        }
    )


def _scaled(plan: Blueprint, ours: FloatArray, oracle: FloatArray) -> tuple[FloatArray, FloatArray]:
    if plan.dataset.facts.task == "classification":
        return ours, oracle
    centre, spread = oracle.mean(axis=0), oracle.std(axis=0, ddof=1)
    unit = np.where(spread > 0, spread, 1.0)
    return (ours - centre) / unit, (oracle - centre) / unit
