"""Every measurement side by side in one run: `python -m benchmarks`, or `make bench`.

Prints tables and writes them with versions and machine to benchmarks/RESULTS.md. Times come from
one machine in one run: their ratios travel, the seconds do not.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import platform
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module, metadata
from pathlib import Path

import numpy as np

from attribution import lds
from benchmarks.compare import SECONDS_ARE, Row, measure, plan, ratio_line, table
from benchmarks.peers.environments import PeerError, install, names
from benchmarks.problems import Truth, make

INTRODUCTION = """Written by `python -m benchmarks` (`make bench`), a section a run: the ratios
travel, the seconds do not. A peer runs in an environment of its own with the same checkpoints, rows
and retrained networks; its dampings are tried on a small grid and chosen on the same tuning masks
as ours."""
RESULTS = Path(__file__).parent / "RESULTS.md"
# Each has a main() that prints; those that are not there are passed over.
MODULES = ("bank_speed", "projection_speed", "features_speed")


# The networks that are measured where nothing is asked for, and the checkpoints of each.
NETWORKS = {"mlp": (10, 1), "cnn": (10, 1), "fashion": (5,)}


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", action="store_true", help="make the peers' environments")
    parser.add_argument("--only", nargs="*", default=[], help="packages, such as winnow trak")
    parser.add_argument("--checkpoints", type=int, nargs="*", default=[])
    parser.add_argument("--networks", nargs="*", default=_networks(), choices=list(NETWORKS))
    parser.add_argument("--no-speed", action="store_true", help="skip the speed modules")
    parser.add_argument("--quick", action="store_true", help="costly methods at one checkpoint")
    asked = parser.parse_args()
    unavailable = _install() if asked.install else {}
    for network in asked.networks:
        counts = asked.checkpoints or NETWORKS[network]
        with tempfile.TemporaryDirectory() as folder:
            truth = make(network, Path(folder))
            rows: list[Row] = []
            for run in plan(counts, asked.only, quick=asked.quick):
                rows.append(measure(run, truth))
                print(_line(rows[-1]), flush=True)
                # Written after each run: what was measured survives an interruption.
                _record(truth.name, _section(truth, rows, counts, unavailable))
    if not asked.no_speed:
        for name in MODULES:
            if _present(name):
                _record(name, _speed(name))
    print(RESULTS.read_text(encoding="utf-8"))
    return 0


def _networks() -> list[str]:
    """All networks, but for the one whose images are not there."""
    return [name for name in NETWORKS if name != "fashion" or os.environ.get("WINNOW_DATA")]


def _record(title: str, body: str) -> None:
    """Put a section in the place of the one with its title, or at the end."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.is_file() else ""
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    sections = dict(part.split("\n", 1) for part in parts)
    sections[title] = body
    lines = [f"## {name}\n\n{content.strip()}" for name, content in sections.items()]
    whole = "\n\n".join(["# Measured side by side", INTRODUCTION, *lines])
    RESULTS.write_text(whole + "\n", encoding="utf-8")


def _install() -> dict[str, str]:
    failed = {}
    for name in names():
        try:
            install(name)
        except PeerError as error:
            failed[name] = str(error)
    return failed


def _machine() -> str:
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("winnow", "torch", "numpy", "numba")
    )
    return f"{_processor()}, {platform.system()}, Python {platform.python_version()}; {versions}."


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text(encoding="utf-8").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        if models:
            return f"{len(models)} x {models[0]}"
    return platform.machine()


def _line(row: Row) -> str:
    lead = f"{row.run.package:12} {row.run.label:32} {row.run.checkpoints:3} checkpoints: "
    if row.default is None or row.best is None:
        return lead + row.failure
    return (
        f"{lead}LDS {row.default.lds:.3f} ({row.default.setting}), "
        f"{row.best.lds:.3f} ({row.best.setting}), CPU {row.best.cpu:.2f} s"
    )


def _section(
    truth: Truth, rows: Sequence[Row], counts: Sequence[int], unavailable: Mapping[str, str]
) -> str:
    size = truth.size
    parameters = sum(value.numel() for value in truth.states[0].values())
    ceiling = lds(np.zeros((size.n_query, size.n_train)), truth.judge, resamples=0).ceiling
    head = (
        f"{parameters} parameters, {size.n_train} rows, {size.n_query} queries. "
        f"LDS with its 95 % interval over {size.judging} half-subsets x {size.seeds} seeds; "
        f"ceiling {ceiling:.3f}. Dampings are chosen on {size.tuning} others. {SECONDS_ARE}, at "
        f"the best damping; imports, compilation and tuning are not counted. {_machine()}"
    )
    tables = [f"### {count} checkpoint(s)\n\n{table(rows, count)}" for count in counts]
    lines = [ratio_line(rows, count) for count in counts]
    absent = [f"- {name}: not installed: {why}" for name, why in unavailable.items()]
    return "\n\n".join([head, *tables, *(line for line in lines if line), *absent])


def _present(name: str) -> bool:
    return importlib.util.find_spec(f"benchmarks.{name}") is not None


def _speed(name: str) -> str:
    printed = io.StringIO()
    arguments, sys.argv = sys.argv, [name]
    try:
        with contextlib.redirect_stdout(printed):
            import_module(f"benchmarks.{name}").main()
    finally:
        sys.argv = arguments
    return f"{_machine()}\n\n```\n{printed.getvalue().rstrip()}\n```"


if __name__ == "__main__":
    sys.exit(main())
