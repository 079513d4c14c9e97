"""Texts, a language model, and pictures with captions: which method ranks what retraining does?

Sentences of SST-2 by the mean of their words (`bag`), pieces of tinyshakespeare by a causal
transformer over characters, and Fashion-MNIST by two towers with templated captions. For each, half
of the rows is drawn again and again for models that judge and models that tune, a handful of
checkpoints is trained on all rows, and each method's LDS stands beside the ceiling. Then the k rows
that TRAK, and that similarity of representations, calls most helpful to a query are left out.

    WINNOW_DATA=... python -m benchmarks.modalities [sentences characters pictures]
"""

import argparse
import csv
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from attribution import attribute, lds
from attribution.api import Scores
from attribution.bank import RetrainBank, draw_masks, train_bank
from attribution.models import build
from attribution.removal import removal_curve
from attribution.retraining import Retraining
from attribution.streams import Purpose, stream
from attribution.training import Recipe, train_models
from benchmarks.problems import Size, fashion
from schemas.recipe import TextSpec
from tasks.intake.tokens import next_tokens, tokenise

Pair = tuple[np.ndarray, np.ndarray]
JUDGING, TUNING, SEEDS = 30, 10, 2
# Rows of another class than the query's score nothing: the better baseline where there are classes.
SAME = "similarity, same class"
GARMENTS = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rows, a model and a recipe; removal is asked of the first queries only."""

    title: str
    train: Pair
    queries: Pair
    model: Callable[[], nn.Module]
    recipe: Recipe
    words: bool
    classes: bool = True
    checkpoints: int = 3
    removed: tuple[int, ...] = (30,)
    removal_queries: int = 8


def sentences(folder: Path, n_train: int = 1_500, n_query: int = 80) -> Case:
    """Sentences of SST-2 and whether they praise."""
    spec = TextSpec(column="sentence", length=40, vocabulary=1_000)
    pairs = []
    for part, count in (("train", n_train), ("dev", n_query)):
        with (folder / "sst2" / f"{part}.tsv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        chosen = stream(0, Purpose.SPLIT, len(rows)).permutation(len(rows))[:count]
        texts = [rows[row][0] for row in chosen]
        labels = np.array([int(rows[row][1]) for row in chosen])
        pairs.append((tokenise(texts, spec), labels))
    return Case(
        title="SST-2 sentences, bag of words",
        train=pairs[0],
        queries=pairs[1],
        model=partial(build, "bag", (40,), 2, vocabulary=1_000, width=16, hidden=[16]),
        recipe=Recipe(optimizer="adamw", lr=0.01, schedule="cosine", epochs=10, batch_size=50),
        words=True,
    )


def characters(folder: Path, n_train: int = 600, n_query: int = 50) -> Case:
    """Pieces of 64 characters of Shakespeare; a piece is a document."""
    text = (folder / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    known = {letter: number for number, letter in enumerate(sorted(set(text)), 1)}
    starts = stream(0, Purpose.SPLIT).permutation(len(text) // 65)[: n_train + n_query] * 65
    tokens = np.array([[known[letter] for letter in text[at : at + 65]] for at in starts])
    inputs, targets = next_tokens(tokens)
    size = len(known) + 1
    options = {"vocabulary": size, "width": 32, "depth": 1, "heads": 2, "causal": True}
    return Case(
        title="tinyshakespeare, causal transformer over characters",
        train=(inputs[:n_train], targets[:n_train]),
        queries=(inputs[n_train:], targets[n_train:]),
        model=partial(build, "transformer", (64,), size, **options),
        recipe=Recipe(optimizer="adamw", lr=0.005, schedule="cosine", epochs=12, batch_size=20),
        words=True,
        classes=False,
    )


def pictures(folder: Path, n_train: int = 1_500, n_query: int = 80) -> Case:
    """Images of Fashion-MNIST and one templated caption for each kind of garment."""
    del folder  # `fashion` finds it
    train, queries = fashion(Size(n_train=n_train, n_query=n_query))
    captions = [f"a photo of a {garment}" for garment in GARMENTS]
    options = {"captions": captions, "channels": [4, 8], "width": 16}
    return Case(
        title="Fashion-MNIST, two towers",
        train=train,
        queries=queries,
        model=partial(build, "two_tower", (784,), 10, **options),
        recipe=Recipe(lr=0.01, warmup=1, schedule="cosine", epochs=8, batch_size=50),
        words=False,
    )


CASES: dict[str, Callable[[Path], Case]] = {
    "sentences": sentences,
    "characters": characters,
    "pictures": pictures,
}


def bank_of(case: Case, subsets: int, seed: int) -> RetrainBank:
    """Models of half of the rows."""
    n_train = len(case.train[0])
    masks, seeds, alpha = draw_masks(n_train, subsets * SEEDS, [0.5], SEEDS, seed)
    return train_bank(
        case.model,
        case.train,
        queries=case.queries,
        masks=masks,
        seeds=seeds,
        training=case.recipe,
        alpha=alpha,
    )


def states_of(case: Case) -> list[Mapping[str, Any]]:
    """Independently seeded models of all rows."""
    seeds = [int(stream(0, Purpose.INIT, c).integers(2**62)) for c in range(case.checkpoints)]
    whole = np.ones((case.checkpoints, len(case.train[0])), dtype=bool)
    trained = train_models(case.model, case.train, masks=whole, seeds=seeds, training=case.recipe)
    return [dict(trained.state(number)) for number in range(case.checkpoints)]


def print_bakeoff(case: Case, states: list[Mapping[str, Any]]) -> dict[str, Scores]:
    """LDS of each method beside the ceiling; the scores."""
    started = time.perf_counter()
    judge, tune = bank_of(case, JUDGING, 1_000), bank_of(case, TUNING, 2_000)
    print(f"{len(judge) + len(tune)} retrainings: {time.perf_counter() - started:.0f} s")
    kept: dict[str, Scores] = {}
    methods: list[tuple[str, str, dict[str, Any]]] = [
        ("trak", "trak", {"bank": tune}),
        ("ekfac", "ekfac", {"bank": tune}),
        ("gradcos", "gradcos", {}),
        ("similarity", "similarity", {}),
    ]
    if case.classes:
        methods.append((SAME, "similarity", {"labels": "same"}))
    if case.words:
        methods.append(("bm25", "bm25", {"padding": 0}))
    print(f"{'method':24}{'LDS':24}{'ceiling':>8}{'reached':>9}{'damping':>9}{'seconds':>9}")
    for name, method, options in methods:
        scores = kept[name] = attribute(
            method, case.model(), states, train=case.train, queries=case.queries, **options
        )
        found = lds(scores, judge)
        low, high = found.interval
        damping = scores.record["damping"]
        print(
            f"{name:24}{f'{found.mean:.3f} [{low:.3f}, {high:.3f}]':24}{found.ceiling:8.3f}"
            f"{found.mean / found.ceiling:9.0%}{'' if damping is None else f'{damping:g}':>9}"
            f"{scores.record['seconds']['total']:9.1f}",
            flush=True,
        )
    return kept


def print_removal(case: Case, scores: Mapping[str, Scores]) -> None:
    """What leaving out each query's most helpful rows does, beside random rows."""
    count = case.removal_queries
    queries = case.queries[0][:count], case.queries[1][:count]
    retraining = Retraining(
        model=case.model, train=case.train, queries=queries, training=case.recipe, seeds=SEEDS
    )
    print(f"change of the {retraining.kept} against random removal of k rows, {count} queries")
    for name in ("trak", SAME if case.classes else "similarity"):
        started = time.perf_counter()
        chosen = Scores(scores[name][:count], scores[name].record)
        curve = removal_curve(chosen, retraining, sizes=case.removed)
        cells = [
            f"k = {each.size}: {each.mean:+.2f} [{each.interval[0]:+.2f}, {each.interval[1]:+.2f}]"
            for each in curve.helpful
        ]
        seconds = time.perf_counter() - started
        print(f"{name:24}{'  '.join(cells)}  ({len(curve.bank)} retrainings, {seconds:.0f} s)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help=", ".join(CASES))
    asked = parser.parse_args()
    folder = Path(os.environ["WINNOW_DATA"])
    for name in asked.cases:
        case = CASES[name](folder)
        n_train, n_query = len(case.train[0]), len(case.queries[0])
        size = sum(parameter.numel() for parameter in case.model().parameters())
        print(f"\n{case.title}: {n_train} rows, {n_query} queries, {size} parameters")
        print_removal(case, print_bakeoff(case, states_of(case)))


if __name__ == "__main__":
    main()
