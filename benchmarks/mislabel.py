"""Wrong labels that people confirmed: which suspicion ranks them first?

Small models on fixed features, all rows in training, nobody told which labels are right:
CIFAR-10N (labels of crowds against the data set's own), errors in the test sets of CIFAR-10 and
IMDB that five people voted on, and news titles in Hausa and Yoruba labelled by rules. Suspicion is
self-influence and harm by TRAK, memorising and the loss of unseen models by the bank, the loss of
models that trained on the row, and confident learning on five folds (cleanlab where it is there:
``--cleanlab PYTHON`` names an interpreter that has it; what it counts is checked against ours).

    WINNOW_DATA=... python -m benchmarks.mislabel [NAME ...] [--cleanlab PYTHON]
"""

import argparse
import json
import lzma
import os
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import softmax
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import nn

from attribution import attribute
from attribution.bank import draw_masks, train_bank_models
from attribution.mislabels import (
    confident_errors,
    memorisation,
    out_of_bag,
    wrong_label_probability,
)
from attribution.models import build
from attribution.outputs import of_models
from attribution.statistics import auroc, average_precision
from attribution.streams import Purpose, stream
from attribution.training import Recipe
from benchmarks.retrained import networks

Array = np.ndarray
RECIPE = Recipe(lr=0.1, weight_decay=5e-3, epochs=20, batch_size=50)
MODELS, CHECKPOINTS, FOLDS = 60, 3, 5
FILTERS, PATCH = 96, 6
CLEANLAB = """
import sys
import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

given = np.load(sys.argv[1])
labels, p = given["labels"], given["probabilities"]
np.savez(
    sys.argv[2],
    self_confidence=get_label_quality_scores(labels, p, method="self_confidence"),
    normalized_margin=get_label_quality_scores(labels, p, method="normalized_margin"),
    issues=find_label_issues(labels, p, n_jobs=1),
    counted=find_label_issues(labels, p, filter_by="confident_learning", n_jobs=1),
)
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rows with features [n, d] and given labels, and which are wrong among those `known`."""

    name: str
    features: Array
    labels: Array
    wrong: Array
    known: Array


# --- data -----------------------------------------------------------------------------------------


def crowds(folder: Path, which: str, per_class: int = 300) -> Case:
    """Pictures of CIFAR-10 with the labels of CIFAR-10N; wrong is what differs."""
    small = np.load(folder / "cifar10" / "cifar10_small.npz")
    labels = np.load(folder / "cifar10" / "labels.npz")
    true = small["train_labels"].astype(np.int64)
    rows = np.concatenate([np.flatnonzero(true == each)[:per_class] for each in range(10)])
    given = labels[f"cifar10n_{which}_label"][small["train_index"][rows]].astype(np.int64)
    return Case(
        name=f"CIFAR-10N, {which}",
        features=of_pictures(small["train_images"][rows]),
        labels=given,
        wrong=given != true[rows],
        known=np.ones(len(rows), dtype=bool),
    )


def voted_pictures(folder: Path, others: int = 2_000) -> Case:
    """Test pictures of CIFAR-10: those that people voted on, and random others."""
    from PIL import Image

    votes = json.loads((folder / "cifar10" / "label_errors" / "cifar10_mturk.json").read_text())
    labels = np.load(folder / "cifar10" / "labels.npz")["test_labels"].astype(np.int64)
    asked = np.array([vote["id"] for vote in votes])
    rest = np.setdiff1d(stream(0, Purpose.SPLIT).permutation(10_000)[:others], asked)
    rows = np.sort(np.concatenate([asked, rest]))
    wanted, pictures = set(rows.tolist()), []
    with tarfile.open(folder / "cifar10" / "cifar10_jpeg.tar.xz", "r:xz") as archive:
        members = (member for member in archive if member.isfile())
        for number, member in enumerate(members):
            if number - 50_000 in wanted:
                file = archive.extractfile(member)
                assert file is not None  # noqa: S101  a regular file, by the filter above
                pictures.append(np.asarray(Image.open(file).convert("RGB")))
    wrong = np.zeros(10_000, dtype=bool)
    wrong[[vote["id"] for vote in votes if vote["mturk"]["given"] < 3]] = True
    return Case(
        name="CIFAR-10 test, voted",
        features=of_pictures(np.stack(pictures)),
        labels=labels[rows],
        wrong=wrong[rows],
        known=np.isin(rows, asked),
    )


