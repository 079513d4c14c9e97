"""A spec that screens batches of a generated table: small enough for every test that needs one."""

from pathlib import Path

import numpy as np
import polars as pl

SPEC = """
name = "stones"
seed = 3

[data]
source = "csv:stones.csv"
target = "kind"
split = "side"
metadata = ["finder"]

[sets]
queries = "SELECT example_id FROM examples WHERE split = 'test' AND content_hash < '8'"
holdout = "SELECT example_id FROM examples WHERE split = 'test' AND content_hash >= '8'"

[model]
build = "linear"

[train]
lr = 0.1
epochs = 8
seeds = 6

[bank]
models = 24
alpha = [0.5]
seeds = 1

[[attribution]]
method = "trak"
checkpoints = "bank"
projection = { dim = 64 }
damping = 1.0

[[problem]]
name = "gate"
kind = "screen"
uses = "trak"
inbox = "inbox/*.csv"
quarantine = { loss = 0.02, neighbours = 0.02, harm = 0.02, self_influence = 0.02, group = 0.02 }

[verdict]
seeds = 6

[compute]
device = "cpu"
"""

KINDS = ("basalt", "chalk", "flint")


def stones(rng: np.random.Generator, n: int) -> pl.DataFrame:
    """Measured stones of three kinds that overlap a little."""
    kind = rng.integers(3, size=n)
    centres = np.array([[0.0, 0.0, 9.0], [2.5, 0.0, 10.0], [0.0, 2.5, 11.0]])
    measured = centres[kind] + rng.standard_normal((n, 3))
    return pl.DataFrame(
        {
            "width": measured[:, 0],
            "depth": measured[:, 1],
            "weight": measured[:, 2],
            "kind": [KINDS[each] for each in kind],
            "finder": ["ana"] * n,
        }
    )


def written(folder: Path, *changes: tuple[str, str], n_train: int = 250) -> Path:
    """The spec in a folder, with its rows and an empty inbox; its text exchanged as told."""
    text = SPEC
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    rows = stones(np.random.default_rng(0), n_train + 120)
    side = ["train"] * n_train + ["test"] * 120
    rows.with_columns(pl.Series("side", side)).write_csv(folder / "stones.csv")
    (folder / "inbox").mkdir(exist_ok=True)
    spec = folder / "stones.toml"
    spec.write_text(text)
    return spec


def mislabelled(rows: pl.DataFrame, count: int) -> pl.DataFrame:
    """The first rows with the kind after their own."""
    kinds = rows["kind"].to_list()
    wrong = [KINDS[(KINDS.index(kind) + 1) % 3] for kind in kinds[:count]]
    return rows.with_columns(pl.Series("kind", wrong + kinds[count:]))
