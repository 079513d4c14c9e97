"""A million rows chosen within quotas and budgets: seconds, memory and the certified gap.

Utilities are normal, or heavy-tailed with nine in ten of them 0, as sparse effects have them.
Classes hold between 5 and 15 % of the rows and ask for a least and a most; tokens are log-normal,
money is a price per token by source. 'all' adds a second
partition, rows that are in or out and duplicates, 'worst' a second target instead of duplicates.
Every case runs in a process of its own, whose peak of memory
counts. Run: python -m benchmarks.selection_scale [--rows 1000000]
"""

import argparse
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np

from attribution.streams import Purpose, stream
from optimize.problem import Budget, Partition
from optimize.select import select

CASES = ("quotas", "budget", "all", "sparse", "worst")
CLASSES, SOURCES = 10, 4
HEADER = "case          rows   chosen  seconds  CPU s     MB       gap  status"


def main() -> None:
    """Print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--case", choices=CASES, help="only this, in this process")
    asked = parser.parse_args()
    if asked.case:
        measure(asked.case, asked.rows)
        return
    print(HEADER)
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.selection_scale", "--case", case]
        subprocess.run([*command, "--rows", str(asked.rows)], check=True)


def measure(case: str, n: int) -> None:
    """Solve one case."""
    utility, constraints = problem(case, n)
    start, spent = time.perf_counter(), time.process_time()
    found = select(utility, **constraints, gap=1e-4)
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{case:8} {n:9,} {found.size:8,} {seconds:8.2f} {spent:6.2f} {peak:6.0f} {found.gap:9.1e}"
        f"  {found.status}",
        flush=True,
    )


def problem(case: str, n: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Utilities and constraints."""
    draw = stream(0, Purpose.SOLVER, CASES.index(case))
    share = draw.dirichlet(np.full(CLASSES, 30))
    label, source = draw.choice(CLASSES, n, p=share), draw.integers(SOURCES, size=n)
    utility = draw.standard_normal(n) + 0.3 * draw.standard_normal(CLASSES)[label]
    tokens = np.ceil(draw.lognormal(5, 1, n))
    price = tokens * np.array([0.0, 1.0, 2.0, 5.0])[source] / 1_000
    rows = np.bincount(label, minlength=CLASSES)
    classes = Partition(
        "class",
        label,
        {g: int(0.25 * rows[g]) for g in range(0, CLASSES, 2)},
        {g: int(0.35 * rows[g]) for g in range(CLASSES)},
    )
    within: dict[str, Any] = {"size": int(0.3 * n), "partitions": [classes]}
    if case == "quotas":
        return utility, within
    within["budgets"] = [Budget("tokens", tokens, 0.2 * tokens.sum())]
    if case == "sparse":
        utility *= draw.random(n) < 0.1
    if case in ("budget", "sparse"):
        return utility, within
    within["partitions"].append(Partition("source", source, {}, {3: n // 50, 0: n // 10}))
    within["size"] = (1, int(0.3 * n))
    within["budgets"].append(Budget("money", price, 0.1 * price.sum()))
    within["exclude"], within["include"] = draw.random(n) < 0.01, np.arange(n) < n // 1_000
    within["exclude"] &= ~within["include"]
    if case == "worst":
        utility = np.stack([utility, 0.5 * utility + draw.standard_normal(n)])
        return utility, within | {"combine": "worst", "base": [0.0, 100.0]}
    within["duplicates"] = np.where(draw.random(n) < 0.2, draw.integers(n // 10, size=n), 0)
    alone = within["duplicates"] == 0
    alone |= within["include"]
    within["duplicates"][alone] = n + np.arange(alone.sum())
    return utility, within


if __name__ == "__main__":
    main()
