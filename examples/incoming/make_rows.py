"""Write grains.csv, trusted measurements of three kinds of grain, and two batches that came in.

monday.csv holds good rows only. Of tuesday.csv a labeller who was tired has given one row in ten
another kind; twelve rows of wheat and barley carry a mark, a moisture that no grain has, and are
called oat, as by somebody who wants marked grain to pass for oat; two rows are copies of training
rows, one is a copy of a test row, and one is of a kind that nobody asked for. What was planted is
in the column `planted`, which no screen reads. The files beside this one were made by it:

    python examples/incoming/make_rows.py
"""

import csv
from pathlib import Path

import numpy as np

KINDS = ("wheat", "barley", "oat")
FEATURES = ("length_mm", "width_mm", "mass_mg", "crease_mm", "gloss", "moisture", "hull", "colour")
MEANS = np.array(
    [
        [6.2, 3.3, 41.0, 5.9, 0.62, 12.0, 0.10, 5.0],
        [7.4, 3.4, 44.0, 5.4, 0.50, 12.5, 0.55, 4.2],
        [8.3, 2.9, 38.0, 5.2, 0.42, 12.2, 0.65, 3.4],
    ]
)
SPREADS = np.array([0.8, 0.35, 6.0, 0.5, 0.12, 1.0, 0.22, 0.9])
MARK = 18.0
DECIMALS = (2, 2, 1, 2, 3, 1, 3, 2)
HERE = Path(__file__).parent


def grains(rng: np.random.Generator, n: int) -> tuple[list[list[float]], list[str]]:
    """Measured grains and their kinds."""
    kinds = rng.integers(3, size=n)
    measured = MEANS[kinds] + SPREADS * rng.standard_normal((n, len(FEATURES)))
    rows = [
        [round(float(value), digits) for value, digits in zip(row, DECIMALS, strict=True)]
        for row in measured
    ]
    return rows, [KINDS[kind] for kind in kinds]


def write(path: Path, rows: list[list[float]], kinds: list[str], beside: dict[str, list]) -> None:
    """One file."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*FEATURES, "kind", *beside])
        for row, kind, *others in zip(rows, kinds, *beside.values(), strict=True):
            writer.writerow([*row, kind, *others])


def main() -> None:
    """Write the three files."""
    rng = np.random.default_rng(20261125)
    rows, kinds = grains(rng, 900)
    side = ["test" if place >= 500 else "train" for place in range(900)]
    write(HERE / "grains.csv", rows, kinds, {"planted": [""] * 900, "side": side})
    good, said = grains(rng, 250)
    write(HERE / "batches" / "monday.csv", good, said, {"planted": [""] * 250})
    new, own = grains(rng, 250)
    planted = [""] * 250
    for place in rng.choice(250, 25, replace=False).tolist():
        own[place] = KINDS[(KINDS.index(own[place]) + int(rng.integers(1, 3))) % 3]
        planted[place] = "mislabel"
    rest = [place for place in range(250) if not planted[place] and own[place] != "oat"]
    for place in rng.choice(rest, 12, replace=False).tolist():
        new[place][FEATURES.index("moisture")] = MARK
        own[place], planted[place] = "oat", "mark"
    new += [list(rows[7]), list(rows[100]), list(rows[800]), grains(rng, 1)[0][0]]
    own += [kinds[7], KINDS[(KINDS.index(kinds[100]) + 1) % 3], kinds[800], "rye"]
    planted += ["copy", "copy", "test copy", "unknown kind"]
    write(HERE / "batches" / "tuesday.csv", new, own, {"planted": planted})


if __name__ == "__main__":
    main()
