"""What the sections of a spec must agree on: names that lead somewhere, and what a task has.

Each check yields where in its section something is wrong, and a sentence. `above` holds the
sections that a spec has before it, by name, without those that are wrong in themselves.
"""

import re
from collections.abc import Iterator
from typing import Any

from schemas.frozen import IDENTIFIER, nearest
from schemas.methods import OUTPUTS_OF_TASK, AttributionSpec, EmbeddingSpec, TrakSpec
from schemas.poisoning import CLASS, PoisonSpec
from schemas.questions import (
    DEFAULT_SETS,
    WORTHS_OF_TASK,
    DebugSpec,
    ProblemSpec,
    SelectSpec,
    TraceSpec,
    ValueSpec,
    VerdictSpec,
    attributions_of,
    target_sets,
)
from schemas.recipe import BUILT_IN_MODELS, TABLE_SCHEMES, TEXT_MODELS, DataSpec, ModelSpec, Task
from schemas.screening import ScreenSpec, screen_conflicts
from schemas.unlearning import METHODS_OF_TASK, UnlearnSpec

Conflicts = Iterator[tuple[tuple[str | int, ...], str]]


def model_conflicts(model: ModelSpec, above: Any) -> Conflicts:
    """A built-in model reads what the rows are."""
    if "data" not in above or model.build not in BUILT_IN_MODELS:
        return
    source = above["data"].source
    if above["data"].text and model.build not in TEXT_MODELS:
        yield ("build",), f"'{model.build}' reads no text; use 'bag' or 'transformer'"
    if not above["data"].text and model.build in TEXT_MODELS:
        yield (
            ("build",),
            f"'{model.build}' reads text, and {source} has no data.text; name a column",
        )


def attribution_conflicts(attributions: tuple[AttributionSpec, ...], above: Any) -> Conflicts:
    """A method has the output, the rows and the epochs that it asks for, and a name of its own."""
    yield from _repeated_names(attributions)
    task = above["data"].known_task if "data" in above else None
    weights = above["model"].checkpoints if "model" in above else ()
    epochs = above["train"].epochs if "train" in above else 10**9
    for place, attribution in enumerate(attributions):
        if task and attribution.output not in ("auto", *OUTPUTS_OF_TASK[task]):
            hint = nearest(attribution.output, OUTPUTS_OF_TASK[task])
            yield (place, "output"), f"a {task} has no '{attribution.output}'{hint}"
        if data := above.get("data"):
            yield from _unread_rows(place, attribution, data)
        late = [epoch for epoch in getattr(attribution, "epochs", ()) if epochs < epoch]
        if late and not weights:
            yield (place, "epochs"), f"{late[0]} of {epochs} epochs; write at most {epochs}"


def _unread_rows(place: int, attribution: AttributionSpec, data: DataSpec) -> Conflicts:
    """What a method that compares rows as they were written does not find in them."""
    column = getattr(attribution, "column", None)
    if column is not None and column not in data.metadata:
        hint = nearest(column, data.metadata) or "; name the column in data.metadata"
        yield (place, "column"), f"there is no metadata column '{column}'{hint}"
    if isinstance(attribution, EmbeddingSpec) and column is None and data.text is None:
        yield (place, "column"), f"missing; {data.source} has no data.text to make embeddings of"


def problem_conflicts(problems: tuple[ProblemSpec, ...], above: Any) -> Conflicts:
    """A problem has the sets, attributions and outputs that it asks for, and a name of its own."""
    if not problems and above.get("attribution") == ():
        yield (), "missing, as is attribution; add that, or a problem of kind 'value'"
    yield from _repeated_names(problems)
    task = above["data"].known_task if "data" in above else None
    for place, problem in enumerate(problems):
        # A query may also be an id, or SQL; only a single word is surely meant as a set.
        key = "query" if isinstance(problem, DebugSpec) else "targets"
        named = not isinstance(problem, DebugSpec | PoisonSpec)
        for aimed in target_sets(problem):
            if named or re.fullmatch(IDENTIFIER, aimed):
                yield from _unknown_set((place, key), aimed, above)
        if isinstance(problem, ValueSpec):
            if task and problem.output not in ("auto", *WORTHS_OF_TASK[task]):
                hint = nearest(problem.output, WORTHS_OF_TASK[task])
                yield (place, "output"), f"a {task} has no '{problem.output}'{hint}"
            continue
        if "attribution" in above:
            names = [attribution.name for attribution in above["attribution"]]
            for used in attributions_of(problem):
                if used not in names:
                    yield (place, "uses"), f"there is no attribution '{used}'{nearest(used, names)}"
        if isinstance(problem, UnlearnSpec):
            yield from _unlearn_conflicts(place, problem, task, above)
        if isinstance(problem, SelectSpec):
            yield from _select_conflicts(place, problem, task, above)
        if isinstance(problem, ScreenSpec):
            found = screen_conflicts(problem, above.get("data"), above.get("attribution"))
            yield from (((place, *path), said) for path, said in found)
        if isinstance(problem, PoisonSpec):
            yield from _poison_conflicts(place, problem, task, above)


