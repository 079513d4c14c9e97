"""The package pyDVL: EK-FAC and conjugate gradients, several checkpoints averaged here.

It explains the loss of a query. The loss's gradient is -(1 - p) times the margin's, so dividing by
1 - p turns its scores into margins exactly.
"""

from collections.abc import Iterator, Mapping

import torch
from pydvl.influence.torch import CgInfluence, EkfacInfluence
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.exchange import Answer, Clock, Problem, fisher_scale, per_margin, serve

EKFAC_GRID = (0.01, 0.03, 0.1)
CG_GRID = (1.0,)


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


def cg(problem: Problem, options: Mapping[str, str]) -> Iterator[Answer]:
    """Conjugate gradients on the Hessian of the mean loss, all right sides at once."""
    steps = int(options.get("steps", "10"))
    unit = fisher_scale(problem)
    for rho in (0.0, *CG_GRID):
        clock = Clock()
        total: Tensor | float = 0.0
        with clock.stage("scores"):
            for number in range(len(problem.states)):
                model = problem.model(number)
                method = CgInfluence(
                    model,
                    cross_entropy,
                    regularization=rho * unit,
                    maxiter=steps,
                    solve_simultaneously=True,
                    warn_on_max_iteration=False,
                ).fit(_loader(problem))
                scores = method.influences(*problem.queries, *problem.train).detach()
                total = total + per_margin(scores, model, problem.queries)
        yield Answer(
            setting=f"rho {rho:g}" if rho else "regularization 0",
            scores=torch.as_tensor(total),
            clock=clock,
        )


if __name__ == "__main__":
    serve("pyDVL", {"ekfac": ekfac, "cg": cg})
