"""What a run looks like in MLflow: names, tags, params and declared metrics, as plain records.

A parent run says what was asked and answered, one child each attribution method, one child each
verdict arm, one each valuation. Nothing here speaks to MLflow; `tasks.reporting.tracking` does.
"""

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from schemas.errors import RequestError
from schemas.metrics import metric
from tasks.reporting.findings import Answer, Arm, Findings, Interval, Method
from tasks.reporting.forgetting import CHOSEN, FORGOTTEN, JUDGING, RETAINED, Unlearning
from tasks.reporting.judgement import confirmed, judgement
from tasks.reporting.poisoning import Budget, Poisoning
from tasks.reporting.tracing import TracedArm, Tracing
from tasks.reporting.worth import Valuation

NOTE_TAG = "mlflow.note.content"  # shown as the run's description
SOURCE_TAG = "mlflow.source.name"
PARAM_LENGTH = 6000  # MLflow refuses longer values
NOT_ALLOWED = re.compile(r"[^\w.\- :/]")  # in the name of a param

Metrics = list[tuple[str, float | None, int]]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One MLflow run to be: its name, tags, params and declared metrics (name -> (value, step))."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[tuple[str, float, int], ...] = ()


def entries(findings: Findings, spec_text: str) -> tuple[Entry, tuple[Entry, ...]]:
    """Describe the parent run and its children: methods, verdict arms, then values."""
    shared = {
        "winnow.run_id": findings.run_id,
        "winnow.spec": findings.spec_digest,
        "winnow.dataset": findings.dataset_id,
        "winnow.code_version": findings.code_version,
        SOURCE_TAG: "winnow",
    }
    children = [_method_entry(method, shared) for method in findings.methods]
    note: list[str] = []
    metrics: Metrics = []
    for answer in findings.answers:
        joined = shared | {
            "winnow.solution_id": answer.solution_id,
            "winnow.attribution_id": answer.attribution_id or "",
            "winnow.problem": answer.problem,
        }
        children += [_arm_entry(answer, arm, joined) for arm in answer.arms]
        note.append(f"**{answer.problem}**: {answer.sentence} {judgement(answer)}".strip())
    for valuation in findings.valuations:
        children.append(_valuation_entry(valuation, shared))
        note.append(f"**{valuation.problem}**: {valuation.sentence}")
    for tracing in findings.tracings:
        joined = shared | {"winnow.tracing_id": tracing.tracing_id}
        children += [_tracing_entry(tracing, arm, joined) for arm in tracing.arms]
        note.append(f"**{tracing.problem}**: {tracing.sentence}")
    for poisoning in findings.poisonings:
        joined = shared | {"winnow.poisoning_id": poisoning.poisoning_id}
        children += [_poison_entry(poisoning, each, joined) for each in poisoning.budgets]
        note.append(f"**{poisoning.problem}**: {poisoning.sentence} {poisoning.notice}")
    if findings.answers:
        metrics += _answer_metrics(findings.answers[0])
    if findings.methods:
        metrics += _fidelity_metrics(findings.methods[0])
    if findings.seconds is not None:
        metrics.append(("run.seconds", findings.seconds, 0))
    tags = shared | {NOTE_TAG: "\n\n".join(note), "winnow.kind": "run"}
    if findings.answers and findings.answers[0].prices:
        tags["winnow.constraints"] = ", ".join(sorted(findings.answers[0].prices))[:PARAM_LENGTH]
    if len(findings.answers) == 1 and findings.answers[0].arms:
        said = confirmed(findings.answers[0])
        tags["winnow.verdict"] = {True: "confirmed", False: "not confirmed", None: "not judged"}[
            said
        ]
    parent = Entry(
        name=findings.spec_name, tags=tags, params=flatten(spec_text), metrics=_known(metrics)
    )
    return parent, tuple(children)