def _poison_conflicts(place: int, problem: PoisonSpec, task: Task | None, above: Any) -> Conflicts:
    if task in ("regression", "language"):
        yield (place, "kind"), f"a {task} has no labels to move; ask this of a classification"
    if problem.moves_inputs and "data" in above and above["data"].text:
        yield (place, "move"), "between two words there is nothing; use 'flip' or 'insert'"
    for option in ("rows", "pool"):
        rows = getattr(problem, option)
        if rows is not None and re.fullmatch(IDENTIFIER, rows):
            yield from _unknown_set((place, option), rows, above)
    for column in problem.by:
        known = (CLASS, *(above["data"].metadata if "data" in above else (column,)))
        if column not in known:
            yield (place, "by"), f"there is no column '{column}'{nearest(column, known)}"
    for used in above.get("attribution", ()):
        if used.name == problem.uses and not _sees_labels(used):
            advice = "use a 'trak' whose curvature is 'logistic' or 'after-kernel'"
            yield (
                (place, "uses"),
                f"'{used.name}' does not tell what other labels would do; {advice}",
            )


def _sees_labels(attribution: AttributionSpec) -> bool:
    return isinstance(attribution, TrakSpec) and attribution.curvature != "ggn"


def _select_conflicts(place: int, problem: SelectSpec, task: Task | None, above: Any) -> Conflicts:
    if "class" in problem.quotas and task in ("regression", "language"):
        yield (
            (place, "quotas", "class"),
            f"a {task} has no classes; leave the quotas of 'class' out",
        )
    for column in problem.quotas:
        if column != CLASS:
            yield from _unknown_column((place, "quotas", column), column, above)
    for number, budget in enumerate(problem.budgets):
        which = (number,) if isinstance(problem.budget, tuple) else ()
        if budget.column != "rows":  # which costs each row 1, and is no column of theirs
            yield from _unknown_column((place, "budget", *which, "column"), budget.column, above)
    for option, names in (("include", problem.included), ("exclude", problem.excluded)):
        for name in names:
            yield from _unknown_set((place, option), name, above)
            if name in DEFAULT_SETS and above.get("sets", {}).get(name) == DEFAULT_SETS[name]:
                advice = "only what is trained on can be chosen; name a set of training rows"
                yield (place, option), f"'{name}' holds test rows, and {advice}"


def _unlearn_conflicts(
    place: int, problem: UnlearnSpec, task: Task | None, above: Any
) -> Conflicts:
    if problem.forget is not None:
        yield from _unknown_set((place, "forget"), problem.forget, above)
        if problem.forget == problem.targets:
            advice = "forget training rows, and predict for test rows"
            yield (place, "targets"), f"'{problem.targets}' is what is forgotten; {advice}"
    known = METHODS_OF_TASK[task] if task else None
    asked = [("method", problem.method)]
    if "compare" in problem.model_fields_set:
        asked += [("compare", method) for method in problem.compare]
    for option, method in asked:
        if known and method not in known:
            yield (place, option), f"a {task} has no '{method}'{nearest(method, known)}"


def verdict_conflicts(verdict: VerdictSpec, above: Any) -> Conflicts:
    """A verdict judges on rows that no solver saw, by arms that the task has."""
    problems = above.get("problem", ())
    # A trace judges the queries that it explains: by models that lack the rows it names.
    if not problems or not all(isinstance(problem, TraceSpec) for problem in problems):
        yield from _unknown_set(("judge_on",), verdict.judge_on, above)
    task = above["data"].known_task if "data" in above else None
    if task == "regression" and "balanced" in verdict.arms:
        yield ("arms",), "a regression has no classes to balance; leave 'balanced' out"
    sets = above.get("sets", {})
    for problem in problems:
        if isinstance(problem, ValueSpec | TraceSpec | DebugSpec | PoisonSpec):
            continue
        judged = verdict.judge_on
        for aimed in target_sets(problem):
            if judged == aimed or (sets.get(judged) and sets.get(judged) == sets.get(aimed)):
                advice = "judge on a set that the solver never saw"
                yield ("judge_on",), f"problem '{problem.name}' is solved for '{aimed}'; {advice}"


def _repeated_names(entries: tuple[AttributionSpec, ...] | tuple[ProblemSpec, ...]) -> Conflicts:
    names = [entry.name for entry in entries]
    for place, name in enumerate(names):
        if name in names[:place]:
            yield (place, "name"), f"'{name}' is the name of another one; give each its own"


def _unknown_column(place: tuple[str | int, ...], name: str, above: Any) -> Conflicts:
    """A table's metadata columns are those that the spec lists; other sources bring their own."""
    data = above.get("data")
    if data is None or data.scheme not in TABLE_SCHEMES:
        return
    texts = (data.text.column, data.text.answer) if data.text else ()
    if name not in (*data.metadata, *texts):
        hint = nearest(name, data.metadata) or "; name it in data.metadata"
        yield place, f"there is no metadata column '{name}'{hint}"


def _unknown_set(place: tuple[str | int, ...], name: str, above: Any) -> Conflicts:
    if "sets" in above and name not in above["sets"]:
        yield place, f"there is no set '{name}'{nearest(name, above['sets'])}"
