"""LDS of what belongs to one training run, on clean digits, beside TRAK on the same run's end.

Five snapshots of one run of SGD for TracIn, GAS and SOURCE; five of one run of AdamW, with its
moments, for LESS, judged on networks that AdamW trained. The other estimators that need no bank
are in `benchmarks.compare`. Everything is keyed by the seeds below.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from attribution import attribute, lds
from attribution.bank import RetrainBank, train_bank
from attribution.streams import Purpose, stream
from attribution.training import Recipe, TrainingState, train_models
from attribution.training.recipe import exposures
from benchmarks.lds_digits import N_TRAIN, RECIPE, Pair, bank_of, model, problem

EPOCHS = [6, 12, 18, 24, 30]
ADAM = Recipe(optimizer="adamw", lr=1e-3, weight_decay=1e-3, epochs=30, batch_size=50)


def snapshots(recipe: Recipe, train: Pair, seed: int) -> list[tuple[Mapping[str, Tensor], Any]]:
    """(weights, Adam's moments or None) after each of `EPOCHS` of one run."""
    kept: dict[int, TrainingState] = {}
    train_models(
        model,
        train,
        masks=np.ones((1, N_TRAIN), dtype=bool),
        seeds=[int(stream(seed, Purpose.INIT, 0).integers(2**62))],
        training=recipe,
        on_epoch=lambda epoch, state: kept.__setitem__(epoch, state),
    )
    with_moments = recipe.optimizer == "adamw"
    steps = recipe.steps_per_epoch(N_TRAIN)
    return [
        (
            kept[epoch].checkpoint(0),
            kept[epoch].moments(0, steps=epoch * steps) if with_moments else None,
        )
        for epoch in EPOCHS
    ]


def show(
    label: str,
    method: str,
    states: list[Any],
    rows: tuple[Pair, Pair],
    judge: RetrainBank,
    **options: Any,
) -> None:
    """Score, judge and print one line."""
    train, queries = rows
    scores = attribute(method, model(), states, train=train, queries=queries, **options)
    found = lds(scores, judge)
    low, high = found.interval
    print(
        f"{label:44} LDS {found.mean:.3f} [{low:.3f}, {high:.3f}], ceiling {found.ceiling:.3f}, "
        f"{scores.record['seconds']['total']:.1f} s"
    )


def main(seed: int = 0) -> None:
    """Measure and print."""
    rows = problem(seed)
    train, queries = rows
    judge = bank_of(60, 3, 1_000 + seed, train, queries)
    tune = bank_of(30, 3, 2_000 + seed, train, queries)
    states = [weights for weights, _ in snapshots(RECIPE, train, seed)]
    weights = exposures(RECIPE, N_TRAIN, EPOCHS)
    run: dict[str, Any] = {"states": states, "rows": rows, "judge": judge, "weights": weights}
    decay = RECIPE.weight_decay
    show("TRAK, last snapshot", "trak", states[-1:], rows, judge, bank=tune)
    show("EK-FAC, last snapshot", "ekfac", states[-1:], rows, judge, bank=tune)
    show("TracIn", "tracin", **run)
    show("GAS", "gas", **run)
    for segments in (1, 3, 5):
        label = f"SOURCE, {segments} segments"
        show(label, "source", segments=segments, weight_decay=decay, **run)
    judge = train_bank(
        model, train, queries=queries, masks=judge.masks, seeds=judge.seeds, training=ADAM
    )
    pairs = snapshots(ADAM, train, seed)
    states, moments = [weights for weights, _ in pairs], [kept for _, kept in pairs]
    show("AdamW: TRAK, last snapshot, rho 1", "trak", states[-1:], rows, judge, damping=1.0)
    for method in ("graddot", "gradcos"):
        show(f"AdamW: {method}, raw gradients", method, states, rows, judge)
        for kind in ("less", "diagonal"):
            show(
                f"AdamW: {method}, {kind}",
                method,
                states,
                rows,
                judge,
                optimizer_states=moments,
                preconditioner=kind,
            )


if __name__ == "__main__":
    main()
