"""Texts, a language model, and pictures with captions: which method ranks what retraining does?

Sentences of SST-2 by the mean of their words (`bag`), pieces of tinyshakespeare by a causal
transformer over characters, and Fashion-MNIST by two towers with templated captions. For each, half
of the rows is drawn again and again for models that judge and models that tune, a handful of
checkpoints is trained on all rows, and each method's LDS stands beside the ceiling. Then the k rows
that TRAK, and that similarity of representations, calls most helpful to a query are left out, and
what that does to the query by one is paired with what it does by the other.

    WINNOW_DATA=... python -m benchmarks.modalities [sentences characters pictures]
"""

import argparse
import csv
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from attribution import attribute, lds
from attribution.api import Scores
from attribution.bank import RetrainBank
from attribution.models import build
from attribution.retraining import Retraining, top_rows
from attribution.statistics import mean_interval, welch_interval
from attribution.streams import Purpose, stream
from attribution.training import Recipe
from benchmarks.problems import Size, fashion
from benchmarks.retrained import bank_of_subsets, networks
from schemas.recipe import TextSpec
from tasks.intake.tokens import next_tokens, tokenise

Pair = tuple[np.ndarray, np.ndarray]
JUDGING, TUNING, SEEDS = 30, 20, 2
# Random sets of k rows that all queries are compared with.
CONTROLS = 10
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
    checkpoints: int = 5
    removed: tuple[int, ...] = (10, 30, 100)
    removal_queries: int = 40


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
        checkpoints=10,
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
        removed=(10, 30),
        removal_queries=24,
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
        removed=(30,),
    )


CASES: dict[str, Callable[[Path], Case]] = {
    "sentences": sentences,
    "characters": characters,
    "pictures": pictures,
}


def bank_of(case: Case, subsets: int, seed: int) -> RetrainBank:
    """Models of half of the rows."""
    return bank_of_subsets(
        case.model, case.train, case.queries, case.recipe, subsets, seeds=SEEDS, seed=seed
    )


def print_bakeoff(case: Case, states: Sequence[Mapping[str, Any]]) -> dict[str, Scores]:
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
    """What leaving out each query's most helpful rows does, by one method, another, and both.

    Both methods and the random sets of a size are one batch of retrainings, so that the methods
    are compared on the same queries and against the same control.
    """
    count = case.removal_queries
    queries = case.queries[0][:count], case.queries[1][:count]
    retraining = Retraining(
        model=case.model, train=case.train, queries=queries, training=case.recipe, seeds=SEEDS
    )
    names = ("trak", SAME if case.classes else "similarity")
    orders = [
        top_rows(Scores(scores[name][:count], scores[name].record), retraining, helpful=True)
        for name in names
    ]
    n_train = len(case.train[0])
    print(f"change of the {retraining.kept} against random removal of k rows, {count} queries")
    for k in case.removed:
        started = time.perf_counter()
        random = [
            stream(0, Purpose.ARMS, k, number).permutation(n_train)[:k]
            for number in range(CONTROLS)
        ]
        sets = random + [rows[:k] for order in orders for rows in order]
        outputs = retraining.on(retraining.without(sets)).outputs.mean(axis=1)
        control = outputs[:CONTROLS]
        # Query q is asked only of the models that lack its own rows.
        own = outputs[CONTROLS:].reshape(len(names), count, count).diagonal(axis1=1, axis2=2)
        # Queries share the control, whose error therefore enters once more.
        spread = control.mean(axis=1) - control.mean()
        found = [welch_interval(each - control.mean(axis=0), spread) for each in own]
        found.append(mean_interval(own[0] - own[1]))
        cells = [
            f"{name} {mean:+.2f} [{low:+.2f}, {high:+.2f}]"
            for name, (mean, low, high) in zip((*names, "paired difference"), found, strict=True)
        ]
        seconds = time.perf_counter() - started
        lower = np.mean(own[0] < own[1])
        print(
            f"k = {k:3}: {'; '.join(cells)}; trak lower for {lower:.0%} of queries "
            f"({len(sets) * SEEDS} retrainings, {seconds:.0f} s)",
            flush=True,
        )


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
        states = networks(case.model, case.train, case.recipe, case.checkpoints)
        print_removal(case, print_bakeoff(case, states))


if __name__ == "__main__":
    main()
