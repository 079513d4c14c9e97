"""TOFU on a small language model: forget quality and utility of each method, in one table.

A causal transformer over hashed words learns questions and answers about fictitious authors, each
pair also in its paraphrase; then some authors are to be forgotten. Forget quality is the p-value of
a Kolmogorov-Smirnov test between truth ratios of the unlearned model and of one that never saw the
authors (Maini et al. 2024); utility is the harmonic mean of probability, ROUGE-L recall of greedy
answers and 1 - truth ratio, on authors that stay. Two models a side. Learning rates and the scale
of the predicted change were chosen on other authors (`--tune`).

    WINNOW_DATA=... python -m benchmarks.unlearning_tofu [--tune]
"""

import argparse
import gzip
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attribution.models import build
from attribution.training import Recipe, predict, train_models
from attribution.truth_ratio import forget_quality, model_utility, truth_ratio
from optimize.unlearning import method_of, unlearn
from schemas.recipe import TextSpec
from tasks.intake.tokens import PADDING, UNASKED, next_tokens, tokenise

Documents = tuple[np.ndarray, np.ndarray]
AUTHORS, PAIRS, RETAINED = 3, 20, 120
LENGTH, VOCABULARY, MODELS = 48, 1024, 2
RECIPE = Recipe(optimizer="adamw", lr=3e-3, schedule="cosine", epochs=20, batch_size=20)
# Questions of authors that stay, on which utility is measured.
JUDGED = 60


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked about n rows: the answer, its paraphrase, several wrong answers."""

    own: Documents
    paraphrase: Documents
    wrong: list[Documents]


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    """Rows of one file of TOFU."""
    text = gzip.decompress((folder / "tofu" / f"{name}.json.gz").read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines() if line]


def documents(questions: Sequence[str], answers: Sequence[str]) -> Documents:
    """Inputs and targets [n, T]; only the answer's tokens are asked for."""
    spec = TextSpec(column="text", length=LENGTH, vocabulary=VOCABULARY)
    texts = [f"{q} {a}" for q, a in zip(questions, answers, strict=True)]
    inputs, targets = next_tokens(tokenise(texts, spec, following=True))
    prompt = (tokenise(questions, spec) != PADDING).sum(axis=1)
    targets[np.arange(LENGTH) < prompt[:, None] - 1] = UNASKED
    return inputs, targets


def questions_of(rows: Sequence[Mapping[str, Any]]) -> Questions:
    """What is asked of a model about these rows."""
    asked = [row["question"] for row in rows]
    several = min(len(row["perturbed_answer"]) for row in rows)
    return Questions(
        own=documents(asked, [row["answer"] for row in rows]),
        paraphrase=documents(asked, [row["paraphrased_answer"] for row in rows]),
        wrong=[
            documents(asked, [row["perturbed_answer"][number] for row in rows])
            for number in range(several)
        ],
    )


def training_rows(rows: Sequence[Mapping[str, Any]]) -> Documents:
    """Each pair, then each in its paraphrase."""
    inputs, targets = documents(
        [row["question"] for row in rows] + [row["paraphrased_question"] for row in rows],
        [row["answer"] for row in rows] + [row["paraphrased_answer"] for row in rows],
    )
    return inputs, targets


def model() -> nn.Module:
    """The transformer, drawn anew."""
    options = {"vocabulary": VOCABULARY, "width": 48, "depth": 2, "heads": 4, "causal": True}
    return build("transformer", (LENGTH,), VOCABULARY, **options)


def per_token(states: Mapping[str, Tensor], asked: Documents) -> np.ndarray:
    """Log-probability of each answer over its number of tokens, [models, n]."""
    inputs, targets = (torch.from_numpy(part) for part in asked)
    logits = torch.log_softmax(predict(model, states, inputs), dim=-1)
    wanted = targets != UNASKED
    picked = logits.gather(-1, targets.clamp(min=0).expand(len(logits), -1, -1).unsqueeze(-1))
    return ((picked.squeeze(-1) * wanted).sum(-1) / wanted.sum(-1)).numpy()


def ratios(states: Mapping[str, Tensor], asked: Questions) -> np.ndarray:
    """Truth ratios [models, n]."""
    right = per_token(states, asked.paraphrase)
    wrong = np.stack([per_token(states, one) for one in asked.wrong], axis=-1)
    return np.stack([truth_ratio(a, b) for a, b in zip(right, wrong, strict=True)])


@torch.no_grad()
def rouge(states: Mapping[str, Tensor], asked: Documents) -> np.ndarray:
    """ROUGE-L recall of greedy answers against the answer's tokens, [models]."""
    inputs, targets = (torch.from_numpy(part) for part in asked)
    first = (targets != UNASKED).int().argmax(dim=1)
    longest = int((targets != UNASKED).sum(dim=1).max())
    found = []
    for row in range(MODELS):
        net = model()
        net.load_state_dict({name: value[row] for name, value in states.items()})
        written = torch.where(torch.arange(LENGTH) <= first[:, None], inputs, PADDING)
        for step in range(longest):
            place = (first + step).clamp(max=LENGTH - 1)
            chosen = net(written)[torch.arange(len(written)), place].argmax(-1)
            after = (place + 1).clamp(max=LENGTH - 1)
            written[torch.arange(len(written)), after] = chosen
        scores = []
        for number, truth in enumerate(targets):
            answer = truth[truth != UNASKED].tolist()
            start = int(first[number]) + 1
            said = written[number, start : start + len(answer)].tolist()
            scores.append(longest_common(answer, said) / len(answer))
        found.append(float(np.mean(scores)))
    return np.array(found)


