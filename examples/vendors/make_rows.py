"""Write leaves.csv: measured leaves of three trees, bought from five vendors.

Of the vendors "dune" labels two leaves in three wrongly, and "echo" sells few. The file beside
this one was made by it:

    python examples/vendors/make_rows.py
"""

import csv
from pathlib import Path

import numpy as np

TREES = ("beech", "lime", "oak")
MEANS = np.array([[7.5, 4.8, 0.9, 5.6], [8.3, 7.4, 3.9, 3.4], [11.2, 6.1, 0.6, 8.2]])
SPREADS = np.array([1.6, 1.3, 0.5, 1.5])
# Share of the leaves that each sells, and of its labels that are wrong.
SHARES = {"alder": 0.28, "brook": 0.24, "cedar": 0.2, "dune": 0.2, "echo": 0.08}
WRONG = {"dune": 0.65}


def main() -> None:
    """Write the file."""
    rng = np.random.default_rng(20250207)
    with Path(__file__).with_name("leaves.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "length_cm", "width_cm", "stalk_cm", "veins", "vendor", "tree"])
        for key in range(360):
            tree = int(rng.integers(3))
            measured = MEANS[tree] + SPREADS * rng.standard_normal(4)
            vendor = str(rng.choice(list(SHARES), p=list(SHARES.values())))
            wrong = rng.random() < WRONG.get(vendor, 0.0)
            label = (tree + int(rng.integers(1, 3))) % 3 if wrong else tree
            writer.writerow([key, *np.maximum(measured, 0.1).round(2), vendor, TREES[label]])


if __name__ == "__main__":
    main()