def voted_reviews(folder: Path, others: int = 1_500) -> Case:
    """Test reviews of IMDB: those that people voted on, and random others."""
    votes = json.loads((folder / "imdb" / "label_errors" / "imdb_mturk.json").read_text())
    wrong = {vote["id"]: vote["mturk"]["given"] < 3 for vote in votes}
    with lzma.open(folder / "imdb" / "test.jsonl.xz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    extra = set(stream(0, Purpose.SPLIT).permutation(len(rows))[:others].tolist())
    rows = [row for place, row in enumerate(rows) if row["id"] in wrong or place in extra]
    return Case(
        name="IMDB test, voted",
        features=of_texts([row["text"].replace("<br />", " ") for row in rows]),
        labels=np.array([row["label"] for row in rows], dtype=np.int64),
        wrong=np.array([wrong.get(row["id"], False) for row in rows]),
        known=np.array([row["id"] in wrong for row in rows]),
    )


def titles(folder: Path, language: str) -> Case:
    """News titles whose labels rules gave; wrong is what differs from people's."""

    def column(name: str, file: str) -> list[str]:
        path = folder / "newsclass_noisy" / language / file
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        place = head.split("\t").index(name)
        return [line.split("\t")[place] for line in lines]

    noisy = "train_clean_noisy_labels.tsv"
    texts = column("news_title", "train_clean.tsv")
    pairs = [column("label", "train_clean.tsv"), column("label", noisy)]
    names = sorted({*pairs[0], *pairs[1]})
    true, given = (np.array([names.index(each) for each in side]) for side in pairs)
    return Case(
        name=f"news titles, {language}",
        features=of_texts(texts),
        labels=given.astype(np.int64),
        wrong=given != true,
        known=np.ones(len(given), dtype=bool),
    )


def of_pictures(pictures: Array, width: int = 192) -> Array:
    """Pooled responses to random whitened patches (Coates and Ng 2011), their components."""
    import torch
    from torch.nn import functional

    x = torch.from_numpy(pictures.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    rng = stream(0, Purpose.PROJECTION)
    rows, (tops, lefts) = (
        rng.integers(len(x), size=4_000),
        rng.integers(32 - PATCH, size=(2, 4_000)),
    )
    places = zip(rows, tops, lefts, strict=True)
    some = torch.stack([x[r, :, t : t + PATCH, q : q + PATCH].flatten() for r, t, q in places])
    some = (some - some.mean(1, keepdim=True)) / (some.std(1, keepdim=True) + 0.03)
    values, vectors = torch.linalg.eigh(torch.cov(some.T) + 0.1 * torch.eye(some.shape[1]))
    whitening = vectors @ torch.diag(values**-0.5) @ vectors.T
    filters = (some[:FILTERS] @ whitening) @ whitening
    filters = filters / filters.norm(dim=1, keepdim=True)
    kernel = filters.reshape(FILTERS, 3, PATCH, PATCH)
    pooled = []
    for start in range(0, len(x), 200):
        found = functional.conv2d(x[start : start + 200], kernel, stride=2)
        both = torch.cat([functional.relu(found), functional.relu(-found)], dim=1)
        pooled.append(functional.adaptive_avg_pool2d(both, 3).flatten(1))
    return scaled(PCA(width, random_state=0).fit_transform(torch.cat(pooled).numpy()))


def of_texts(texts: list[str], width: int = 192) -> Array:
    """Words and pairs of words, weighed by how rare they are, and their components."""
    counts = TfidfVectorizer(sublinear_tf=True, min_df=2, max_features=20_000, ngram_range=(1, 2))
    table = counts.fit_transform(texts)
    return scaled(TruncatedSVD(width, random_state=0).fit_transform(table))


def scaled(values: Array) -> Array:
    """Components half-way to equal spread: small ones are learnt, and stay the smaller ones."""
    spread = values.std(axis=0)
    return (values / np.sqrt(spread * spread.max())).astype(np.float32)


# --- suspicion ------------------------------------------------------------------------------------


def suspicions(case: Case, cleanlab: str | None) -> dict[str, Array]:
    """Every way to suspect a row, larger is more suspicious: float [n]."""
    n, classes = len(case.labels), int(case.labels.max()) + 1
    train = case.features, case.labels

    def model() -> nn.Module:
        return build("mlp", case.features.shape[1:], classes, hidden=[64])

    def logits(masks: Array, seed: int) -> Array:
        seeds = [int(stream(seed, Purpose.SEEDS, k).integers(2**62)) for k in range(len(masks))]
        return train_bank_models(
            model, train, eval_inputs=case.features, masks=masks, seeds=seeds, training=RECIPE
        )[1]

    rows = np.arange(n)
    whole = np.ones((CHECKPOINTS, n), dtype=bool)
    fitted = softmax(logits(whole, 1), axis=-1).mean(axis=0)[rows, case.labels]
    masks, _, _ = draw_masks(n, MODELS, [0.5], 1, 2)
    banked = logits(masks, 3)
    unseen = out_of_bag(softmax(banked, axis=-1), masks)
    margins = of_models("margin", banked, case.labels, task="classification")
    folds = stream(4, Purpose.FOLDS).permutation(n) % FOLDS
    held = folds[None, :] != np.arange(FOLDS)[:, None]
    crossed = softmax(logits(held, 4), axis=-1)[folds, rows]
    states = networks(model, train, RECIPE, CHECKPOINTS, seed=1)
    options = {"damping": 1.0, "projection": {"kind": "sparse", "dim": 1024}}
    tau = np.asarray(attribute("trak", model(), states, train=train, queries=train, **options))
    found = {
        "loss of models that saw the row": 1 - fitted,
        "self-influence, TRAK": tau.diagonal().copy(),
        "harm to all other rows, TRAK": -(tau.sum(axis=0) - tau.diagonal()) / (n - 1),
        "memorising, 60 retrainings": memorisation(margins, masks),
        "loss of models that did not, 60 retrainings": 1 - unseen[rows, case.labels],
        "confident learning, 60 retrainings": confident(unseen, case.labels),
        "confident learning, 5 folds": confident(crossed, case.labels),
    }
    if cleanlab:
        found |= by_cleanlab(cleanlab, crossed, case.labels)
    return found


def confident(p: Array, labels: Array) -> Array:
    """Confident learning as a ranking: the errors that it counts first, each by its loss."""
    return 1 - p[np.arange(len(labels)), labels] + 2.0 * confident_errors(p, labels)


def by_cleanlab(python: str, probabilities: Array, labels: Array) -> dict[str, Array]:
    """What cleanlab makes of the same five folds."""
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "given.npz", Path(folder) / "answer.npz"
        np.savez(given, probabilities=probabilities.astype(np.float64), labels=labels)
        subprocess.run([python, "-c", CLEANLAB, str(given), str(answer)], check=True)
        said = np.load(answer)
    # Its default quality is one minus the loss of models that did not see the row.
    own = probabilities[np.arange(len(labels)), labels]
    np.testing.assert_allclose(said["self_confidence"], own, atol=1e-6)
    # It acquits rows whose label is also their most probable class, and we do not.
    counted = confident_errors(probabilities, labels) & (probabilities.argmax(axis=1) != labels)
    print(f"its counts and ours agree on {np.mean(said['counted'] == counted):.2%} of the rows")
    return {
        "cleanlab, self-confidence, 5 folds": 1 - said["self_confidence"],
        "cleanlab, normalised margin, 5 folds": 1 - said["normalized_margin"],
        "cleanlab, issues first, 5 folds": 2.0 * said["issues"] + 1 - said["self_confidence"],
    }


# --- report ---------------------------------------------------------------------------------------


def interval(values: Array, wrong: Array, draws: int = 300) -> tuple[float, float]:
    """95 % of the average precisions of bootstrapped rows."""
    found = []
    for number in range(draws):
        rows = stream(0, Purpose.BOOTSTRAP, number).integers(len(wrong), size=len(wrong))
        found.append(average_precision(values[rows], wrong[rows]))
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def calibration(probability: Array, wrong: Array) -> float:
    """Mean distance of a probability from the share of wrong rows, over ten equal bins."""
    bins = np.minimum((10 * probability).astype(int), 9)
    count = np.bincount(bins, minlength=10)
    gap = np.bincount(bins, weights=probability - wrong, minlength=10)
    return float(np.abs(gap).sum() / count.sum())


def print_case(case: Case, cleanlab: str | None) -> None:
    """Print a table of one set of rows."""
    started = time.process_time()
    found, wrong = suspicions(case, cleanlab), case.wrong[case.known]
    seconds = time.process_time() - started
    print(
        f"\n{case.name}: {len(case.labels)} rows, {len(wrong)} of known truth, {wrong.sum()} wrong "
        f"({wrong.mean():.1%}); {seconds:.0f} s of CPU"
    )
    print(f"{'suspicion':<45}{'average precision':>22}{'AUROC':>8}")
    for name, values in found.items():
        some = values[case.known]
        low, high = interval(some, wrong)
        mean = average_precision(some, wrong)
        print(f"{name:<45}{f'{mean:.3f} [{low:.3f}, {high:.3f}]':>22}{auroc(some, wrong):>8.3f}")
    mixed = wrong_label_probability(found["self-influence, TRAK"])
    said = {"mixture of self-influence": mixed.probability}
    said["loss of models that did not see the row"] = found[
        "loss of models that did not, 60 retrainings"
    ]
    for name, probability in said.items():
        gap = calibration(probability[case.known], wrong)
        print(f"probability by {name}: off by {gap:.3f} on average")


CASES: dict[str, Callable[[Path], Case]] = {
    "aggre": lambda folder: crowds(folder, "aggre"),
    "worse": lambda folder: crowds(folder, "worse"),
    "cifar": voted_pictures,
    "imdb": voted_reviews,
    "hausa": lambda folder: titles(folder, "hausa"),
    "yoruba": lambda folder: titles(folder, "yoruba"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*CASES, []], default=[])
    parser.add_argument("--cleanlab", help="an interpreter that has cleanlab")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("WINNOW_DATA", ""))
    if not (folder / "cifar10").is_dir():
        parser.exit(2, "the data sets are not there; let WINNOW_DATA name their folder\n")
    for name in arguments.names or CASES:
        print_case(CASES[name](folder), arguments.cleanlab)


if __name__ == "__main__":
    main()
