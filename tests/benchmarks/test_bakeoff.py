"""The table of all methods leaves none out."""

from attribution import estimators
from benchmarks.bakeoff_digits import ABSENT, entries


def test_every_method_has_a_line_or_a_reason_why_not() -> None:
    measured = {entry.method for entry in entries()}
    assert measured | set(ABSENT) == {known.name for known in estimators()}
    assert measured.isdisjoint(ABSENT)
    labels = [entry.label for entry in entries()]
    assert len(labels) == len(set(labels))
