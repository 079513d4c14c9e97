"""The package captum: TracInCP, and influence functions by Arnoldi iteration.

TracInCP wants checkpoints of one run and gets final ones here: with several independently trained
networks it is an average of gradient products. Arnoldi takes one checkpoint; several are averaged.
"""

from collections.abc import Iterator, Mapping

import torch
from captum.influence import TracInCP
from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.peers.exchange import Answer, Clock, Problem, fisher_scale, margin, serve

GRID = (0.1, 1.0)


class Fall(nn.Module):
    """The fall of the margin, summed: products of gradients then say what raises it."""

    reduction = "sum"

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """-margin, summed over the batch."""
        return -margin(logits, targets).sum()


def _paths(problem: Problem) -> list[str]:
    return [str(number) for number in range(len(problem.states))]


def tracin(problem: Problem, options: Mapping[str, str]) -> Iterator[Answer]:
    """Products of gradients; there is no damping."""
    del options

    def load(model: nn.Module, path: str) -> float:
        model.load_state_dict(problem.states[int(path)])
        return 1.0

    clock = Clock()
    with clock.stage("scores"):
        method = TracInCP(
            problem.model(),
            TensorDataset(*problem.train),
            checkpoints=_paths(problem),
            checkpoints_load_func=load,
            loss_fn=nn.CrossEntropyLoss(reduction="sum"),
            batch_size=len(problem.train[0]),
            test_loss_fn=Fall(),
            sample_wise_grads_per_batch=True,
        )
        scores = method.influence(problem.queries)
    yield Answer(setting="no damping", scores=scores.detach(), clock=clock)


def arnoldi(problem: Problem, options: Mapping[str, str]) -> Iterator[Answer]:
    """Its default projection of 50 dimensions out of 200, and other regularizations."""
    del options
    # Its Hessian is that of the summed loss, as the loss it was given.
    unit = fisher_scale(problem) * len(problem.train[0])

    def load(model: nn.Module, path: str) -> float:
        model.load_state_dict(problem.states[int(path)])
        return 1.0

    settings = {"hessian_reg 0.001": 1e-3} | {f"rho {rho:g}": rho * unit for rho in GRID}
    for setting, damping in settings.items():
        clock = Clock()
        total: Tensor | float = 0.0
        for path in _paths(problem):
            with clock.stage("features"):
                method = ArnoldiInfluenceFunction(
                    problem.model(),
                    TensorDataset(*problem.train),
                    checkpoint=path,
                    checkpoints_load_func=load,
                    loss_fn=nn.CrossEntropyLoss(reduction="sum"),
                    batch_size=len(problem.train[0]),
                    test_loss_fn=Fall(),
                    sample_wise_grads_per_batch=True,
                    hessian_reg=damping,
                )
            with clock.stage("scores"):
                total = total + method.influence(problem.queries).detach()
        yield Answer(setting=setting, scores=torch.as_tensor(total), clock=clock)


if __name__ == "__main__":
    serve("captum", {"tracin": tracin, "arnoldi": arnoldi})
