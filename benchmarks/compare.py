"""Every method on one problem: LDS on masks that nobody tuned on, and what features + scores cost.

Each run is a process of its own on one thread, so CPU seconds and peak memory are its own. The
first answer of a run is the method's default; its best answer is the one that ranks the tuning
masks best. Both are reported on the judging masks.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from attribution import estimators, lds
from attribution.estimators import Reads
from benchmarks.peers.environments import PeerError, call, names, python_of
from benchmarks.problems import Truth

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
SECONDS_ARE = "CPU seconds (user + system) of features and scores, one thread"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One method of one package at a number of checkpoints."""

    package: str
    method: str
    label: str
    checkpoints: int
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Side:
    """One setting of a run: LDS with its 95 % interval, seconds."""

    setting: str
    lds: float
    low: float
    high: float
    cpu: float
    wall: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a run found, or why there is nothing."""

    run: Run
    default: Side | None = None
    best: Side | None = None
    peak: float = 0.0
    version: str = ""
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class PeerMethod:
    """A method of a peer's run module; ``most`` limits it to that many checkpoints."""

    method: str
    label: str
    options: tuple[str, ...] = ()
    most: int | None = None


# Conjugate gradients and Arnoldi cost minutes at ten checkpoints; dattri's EK-FAC refuses several.
PEER_METHODS: dict[str, tuple[PeerMethod, ...]] = {
    "trak": (
        PeerMethod(method="trak", label="TRAK, k = 2048", options=("width=2048",)),
        PeerMethod(method="trak", label="TRAK, k = 512", options=("width=512",)),
    ),
    "dattri": (
        PeerMethod(method="trak", label="TRAK, k = 2048", options=("width=2048",)),
        PeerMethod(method="trak", label="TRAK, k = 512", options=("width=512",)),
        PeerMethod(method="ekfac", label="EK-FAC", most=1),
        PeerMethod(method="cg", label="CG, 10 steps", most=1),
    ),
    "kronfluence": (PeerMethod(method="factors", label="EK-FAC"),),
    "captum": (
        PeerMethod(method="tracin", label="TracInCP"),
        PeerMethod(method="arnoldi", label="Arnoldi influence", most=1),
    ),
    "pydvl": (PeerMethod(method="ekfac", label="EK-FAC"),),
}


# What --quick still runs at several checkpoints: the rest costs minutes there.
QUICK = ("TRAK logistic", "TRAK after-kernel", "TRAK, ", "graddot", "gradcos", "TracInCP")


# They need more than rows and independent checkpoints: a run's snapshots and rates, an optimiser's
# moments, embeddings, words. `benchmarks.lds_run` and `benchmarks.metagradient_digits` measure what
# belongs to a run. The last two are for linear models alone.
ELSEWHERE = ("source", "less", "embedding", "bm25", "metagradient", "alo", "jackknife")


def plan(counts: Sequence[int], only: Sequence[str] = (), *, quick: bool = False) -> Iterator[Run]:
    """At each number of checkpoints, our estimators and every method of every peer."""
    for count in counts:
        for run in (*_ours(count), *_peers(count)):
            wanted = not only or run.package in only
            if wanted and (count == 1 or not quick or run.label.startswith(QUICK)):
                yield run


def _peers(count: int) -> Iterator[Run]:
    for name in names():
        for known in PEER_METHODS.get(name, ()):
            if known.most is None or count <= known.most:
                yield Run(
                    package=name,
                    method=known.method,
                    label=known.label,
                    checkpoints=count,
                    options=known.options,
                )


def _ours(count: int) -> Iterator[Run]:
    listed = [
        known.name
        for known in estimators()
        if known.name not in ELSEWHERE and known.reads is not Reads.BANK
    ]
    for name in listed:
        variants = [(name, {})]
        if name == "trak":
            variants = [
                ("TRAK logistic, k = 2048", {}),
                ("TRAK logistic, k = 512", {"projection": {"dim": 512}}),
                ("TRAK after-kernel, k = 2048", {"curvature": "after-kernel"}),
                ("TRAK ggn, k = 2048", {"curvature": "ggn"}),
            ]
        for label, options in variants:
            words = [f"{key}={json.dumps(value)}" for key, value in options.items()]
            yield Run(
                package="winnow",
                method="ours",
                label=label,
                checkpoints=count,
                options=(f"estimator={json.dumps(name)}", *words),
            )


