"""The package pyDVL: EK-FAC, several checkpoints averaged here.

It explains the loss of a query. The loss's gradient is -(1 - p) times the margin's, so dividing by
1 - p turns its scores into margins exactly. Its conjugate gradients are left out: solving for all
queries at once had not converged after ten steps, and one by one takes minutes a checkpoint.
"""

from collections.abc import Iterator, Mapping

import torch
from pydvl.influence.torch import EkfacInfluence
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.exchange import Answer, Clock, Problem, fisher_scale, per_margin, serve

EKFAC_GRID = (0.01, 0.03, 0.1)


def _loader(problem: Problem) -> DataLoader:
    return DataLoader(TensorDataset(*problem.train), batch_size=len(problem.train[0]))


def ekfac(problem: Problem, options: Mapping[str, str]) -> Iterator[Answer]:
    """EK-FAC with its eigenvalues refitted (update_diagonal); K-FAC is its default."""
    update = options.get("update", "yes") == "yes"
    unit = fisher_scale(problem)
    torch.manual_seed(0)
    first = Clock()
    fitted = []
    with first.stage("features"):
        for number in range(len(problem.states)):
            method = EkfacInfluence(problem.model(number), update_diagonal=update)
            fitted.append(method.fit(_loader(problem)))
    for rho in (0.0, *EKFAC_GRID):
        clock = first.fork()
        total: Tensor | float = 0.0
        with clock.stage("scores"):
            for number, method in enumerate(fitted):
                method.hessian_regularization = rho * unit
                scores = method.influences(*problem.queries, *problem.train).detach()
                total = total + per_margin(scores, problem.model(number), problem.queries)
        yield Answer(
            setting=f"rho {rho:g}" if rho else "hessian_regularization 0",
            scores=torch.as_tensor(total),
            clock=clock,
        )


if __name__ == "__main__":
    serve("pyDVL", {"ekfac": ekfac})
