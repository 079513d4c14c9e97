"""Requests that rows be forgotten: recorded at once, answered one by one, each with a certificate.

A request adds its rows to those that its problem forgets, for good. Answering one is running the
spec with the requests up to it, so its solution, verdict and run are like all others and what is
sealed is never made twice; then its receipt is sealed. Until that is there, it waits.
"""

from datetime import UTC, datetime
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.errors import InfeasibleProblem, NotFound
from schemas.manifest import Manifest
from schemas.spec import UnlearnSpec
from schemas.unlearning import ForgetRequest
from store.requests import record
from tasks.blueprint import Blueprint
from tasks.job import Job, blueprint
from tasks.problems.shape import VERDICT
from tasks.progress import advance
from tasks.reporting.forgetting import from_facts, state_word
from tasks.requests import (
    CERTIFICATE_FILE,
    STAGE,
    VERSION,
    receipt,
    receipt_key,
    requests_of,
    rows_named,
)
from tasks.sets import training_ids
from tasks.unlearning.certify import certified
from tasks.unlearning.copies import Copies, copies_that_stay, with_copies
from tasks.unlearning.handover import handed_place


def record_request(
    job: Job, *, where: str, note: str, problem: str | None, copies: bool = False
) -> ForgetRequest:
    """Keep a request, with its rows as they are now.

    Args:
        job: A job whose rows are ingested.
        where: SQL that names training rows.
        note: Why.
        problem: Name of the problem that is to answer it; None: the only one.
        copies: Whether training rows with the same inputs, whatever their label, must go too.

    Raises:
        NotFound: There is no such problem.
        QueryError: The SQL fails, or finds no training row, a test row, or all training rows.
        InfeasibleProblem: Together with all earlier requests no row would stay.
    """
    plan = blueprint(job)
    asked = plan.spec.problem_of(UnlearnSpec, problem)
    ids = training_ids(plan.dataset, where, name="--where")
    places = plan.dataset.positions(ids)
    if copies:
        places = np.array(with_copies(plan.data, places.tolist()), dtype=np.int64)
        where += f"\n-- and {len(places) - len(ids):,} other training rows with the same inputs"

    def write(number: int) -> ForgetRequest:
        gone = plan.before(number).problems.forgotten(asked).copy()
        gone[places] = True
        if gone.all():
            raise InfeasibleProblem(
                f"with the {number - 1} requests before it this one would forget all "
                f"{plan.n_train:,} training rows; an untrained model is the answer"
            )
        return ForgetRequest(
            number=number,
            spec=plan.spec.name,
            problem=asked.name,
            where=where,
            note=note,
            example_ids=tuple(plan.dataset.example_ids[places].tolist()),
            digests=tuple(plan.data.digests[place] for place in places.tolist()),
            recorded_at=datetime.now(UTC),
        )

    return record(plan.workspace.requests, write)


def request_copies(plan: Blueprint, request: ForgetRequest, *, upto: int) -> Copies:
    """Copies of a request's rows that stay, now that all requests up to one are recorded."""
    problem = plan.spec.problem_of(UnlearnSpec, request.problem)
    asked = np.zeros(plan.n_train, dtype=bool)
    digests, ids = plan.data.digests[: plan.n_train], plan.dataset.train.example_ids
    asked[list(rows_named([request], digests, ids))] = True
    gone = plan.before(upto + 1).problems.forgotten(problem)
    return copies_that_stay(plan.data, gone, asked & gone)


def waiting(job: Job) -> list[int]:
    """Numbers of the requests that nobody has answered, in order."""
    plan = blueprint(job)
    known = requests_of(plan.workspace, plan.spec.name)
    return [each.number for each in known if receipt(plan.artifacts, each) is None]


def request_states(plan: Blueprint) -> list[dict[str, Any]]:
    """Every request of a spec and how it stands, as a table has it."""
    states = []
    known = requests_of(plan.workspace, plan.spec.name)
    answering = {problem.name for problem in plan.spec.unlearnings}
    for each in known:
        found = receipt(plan.artifacts, each)
        facts: Any = found.facts if found else {}
        copies = None
        if each.problem in answering:
            copies = request_copies(plan, each, upto=known[-1].number)
        states.append(
            {
                "request": each.id,
                "problem": each.problem,
                "rows": len(each.example_ids),
                "new rows": facts.get("new_rows"),
                "recorded": each.recorded_at,
                "state": "answered" if found else "waits",
                "verdict": _verdict(plan, found) if found else None,
                "note": each.note,
                "certificate": facts.get("certificate"),
                "checkpoints": _checkpoints(plan, found) if found else None,
                "copies": list(copies.ids) if copies else [],
                "copies_that_stay": copies.sentence if copies else "",
            }
        )
    return states


def _verdict(plan: Blueprint, answer: Manifest) -> str | None:
    """Whether the models of an answer are as if retrained; None where the verdict was removed."""
    verdict = plan.artifacts.find(VERDICT, answer.inputs["verdict"])
    return state_word(from_facts(verdict.facts)) if verdict else None


def _checkpoints(plan: Blueprint, answer: Manifest) -> str | None:
    """Where the unlearned checkpoints are, relative to the workspace; None once removed."""
    key = answer.inputs["verdict"]
    return handed_place(plan, key) if plan.artifacts.find(VERDICT, key) else None


def job_upto(job: Job, number: int) -> Job:
    """The job as it stands with the requests up to one."""
    return job.model_copy(update={"upto": number})


@task(name="conclude", cache_policy=NO_CACHE)
def conclude(job: Job) -> Manifest:
    """Seal the receipt and the certificate of the request that a job has answered."""
    plan = blueprint(job)
    request = next(each for each in plan.problems.requests if each.number == job.upto)
    manifest = receipt(plan.artifacts, request) or _conclude(plan, request)
    advance(STAGE, len(plan.problems.requests) - len(waiting(job)), len(plan.problems.requests))
    return manifest


def _conclude(plan: Blueprint, request: ForgetRequest) -> Manifest:
    problem = plan.spec.problem_of(UnlearnSpec, request.problem)
    gone = plan.problems.forgotten(problem)
    if not gone.any():
        raise NotFound(
            f"request {request.id}: none of the rows that were to be forgotten is among the data "
            "any more; train on it anew, there is nothing to unlearn"
        )
    new = int((gone & ~plan.before(request.number).problems.forgotten(problem)).sum())
    verdict = plan.sealed(VERDICT, plan.problems.verdict_key(problem))
    key = receipt_key(request)
    place = f"{plan.artifacts.root.name}/{STAGE}/{key}/{CERTIFICATE_FILE}"
    inputs = {"verdict": verdict.key, "solution": verdict.inputs["solution"]}
    with plan.artifacts.seal(STAGE, key, version=VERSION, inputs=inputs) as draft:
        text = certified(plan, problem, verdict.facts, request=request, new_rows=new)
        (draft.path / CERTIFICATE_FILE).write_text(text, encoding="utf-8")
        draft.facts |= {
            "request": request.id,
            "run_id": plan.run_id(),
            "rows": len(request.example_ids),
            "new_rows": new,
            "forgotten": int(np.count_nonzero(gone)),
            "certificate": place,
        }
    return draft.manifest
