"""What a bank holds, what it cost and what it can resolve; read from manifests, nothing is made."""

from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ShapeError
from tasks.bank import open_bank
from tasks.bank_design import receipts
from tasks.bank_extension import Rows, strangers
from tasks.blueprint import Blueprint
from tasks.retrainings import ids_of


def bank_status(plan: Blueprint) -> dict[str, Any]:
    """Rows by kind, origin and subset size, cost, extensions and what LDS can resolve.

    Returns:
        JSON values; "rows" ends with the verdicts' retrainings that the bank has not adopted,
        "bought" says what each choice of next subsets did to the surrogate.
    """
    bank, missing = plan.bank, plan.retraining.missing()
    return {
        "models": len(bank),
        "drawn": bank.drawn,
        "adopted": bank.adopted,
        "chosen": bank.chosen,
        "sealed": len(bank) - len(missing),
        "missing": len(missing),
        "extensions": plan.retraining.extension.acts,
        "rows": [*_held(plan, missing), *_strange(plan)],
        "cost": _cost(plan),
        "resolves": _resolves(plan),
        "bought": [receipt.facts for receipt in receipts(plan)],
    }


def _held(plan: Blueprint, missing: NDArray[np.int64]) -> list[dict[str, Any]]:
    bank = plan.bank
    rows = Rows(masks=bank.masks, seeds=bank.seeds, origins=bank.origins)
    sealed = ~np.isin(np.arange(len(bank)), missing)
    entries = []
    for kind in np.unique(bank.kinds):
        chosen = np.flatnonzero(bank.kinds == kind)
        entries += _entries(str(kind), rows.take(chosen), bank.alpha[chosen], sealed[chosen])
    return entries


def _strange(plan: Blueprint) -> list[dict[str, Any]]:
    names, rows = strangers(plan)
    known = plan.retraining.sealed
    sealed = np.array([known.logits(name) is not None for name in names], dtype=bool)
    return _entries("verdict", rows, rows.masks.mean(axis=1), sealed)


def _entries(
    kind: str, rows: Rows, alpha: NDArray[np.float64], sealed: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """One entry for each origin and size of subset."""
    sizes = rows.masks.sum(axis=1)
    groups: dict[tuple[str, int], list[int]] = {}
    for row, group in enumerate(zip(rows.origins.tolist(), sizes.tolist(), strict=True)):
        groups.setdefault(group, []).append(row)
    return [
        {
            "kind": kind,
            "origin": origin or "drawn",
            "alpha": float(alpha[members[0]]),
            "masks": len(np.unique(rows.masks[members], axis=0)),
            "seeds": len(np.unique(rows.seeds[members])),
            "models": len(members),
            "sealed": int(sealed[members].sum()),
            "missing": int((~sealed[members]).sum()),
        }
        for (origin, _), members in sorted(groups.items())
    ]


def _cost(plan: Blueprint) -> dict[str, Any] | None:
    """What the chunks that hold the bank took; one that was read from weights trained nothing."""
    chunks = plan.retraining.sealed.chunks(plan.bank.ids)
    trained = [chunk for chunk in chunks if chunk.facts["path"] != "weights"]
    if not trained:
        return None
    models = sum(len(ids_of(chunk)) for chunk in trained)
    seconds = float(sum(chunk.facts["seconds"] for chunk in trained))  # type: ignore[misc]
    return {"models": models, "seconds": seconds, "models_per_second": models / seconds}


def _resolves(plan: Blueprint) -> dict[str, Any]:
    """What the evaluating half can tell of scores; ceilings where an evaluation measured them."""
    bank = plan.bank
    rows = bank.rows("evaluate")
    masks = len(np.unique(bank.masks[rows], axis=0))
    seeds, queries = len(rows) // masks, len(plan.sets.ids(plan.sets.tuning))
    return {
        "masks": masks,
        "seeds": seeds,
        "queries": queries,
        "half_width": _half_width(plan, masks, seeds, queries),
        "ceilings": _ceilings(plan),
    }


def _half_width(plan: Blueprint, masks: int, seeds: int, queries: int) -> float | None:
    """Half of the 95 % interval that an LDS will have; None for too few subsets.

    Seed noise and what queries share are measured on the calibrating half where it is sealed.
    """
    from attribution.power import lds_pilot, lds_power

    supposed: dict[str, float] = {}
    if not len(plan.retraining.missing()) and plan.spec.attribution:
        output = plan.output(plan.spec.attribution[0])
        ids = plan.sets.ids(plan.sets.tuning)
        with suppress(ShapeError):  # a bank too small for a pilot
            supposed = asdict(lds_pilot(open_bank(plan, "calibrate", ids, output)))
    with suppress(ShapeError):
        return lds_power(masks, seeds, queries, **supposed)
    return None


def _ceilings(plan: Blueprint) -> list[dict[str, Any]]:
    """The noise ceiling of LDS of each output and subset size: the same for every attribution."""
    found: dict[tuple[str, float | None], float | None] = {}
    for attribution in plan.spec.attribution:
        key = plan.scores.lds_key(attribution)
        evaluation = plan.artifacts.find("lds", key) if key else None
        entries: Any = evaluation.facts["rows"] if evaluation else []
        for entry in entries:
            found.setdefault((plan.output(attribution), entry["alpha"]), entry["ceiling"])
    return [
        {"output": output, "alpha": alpha, "ceiling": ceiling}
        for (output, alpha), ceiling in found.items()
    ]
