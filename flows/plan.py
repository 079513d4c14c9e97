"""What is sealed already and what a run would do, counted without doing any of it."""

from collections.abc import Iterator
from typing import NamedTuple

from flows import terminal
from flows.summary import cautions
from schemas.spec import DebugSpec, DecisionSpec, LoadedSpec, PoisonSpec, TraceSpec, UnlearnSpec
from store.artifacts import Artifacts
from store.workspace import Workspace
from tasks.blueprint import Blueprint
from tasks.ingest import STAGE as DATA
from tasks.ingest import data_key
from tasks.intake.sources import source_digest
from tasks.requests import requests_of
from tasks.screening.inbox import inbox_files, waiting
from tasks.unlearning.foresight import costly_steps


class PlanStep(NamedTuple):
    """One stage of a run.

    Attributes:
        stage: Its name, as ``--only`` and ``--refresh`` take it.
        done: Artifacts of the stage that are sealed; of the bank, retrainings.
        total: Artifacts of the stage that the spec asks for.
        detail: What one of them is.
    """

    stage: str
    done: int
    total: int
    detail: str


def plan(loaded: LoadedSpec, workspace: Workspace) -> list[PlanStep]:
    """Every stage with what is done of it, in the order in which they run.

    Raises:
        RequestError: The source cannot be read, or a set of examples cannot be used.
    """
    blueprint = sealed_blueprint(loaded, workspace)
    if blueprint is None:
        return [PlanStep(DATA, 0, 1, "the rows; all other stages follow from them")]
    return list(_steps(blueprint))


def sealed_blueprint(loaded: LoadedSpec, workspace: Workspace) -> Blueprint | None:
    """The blueprint of a spec whose rows are sealed, or None; nothing is ingested for it.

    Raises:
        RequestError: The source cannot be read.
    """
    digest = source_digest(loaded.spec.data.source, loaded.source_path)
    data = Artifacts(workspace.artifacts).find(DATA, data_key(loaded.spec, digest))
    return Blueprint(loaded, workspace, data) if data else None


def say_what_waits(loaded: LoadedSpec, workspace: Workspace) -> None:
    """Tell of requests to forget rows, and of batches, which `winnow run` leaves alone."""
    blueprint = sealed_blueprint(loaded, workspace)
    known = requests_of(workspace, loaded.spec.name)
    count = len(known) - (len(blueprint.problems.requests) if blueprint else 0)
    if count:
        wait = "1 request to forget rows waits" if count == 1 else f"{count} requests wait"
        terminal.say(f"{wait}; `winnow forget {loaded.path} --process` answers")
    artifacts = Artifacts(workspace.artifacts)
    for screen in (each for each in loaded.spec.screens if each.inbox):
        files = inbox_files(loaded, screen)
        count = len(waiting(loaded, artifacts, screen, files, verify=screen.verify))
        if count:
            wait = "1 batch waits" if count == 1 else f"{count} batches wait"
            say = f"`winnow screen {loaded.path} --inbox --problem {screen.name}` answers"
            terminal.say(f"{wait} to be screened; {say}")


def say_cautions(loaded: LoadedSpec, workspace: Workspace) -> None:
    """Tell what `winnow check` does, and what is foreseen to cost more than a retraining."""
    notes = list(cautions(loaded))
    if blueprint := sealed_blueprint(loaded, workspace):
        for problem in loaded.spec.unlearnings:
            notes += costly_steps(blueprint, problem)
    for note in notes:
        terminal.say(f"note: {note}")


def committed_run(loaded: LoadedSpec, workspace: Workspace) -> str | None:
    """The run that the ledger holds for a spec as it is now, or None."""
    blueprint = sealed_blueprint(loaded, workspace)
    key = blueprint.run_key() if blueprint else None
    if blueprint is None or key is None or blueprint.artifacts.find("run", key) is None:
        return None
    return blueprint.run_id()


def solved(loaded: LoadedSpec, workspace: Workspace) -> list[tuple[str, str]]:
    """The problems of a spec that are solved, each with its answer as a sentence."""
    blueprint = sealed_blueprint(loaded, workspace)
    if blueprint is None:
        return []
    told = []
    for problem in blueprint.problems.decisions:
        key = blueprint.problems.solution_key(problem)
        sealed = blueprint.artifacts.find("solution", key) if key else None
        if sealed is not None and sealed.facts.get("sentence"):
            told.append((problem.name, str(sealed.facts["sentence"])))
    return told


def _steps(plan: Blueprint) -> Iterator[PlanStep]:
    details = {
        "data": "rows, split and checked",
        "checkpoints": "models of all training rows",
        "bank": f"retrainings{_extended(plan)}",
        "features": "gradients of one checkpoint on one block of rows",
        "scores": "attributions",
        "lds": "evaluations on retrained models",
        "solution": "problems",
        "verdict": f"answers checked by retraining{_retrained(plan)}",
        "values": "what sources or rows are worth, by retraining",
        "run": "ledger and published snapshot",
        "tracking": "MLflow",
    }
    for stage, detail in details.items():
        if stage == "bank":
            total = len(plan.bank)
            yield PlanStep(stage, total - len(plan.retraining.missing()), total, detail)
            continue
        keys = plan.keys(stage)
        if stage == "values" and not keys:
            continue
        sealed = [key for key in keys if key and plan.artifacts.find(stage, key)]
        done = len(sealed)
        if stage == "run" and not plan.workspace.published.is_file():
            done = 0  # the snapshot was removed; committing again makes it anew
        yield PlanStep(stage, done, len(keys), detail)


def _extended(plan: Blueprint) -> str:
    """What of the bank is there by `winnow bank extend`."""
    counts = {
        "by extension": plan.bank.drawn - plan.spec.bank.models,
        "adopted": plan.bank.adopted,
        "chosen": plan.bank.chosen,
    }
    parts = [f"{count} {how}" for how, count in counts.items() if count > 0]
    return f": {', '.join(parts)}" if parts else ""


def _retrained(plan: Blueprint) -> str:
    """What each kind of answer retrains to be checked."""
    seeds = plan.spec.verdict.seeds
    parts = dict.fromkeys(_retrainings(problem, seeds) for problem in plan.problems.decisions)
    return f": {'; '.join(parts)}" if parts else ""


def _retrainings(problem: DecisionSpec, seeds: int) -> str:
    match problem:
        case UnlearnSpec(models=models):
            return f"{models} of all rows, {2 * models} without what is forgotten"
        case TraceSpec():
            return f"{seeds} of all rows, {seeds} without each method's rows of a query"
        case PoisonSpec():
            return f"{seeds} of each budget's attack, {2 * problem.draws} of random moves"
        case DebugSpec():
            return f"{problem.seeds} of each arm of a diagnosis"
        case _:
            return f"{seeds} of each arm"
