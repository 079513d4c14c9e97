"""A small run, as the commit task would hand it over."""

# ruff: noqa: C408 - dict(a=1) keeps a row on two lines

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from schemas.frames import FRAMES
from store.segments import write_segment
from store.writer import RunBundle

N_TRAIN, QUERIES = 12, (100, 101, 102)
CORRUPTED = (3, 8)
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def scores(offset: float = 0.0) -> np.ndarray:
    """Examples 3 and 8 lower every query's margin; the others raise it."""
    block = np.linspace(0.1, 1.0, len(QUERIES) * N_TRAIN).reshape(len(QUERIES), N_TRAIN) + offset
    block[:, CORRUPTED] *= -2
    return block.astype(np.float32)


def frame(table: str, rows: list[dict[str, Any]]) -> pl.DataFrame:
    schema = FRAMES[table]
    columns = {name: column.dtype for name, column in schema.columns().items()}
    full = [dict.fromkeys(columns) | row for row in rows]
    return pl.DataFrame(full, schema=columns)


def bundle(
    folder: Path, *, run_id: str = "r1", attribution: str = "a1", output: str = "margin",
    offset: float = 0.0, keep: int | None = None, when: datetime = WHEN,
) -> RunBundle:  # fmt: skip
    block = scores(offset)
    names = ["ant" if i % 2 else "bee" for i in range(N_TRAIN)]
    wrong = [("bee" if n == "ant" else "ant") if i in CORRUPTED else n for i, n in enumerate(names)]
    folder.mkdir(parents=True, exist_ok=True)
    segments = [folder / f"{attribution}-{part}.parquet" for part in range(2)]
    kept = 0
    for path, part in zip(segments, (slice(0, 2), slice(2, None)), strict=True):
        kept += write_segment(
            path,
            block[part],
            query_ids=np.array(QUERIES)[part],
            train_ids=np.arange(N_TRAIN),
            keep=keep,
        )
    mean = block.mean(axis=0).tolist()
    chosen = [value > 0 for value in mean]
    order = np.argsort(np.argsort(-np.array(mean))) + 1
    mask = "".join("1" if flag else "0" for flag in chosen)
    tables = {
        "runs": [
            dict(run_id=run_id, dataset_id="d1", spec_name="digits", spec_digest="s1",
                 spec_toml="name = 'digits'", status="committed", seed=0, device="cpu",
                 code_version="0.1.0", started_at=when, committed_at=when, seconds=1.5)
        ],
        "examples": [
            dict(dataset_id="d1", example_id=i, split="train", target=wrong[i],
                 true_target=names[i], content_hash=f"{i:x}", metadata='{"site": "x"}')
            for i in range(N_TRAIN)
        ] + [
            dict(dataset_id="d1", example_id=q, split="test", target="ant", true_target="ant",
                 content_hash=f"{q:x}")
            for q in QUERIES
        ],
        "attributions": [
            dict(attribution_id=attribution, run_id=run_id, dataset_id="d1", name="trak",
                 method="trak", output=output, options="{}", n_train=N_TRAIN,
                 n_query=len(QUERIES), fingerprint="f", damping=0.1, damping_from="spec",
                 device="cpu", seconds=0.5, kept=kept)
        ],
        "example_effects": [
            dict(attribution_id=attribution, example_id=i, mean_score=mean[i], self_influence=0.5)
            for i in range(N_TRAIN)
        ],
        "bank": [
            dict(retrain_id=f"m{seed}", dataset_id="d1", kind="verdict:chosen", seed=seed,
                 n_rows=mask.count("1"), mask=mask)
            for seed in range(2)
        ],
        "bank_outputs": [
            dict(retrain_id=f"m{seed}", query_id=q, output="margin", value=1.0 + offset)
            for seed in range(2) for q in QUERIES
        ],
        "lds": [
            dict(attribution_id=attribution, alpha=alpha, mean=0.4, low=0.3, high=0.5,
                 n_masks=10, n_seeds=2, n_queries=3)
            for alpha in (None, 0.5)
        ],
        "solutions": [
            dict(solution_id=f"s-{run_id}", run_id=run_id, attribution_id=attribution,
                 problem="clean", kind="select", status="optimal", size=sum(chosen),
                 n_pool=N_TRAIN, value=1.0, bound=1.0, gap=0.0, targets="queries",
                 sentence="Drop two rows.")
        ],
        "solution_rows": [
            dict(solution_id=f"s-{run_id}", example_id=i, chosen=chosen[i], utility=mean[i],
                 position=int(order[i]))
            for i in range(N_TRAIN)
        ],
        "solution_prices": [
            dict(solution_id=f"s-{run_id}", constraint_name=name, price=price)
            for name, price in (("size", 0.25), ("class ant", -0.5))
        ],
        "verdicts": [
            dict(verdict_id=f"v-{run_id}-{arm}", run_id=run_id, solution_id=f"s-{run_id}",
                 arm=arm, n_rows=10, seeds=2, accuracy=0.9, output="margin", value=1.0,
                 sentence="It helped.")
            for arm in ("random", "all", "chosen")
        ],
    }  # fmt: skip
    frames = {name: frame(name, rows) for name, rows in tables.items()}
    return RunBundle(tables=frames, scores={attribution: segments})
