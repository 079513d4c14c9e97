"""A small classification that a perceptron learns in a blink, and models of it."""

import numpy as np
from torch import Tensor, nn

from attribution.models import build
from attribution.streams import Purpose, stream
from attribution.training import Recipe, train_models

N_TRAIN, N_CLASSES = 60, 3
RECIPE = Recipe(lr=0.05, epochs=20, batch_size=20, weight_decay=1e-3)


def rows(count: int = N_TRAIN, key: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = stream(key, Purpose.SPLIT)
    labels = draw.integers(N_CLASSES, size=count)
    centres = 1.5 * np.eye(N_CLASSES, 5)
    inputs = centres[labels] + draw.standard_normal((count, 5))
    return inputs.astype(np.float32), labels


def mlp() -> nn.Module:
    return build("mlp", (5,), N_CLASSES, hidden=[8])


def trained(models: int = 3, mask: np.ndarray | None = None, seed: int = 0) -> dict[str, Tensor]:
    kept = np.ones(N_TRAIN, dtype=bool) if mask is None else mask
    found = train_models(
        mlp,
        rows(),
        masks=np.tile(kept, (models, 1)),
        seeds=range(seed, seed + models),
        training=RECIPE,
    )
    return dict(found.states)
