"""`winnow debug`: a question about one output, answered from what is sealed or made for it."""

from typing import Any

from flows import terminal
from flows.running import failures_of_the_run, refuse_held_ledger
from schemas.errors import NotFound
from schemas.frozen import digest_of, nearest
from schemas.manifest import Manifest
from schemas.questions import DebugSpec
from schemas.spec import LoadedSpec, attributions_of
from store.workspace import Workspace
from tasks.blueprint import Blueprint
from tasks.job import Job, blueprint
from tasks.preflight import preflight
from tasks.progress import recording


def question(loaded: LoadedSpec, query: str, *, uses: str | None, seeds: int | None) -> DebugSpec:
    """The question as a problem: that of the spec where it asks the same, else a new one.

    Args:
        loaded: The spec.
        query: The id of a test row, the name of a set or of a problem, or SQL.
        uses: Name of an attribution; by default the one that the spec's problems use.
        seeds: Retrainings of each arm; by default those of the problem.

    Raises:
        NotFound: There is no such attribution, none at all, or no such set.
    """
    spec = loaded.spec
    if not spec.attribution:
        raise NotFound(f"{spec.name} has no attribution, which a diagnosis reads; add one")
    if query.isidentifier() and query not in {*spec.sets, *(each.name for each in spec.diagnoses)}:
        hint = nearest(query, spec.sets)
        raise NotFound(f"there is no set '{query}'{hint}, or give an id, or SQL")
    names = [attribution.name for attribution in spec.attribution]
    if uses is not None and uses not in names:
        raise NotFound(f"there is no attribution '{uses}'{nearest(uses, names)}")
    used = uses or next((attributions_of(problem)[0] for problem in spec.decisions), names[0])
    asked: int | str = int(query) if query.isdigit() else query
    options = {} if seeds is None else {"seeds": seeds}
    for problem in spec.diagnoses:
        same = problem.name == query or (str(problem.query).strip(), problem.uses) == (
            query.strip(),
            used,
        )
        if same and seeds in (None, problem.seeds):
            return problem
    name = f"debug-{query}" if query.isidentifier() or query.isdigit() else None
    name = name or f"debug-{digest_of(query)[:8]}"
    taken = {problem.name for problem in spec.problem}
    while name in taken:
        name += "-again"
    return DebugSpec(kind="debug", name=name, uses=used, query=asked, **options)


def diagnose(
    loaded: LoadedSpec,
    workspace: Workspace,
    ask: DebugSpec,
    *,
    retrain: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Answer a question, and print the answer; what is sealed already is only shown.

    Raises:
        LedgerHeld: Another process runs in this workspace.
        RequestError: The query or the spec cannot be used.
        WinnowError: Whatever the flow ends with.
    """
    from flows.server import serving

    job = Job(spec=loaded.path, workspace=workspace.root, ask=ask)
    plan = blueprint(preflight(job))
    proposed, judged = sealed(plan, ask)
    if proposed is None or (retrain and judged is None):
        refuse_held_ledger(workspace)
        with (
            recording(workspace.progress, f"{loaded.spec.name} {ask.name}"),
            terminal.progress_bars(),
            serving(workspace, debug=debug),
            failures_of_the_run(),
        ):
            # Only now: Prefect reads where its server is when it is imported.
            from flows import debug as asking

            asking.debug(str(loaded.path), ask, workspace=str(workspace.root), retrain=retrain)
        plan = blueprint(preflight(job))
        proposed, judged = sealed(plan, ask)
    if proposed is None:
        raise NotFound(f"the answer to {ask.name} disappeared; ask again")
    show(plan, proposed, judged, as_json=as_json)


def sealed(plan: Blueprint, ask: DebugSpec) -> tuple[Manifest | None, Manifest | None]:
    """The proposal and the verdict on a question, as far as they are sealed."""
    keys = {"solution": plan.problems.solution_key(ask), "verdict": plan.problems.verdict_key(ask)}
    found = [key and plan.artifacts.find(stage, key) for stage, key in keys.items()]
    return found[0] or None, found[1] or None


def show(plan: Blueprint, proposed: Manifest, judged: Manifest | None, *, as_json: bool) -> None:
    """Print a diagnosis."""
    from tasks.problems.debug import read_report
    from tasks.reporting.diagnosis import ids_shown, render_diagnosis
    from tasks.reporting.glimpse import glimpses

    report, sentence = read_report(plan, proposed), str(proposed.facts["sentence"])
    verdict: dict[str, Any] | None = None
    if judged is not None:
        verdict = {name: judged.facts[name] for name in ("arms", "verdict", "sentence")}
    if as_json:
        terminal.show_json({**report, "sentence": sentence, "verdict": verdict})
        return
    pictures = glimpses(plan.dataset, plan.spec.data, ids_shown(report))
    terminal.show(render_diagnosis(report, sentence, verdict, pictures))
