"""Findings of a run as the tests need them: complete, and with parts left out."""

from dataclasses import replace
from pathlib import Path

from tasks.reporting.findings import (
    Answer,
    Arm,
    Detection,
    Fidelity,
    Findings,
    Interval,
    Method,
    Row,
)


def interval(mean: float, half: float) -> Interval:
    return Interval(mean=mean, low=mean - half, high=mean + half)


def arm(name: str, accuracy: float, advantage: float | None, observed: float | None) -> Arm:
    return Arm(
        verdict_id=f"verdict-{name}",
        name=name,
        n_rows=1437 if name == "all" else 1120,
        seeds=5,
        output="margin",
        accuracy=interval(accuracy, 0.006),
        value=interval(5.1, 0.12),
        predicted=None if observed is None else interval(observed - 0.05, 0.2),
        observed=None if observed is None else interval(observed, 0.15),
        advantage=None if advantage is None else interval(advantage, 0.008),
        sentence="",
    )


ARMS = (
    arm("all", 0.921, 0.041, None),
    arm("random", 0.905, 0.057, -0.21),
    arm("balanced", 0.907, 0.055, -0.19),
    arm("chosen", 0.962, None, 0.61),
)

ROWS = (
    Row(example_id=1034, label="3", true_label="8", utility=-0.01234),
    Row(example_id=77, label="1", true_label="1", utility=-0.0101),
)

ANSWER = Answer(
    solution_id="solution-1",
    attribution_id="attribution-1",
    problem="clean",
    kind="select",
    status="optimal",
    output="margin",
    size=1120,
    pool=1437,
    gap=0.0,
    predicted=interval(0.56, 0.2),
    targets="queries",
    sentence="",
    dropped=317,
    worst=ROWS,
    detection=Detection(flipped=144, dropped=317, found=121, pool=1437, auroc=0.934),
    arms=ARMS,
)

FIDELITY = Fidelity(
    attribution_id="attribution-1",
    alpha=0.5,
    lds=interval(0.31, 0.025),
    ceiling=0.55,
    relative=0.56,
    null_sd=0.019,
    n_masks=30,
    n_seeds=2,
    n_queries=100,
)

METHOD = Method(
    attribution_id="attribution-1",
    name="trak",
    method="trak",
    output="margin",
    damping=0.03,
    damping_from="LDS 0.4 over 60 masks",
    device="cpu",
    seconds=4.2,
    n_query=100,
    worst=ROWS,
    fidelity=(FIDELITY, replace(FIDELITY, alpha=0.9, lds=interval(0.22, 0.03), ceiling=None)),
)

FINDINGS = Findings(
    path=Path("/home/ada/.winnow/winnow.duckdb"),
    run_id="run-1",
    dataset_id="dataset-1",
    spec_name="digits",
    spec_digest="abcdef",
    status="done",
    seed=0,
    device="cpu",
    code_version="0.1.0",
    seconds=41.3,
    n_train=1437,
    n_test=360,
    n_flipped=144,
    methods=(METHOD,),
    answers=(ANSWER,),
    a_query=1201,
)
