"""Copies, among the rows that stay, of rows that must go: named where it matters, or go too."""

import csv
from pathlib import Path

import polars as pl

from attribution.streams import stream
from schemas.unlearning import ForgetRequest
from tasks.blueprint import Blueprint
from tasks.forget import (
    conclude,
    job_upto,
    record_request,
    request_copies,
    request_states,
    waiting,
)
from tasks.job import Job, blueprint
from tasks.preflight import open_job, preflight
from tasks.unlearning.copies import Copies, copies_that_stay
from tests.tasks.forgetful import written
from tests.tasks.pipeline import run_job

# Rows by their order in the file: 0 has two identical copies, 1 one under another label, 2 both.
COPIES = ((0, "same"), (0, "same"), (1, "other"), (2, "same"), (2, "other"))
LABELS = ("elm", "oak")


def table(folder: Path) -> Path:
    """A spec whose rows are all different but for the copies, which are trained on."""
    draw = stream(3, 7)
    labels = draw.integers(0, 2, 120)
    inputs = (draw.standard_normal((120, 3)) + labels[:, None]).round(4)
    rows = [
        [f"r{place}", *row, LABELS[label]]
        for place, (row, label) in enumerate(zip(inputs.tolist(), labels.tolist(), strict=True))
    ]
    for number, (place, label) in enumerate(COPIES):
        kind = labels[place] if label == "same" else 1 - labels[place]
        rows.append([f"c{number}", *inputs[place].tolist(), LABELS[kind]])
    with (folder / "trees.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "a", "b", "c", "kind", "split"])
        writer.writerows(
            [*row, "test" if 40 <= place < 120 and place % 2 else "train"]
            for place, row in enumerate(rows)
        )
    return written(
        folder,
        (
            'source = "sklearn:wine"\ntest_fraction = 0.4',
            'source = "csv:trees.csv"\ntarget = "kind"\nsplit = "split"\nmetadata = ["name"]',
        ),
        ("LIMIT 40", "LIMIT 20"),
        ("OFFSET 40", "OFFSET 20"),
        ('forget = "withdrawn"\n', ""),
    )


def opened(folder: Path) -> Job:
    return preflight(open_job(table(folder), folder / "work"))


def ids(plan: Blueprint, *names: str) -> list[int]:
    """Ids of the rows of these names, ascending."""
    kept = plan.dataset.examples.filter(
        pl.col("metadata").str.json_path_match("$.name").is_in(list(names))
    )
    return sorted(kept["example_id"].to_list())


def ask(job: Job, *names: str, copies: bool = False) -> ForgetRequest:
    listed = ", ".join(f"'{name}'" for name in names)
    where = f"SELECT example_id FROM examples WHERE metadata->>'name' IN ({listed}) -- theirs"
    return record_request(job, where=where, note="", problem=None, copies=copies)


def staying(plan: Blueprint, request: ForgetRequest) -> str:
    return request_copies(plan, request, upto=request.number).sentence


def test_a_request_names_the_copies_of_its_rows_that_stay(tmp_path: Path) -> None:
    job = opened(tmp_path)
    plan = blueprint(job)
    request = ask(job, "r0", "r1", "r2", "r3")
    first, second, third = ids(plan, "c0", "c1", "c3")
    assert staying(plan, request) == (
        f"2 of these rows have identical copies among the rows that stay: {first}, {second}, "
        f"{third} (example ids); 2 of these rows have copies by their inputs alone, under another "
        "label, among the rows that stay: "
        f"{', '.join(map(str, ids(plan, 'c2', 'c4')))} (example ids). Models still learn from "
        "them; add them to what must go."
    )
    assert staying(plan, ask(job, "r3", "r4")) == ""


def test_a_request_with_copies_holds_them_as_its_rows(tmp_path: Path) -> None:
    job = opened(tmp_path)
    plan = blueprint(job)
    request = ask(job, "r0", "r2", copies=True)
    assert list(request.example_ids) == ids(plan, "r0", "r2", "c0", "c1", "c3", "c4")
    assert request.where.endswith("-- and 4 other training rows with the same inputs")
    assert [
        plan.data.digests[plan.dataset.positions([each])[0]] for each in request.example_ids
    ] == list(request.digests)
    assert staying(plan, request) == ""


def test_copies_that_a_later_request_names_stay_no_more(tmp_path: Path) -> None:
    job = opened(tmp_path)
    plan = blueprint(job)
    ask(job, "r1")
    (state,) = request_states(plan)
    assert state["copies"] == ids(plan, "c2")
    ask(job, "c2")
    assert [each["copies"] for each in request_states(plan)] == [[], []]


def test_of_many_copies_the_first_few_are_named() -> None:
    some = Copies(rows=1, identical=tuple(range(9)), rows_relabelled=0, relabelled=())
    assert (
        "1 of these rows has identical copies among the rows that stay: 0, 1, 2, 3, 4 and 4 more"
        in some.sentence
    )
    assert not Copies(rows=0, identical=(), rows_relabelled=0, relabelled=())


def test_an_answer_says_what_stays_and_where_the_checkpoints_are(tmp_path: Path) -> None:
    job = opened(tmp_path)
    ask(job, "r0", "r5", "r6")
    (number,) = waiting(job)
    run_job(job_upto(job, number))
    conclude.fn(job_upto(job, number))
    plan = blueprint(opened(tmp_path))
    (problem,) = plan.spec.unlearnings
    copies = copies_that_stay(plan.data, plan.problems.forgotten(problem))
    assert copies.ids == tuple(ids(plan, "c0", "c1"))
    solution = plan.sealed("solution", plan.problems.solution_key(problem))
    verdict = plan.sealed("verdict", plan.problems.verdict_key(problem))
    assert str(solution.facts["sentence"]).endswith(copies.sentence)
    assert copies.limit in str(verdict.facts["sentence"])
    (state,) = request_states(plan)
    folder = plan.workspace.root / state["checkpoints"]
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [
        "unlearned-0.safetensors",
        "unlearned-1.safetensors",
    ]
    page = (plan.workspace.root / state["certificate"]).read_text()
    assert f"The files are in {state['checkpoints']} of the workspace" in page
    assert copies.sentence in page
    assert copies.limit in page
