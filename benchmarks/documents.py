"""Documents for a target style: what a small language model should read to write as Shakespeare.

After DsDm (Engstrom et al. 2024): of a pool of pieces of plays, news and film reviews, those are
chosen that raise the mean log-probability of some pieces of plays most, by TRAK's scores corrected
by a bank of retrained models. Models trained on the choice, on as many pieces by other rules, and
on all, are compared on plays that nothing saw before. Rules: at random; by BM25 and by the
similarity of hidden layers to the targets; `loss`, the pieces that models of the pool write best.

    WINNOW_DATA=... python -m benchmarks.documents
"""

import csv
import gzip
import json
import lzma
import os
import time
from functools import partial
from pathlib import Path

import numpy as np

from attribution import attribute
from attribution.models import build
from attribution.outputs import of_models
from attribution.retraining import Retraining
from attribution.statistics import welch_interval
from attribution.streams import Purpose, stream
from attribution.training import Recipe, predict, train_models
from benchmarks.retrained import bank_of_subsets, network_seeds
from optimize import best_rows, calibrate, random_subset
from tasks.intake.tokens import next_tokens

Pair = tuple[np.ndarray, np.ndarray]
LENGTH, TARGETS, JUDGES, SEEDS = 64, 50, 100, 8
POOL = {"plays": 200, "news": 400, "reviews": 400}
CHOSEN, SUBSETS = 300, 60
RECIPE = Recipe(optimizer="adamw", lr=0.005, schedule="cosine", epochs=12, batch_size=20)


def main() -> None:
    """Measure and print."""
    started = time.perf_counter()
    kinds, pool, queries, size = documents(Path(os.environ["WINNOW_DATA"]))
    options = {"vocabulary": size, "width": 32, "depth": 1, "heads": 2, "causal": True}
    model = partial(build, "transformer", (LENGTH,), size, **options)
    n = len(kinds)
    targets = queries[0][:TARGETS], queries[1][:TARGETS]
    bank = bank_of_subsets(model, pool, targets, RECIPE, SUBSETS, seeds=1, seed=0)
    whole = np.ones((3, n), dtype=bool)
    trained = train_models(model, pool, masks=whole, seeds=network_seeds(3), training=RECIPE)
    states = [trained.state(number) for number in range(3)]

    def mean_scores(method: str, **settings: object) -> np.ndarray:
        scores = attribute(method, model(), states, train=pool, queries=targets, **settings)
        return np.asarray(scores.mean(axis=0))

    scores = attribute("trak", model(), states, train=pool, queries=targets, bank=bank)
    surrogate = calibrate(scores, bank).averaged()
    own = of_models("logprob", predict(model, trained.states, pool[0]), pool[1], task="language")
    arms = {
        "chosen": best_rows(surrogate.weights[0])(CHOSEN),
        "hidden layers": best_rows(mean_scores("similarity"))(CHOSEN),
        "BM25": best_rows(mean_scores("bm25", padding=0))(CHOSEN),
        "loss": best_rows(np.asarray(own).mean(axis=0))(CHOSEN),
        "random": random_subset(n, CHOSEN, stream(0, Purpose.ARMS)),
        "all": np.ones(n, dtype=bool),
    }
    judges = queries[0][TARGETS:], queries[1][TARGETS:]
    retraining = Retraining(
        model=model, train=pool, queries=judges, training=RECIPE, output="logprob", seeds=SEEDS
    )
    per_character = retraining.on(np.stack(list(arms.values()))).outputs.mean(axis=2) / LENGTH
    first = per_character[0]
    print(f"{n} pieces of {LENGTH} characters, {CHOSEN} chosen for {TARGETS} pieces of plays;")
    print(f"log-probability of a character of {JUDGES} others, {SEEDS} models an arm")
    print(f"{'arm':16}{'plays':>7}{'news':>7}{'reviews':>9}{'mean':>9}  chosen - arm [95 %]")
    for (name, mask), values in zip(arms.items(), per_character, strict=True):
        counts = [int((kinds[mask] == kind).sum()) for kind in range(3)]
        told = ""
        if name != "chosen":
            mean, low, high = welch_interval(first, values)
            told = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(
            f"{name:16}{counts[0]:7}{counts[1]:7}{counts[2]:9}{values.mean():9.3f}  {told}",
            flush=True,
        )
    print(f"{time.perf_counter() - started:.0f} s")


def documents(folder: Path) -> tuple[np.ndarray, Pair, Pair, int]:
    """The kind of each piece of the pool, the pool, pieces of other plays, and the vocabulary."""
    texts = {"plays": plays(folder), "news": news(folder), "reviews": reviews(folder)}
    pieces = {}
    for place, (kind, text) in enumerate(texts.items()):
        wanted = POOL[kind] + (TARGETS + JUDGES if kind == "plays" else 0)
        starts = stream(0, Purpose.SPLIT, place).permutation(len(text) // (LENGTH + 1))[:wanted]
        pieces[kind] = [text[at : at + LENGTH + 1] for at in starts * (LENGTH + 1)]
    held = pieces["plays"][POOL["plays"] :]
    pieces["plays"] = pieces["plays"][: POOL["plays"]]
    pool = [piece for kind in POOL for piece in pieces[kind]]
    letters = sorted(set("".join([*pool, *held])))
    known = {letter: number for number, letter in enumerate(letters, 1)}

    def tokens(some: list[str]) -> Pair:
        return next_tokens(np.array([[known[letter] for letter in piece] for piece in some]))

    kinds = np.repeat(np.arange(3), list(POOL.values()))
    return kinds, tokens(pool), tokens(held), len(letters) + 1


def plays(folder: Path) -> str:
    """Shakespeare, lines joined."""
    text = (folder / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    return plain(text)


def news(folder: Path) -> str:
    """AG news, as one text."""
    path = folder / "ag_news" / "dev.tsv.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return plain(" ".join(row[0] for row in rows))


def reviews(folder: Path) -> str:
    """A share of the IMDB training reviews, as one text."""
    with lzma.open(folder / "imdb" / "train.jsonl.xz", "rt", encoding="utf-8") as file:
        lines = [json.loads(line)["text"] for line, _ in zip(file, range(1_000), strict=False)]
    return plain(" ".join(lines).replace("<br />", " "))


def plain(text: str) -> str:
    """One line of lower-case ASCII, so that no case and no line end tells what a piece is."""
    return " ".join(text.lower().encode("ascii", "ignore").decode().split())


if __name__ == "__main__":
    main()
