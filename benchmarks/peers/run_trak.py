"""TRAKer (Park et al. 2023) of the package traker, on the CPU with its BasicProjector."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping

import torch
from trak import TRAKer

from benchmarks.peers.exchange import Answer, Clock, Problem, margin_energy, serve

# In mean non-zero eigenvalues of its kernel; its lambda_reg is absolute, 0 by default.
GRID = (0.1, 0.3, 1.0, 3.0, 10.0)


def trak(problem: Problem, options: Mapping[str, str]) -> Iterator[Answer]:
    """Features once, then scores for its default and for each damping of the grid."""
    width = int(options.get("width", "2048"))
    count = len(problem.train[0])
    model = problem.model()
    size = sum(parameter.numel() for parameter in model.parameters())
    # Its gradients are divided by sqrt(p) and its projection has unit entries.
    unit = margin_energy(problem) * width / size / min(count, width)
    store = tempfile.mkdtemp()
    clock = Clock()
    with clock.stage("features"):
        traker = TRAKer(
            model=model,
            task="image_classification",
            train_set_size=count,
            save_dir=store,
            device="cpu",
            proj_dim=width,
            use_half_precision=options.get("half") == "yes",
            logging_level=logging.ERROR,
        )
        for number, state in enumerate(problem.states):
            traker.load_checkpoint(state, model_id=number)
            # One batch: the projection is drawn again for every batch.
            traker.featurize(batch=problem.train, num_samples=count)
    first = clock
    for rho in (0.0, *GRID):
        clock = first if rho == 0 else first.fork()
        traker.score_computer.lambda_reg = rho * unit
        for number in range(len(problem.states)):
            traker.saver.model_ids[number]["is_finalized"] = 0
        with clock.stage("features"):
            traker.finalize_features()
        with clock.stage("scores"):
            name = f"rho_{rho:g}"
            for number, state in enumerate(problem.states):
                traker.start_scoring_checkpoint(name, state, number, len(problem.queries[0]))
                traker.score(batch=problem.queries, num_samples=len(problem.queries[0]))
            scores = torch.as_tensor(traker.finalize_scores(exp_name=name)).clone().T
        yield Answer(setting=f"rho {rho:g}" if rho else "lambda_reg 0", scores=scores, clock=clock)
    shutil.rmtree(store)


if __name__ == "__main__":
    serve("traker", {"trak": trak})
