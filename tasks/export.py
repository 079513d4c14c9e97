"""Poisoned rows as files of their own, for research on defences: labelled, and never over data."""

from pathlib import Path

import polars as pl

from schemas.errors import NotFound, RequestError
from schemas.spec import PoisonSpec
from store.artifacts import storage_errors
from tasks.blueprint import Blueprint
from tasks.problems.poison import POISONED_FILE
from tasks.problems.shape import SOLUTION

PREFIX = "poisoned"


def write_poisoned(plan: Blueprint, problem: PoisonSpec, folder: Path) -> list[Path]:
    """Write the poisoned rows of each budget as a Parquet file that says so in its name.

    Args:
        plan: The blueprint.
        problem: The problem, solved.
        folder: Where to; made if it does not exist. Files that are there are never replaced.

    Returns:
        The files, ``poisoned-SPEC-PROBLEM-BUDGET.parquet``.

    Raises:
        NotFound: The problem is not solved yet.
        RequestError: The folder is the data's own, or a file is there already.
        StorageError: The disk is full or refuses.
    """
    key = plan.problems.solution_key(problem)
    solution = plan.artifacts.find(SOLUTION, key) if key else None
    if solution is None:
        raise NotFound(f"problem '{problem.name}' is not solved yet; `winnow run` solves it")
    rows = pl.read_parquet(plan.artifacts.folder(solution) / POISONED_FILE)
    sources = plan.dataset.examples.select("example_id", "source_id")
    rows = rows.join(sources, on="example_id", how="left", maintain_order="left", validate="m:1")
    stem = f"{PREFIX}-{plan.spec.name}-{problem.name}"
    parts = {
        folder / f"{stem}-{budget}.parquet": rows.filter(poisoned_budget=budget)
        for budget in rows["poisoned_budget"].unique().sort().to_list()
    }
    _refuse_places(plan.loaded.source_path, parts)
    with storage_errors(f"writing to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for path, part in parts.items():
            draft = path.with_name(f"{path.name}.draft")
            part.write_parquet(draft)
            draft.replace(path)
    return list(parts)


def _refuse_places(source: Path | None, paths: "dict[Path, pl.DataFrame]") -> None:
    for path in paths:
        place = path.resolve()
        if source is not None and (place == source or source in place.parents):
            raise RequestError(
                f"{path} is the data that {PREFIX} rows must not touch; name another folder"
            )
        if place.exists():
            raise RequestError(f"{path} is there already; remove it, or name another folder")
