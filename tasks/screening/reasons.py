"""Why a row of a batch is held up, in words that a person can check."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from schemas.errors import CorruptArtifact
from schemas.screening import ScreenName
from schemas.spec import ScreenSpec
from tasks.blueprint import Blueprint
from tasks.screening.batches import Batch
from tasks.screening.evidence import Evidence

COPY, TEST_COPY, UNKNOWN_LABEL = "copy", "test_copy", "unknown_label"
# Rows of the batch that a sentence names.
NAMED = 3


class Reason(NamedTuple):
    """Why a row is held up: a screen or one of the three above, and a sentence."""

    code: str
    words: str


def reasons_of(
    plan: Blueprint, problem: ScreenSpec, batch: Batch, evidence: Evidence
) -> list[list[Reason]]:
    """The reasons to hold up each row of a batch; none of those that are let in."""
    found = _of_content(plan, problem, batch)
    rows = np.flatnonzero(evidence.known)
    for screen, seen in evidence.standings.items():
        rate = problem.quarantine.rates[screen]
        for place in np.flatnonzero(seen.places <= rate).tolist():
            say = _SENTENCES[screen]
            words = say(_share(seen.places[place], seen.n_trusted), plan, evidence, place)
            found[rows[place]].append(Reason(screen, words))
    return found


def _of_content(plan: Blueprint, problem: ScreenSpec, batch: Batch) -> list[list[Reason]]:
    """Labels that are none of the classes, and inputs that are there already."""
    dataset, found = plan.dataset, [list[Reason]() for _ in range(len(batch))]
    # The first of several rows with one input stands for all.
    there = {content: place for place, content in reversed([*enumerate(dataset.hashes)])}
    earlier: dict[str, int] = {}
    for row, content in enumerate(batch.hashes):
        if not batch.known[row]:
            words = f"its label {batch.labels[row]!r} is none of the data's classes"
            found[row].append(Reason(UNKNOWN_LABEL, words))
        place, before = there.get(content), earlier.setdefault(content, row)
        if place is not None:
            found[row] += _copied(plan, problem, batch, row, place)
        elif before != row:
            other = bool(batch.labels) and batch.labels[before] != batch.labels[row]
            said = f", which is labelled {batch.labels[before]!r}" if other else ""
            if other or problem.copies == "quarantine":
                words = f"its input is that of row {before + 1} of the batch{said}"
                found[row].append(Reason(COPY, words))
    return found


def _copied(
    plan: Blueprint, problem: ScreenSpec, batch: Batch, row: int, place: int
) -> list[Reason]:
    example, dataset = int(plan.dataset.example_ids[place]), plan.dataset
    if place >= plan.n_train:
        words = f"its input is that of test row {example}, which judges the models"
        return [Reason(TEST_COPY, words)]
    other = bool(np.any(dataset.targets[place] != batch.targets[row]))
    if not other and problem.copies == "accept":
        return []
    label = dataset.examples["target"][place] if batch.labels else ""
    said = f", which is labelled {label!r}" if other and batch.labels else ""
    return [Reason(COPY, f"its input is that of training row {example}{said}")]


def _share(place: float, n_trusted: int) -> str:
    """Of how many trusted rows a row is beyond, as a sentence needs it."""
    above = round(place * (n_trusted + 1)) - 1
    return f"{100 * (1 - above / n_trusted):.1f} % of trusted rows" if above else "any trusted row"


def _loss(share: str, plan: Blueprint, evidence: Evidence, place: int) -> str:  # noqa: ARG001
    return f"its loss is higher than that of {share}"


def _harm(share: str, plan: Blueprint, evidence: Evidence, place: int) -> str:  # noqa: ARG001
    return f"it would hurt the targets more than {share}"


def _self(share: str, plan: Blueprint, evidence: Evidence, place: int) -> str:  # noqa: ARG001
    return f"it would move its own output more than {share}"


def _neighbours(share: str, plan: Blueprint, evidence: Evidence, place: int) -> str:  # noqa: ARG001
    if evidence.around is None:
        raise CorruptArtifact("the neighbours of a batch were not kept; ask again")
    labels = plan.dataset.targets[evidence.around.nearest[place]].tolist()
    (label, votes), *_ = Counter(labels).most_common(1)
    return f"{votes} of its {len(labels)} nearest trusted rows are {plan.dataset.classes[label]!r}"


def _group(share: str, plan: Blueprint, evidence: Evidence, place: int) -> str:  # noqa: ARG001
    rows = np.flatnonzero(evidence.known)
    named = ", ".join(str(rows[other] + 1) for other in evidence.partners[place][:NAMED])
    return f"such rows of the batch as {named} back it more than others back {share}"


_SENTENCES: dict[ScreenName, Callable[[str, Blueprint, Evidence, int], str]] = {
    "loss": _loss,
    "neighbours": _neighbours,
    "harm": _harm,
    "self_influence": _self,
    "group": _group,
}
