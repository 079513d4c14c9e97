"""What `winnow init` writes: a spec to edit, and a recipe for data and models of one's own."""

from pathlib import Path

from schemas.errors import NotFound, RequestError

SPEC = """\
# A curation: which data, which model, what is asked, and how the answer is checked.
# Paths are relative to this file. `winnow check winnow.toml` explains what it means.

name = "{name}"
seed = 0

[data]
source = "sklearn:digits"            # try it as it is, then: "csv:rows.csv" with target = "label",
# source = "python:recipe.py:dataset"   # or what your own function returns
test_fraction = 0.2
corrupt = {{ labels = 0.1 }}           # for this example only: 10 % wrong labels to be found again

[model]
build = "mlp"                        # linear, mlp, cnn, resnet, or "python:recipe.py:build_model"
options = {{ hidden = [64] }}

[train]
lr = 0.05
momentum = 0.9
weight_decay = 1e-3
epochs = 20
batch_size = 50
seeds = 3                            # checkpoints to average over

[bank]                               # retrainings on subsets: they tune, calibrate and check
models = 80
alpha = [0.5, 0.9]                   # subset sizes, as shares of the training rows
seeds = 2                            # retrainings of each subset

[[attribution]]
name = "trak"
method = "trak"                      # `winnow methods` lists them
projection = {{ kind = "sparse", dim = 1024 }}

# Other kinds of problem: "unlearn" (rows that must go), "poison" (what could a few rows do),
# "screen" (which new rows may come in), "debug" and "trace" (why does it say that), "value" (what
# is a source worth). README.md and docs/ have an example of each.
[[problem]]
name = "clean"
kind = "select"                      # which rows to keep ...
uses = "trak"
targets = "queries"                  # ... so that the outputs on these become better
size = 0.9

[verdict]                            # retrains on the answer and on its controls, and compares
seeds = 5
arms = ["all", "random"]
judge_on = "holdout"
"""

RECIPE = '''\
"""Data and a model of one's own; name them in winnow.toml to use them.

    [data]   source = "python:recipe.py:dataset"
    [model]  build = "python:recipe.py:build_model"
"""

import numpy as np
from torch import nn


def dataset():
    """Return rows: inputs [n, ...] and targets [n] (integers or text: classes; floats: numbers)."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 500)
    inputs = rng.normal(size=(500, 8)) + targets[:, None]
    return {"inputs": inputs.astype("float32"), "targets": targets}


def build_model(input_shape, n_outputs, hidden=32):
    """Return an untrained module from float32 [batch, *input_shape] to [batch, n_outputs]."""
    n_inputs = int(np.prod(input_shape))
    return nn.Sequential(
        nn.Flatten(), nn.Linear(n_inputs, hidden), nn.ReLU(), nn.Linear(hidden, n_outputs)
    )
'''


def write_starter(folder: Path) -> tuple[Path, Path]:
    """Write winnow.toml and recipe.py into a folder, which is made if need be.

    Raises:
        RequestError: One of the files exists; nothing was written.
        NotFound: The folder cannot be made.
    """
    spec, recipe = folder / "winnow.toml", folder / "recipe.py"
    for path in (spec, recipe):
        if path.exists():
            raise RequestError(f"{path} exists already; name another folder, or move it away")
    name = "".join(c if c.isalnum() else "-" for c in folder.resolve().name.lower()).strip("-")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        spec.write_text(SPEC.format(name=name or "curation"), encoding="utf-8")
        recipe.write_text(RECIPE, encoding="utf-8")
    except OSError as error:
        raise NotFound(f"cannot write into {folder} ({error.strerror}); name another") from error
    return spec, recipe
