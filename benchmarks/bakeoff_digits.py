"""One table of every method that `winnow methods` lists, on the digits perceptron.

The problem, the recipe and the judging masks are those of `benchmarks.lds_digits`: sixty
half-subsets of three seeds judge, thirty others tune the dampings. What a method is given differs
by its nature and stands beside it: ten independent networks, five snapshots of one run, a bank of
400 half-subsets that neither judge nor tune, or the recipe alone. LESS is judged on networks that
AdamW trained, for its snapshots are of AdamW. Methods that do not apply are listed with the reason.

    python -m benchmarks.bakeoff_digits [trak banzhaf ...]
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from attribution import attribute, estimators, lds
from attribution.bank import RetrainBank, train_bank
from attribution.training.recipe import exposures
from attribution.valuation import bernoulli_masks
from benchmarks.lds_digits import N_CHECKPOINTS, N_TRAIN, RECIPE, Pair, bank_of, model, problem
from benchmarks.lds_run import ADAM, EPOCHS, snapshots
from benchmarks.retrained import network_seeds, networks

# Retrainings that methods are fitted to which read nothing else: one seed each.
FITTED = 400
# A metagradient is a pass for each query, so few are asked.
ASKED = 20
ABSENT = {
    "alo": "for a single linear layer",
    "jackknife": "for a single linear layer",
    "bm25": "for words",
}


class Digits:
    """Rows, banks and checkpoints, each made when it is first asked for."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.train, self.queries = problem(seed)

    @cached_property
    def judge(self) -> RetrainBank:
        """What scores are judged on."""
        return bank_of(60, 3, 1_000 + self.seed, self.train, self.queries)

    @cached_property
    def tune(self) -> RetrainBank:
        """What dampings are tuned on."""
        return bank_of(30, 3, 2_000 + self.seed, self.train, self.queries)

    @cached_property
    def adam_judge(self) -> RetrainBank:
        """The judging masks once more, trained by AdamW."""
        return train_bank(
            model,
            self.train,
            queries=self.queries,
            masks=self.judge.masks,
            seeds=self.judge.seeds,
            training=ADAM,
        )

    @cached_property
    def halves(self) -> RetrainBank:
        """Half-subsets to fit to."""
        return bank_of(FITTED, 1, 3_000 + self.seed, self.train, self.queries)

    @cached_property
    def coins(self) -> RetrainBank:
        """Subsets that hold each row by the toss of a coin, as Banzhaf values want them."""
        masks, seeds, _ = bernoulli_masks(N_TRAIN, FITTED, seed=4_000 + self.seed)
        return train_bank(
            model, self.train, queries=self.queries, masks=masks, seeds=seeds, training=RECIPE
        )

    @cached_property
    def seeds(self) -> list[int]:
        """Of the networks of all rows."""
        return network_seeds(N_CHECKPOINTS, self.seed)

    @cached_property
    def networks(self) -> list[Any]:
        """Independent networks of all rows."""
        return networks(model, self.train, RECIPE, N_CHECKPOINTS, self.seed)

    @cached_property
    def run(self) -> list[Any]:
        """Snapshots of one run of SGD."""
        return [weights for weights, _ in snapshots(RECIPE, self.train, self.seed)]

    @cached_property
    def adam_run(self) -> list[Any]:
        """Snapshots of one run of AdamW, each with its moments."""
        return snapshots(ADAM, self.train, self.seed)

    def flat(self, pair: Pair) -> np.ndarray:
        """Pixels, for an embedding."""
        return pair[0].reshape(len(pair[0]), -1)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the table: what a method is given, and its judge where it has one of its own."""

    label: str
    method: str
    given: str
    options: Callable[[Digits], Mapping[str, Any]]
    judge: Callable[[Digits], RetrainBank] = field(default=lambda digits: digits.judge)
    asked: int | None = None


def entries() -> Iterator[Entry]:
    """Every line of the table, in the order of `winnow methods`."""
    for known in estimators():
        if known.name not in ABSENT:
            yield from _SPECIAL.get(known.name, _usual(known.name))


def _usual(name: str) -> tuple[Entry, ...]:
    return (
        Entry(
            label=name,
            method=name,
            given=f"{N_CHECKPOINTS} networks",
            options=lambda digits: {"checkpoints": digits.networks, "bank": digits.tune},
        ),
    )


def _trak(curvature: str) -> Entry:
    (usual,) = _usual("trak")
    return replace(
        usual,
        label=f"trak, {curvature}",
        options=lambda digits: {**usual.options(digits), "curvature": curvature},
    )


def _of_run(name: str, **options: Any) -> tuple[Entry, ...]:
    return (
        Entry(
            label=name,
            method=name,
            given=f"{len(EPOCHS)} snapshots",
            options=lambda digits: {
                "checkpoints": digits.run,
                "weights": exposures(RECIPE, N_TRAIN, EPOCHS),
                **options,
            },
        ),
    )


def _of_bank(label: str, method: str, **options: Any) -> Entry:
    return Entry(
        label=label,
        method=method,
        given=f"{FITTED} halves",
        options=lambda digits: {"bank": digits.halves, **options},
    )


_SPECIAL: dict[str, tuple[Entry, ...]] = {
    "trak": tuple(map(_trak, ("logistic", "after-kernel", "ggn"))),
    "tracin": _of_run("tracin"),
    "gas": _of_run("gas"),
    "source": _of_run("source", segments=3, weight_decay=RECIPE.weight_decay),
    "less": (
        Entry(
            label="less",
            method="less",
            given=f"{len(EPOCHS)} snapshots, Adam",
            options=lambda digits: {
                "checkpoints": [weights for weights, _ in digits.adam_run],
                "optimizer_states": [moments for _, moments in digits.adam_run],
            },
            judge=lambda digits: digits.adam_judge,
        ),
    ),
    "banzhaf": (
        Entry(
            label="banzhaf",
            method="banzhaf",
            given=f"{FITTED} coin tosses",
            options=lambda digits: {"bank": digits.coins},
        ),
    ),
    "embedding": (
        Entry(
            label="embedding, of pixels",
            method="embedding",
            given="pixels",
            options=lambda digits: {
                "train_embeddings": digits.flat(digits.train),
                "query_embeddings": digits.flat(digits.queries),
            },
        ),
    ),
    "datamodel": (
        _of_bank("datamodel, lasso", "datamodel", penalty="lasso"),
        _of_bank("datamodel, ridge", "datamodel", penalty="ridge"),
    ),
    "empirical_influence": (_of_bank("empirical_influence", "empirical_influence"),),
    "metagradient": (
        Entry(
            label=f"metagradient, {ASKED} queries",
            method="metagradient",
            given="1 run",
            options=lambda digits: {"training": RECIPE, "seeds": digits.seeds[:1]},
            asked=ASKED,
        ),
    ),
}


def line(entry: Entry, digits: Digits) -> str:
    """Score, judge, and the line that says so."""
    options = dict(entry.options(digits))
    judge, queries = entry.judge(digits), digits.queries
    if entry.asked is not None:
        judge = replace(judge, outputs=judge.outputs[:, : entry.asked])
        queries = queries[0][: entry.asked], queries[1][: entry.asked]
    started = time.process_time()
    scores = attribute(
        entry.method,
        model(),
        options.pop("checkpoints", None),
        train=digits.train,
        queries=queries,
        **options,
    )
    seconds = time.process_time() - started
    found = lds(scores, judge)
    low, high = found.interval
    damping = scores.record.get("damping")
    return (
        f"{entry.label:26}{entry.given:20}{f'{found.mean:.3f} [{low:.3f}, {high:.3f}]':24}"
        f"{found.ceiling:8.3f}{found.mean / found.ceiling:9.0%}"
        f"{'' if damping is None else f'{damping:g}':>9}{seconds:9.1f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", default=[], help="those of `winnow methods`; all")
    asked = parser.parse_args().methods
    digits = Digits()
    print(
        f"{'method':26}{'given':20}{'LDS':24}{'ceiling':>8}{'reached':>9}{'damping':>9}{'CPU s':>9}"
    )
    for entry in entries():
        if not asked or entry.method in asked:
            print(line(entry, digits), flush=True)
    for name, why in ABSENT.items():
        if not asked or name in asked:
            print(f"{name:26}does not apply: {why}")


if __name__ == "__main__":
    main()
