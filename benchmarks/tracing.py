"""Facts of ParaRel in a small language model: which rows state a fact, which taught it?

Each fact is stated in three templates with the subject first ("Helvia is headquartered in Turin")
and in three with the object first ("Turin is home to Helvia"). A causal model asked in a template
it never saw, subject first, can answer from the first kind only: it learns to say an object after
its subject and not the other way round. Both kinds state the fact, and both are proponents. So
retrieval and causes can be told apart: MRR and recall@k ask for rows that state the fact, and
removal of each method's k rows, with retraining, for the rows that taught it.

Scores are of the log-probability of the object alone, for rows whose loss is that of all tokens.

    WINNOW_DATA=... python -m benchmarks.tracing [--facts 20] [--asked 10]
"""

import argparse
import json
import os
import re
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from attribution import attribute, lds
from attribution.api import Scores
from attribution.bank import draw_masks
from attribution.fact_removal import RANDOM, design_removal, removal_effects
from attribution.latent_words import latent_words
from attribution.models import build
from attribution.outputs import UNASKED
from attribution.retraining import Retraining
from attribution.statistics import Triple, mean_interval
from attribution.streams import Purpose, stream
from attribution.tail_patch import tail_patch
from attribution.tracing import retrieval, top_rows_of
from attribution.training import Recipe, train_models
from benchmarks.modalities import Case, bank_of
from benchmarks.retrained import networks
from tasks.intake.tokens import WORD

RELATIONS = ("P101", "P159", "P36", "P449")
STATEMENTS = 3  # of each kind, and rows that a query loses
REPEATS, JUDGING, TUNING, HALVES = 2, 20, 8, 5
LENGTH = 20
RATE = 0.02

