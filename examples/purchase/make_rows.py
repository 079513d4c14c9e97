"""Write leaves.csv: measured leaves of three trees, on offer from five vendors at a price.

The vendor "dune" is cheap and labels half of its leaves wrongly, "echo" resells leaves of "alder"
as its own, "cedar" has the rights to half of what it sells. Some leaves of "brook" are paid for
already. The file beside this one was made by it:

    python examples/purchase/make_rows.py
"""

import csv
from pathlib import Path

import numpy as np

TREES = ("beech", "lime", "oak")
MEANS = np.array([[7.5, 4.8, 0.9, 5.6], [8.3, 7.4, 3.9, 3.4], [11.2, 6.1, 0.6, 8.2]])
SPREADS = np.array([2.4, 1.9, 1.1, 2.1])
# Share of the leaves that each sells, and what one costs on average, in cents.
VENDORS = {
    "alder": (0.28, 40),
    "brook": (0.24, 35),
    "cedar": (0.2, 30),
    "dune": (0.2, 12),
    "echo": (0.08, 20),
}
WRONG, LICENSED, OWNED, RESOLD = 0.5, 0.5, 0.2, 0.7


def main() -> None:
    """Write the file."""
    rng = np.random.default_rng(20250303)
    names, shares = list(VENDORS), [share for share, _ in VENDORS.values()]
    sold: list[tuple[list[float], str]] = []
    with Path(__file__).with_name("leaves.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        measures = ["length_cm", "width_cm", "stalk_cm", "veins"]
        writer.writerow(["id", *measures, "vendor", "licence", "owned", "cents", "tree"])
        for key in range(400):
            tree, vendor = int(rng.integers(3)), str(rng.choice(names, p=shares))
            measured = MEANS[tree] + SPREADS * rng.standard_normal(4)
            row, label = np.maximum(measured, 0.1).round(2).tolist(), TREES[tree]
            if vendor == "dune" and rng.random() < WRONG:
                label = TREES[(tree + int(rng.integers(1, 3))) % 3]
            if vendor == "echo" and sold and rng.random() < RESOLD:
                row, label = sold[int(rng.integers(len(sold)))]
            if vendor == "alder":
                sold.append((row, label))
            licence = "none" if vendor == "cedar" and rng.random() > LICENSED else "open"
            owned = "yes" if vendor == "brook" and rng.random() < OWNED else "no"
            cents = int(rng.integers(5, 2 * VENDORS[vendor][1] - 4))
            writer.writerow([key, *row, vendor, licence, owned, cents, label])


if __name__ == "__main__":
    main()