def flatten(spec_text: str) -> dict[str, str]:
    """Flatten a TOML spec into params: dotted keys, tables of an array by their name or number.

    Raises:
        RequestError: The text is not TOML.
    """
    try:
        document = tomllib.loads(spec_text)
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"the spec is not TOML ({error}); give the text that was run") from error
    params: dict[str, str] = {}

    def visit(key: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                visit(f"{key}.{name}" if key else name, item)
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for number, item in enumerate(value):
                visit(f"{key}.{item.get('name', number)}", item)
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            params[NOT_ALLOWED.sub("_", key)[:250]] = text[:PARAM_LENGTH]

    visit("", document)
    return params


def refuse_undeclared(entries: Iterable[Entry]) -> None:
    """Raise if a metric has no declared direction, unit and meaning.

    Raises:
        NotFound: The first name that schemas/metrics.toml does not declare.
    """
    for entry in entries:
        for name, _, _ in entry.metrics:
            metric(name)


def _method_entry(method: Method, shared: Mapping[str, str]) -> Entry:
    metrics = _fidelity_metrics(method)
    metrics += [("damping", method.damping, 0), ("run.seconds", method.seconds, 0)]
    params = {
        "method": method.method,
        "output": method.output,
        "damping_from": method.damping_from,
        "device": method.device,
        "n_query": str(method.n_query),
    }
    tags = {"winnow.attribution_id": method.attribution_id, "winnow.kind": "attribution"}
    return Entry(
        name=f"attribution: {method.name}",
        tags={**shared, **tags},
        params=params,
        metrics=_known(metrics),
    )


def _arm_entry(answer: Answer, arm: Arm, shared: Mapping[str, str]) -> Entry:
    metrics = _interval("accuracy", arm.accuracy) + _interval("value", arm.value)
    metrics += _interval("change.predicted", arm.predicted)
    metrics += _interval("change.observed", arm.observed)
    metrics += _interval("advantage", arm.advantage) + _interval("logprob", arm.logprob)
    metrics += _interval("advantage.logprob", arm.logprob_advantage)
    if answer.unlearning is not None:
        metrics += _closeness_metrics(answer.unlearning, arm.name)
    params = {
        "arm": arm.name,
        "rows": str(arm.n_rows),
        "seeds": str(arm.seeds),
        "output": arm.output,
    }
    return Entry(
        name=f"{answer.problem}: {arm.name}",
        tags={**shared, "winnow.verdict_id": arm.verdict_id, "winnow.kind": "arm"},
        params=params,
        metrics=_known(metrics),
    )


def _closeness_metrics(unlearning: Unlearning, name: str) -> Metrics:
    """Of one arm; the step is the group of rows: forgotten, retained, judging."""
    arm = unlearning.arm(name)
    metrics: Metrics = [
        ("unlearning.attack", arm.membership, 0),
        ("unlearning.cost", arm.cost, 0),
        ("unlearning.scoring", arm.scoring, 0),
    ]
    for step, group in enumerate((FORGOTTEN, RETAINED, JUDGING)):
        own = arm.distances[group]
        metrics += [
            ("klom.mean", own.klom, step),
            ("klom.tail", own.klom_p95, step),
            ("klom.floor", own.null_klom, step),
            ("klom.tail_floor", own.null_p95, step),
        ]
    return metrics


def _valuation_entry(valuation: Valuation, shared: Mapping[str, str]) -> Entry:
    metrics: Metrics = [
        ("worth.everything", valuation.everything, 0),
        ("worth.nothing", valuation.nothing, 0),
    ]
    metrics += [
        metric
        for place, player in enumerate(valuation.players)
        for metric in (
            ("worth.value", player.value, place),
            ("worth.standard_error", player.standard_error, place),
        )
    ]
    params = {
        "method": valuation.method,
        "sources": valuation.sources or "",
        "output": valuation.output,
        "targets": valuation.targets,
        "retrainings": str(valuation.retrainings),
        "players": ", ".join(player.name for player in valuation.players)[:PARAM_LENGTH],
    }
    tags = {
        "winnow.valuation_id": valuation.valuation_id,
        "winnow.problem": valuation.problem,
        "winnow.kind": "value",
    }
    return Entry(
        name=f"value: {valuation.problem}",
        tags={**shared, **tags},
        params=params,
        metrics=_known(metrics),
    )


def _tracing_entry(tracing: Tracing, arm: TracedArm, shared: Mapping[str, str]) -> Entry:
    metrics = _interval("trace.mrr", arm.mrr) + _interval("trace.recall", arm.recall)
    metrics += [("value.mean", arm.value, 0), *_interval("trace.change", arm.change)]
    metrics += _interval("trace.against_random", arm.against_random)
    params = {
        "arm": arm.arm,
        "top": str(tracing.top),
        "removed": str(tracing.removed),
        "models": str(arm.models),
        "output": tracing.output,
        "targets": tracing.targets,
        "truth": tracing.truth or "",
    }
    return Entry(
        name=f"{tracing.problem}: {arm.arm}",
        tags={**shared, "winnow.problem": tracing.problem, "winnow.kind": "trace"},
        params=params,
        metrics=_known(metrics),
    )


def _poison_entry(poisoning: Poisoning, budget: Budget, shared: Mapping[str, str]) -> Entry:
    """Of one budget; the step of a screen's metrics is its place among their names, sorted."""
    metrics = _interval("poison.predicted", budget.predicted)
    metrics += _interval("poison.observed", budget.observed)
    metrics += _interval("poison.output", budget.observed_output)
    metrics += _interval("poison.elsewhere", budget.observed_elsewhere)
    metrics += _interval("poison.accuracy", budget.accuracy)
    metrics += _interval("poison.accuracy_elsewhere", budget.accuracy_elsewhere)
    metrics += [
        ("poison.linear", _mean(budget.linear), 0),
        ("poison.bound", budget.bound, 0),
        ("poison.taken", _mean(budget.taken), 0),
        ("poison.random_tail", budget.random_p95, 0),
        ("poison.inside_tail", budget.inside_p95, 0),
    ]
    screens = [each for each in poisoning.screens if each.budget == budget.budget]
    for step, each in enumerate(sorted(screens, key=lambda one: one.screen)):
        metrics += [("screen.recall", each.recall, step), ("screen.auroc", each.auroc, step)]
    params = {
        "budget": str(budget.budget),
        "move": poisoning.move,
        "radius": "" if poisoning.radius is None else f"{poisoning.radius:g}",
        "taken_for": poisoning.taken_for or "",
        "targets": poisoning.targets[:PARAM_LENGTH],
        "output": poisoning.output,
        "stealth": "" if poisoning.stealth is None else f"{poisoning.stealth:g}",
        "screens": ", ".join(sorted(each.screen for each in screens)),
    }
    return Entry(
        name=f"{poisoning.problem}: {budget.budget} rows",
        tags={**shared, "winnow.problem": poisoning.problem, "winnow.kind": "poison"},
        params=params,
        metrics=_known(metrics),
    )


def _answer_metrics(answer: Answer) -> Metrics:
    metrics: Metrics = [("solution.gap", answer.gap, 0)]
    # Names are the spec's, metrics are declared: the step is the place among the names, sorted.
    metrics += [
        ("solution.price", answer.prices[name], step)
        for step, name in enumerate(sorted(answer.prices))
    ]
    if answer.detection is not None:
        found = answer.detection
        metrics += [
            ("detection.auroc", found.auroc, 0),
            ("detection.precision", found.precision, 0),
            ("detection.recall", found.recall, 0),
        ]
    if answer.unlearning is not None:
        changes = answer.unlearning
        metrics += [
            ("changes.correlation", changes.correlation, 0),
            ("changes.ceiling", changes.ceiling, 0),
            ("changes.slope", changes.slope, 0),
            ("changes.error", changes.error, 0),
            ("changes.error_unchanged", changes.error_unchanged, 0),
            *_closeness_metrics(changes, CHOSEN),
        ]
    for arm in answer.arms:
        if arm.name == "chosen":
            metrics += _interval("accuracy", arm.accuracy) + _interval("logprob", arm.logprob)
            metrics += _interval("change.predicted", arm.predicted)
            metrics += _interval("change.observed", arm.observed)
        elif arm.name == "all":
            metrics += _interval("advantage", arm.advantage)
            metrics += _interval("advantage.logprob", arm.logprob_advantage)
    return metrics


def _fidelity_metrics(method: Method) -> Metrics:
    """Give the LDS of each subset size at a step of its percentage; all sizes together at 100."""
    metrics: Metrics = []
    for found in method.fidelity:
        step = 100 if found.alpha is None else round(100 * found.alpha)
        metrics += _interval("lds", found.lds, step)
        metrics += [
            ("lds.ceiling", found.ceiling, step),
            ("lds.relative", found.relative, step),
            ("lds.null_sd", found.null_sd, step),
        ]
    return metrics


def _interval(name: str, interval: Interval | None, step: int = 0) -> Metrics:
    if interval is None:
        return []
    return [
        (f"{name}.mean", interval.mean, step),
        (f"{name}.low", interval.low, step),
        (f"{name}.high", interval.high, step),
    ]


def _mean(interval: Interval | None) -> float | None:
    return None if interval is None else interval.mean


def _known(metrics: Metrics) -> tuple[tuple[str, float, int], ...]:
    return tuple(
        (name, float(value), step)
        for name, value, step in metrics
        if value is not None and math.isfinite(value)
    )


def digest_of(parent: Entry, children: tuple[Entry, ...]) -> str:
    """Digest all that a run would say in MLflow: the same findings are sent once."""
    content = [
        [entry.name, dict(entry.tags), dict(entry.params), entry.metrics]
        for entry in (parent, *children)
    ]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]