SUBJECT_FIRST, OBJECT_FIRST = "subject first", "object first"
# Whose removal is compared, query by query.
PAIRS = (
    ("ekfac", "bm25"),
    ("trak", "bm25"),
    ("trak", "similarity"),
    (SUBJECT_FIRST, OBJECT_FIRST),
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Rows that state facts, and queries in templates that no row uses.

    Attributes:
        train: Texts.
        fact: Int [n_train], the fact that each row states.
        first: Bool [n_train], the subject comes first.
        queries: Texts that end with the object.
        asked: Int [n_query], the fact that each query asks for.
    """

    train: list[str]
    fact: np.ndarray
    first: np.ndarray
    queries: list[str]
    asked: np.ndarray


def read_facts(folder: Path, per_relation: int, asked: int) -> Facts:
    """So many facts of each relation, and so many of those as queries."""
    train, queries = list[tuple[str, int, bool]](), list[tuple[str, int]]()
    with tarfile.open(folder / "pararel" / "pararel.tar.gz") as archive:
        for place, relation in enumerate(RELATIONS):
            facts, forward, backward = _relation(archive, relation)
            rng = stream(0, Purpose.SPLIT, place)
            for number in rng.permutation(len(facts))[:per_relation]:
                fact = len(train) // (2 * STATEMENTS)
                own = [forward[i] for i in rng.permutation(len(forward))[: STATEMENTS + 1]]
                if fact % per_relation < asked:
                    queries.append((_say(own[-1], facts[number]).rstrip(". "), fact))
                train += [(_say(form, facts[number]), fact, True) for form in own[:-1]]
                own = [backward[i] for i in rng.permutation(len(backward))[:STATEMENTS]]
                train += [(_say(form, facts[number]), fact, False) for form in own]
    return Facts(
        train=[text for text, _, _ in train],
        fact=np.array([fact for _, fact, _ in train]),
        first=np.array([first for _, _, first in train]),
        queries=[text for text, _ in queries],
        asked=np.array([fact for _, fact in queries]),
    )


def _relation(
    archive: tarfile.TarFile, relation: str
) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """Facts (subject, object) with an object of one word; templates that end with it, or begin."""

    def lines(name: str) -> list[dict[str, str]]:
        file = archive.extractfile(f"pararel/{name}/{relation}.jsonl")
        return [json.loads(line) for line in file or ()]

    facts = {}
    for fact in lines("trex_lms_vocab"):
        subject, answer = fact["sub_label"], fact["obj_label"]
        words = WORD.findall(subject.lower())
        if len(WORD.findall(answer)) == 1 and len(words) <= 3 and answer.lower() not in words:
            facts[subject] = answer
    patterns = [line["pattern"].strip() for line in lines("pattern_data/graphs_json")]
    forward = [form for form in patterns if re.search(r"\[X\].*\[Y\]\s*\.?$", form)]
    backward = [form for form in patterns if form.index("[Y]") < form.index("[X]")]
    return list(facts.items()), forward, backward


def _say(form: str, fact: tuple[str, str]) -> str:
    return form.replace("[X]", fact[0]).replace("[Y]", fact[1])


def case_of(facts: Facts) -> Case:
    """Tokens, a causal transformer and a recipe; of a query only the object is asked."""
    texts = [WORD.findall(text.lower()) for text in [*facts.train, *facts.queries]]
    known = {word: 1 + place for place, word in enumerate(sorted({w for t in texts for w in t}))}
    tokens = np.zeros((len(texts), LENGTH + 1), dtype=np.int64)
    for row, words in enumerate(texts):
        tokens[row, : len(words)] = [known[word] for word in words]
    inputs, targets = tokens[:, :-1], tokens[:, 1:].copy()
    targets[targets == 0] = UNASKED
    n_train = len(facts.train)
    for row in range(n_train, len(texts)):
        targets[row, : len(texts[row]) - 2] = UNASKED
    size = len(known) + 1
    options = {"vocabulary": size, "width": 32, "depth": 1, "heads": 2, "causal": True}
    return Case(
        title="ParaRel",
        train=(inputs[:n_train], targets[:n_train]),
        queries=(inputs[n_train:], targets[n_train:]),
        model=partial(build, "transformer", (LENGTH,), size, **options),
        recipe=Recipe(optimizer="adamw", lr=0.01, schedule="cosine", epochs=20, batch_size=20),
        words=True,
        classes=False,
    )


def scores_of(facts: Facts, case: Case, states: Sequence[Mapping[str, Any]]) -> dict[str, Scores]:
    """Every method's scores; those with a damping tune it on a bank, and all are judged on one."""
    train, queries = latent_words(facts.train, facts.queries)
    tune, judge = bank_of(case, TUNING, 1), bank_of(case, JUDGING, 2)
    embeddings = {"train_embeddings": train, "query_embeddings": queries}
    halves = half_states(case)
    methods: list[tuple[str, str, Any, dict[str, Any]]] = [
        ("bm25", "bm25", states, {"padding": 0}),
        ("embedding", "embedding", states, embeddings),
        ("similarity", "similarity", states, {}),
        ("gradcos", "gradcos", states, {}),
        ("ekfac", "ekfac", states, {"bank": tune}),
        ("trak", "trak", states, {"bank": tune}),
        ("trak, halves", "trak", halves, {"bank": tune}),
    ]
    found = {}
    for name, method, weights, options in methods:
        scores = found[name] = attribute(
            method, case.model(), weights, train=case.train, queries=case.queries, **options
        )
        result = lds(scores, judge)
        low, high = result.interval
        seconds = scores.record["seconds"]["total"]
        print(
            f"{name:16} LDS {result.mean:.3f} [{low:.3f}, {high:.3f}] of {result.ceiling:.3f}"
            f"  {seconds:6.1f} s",
            flush=True,
        )
    return found


def half_states(case: Case) -> list[Mapping[str, Any]]:
    """Checkpoints of half of the rows each: gradients of rows that are memorised vanish."""
    n_train = len(case.train[0])
    masks, seeds, _ = draw_masks(n_train, HALVES, [0.5], 1, 3)
    trained = train_models(case.model, case.train, masks=masks, seeds=seeds, training=case.recipe)
    return [dict(trained.state(number)) for number in range(HALVES)]


def print_retrieval(facts: Facts, scores: Mapping[str, Scores], k: int) -> None:
    """MRR and recall@k: of all rows that state the fact, and of the kind that can teach it."""
    stating = facts.asked[:, None] == facts.fact
    print(f"\n{'':16}{'MRR':24}{f'recall@{k}':24}{'of subject first':24}of object first")
    for name, tau in scores.items():
        found = retrieval(tau, stating, k=k)
        kinds = [retrieval(tau, stating & kind, k=k) for kind in (facts.first, ~facts.first)]
        cells = [found.mrr, found.recall_at_k, *(kind.recall_at_k for kind in kinds)]
        print(f"{name:16}" + "".join(f"{_triple(cell):24}" for cell in cells))


def print_patches(
    case: Case, state: Mapping[str, Any], own: Mapping[str, np.ndarray], rate: float
) -> None:
    """The mean change of a query's log-probability by a step on each row of its own."""
    print(f"\nmean change of the log-probability by a step of {rate:g} on each of the rows")
    for name, rows in own.items():
        patch = tail_patch(
            case.model(), state, train=case.train, queries=case.queries, rows=rows, rate=rate
        )
        print(f"{name:16}{_triple(mean_interval(patch.mean(axis=1)), '+.3f')}", flush=True)


def print_removal(case: Case, own: Mapping[str, np.ndarray]) -> None:
    """What the object's probability loses when each query's rows are left out, by retraining."""
    started = time.perf_counter()
    retraining = Retraining(
        model=case.model, train=case.train, queries=case.queries, training=case.recipe, seeds=1
    )
    design = design_removal(own, retraining.n_train, repeats=REPEATS)
    whole = np.ones((2 * REPEATS, retraining.n_train), dtype=bool)
    logprob = retraining.on(np.concatenate([whole, design.masks])).outputs[:, 0]
    count = len(whole)
    print(
        f"\n{len(design.masks)} models lack {design.removed} rows, {count} none: "
        f"{time.perf_counter() - started:.0f} s"
    )
    print(f"probability of the object, all rows: {np.exp(logprob[:count]).mean():.3f}")
    nats = removal_effects(design, logprob[count:], logprob[:count])
    shares = removal_effects(design, np.exp(logprob[count:]), np.exp(logprob[:count]))
    print(f"{'':16}{'log-probability':26}{'against random':26}{'probability':26}against random")
    for arm in design.arms:
        cells = [nats.mean(arm), *([nats.difference(arm)] if arm != RANDOM else [None])]
        cells += [shares.mean(arm), *([shares.difference(arm)] if arm != RANDOM else [None])]
        print(f"{arm:16}" + "".join(f"{_triple(cell, '+.3f'):26}" for cell in cells))
    for one, other in PAIRS:
        print(f"{one} - {other}: {_triple(nats.difference(one, other), '+.3f')} nats")


def _triple(value: Triple | None, form: str = ".3f") -> str:
    if value is None:
        return ""
    mean, low, high = value
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def rows_of_kind(facts: Facts, kind: np.ndarray) -> np.ndarray:
    """The rows of each query that state its fact in one kind of template."""
    return np.stack([np.flatnonzero((facts.fact == fact) & kind) for fact in facts.asked])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts", type=int, default=20, help="facts of each relation")
    parser.add_argument("--asked", type=int, default=10, help="of which so many are queries")
    asked = parser.parse_args()
    facts = read_facts(Path(os.environ["WINNOW_DATA"]), asked.facts, asked.asked)
    case = case_of(facts)
    size = sum(parameter.numel() for parameter in case.model().parameters())
    print(f"{case.title}: {len(facts.train)} rows, {len(facts.queries)} queries, {size} parameters")
    print(f"e.g. {facts.train[0]!r}, {facts.train[STATEMENTS]!r}; asked {facts.queries[0]!r}")
    states = networks(case.model, case.train, case.recipe, case.checkpoints)
    scores = scores_of(facts, case, states)
    print_retrieval(facts, scores, 10)
    own = {name: top_rows_of(tau, STATEMENTS) for name, tau in scores.items()}
    own[SUBJECT_FIRST] = rows_of_kind(facts, facts.first)
    own[OBJECT_FIRST] = rows_of_kind(facts, ~facts.first)
    print_patches(case, states[0], own, RATE)
    print_removal(case, own)


if __name__ == "__main__":
    main()