def measure(run: Run, truth: Truth) -> Row:
    """Run one method and judge its answers; a failure is a row of its own."""
    python, module = sys.executable, "benchmarks.peers.run_ours"
    if run.package != "winnow":
        found = python_of(run.package)
        if found is None:
            return Row(run=run, failure="not installed (--install makes its environment)")
        python, module = str(found), f"benchmarks.peers.run_{run.package}"
    result = truth.folder / "result.npz"
    command = [python, "-m", module, str(truth.folder), str(result), "--method", run.method]
    command += ["--checkpoints", str(run.checkpoints)]
    command += [word for option in run.options for word in ("--option", option)]
    try:
        call(command, os.environ | dict.fromkeys(THREADS, "1"))
    except PeerError as error:
        return Row(run=run, failure=str(error))
    with np.load(result) as answers:
        found = dict(answers)
    if not np.isfinite(found["scores"][0]).any():
        return Row(run=run, version=str(found["version"]), failure="its scores are not finite")
    # A setting that overflows is no candidate, but the default is shown as it is.
    scores = np.nan_to_num(found["scores"], posinf=0.0, neginf=0.0)
    tuning = [lds(answer, truth.tune, resamples=2).mean for answer in scores]
    best = int(np.argmax(tuning))
    sides = [_side(found, scores, index, truth) for index in (0, best)]
    return Row(
        run=run,
        default=sides[0],
        best=sides[1],
        peak=float(found["peak"]),
        version=str(found["version"]),
    )


def _side(found: dict[str, np.ndarray], scores: np.ndarray, index: int, truth: Truth) -> Side:
    judged = lds(scores[index], truth.judge)
    low, high = judged.interval
    return Side(
        setting=str(found["settings"][index]),
        lds=judged.mean,
        low=low,
        high=high,
        cpu=float(found["cpu"][index]),
        wall=float(found["wall"][index]),
    )


def table(rows: Sequence[Row], checkpoints: int) -> str:
    """A Markdown table of the rows of a number of checkpoints; memory is a whole run's peak."""
    lines = [
        "| package | method | LDS, default | LDS, best damping | CPU s | wall s | MiB | CPU/ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ours = reference(rows, checkpoints)
    for row in rows:
        if row.run.checkpoints != checkpoints:
            continue
        lead = f"| {row.run.package} {row.version} | {row.run.label}"
        if row.default is None or row.best is None:
            lines.append(f"{lead} | {row.failure} | | | | | |")
            continue
        ratio = f"{row.best.cpu / ours.cpu:.1f}" if ours else ""
        lines.append(
            f"{lead} | {_lds(row.default)} | {_lds(row.best)} "
            f"| {row.best.cpu:.2f} | {row.best.wall:.2f} | {row.peak / 2**20:.0f} | {ratio} |"
        )
    return "\n".join(lines)


def reference(rows: Sequence[Row], checkpoints: int) -> Side | None:
    """Our TRAK at its best damping, which ratios are taken against."""
    for row in rows:
        if row.run.package == "winnow" and row.run.checkpoints == checkpoints:
            return row.best
    return None


def ratio_line(rows: Sequence[Row], checkpoints: int) -> str:
    """One sentence: what peers' TRAK costs and scores beside ours, at equal width."""
    ours = reference(rows, checkpoints)
    found = [
        f"{row.run.package} {row.best.cpu / ours.cpu:.1f} times the CPU at LDS {row.best.lds:.3f}"
        for row in rows
        if ours is not None
        and row.best is not None
        and row.run.package != "winnow"
        and row.run.checkpoints == checkpoints
        and row.run.label == "TRAK, k = 2048"
    ]
    if ours is None or not found:
        return ""
    return (
        f"TRAK at k = 2048, {checkpoints} checkpoint(s), best damping: ours {ours.cpu:.2f} s at "
        f"LDS {ours.lds:.3f}; {'; '.join(found)}."
    )


def _lds(side: Side) -> str:
    return f"{side.lds:.3f} [{side.low:.3f}, {side.high:.3f}], {side.setting}"
