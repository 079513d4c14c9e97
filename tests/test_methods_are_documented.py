"""Every estimator has an entry in the documentation, and a place in specs that can feed it."""

import re
from pathlib import Path
from typing import get_args

from attribution import estimators
from schemas.spec import AttributionSpec

DOCUMENT = Path(__file__).parents[1] / "docs" / "methods.md"
# What they need is no part of a spec: optimiser states, and a bank whose subsets hold each row
# with probability one half.
BY_HAND = {"less", "banzhaf"}


def described() -> set[str]:
    headings = re.findall(r"^### (.+)$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return {name for heading in headings for name in heading.split(", ")}


def test_every_estimator_has_an_entry_and_no_entry_lacks_one() -> None:
    assert described() == {known.name for known in estimators()}


def test_every_entry_has_a_formula() -> None:
    entries = re.split(r"^##+ ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = {entry.split("\n", 1)[0]: entry for entry in entries}
    for heading in re.findall(r"^### (.+)$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE):
        assert re.search(r"`[^`]*[-=+][^`]*`", named[heading]), heading


def test_specs_offer_every_estimator_that_they_can_feed() -> None:
    union = get_args(AttributionSpec)[0]
    offered = {get_args(member.model_fields["method"].annotation)[0] for member in get_args(union)}
    assert offered == {known.name for known in estimators()} - BY_HAND
