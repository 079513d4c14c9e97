"""How an answer to a batch is shown, and what MLflow is told of it."""

from typing import Any

import pytest

from schemas.metrics import metric
from tasks.reporting.screening import entry_of, text_of

ANSWER: dict[str, Any] = {
    "spec": "stones", "problem": "gate", "batch": "may [bold].csv", "batch_digest": "ab" * 32,
    "dataset_id": "d1", "n_rows": 10, "accepted": 7, "quarantined": 3, "screened_out": 2,
    "expected": 0.4, "n_trusted": 250, "output": "margin", "targets": "queries",
    "screens": [
        {"screen": "loss", "rate": 0.02, "held": 2, "expected": 0.2, "asked": True},
        {"screen": "group", "rate": 0.02, "held": 0, "expected": 0.2, "asked": False},
    ],
    "contents": {"unknown_label": 1}, "sentence": "Accepted: 7.",
    "rows": [
        {"batch_row": row, "label": label, "accepted": not codes, "codes": codes,
         "reasons": words, "effect": None, "place": place}
        for row, label, codes, words, place in (
            (1, "flint", "loss", "its loss is high", 0.01),
            (2, "[red]x\n\x1b[2J", "unknown_label", "its label '[red]x' is none", None),
            (3, "chalk", "loss,group", "two reasons", 0.02),
            *((row, "flint", "", "", 0.5) for row in range(4, 11)),
        )
    ],
}  # fmt: skip


def arm(name: str, rows: int, observed: float | None) -> dict[str, Any]:
    bounds = [None if observed is None else observed + step for step in (0, -0.1, 0.1)]
    triples = {"accuracy": (0.9, 0.88, 0.92), "value": (2.0, 1.9, 2.1), "observed": bounds}
    flat = {
        f"{key}{end}": value
        for key, triple in triples.items()
        for end, value in zip(("", "_low", "_high"), triple, strict=True)
    }
    return {"arm": name, "n_rows": rows, "seeds": 5, "predicted": None} | flat


VERDICT: dict[str, Any] = {
    "arms": [arm("trusted", 250, None), arm("accepted", 257, 0.2), arm("batch", 259, -0.3)],
    "gains": {"batch": [0.5, 0.3, 0.7], "random": [0.1, -0.2, 0.4]},
    "judge_on": "holdout",
    "output": "margin",
    "sentence": "Helped: much.",
}


def test_rows_with_most_reasons_come_first_and_text_from_data_is_harmless() -> None:
    shown = text_of(ANSWER, None)
    assert (
        shown.index("two reasons") < shown.index("its label '[red]x'") < shown.index("loss is high")
    )
    assert "may [bold].csv, 10 rows" in shown
    assert "[red]x" in shown
    assert "\x1b" not in shown
    assert "not asked" in shown
    assert "WHAT RETRAINING SAYS" not in shown


def test_what_retraining_said_is_beside_it() -> None:
    shown = text_of(ANSWER, VERDICT)
    for words in ("trusted, 250", "+ 7 accepted", "+ all 9", "90.0 [88.0, 92.0]", "Helped: much."):
        assert words in shown


def test_nothing_held_up_is_said_so() -> None:
    rows = [row | {"accepted": True} for row in ANSWER["rows"]]
    assert "No row." in text_of(ANSWER | {"rows": rows}, None)


@pytest.mark.parametrize("verdict", [None, VERDICT])
def test_every_metric_is_declared_and_the_gain_is_there_once_it_is_known(
    verdict: dict[str, Any] | None,
) -> None:
    entry = entry_of(ANSWER, verdict)
    names = {name for name, _, _ in entry.metrics}
    for name in names:
        assert metric(name).means
    assert ("screening.gain.mean" in names) == (verdict is not None)
    held = {step: value for name, value, step in entry.metrics if name == "screening.held"}
    assert dict(zip(entry.params["screens"].split(", "), held.values(), strict=True)) == {
        "loss": 2,
        "group": 0,
    }
