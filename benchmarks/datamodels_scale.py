"""Datamodels at scale: planted sparse weights from 20,000 simulated masks of 10,000 rows.

Outputs are linear in the masks with noise of a known share; printed are seconds, the peak of the
process's memory and how well the planted weights come back. Run:
python -m benchmarks.datamodels_scale --penalty lasso
"""

import argparse
import resource
import time

import numpy as np
from numpy.typing import NDArray

from attribution.estimators.resampling import empirical_influence, fit_datamodel
from attribution.streams import Purpose, stream

PLANTED, NOISE_SHARE = 20, 0.2


def simulated(
    n_masks: int, n_train: int, n_query: int, seed: int = 0
) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]:
    """Half-size masks [M, n], outputs [M, m] and the weights [m, n] that made them."""
    masks = np.zeros((n_masks, n_train), dtype=bool)
    for row in range(n_masks):
        chosen = stream(seed, Purpose.MASKS, row).permutation(n_train)[: n_train // 2]
        masks[row, chosen] = True
    weights = np.zeros((n_query, n_train), dtype=np.float32)
    outputs = np.empty((n_masks, n_query), dtype=np.float32)
    for query in range(n_query):
        draw = stream(seed, Purpose.SOLVER, query)
        rows = draw.permutation(n_train)[:PLANTED]
        weights[query, rows] = draw.standard_normal(PLANTED)
        signal = masks[:, rows] @ weights[query, rows]
        noise = signal.std() * np.sqrt(NOISE_SHARE / (1 - NOISE_SHARE))
        outputs[:, query] = signal + noise * draw.standard_normal(n_masks)
    return masks, outputs, weights


def main() -> None:
    """Fit once and print what it took and what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--penalty", default="lasso", help="lasso, ridge or none: two means")
    parser.add_argument("--masks", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()

    started = time.perf_counter()
    masks, outputs, weights = simulated(arguments.masks, arguments.rows, arguments.queries)
    before = _peak_mib()
    print(f"simulated {masks.shape} masks in {time.perf_counter() - started:.0f} s, {before} MiB")
    started, cpu = time.perf_counter(), time.process_time()
    if arguments.penalty == "none":
        found, _ = empirical_influence(masks, outputs, device=arguments.device)
    else:
        fitted = fit_datamodel(masks, outputs, penalty=arguments.penalty, device=arguments.device)
        found = fitted.weights
        print(f"strength {np.median(fitted.strengths):.3g}, ", end="")
        print(f"unexplained {fitted.unexplained.mean():.3f} (noise alone: {NOISE_SHARE})")
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    planted = weights != 0
    print(f"{seconds:.0f} s, {cpu:.0f} s of CPU, peak {_peak_mib()} MiB")
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(found, weights, strict=True)]
    print(f"correlation with the planted weights: {np.mean(correlations):.4f}")
    top = np.argsort(-np.abs(found), axis=1)[:, :PLANTED]
    hits = np.take_along_axis(planted, top, axis=1).mean()
    print(f"of the {PLANTED} largest weights {hits:.1%} were planted; ", end="")
    print(f"{np.count_nonzero(found, axis=1).mean():.0f} are not 0")
    slope = float((found[planted] * weights[planted]).sum() / (weights[planted] ** 2).sum())
    print(f"planted weights come back times {slope:.3f}")


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
