"""Do screens of new rows keep to the rate that was declared, and what do they find?

Splits of scikit-learn's digits: 600 trusted training rows, 300 test rows, the other 897 come in as
batches. Untouched batches tell how many good rows each screen holds up at several rates, beside
thresholds from all models, as if those had not trained on half of the trusted rows. Batches of
200 with planted rows tell what is found: random wrong labels, and rows of other digits with a
bright square in a corner that are all called 0.

    python -m benchmarks.incoming [--splits 5]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.datasets import load_digits

from attribution.streams import Purpose, stream
from optimize.defence import arrivals
from schemas.spec import ScreenSpec
from tasks.bank import extend_bank, pending_chunks, states_of
from tasks.blueprint import Blueprint
from tasks.featurize import featurize_shard, pending_features
from tasks.job import blueprint
from tasks.preflight import open_job, preflight
from tasks.score import score
from tasks.screening.batches import read_batch
from tasks.screening.evidence import gather, loss_models, losses_of

TRUSTED, TESTED, BATCH = 600, 300, 200
RATES, RATE = (0.01, 0.02, 0.05), 0.01
SCREENS = ("loss", "neighbours", "harm", "self_influence", "group")
SPEC = """
name = "digits"
seed = {seed}
data = {{ source = "csv:rows.csv", target = "label", split = "side" }}
model = {{ build = "mlp", options = {{ hidden = [64] }} }}
train = {{ epochs = 30, seeds = 10 }}
bank = {{ models = 60, alpha = [0.5], seeds = 1 }}

[[attribution]]
method = "trak"
checkpoints = "bank"
projection = {{ dim = 512 }}

[[problem]]
kind = "screen"
uses = "trak"
quarantine = {{ loss = 0.01, neighbours = 0.01, harm = 0.01, self_influence = 0.01, group = 0.01 }}
"""


def opened(folder: Path, seed: int) -> tuple[Blueprint, pl.DataFrame]:
    """The plan of one split, its models trained and sketched, and the rows that come in."""
    digits = load_digits()
    order = stream(seed, Purpose.SPLIT, len(digits.target)).permutation(len(digits.target))
    rows = pl.DataFrame(digits.data[order], schema=[f"p{n:02d}" for n in range(64)])
    rows = rows.with_columns(label=pl.Series([f"d{label}" for label in digits.target[order]]))
    side = ["train"] * TRUSTED + ["test"] * TESTED
    rows[: len(side)].with_columns(side=pl.Series(side)).write_csv(folder / "rows.csv")
    spec = folder / "spec.toml"
    spec.write_text(SPEC.format(seed=seed))
    job = preflight(open_job(spec, folder / "work"))
    for chunk in pending_chunks(job):
        extend_bank.fn(job, chunk)
    shards, total = pending_features(job)
    for shard in shards:
        featurize_shard.fn(job, shard, total)
    score.fn(job, "trak")
    return blueprint(job), rows[len(side) :]


def places(plan: Blueprint, rows: pl.DataFrame) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every screen's places of a batch, and those of losses if models counted for all rows."""
    path = plan.loaded.path.with_name("batch.csv")
    rows.write_csv(path)
    batch, problem = read_batch(plan, path), plan.spec.problem_of(ScreenSpec)
    found = {name: seen.places for name, seen in gather(plan, problem, batch).standings.items()}
    states, train = states_of(plan, loss_models(plan)[1]), plan.dataset.train
    naive = arrivals.standing(
        losses_of(plan, states, train.inputs, train.targets),
        losses_of(plan, states, batch.inputs, batch.targets),
    )
    return found, naive.places


def planted(
    rows: pl.DataFrame, what: str, count: int, seed: int
) -> tuple[pl.DataFrame, np.ndarray]:
    """A batch with some rows changed, and which those are."""
    rng = stream(seed, Purpose.POISON, count)
    labels = np.array([int(label[1:]) for label in rows["label"]])
    bad = rng.choice(np.flatnonzero(labels > 0), count, replace=False)
    if what == "wrong labels":
        labels[bad] = (labels[bad] + rng.integers(1, 10, count)) % 10
    else:
        labels[bad] = 0
        corner = [f"p{row * 8 + column:02d}" for row in (6, 7) for column in (6, 7)]
        mark = pl.int_range(pl.len()).is_in(bad.tolist())
        rows = rows.with_columns(
            pl.when(mark).then(16.0).otherwise(pl.col(name)).alias(name) for name in corner
        )
    return rows.with_columns(label=pl.Series([f"d{label}" for label in labels])), bad


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=5)
    splits = parser.parse_args().splits
    started = time.perf_counter()
    held: dict[str, list[list[float]]] = {name: [] for name in (*SCREENS, "loss, naive")}
    cases = (("wrong labels", 20), ("marked", 20), ("marked", 8))
    recall: dict[tuple[str, int, str], list[float]] = {}
    for seed in range(splits):
        with tempfile.TemporaryDirectory() as folder:
            plan, pool = opened(Path(folder), seed)
            found, naive = places(plan, pool)
            for name, each in {**found, "loss, naive": naive}.items():
                held[name].append([100 * float((each <= rate).mean()) for rate in RATES])
            for what, count in cases:
                batch, bad = planted(pool[:BATCH], what, count, seed)
                seen, _ = places(plan, batch)
                one = {name: each <= RATE for name, each in seen.items()}
                one["any of the five"] = np.any(list(one.values()), axis=0)
                for name, out in one.items():
                    recall.setdefault((what, count, name), []).append(100 * float(out[bad].mean()))
    print(f"digits, {splits} splits: good rows that are held up, in %, mean (sd over splits)")
    print("declared" + "".join(f"{100 * rate:16g}" for rate in RATES))
    for name, values in held.items():
        mean, sd = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
        print(
            f"{name:16}" + "".join(f"  {m:6.2f} ({s:4.2f}) " for m, s in zip(mean, sd, strict=True))
        )
    print(f"\nplanted rows that are held up at {100 * RATE:g} % each, in %, in batches of {BATCH}")
    print(f"{'':16}" + "".join(f"{count:4d} {what:14}" for what, count in cases))
    for name in (*SCREENS, "any of the five"):
        cells = [np.mean(recall[what, count, name]) for what, count in cases]
        print(f"{name:16}" + "".join(f"{cell:11.0f}        " for cell in cells))
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
