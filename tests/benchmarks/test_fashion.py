"""Fashion-MNIST in small, through the same door as the comparison with other packages."""

import os
from pathlib import Path

import numpy as np
import pytest

from attribution import attribute, lds
from benchmarks.peers.exchange import network, read_problem
from benchmarks.problems import Size, make

pytestmark = pytest.mark.skipif(
    not os.environ.get("WINNOW_DATA"), reason="needs WINNOW_DATA, the folder of evaluation data"
)
SMALL = Size(n_train=500, n_query=40, checkpoints=3, judging=24, tuning=8, seeds=2, epochs=8)


def test_scores_rank_retrained_networks_on_fashion_images(tmp_path: Path) -> None:
    truth = make("fashion", tmp_path, SMALL)
    problem = read_problem(tmp_path, SMALL.checkpoints)
    assert problem.train[0].shape == (500, 784)
    # Scaled by all training pixels as one: these 500 images are near mean 0 and deviation 1.
    assert abs(float(problem.train[0].mean())) < 0.05
    assert abs(float(problem.train[0].std()) - 1) < 0.05
    rows = {
        "train": (problem.train[0].numpy(), problem.train[1].numpy()),
        "queries": (problem.queries[0].numpy(), problem.queries[1].numpy()),
    }
    found = {
        method: lds(
            attribute(method, network("fashion"), truth.states, **rows, **options), truth.judge
        )
        for method, options in (("trak", {"bank": truth.tune}), ("graddot", {}))
    }
    assert found["trak"].interval[0] > 0
    assert found["trak"].mean > found["graddot"].mean
    assert found["trak"].ceiling is not None
    assert found["trak"].mean < found["trak"].ceiling
    shuffled = np.random.default_rng(0).permutation(SMALL.n_train)
    scores = attribute("graddot", network("fashion"), truth.states, **rows)
    assert abs(lds(np.asarray(scores)[:, shuffled], truth.judge).mean) < 3 * found["trak"].null_sd
