"""What a certificate of unlearning says of one verdict, and of the request that led to it."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np

from schemas.spec import UnlearnSpec
from schemas.unlearning import ForgetRequest
from tasks.blueprint import Blueprint
from tasks.reporting.certificate import Statement, certificate
from tasks.reporting.forgetting import (
    closeness_sentence,
    from_facts,
    membership_sentence,
    options_text,
    prediction_sentence,
    queries_sentence,
)
from tasks.unlearning.copies import copies_that_stay
from tasks.unlearning.handover import handed_place

# Ids that a certificate lists; of more it gives the first.
IDS_SHOWN = 40


def certified(
    plan: Blueprint,
    problem: UnlearnSpec,
    facts: Mapping[str, Any],
    *,
    request: ForgetRequest | None = None,
    new_rows: int | None = None,
) -> str:
    """The certificate of a verdict as a page of HTML.

    Args:
        plan: The blueprint.
        problem: What was asked.
        facts: The verdict's.
        request: The request that this certificate answers.
        new_rows: How many of its rows no earlier request had named.
    """
    unlearning = from_facts(facts)
    observed = next(arm for arm in facts["arms"] if arm["arm"] == "retrained")["observed_change"]
    copies = copies_that_stay(plan.data, plan.problems.forgotten(problem))
    preface = ""
    if request is not None and new_rows == 0:
        preface = (
            "Every row that this request names had been processed already. Nothing was done for "
            "it; what was measured then is below."
        )
    return certificate(
        Statement(
            title=f"{plan.spec.name}, problem '{problem.name}'"
            + (f", request {request.id}" if request else ""),
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            asked=_asked(plan, problem, request, new_rows),
            done=_done(plan, problem, facts),
            sentences=(
                closeness_sentence(unlearning),
                membership_sentence(unlearning),
                f"{copies.sentence} {copies.limit}" if copies else "",
                prediction_sentence(str(facts["output"]), facts["predicted"], observed[0]),
                queries_sentence(unlearning),
            ),
            unlearning=unlearning,
            checkpoints=facts["checkpoints"],
            folder=handed_place(plan, plan.problems.verdict_key(problem) or ""),
            output=str(facts["own_output"]),
            provenance=_provenance(plan),
            preface=preface,
        )
    )


def row_lines(plan: Blueprint, problem: UnlearnSpec) -> str:
    """The forgotten rows, one a line: id and digest of what the model saw."""
    places = np.flatnonzero(plan.problems.forgotten(problem)).tolist()
    ids = plan.dataset.train.example_ids
    return "".join(f"{ids[place]} {plan.data.digests[place]}\n" for place in places)


def _asked(
    plan: Blueprint, problem: UnlearnSpec, request: ForgetRequest | None, new_rows: int | None
) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    if request is not None:
        pairs += [("this request", _told(request)), ("rows new in it", f"{new_rows:,}")]
    if problem.forget is not None:
        pairs.append((f"set '{problem.forget}'", plan.spec.sets[problem.forget]))
    own = [each for each in plan.problems.requests if each.problem == problem.name]
    pairs += [(f"request {each.id}", _told(each)) for each in own if each != request]
    lines = row_lines(plan, problem)
    ids = [line.split()[0] for line in lines.splitlines()]
    more = f" and {len(ids) - IDS_SHOWN:,} more" if len(ids) > IDS_SHOWN else ""
    return [
        *pairs,
        ("rows to forget in all", f"{len(ids):,} of {plan.n_train:,} training rows"),
        ("example ids", ", ".join(ids[:IDS_SHOWN]) + more),
        ("digest of the rows", f"sha256 {hashlib.sha256(lines.encode()).hexdigest()}"),
    ]


def _told(request: ForgetRequest) -> str:
    note = f"\n{request.note}" if request.note else ""
    when = request.recorded_at.strftime("%Y-%m-%d %H:%M UTC")
    return f"{request.where}\n{len(request.example_ids):,} rows, recorded {when}{note}"


def _done(plan: Blueprint, problem: UnlearnSpec, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    own = next(each for each in facts["unlearned"] if each["arm"] == "chosen")
    rivals = [
        (f"options of '{each['method']}'", options_text(each["options"]))
        for each in facts["unlearned"]
        if each["method"] and each["arm"] != "chosen"
    ]
    train = plan.spec.train
    judged = (
        f"{facts['models']} models of all rows, each unlearned; {facts['oracles']} models "
        "retrained without the rows"
    )
    return [
        ("method", problem.method),
        ("options", options_text(own["options"])),
        *([("size of effects", facts["sized"])] if facts["sized"] else []),
        ("judged on", judged),
        (
            "model and recipe",
            f"{plan.spec.model.build}; {train.epochs} epochs of {train.optimizer}",
        ),
        ("scores", f"attribution '{problem.uses}'"),
        *rivals,
    ]


def _provenance(plan: Blueprint) -> list[tuple[str, str]]:
    return [
        ("data set", plan.dataset.facts.dataset_id),
        ("training rows", plan.data.train_digest),
        ("model definition", plan.training.model_digest),
        ("training recipe", plan.training.recipe_digest),
        ("spec", plan.loaded.digest),
        ("seed", str(plan.spec.seed)),
        ("code", f"winnow {version('winnow')}"),
    ]