def longest_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(b) + 1)
    for left in a:
        diagonal = 0
        for place, right in enumerate(b, 1):
            kept = lengths[place]
            lengths[place] = diagonal + 1 if left == right else max(kept, lengths[place - 1])
            diagonal = kept
    return lengths[-1]


METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("finetune", {"lr": 3e-3, "epochs": 2, "batch_size": 20}),
    ("ascent", {"lr": 3e-4, "epochs": 3, "batch_size": 20}),
    ("graddiff", {"lr": 6e-4, "epochs": 4, "batch_size": 20}),
    ("npo", {"lr": 3e-3, "epochs": 4, "batch_size": 20}),
    ("projected", {"scale": 12.0}),
    (
        "matching",
        {"lr": 1e-3, "epochs": 2, "batch_size": 20, "repeats": 1, "scale": 12.0, "warm": True},
    ),
    ("oracle_matching", {"lr": 3e-3, "epochs": 6, "batch_size": 20, "repeats": 1}),
)
TRIED: tuple[tuple[str, dict[str, Any]], ...] = tuple(
    (name, {**options, key: options[key] * factor})
    for name, options in METHODS
    for key in ({"projected": "scale", "matching": "scale"}.get(name, "lr"),)
    for factor in (0.3, 1.0, 3.0)
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", action="store_true", help="other authors, several settings")
    tuning = parser.parse_args().tune
    folder = Path(os.environ["WINNOW_DATA"])
    torch.set_num_threads(1)
    first = AUTHORS * PAIRS * tuning
    gone = [row for row in read(folder, "forget10_perturbed") if row["task_id"] == "1"]
    gone = gone[first : first + AUTHORS * PAIRS]
    kept = read(folder, "retain_perturbed")[:RETAINED]
    forget, retain = training_rows(gone), training_rows(kept)
    train = tuple(np.concatenate(pair) for pair in zip(forget, retain, strict=True))
    rows = np.arange(len(forget[0]))
    masks = np.ones((2 * MODELS, len(train[0])), dtype=bool)
    masks[MODELS:, rows] = False
    started = time.perf_counter()
    trained = train_models(
        model, (train[0], train[1]), masks=masks, seeds=range(2 * MODELS), training=RECIPE
    )
    full = {name: value[:MODELS] for name, value in trained.states.items()}
    oracles = {name: value[MODELS:] for name, value in trained.states.items()}
    size = sum(value[0].numel() for value in full.values())
    print(
        f"TOFU: {len(rows)} documents about {AUTHORS} authors to forget, {len(retain[0])} that "
        f"stay, {size} parameters, {RECIPE.epochs} epochs, {MODELS} models a side; "
        f"{time.perf_counter() - started:.0f} s"
    )
    asked, others = questions_of(gone), questions_of(kept[:JUDGED])
    truth = ratios(oracles, asked)
    line = partial(print_line, truth=truth, asked=asked, others=others)
    print(
        f"{'method':28}{'log10 p':>9}{'forget p(a)':>12}{'ratio':>7}{'retain p(a)':>12}"
        f"{'ROUGE':>7}{'ratio':>7}{'utility':>9}{'cost':>8}{'s':>6}"
    )
    line("full", full, 0.0, 0.0)
    line("retrained", {name: value.flip(0) for name, value in oracles.items()}, 1.0, 0.0)
    for name, options in TRIED if tuning else METHODS:
        started = time.perf_counter()
        done = unlearn(
            method_of(name, options_for(name, options, len(retain[0]) / len(rows))),
            model,
            full,
            train=(train[0], train[1]),
            forget=rows,
            oracles=oracles if name == "oracle_matching" else None,
        )
        key = "scale" if "scale" in options else "lr"
        cost = done.cost.share(len(retain[0]), RECIPE.epochs)
        title = f"{name} {key}={options[key]:g}"
        line(title, done.states, cost, time.perf_counter() - started)


def options_for(name: str, options: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    """A third of the rows that stay are matched; more would not be paid for."""
    given = dict(options)
    if name in ("matching", "oracle_matching"):
        given["retain_per_forget"] = ratio / 3
    return given


def print_line(
    name: str,
    states: Mapping[str, Tensor],
    cost: float,
    seconds: float,
    *,
    truth: np.ndarray,
    asked: Questions,
    others: Questions,
) -> None:
    """One method; models are compared with oracles of the same number, means over models."""
    found = ratios(states, asked)
    quality = np.log10([forget_quality(a, b) for a, b in zip(found, truth, strict=True)]).mean()
    known = np.exp(per_token(states, asked.own)).mean()
    probability = np.exp(per_token(states, others.own)).mean(axis=1)
    kept = ratios(states, others)
    parts = np.stack(
        [probability, rouge(states, others.own), np.maximum(0.0, 1 - kept).mean(axis=1)], axis=1
    )
    utility = np.mean([model_utility(one) for one in parts])
    print(
        f"{name:28}{quality:9.2f}{known:12.3f}{np.median(found):7.2f}{parts[:, 0].mean():12.3f}"
        f"{parts[:, 1].mean():7.2f}{np.median(kept):7.2f}{utility:9.3f}{cost:8.1%}{seconds:6.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
