"""Banks of simulated retrainings, and slow references that refit everything."""

import numpy as np
from numpy.typing import NDArray

from attribution.bank import draw_masks


def bank(
    n: int,
    subsets: int,
    m: int,
    *,
    alpha: tuple[float, ...] = (0.5,),
    seeds: int = 1,
    noise: float = 1.0,
    size_effect: float = 0.0,
    seed: int = 0,
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Masks [M, n], outputs [M, m], the true weights [m, n] and the share of each row [M]."""
    masks, _, share = draw_masks(n, subsets * seeds, list(alpha), seeds, seed)
    draw = np.random.default_rng(seed)
    weights = draw.standard_normal((m, n)) * (draw.random((m, n)) < 0.3)
    outputs = 2.0 + masks @ weights.T + size_effect * masks.sum(axis=1, keepdims=True)
    return masks, outputs + noise * draw.standard_normal(outputs.shape), weights, share


def free_columns(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Ones, and the size of each mask where sizes differ."""
    size = masks.sum(axis=1).astype(float)
    columns = [np.ones(len(masks)), size] if np.ptp(size) else [np.ones(len(masks))]
    return np.stack(columns, axis=1)


def standardised(masks: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Masks less what the free columns explain, of mean square 1, and what they were divided by."""
    free = free_columns(masks)
    left = masks - free @ np.linalg.lstsq(free, masks.astype(float), rcond=None)[0]
    sigma = np.sqrt((left**2).mean(axis=0))
    return np.divide(left, sigma, out=np.zeros_like(left), where=sigma > 1e-9), sigma


def ridge(
    masks: NDArray[np.bool_],
    outputs: NDArray[np.float64],
    penalty: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Minimise |y - F g - X w|^2 + sum penalty w^2 by normal equations: g [r, m], w [n, m]."""
    free = free_columns(masks)
    design = np.hstack([free, masks.astype(float)])
    normal = design.T @ design + np.diag(np.append(np.zeros(free.shape[1]), penalty))
    found = np.linalg.solve(normal, design.T @ outputs)
    return found[: free.shape[1]], found[free.shape[1] :]
