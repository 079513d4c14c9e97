"""Coverage of the interval of LDS, in simulations whose true LDS is known in closed form.

A world has n rows, queries of a few classes whose effects are part shared and part their own,
scores that are the effects plus an error of a size of its own for each query, and models whose
outputs add seed noise that queries partly share. Over half-subsets, sums of scores and outputs of a
query are nearly jointly Gaussian with correlation corr(score, effect) x sqrt(reliability), so its
true LDS is (6/pi) asin(half of that), and the true mean is that of thousands of queries.

    python -m benchmarks.lds_coverage [--simulations 1000]

prints how often 95 % intervals hold the true mean, how far the estimate's centre is off, and the
half-widths: of the interval, of the estimate's true spread, and as the power calculator foresees
from one bank of the design.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from attribution.bank import RetrainBank
from attribution.evaluate import lds
from attribution.power import lds_pilot, lds_power

Floats = NDArray[np.float64]
N_TRAIN, N_CLASSES, POPULATION = 120, 5, 2_000


@dataclass(frozen=True, kw_only=True)
class Design:
    """One bank and one kind of world.

    Attributes:
        masks: Half-subsets.
        seeds: Models a subset.
        queries: Drawn from the world's population in each simulation.
        strength: Correlation of scores and effects, on average over queries.
        reliability: Share of the variance of one model's output that its subset explains.
        shared: Share of the variance of effects, errors and noise that queries of a class share.
    """

    masks: int
    seeds: int
    queries: int
    strength: float
    reliability: float = 0.5
    shared: float = 0.5


DESIGNS = (
    Design(masks=20, seeds=2, queries=30, strength=0.6),
    Design(masks=30, seeds=1, queries=50, strength=0.6),
    Design(masks=40, seeds=2, queries=30, strength=0.0, shared=0.2),
    Design(masks=60, seeds=2, queries=20, strength=0.6),
    Design(masks=60, seeds=2, queries=100, strength=0.3, reliability=0.2),
    Design(masks=60, seeds=2, queries=100, strength=0.6),
    Design(masks=60, seeds=3, queries=100, strength=0.9, reliability=0.8),
    Design(masks=120, seeds=2, queries=50, strength=0.6, shared=0.8),
)


@dataclass(frozen=True, kw_only=True)
class World:
    """Effects and errors that classes share, float64 [N_CLASSES, N_TRAIN] each."""

    design: Design
    effects: Floats
    errors: Floats

    @classmethod
    def draw(cls, design: Design, rng: np.random.Generator) -> "World":
        """A world of its own."""
        shape = (N_CLASSES, N_TRAIN)
        effects, errors = rng.standard_normal(shape), rng.standard_normal(shape)
        return cls(design=design, effects=effects, errors=errors)

    def queries(self, count: int, rng: np.random.Generator) -> tuple[Floats, Floats, NDArray]:
        """Effects and scores [count, N_TRAIN], and the class of each query."""
        kind = rng.integers(N_CLASSES, size=count)
        share, own = math.sqrt(self.design.shared), math.sqrt(1 - self.design.shared)
        tau = share * self.effects[kind] + own * rng.standard_normal((count, N_TRAIN))
        error = share * self.errors[kind] + own * rng.standard_normal((count, N_TRAIN))
        # Quality differs between queries, as it does in networks: by 0.15 about the mean.
        quality = np.clip(self.design.strength + 0.15 * rng.standard_normal(count), -0.99, 0.99)
        return tau, quality[:, None] * tau + np.sqrt(1 - quality**2)[:, None] * error, kind

    def truth(self, rng: np.random.Generator) -> float:
        """The mean LDS of all queries over all half-subsets."""
        found = []
        for _ in range(POPULATION // 1_000):
            tau, scores, _ = self.queries(1_000, rng)
            tau -= tau.mean(axis=1, keepdims=True)
            scores -= scores.mean(axis=1, keepdims=True)
            cosine = (tau * scores).sum(axis=1)
            cosine /= np.sqrt((tau**2).sum(axis=1) * (scores**2).sum(axis=1))
            signal = (tau**2).sum(axis=1) / N_TRAIN
            noise = (1 - self.design.reliability) / self.design.reliability / self.design.seeds
            found.append(6 / np.pi * np.arcsin(cosine * np.sqrt(signal / (signal + noise)) / 2))
        return float(np.mean(found))

    def bank(self, rng: np.random.Generator) -> tuple[Floats, RetrainBank]:
        """Scores of some queries, and the bank that judges them."""
        design = self.design
        tau, scores, kind = self.queries(design.queries, rng)
        masks = np.argsort(rng.random((design.masks, N_TRAIN)), axis=1) < N_TRAIN // 2
        masks = np.repeat(masks, design.seeds, axis=0)
        # A half-subset's sum has variance N/4, times 1 + 1/(N - 1), in units of the effects'.
        spread = math.sqrt(N_TRAIN / 4 * (1 - design.reliability) / design.reliability)
        common = rng.standard_normal((len(masks), N_CLASSES))[:, kind]
        alone = rng.standard_normal((len(masks), design.queries))
        noise = math.sqrt(design.shared) * common + math.sqrt(1 - design.shared) * alone
        return scores, RetrainBank(
            masks=masks, outputs=masks @ tau.T + spread * noise, seeds=np.arange(len(masks))
        )


def simulate(
    design: Design, simulations: int, *, seed: int = 0, resamples: int = 400
) -> Iterator[tuple[float, ...]]:
    """True mean, estimate, low and high of each simulation."""
    for number in range(simulations):
        rng = np.random.default_rng([seed, number])
        world = World.draw(design, rng)
        scores, bank = world.bank(rng)
        result = lds(scores, bank, resamples=resamples, seed=number)
        yield world.truth(rng), result.mean, *result.interval


def main() -> None:
    """Simulate each design and print one line for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=1_000)
    count = parser.parse_args().simulations
    print("masks seeds queries strength  true LDS  off by  covered  half-width: interval ", end="")
    print(" spread  foreseen")
    for design in DESIGNS:
        truth, mean, low, high = np.array(list(simulate(design, count))).T
        covered = np.mean((low <= truth) & (truth <= high))
        rng = np.random.default_rng([1, design.masks])
        scores, bank = World.draw(design, rng).bank(rng)
        foreseen = math.nan
        if design.seeds > 1:
            pilot = asdict(lds_pilot(bank, scores))
            foreseen = lds_power(design.masks, design.seeds, design.queries, **pilot)
        print(
            f"{design.masks:5} {design.seeds:5} {design.queries:7} {design.strength:8.1f} "
            f"{truth.mean():9.3f} {np.mean(mean - truth):+7.4f} {covered:8.1%} "
            f"{np.mean(high - low) / 2:21.4f} {1.96 * np.std(mean - truth):7.4f} {foreseen:9.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
