"""Write shells.csv: measured shells of three kinds, labelled by three people.

One of the three, "kim", labels one shell in four wrongly. The file beside this one was made by it:

    python examples/own_csv/make_rows.py
"""

import csv
from pathlib import Path

import numpy as np

KINDS = ("abalone", "mussel", "oyster")
MEANS = np.array([[7.0, 5.2, 1.6, 60.0], [6.2, 3.0, 2.3, 25.0], [8.1, 5.9, 2.6, 85.0]])
SPREADS = np.array([0.9, 0.7, 0.4, 14.0])


def main() -> None:
    """Write the file."""
    rng = np.random.default_rng(20240501)
    with Path(__file__).with_name("shells.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "length_cm", "width_cm", "height_cm", "mass_g", "labeller", "kind"])
        for key in range(400):
            kind = int(rng.integers(3))
            size = rng.normal(scale=0.5)  # large shells are large in every measure
            measured = MEANS[kind] + SPREADS * (size + rng.standard_normal(4))
            labeller = ("ana", "ben", "kim")[int(rng.integers(3))]
            wrong = labeller == "kim" and rng.random() < 0.25
            label = (kind + int(rng.integers(1, 3))) % 3 if wrong else kind
            writer.writerow([key, *np.maximum(measured, 0.1).round(2), labeller, KINDS[label]])


if __name__ == "__main__":
    main()
