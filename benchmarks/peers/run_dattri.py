"""The package dattri: TRAK, EK-FAC and conjugate gradients on the Hessian.

Its EK-FAC takes one checkpoint, so several are averaged here. Its dampings are absolute and 0 by
default. All rows go in one batch: its projection is drawn again for every batch.
"""

from collections.abc import Iterator, Mapping

import torch
from dattri.algorithm.influence_function import IFAttributorCG, IFAttributorEKFAC
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.exchange import (
    Answer,
    Clock,
    Pair,
    Problem,
    fisher_scale,
    margin,
    margin_energy,
    miss,
    serve,
)

TRAK_GRID = (0.3, 1.0)  # it makes the features anew for every damping
# Its Fisher matrix is the empirical one, whose eigenvalues are small on fitted rows.
EKFAC_GRID = (1e-6, 1e-5, 1e-4, 1e-3)
CG_GRID = (1.0, 10.0)


def _loader(pair: Pair) -> DataLoader:
    return DataLoader(TensorDataset(*pair), batch_size=len(pair[0]), shuffle=False)


def _logits(model: nn.Module, parameters: object, data: Pair) -> tuple[Tensor, Tensor]:
    """It hands over rows with or without a batch dimension."""
    row, label = data
    return functional_call(model, parameters, row.reshape(-1, row.shape[-1])), label.reshape(-1)


def trak(problem: Problem, options: Mapping[str, str]) -> Iterator[Answer]:
    """TRAK with the margin as its function, as its examples have it."""
    width = int(options.get("width", "512"))
    model = problem.model()
    size = sum(parameter.numel() for parameter in model.parameters())
    # Its gradients are divided by sqrt(p) and its projection has entries of variance 1/k.
    unit = margin_energy(problem) / size / min(len(problem.train[0]), width)

    def output(parameters: object, data: Pair) -> Tensor:
        return margin(*_logits(model, parameters, data)).sum()

    def probability(parameters: object, data: Pair) -> Tensor:
        return 1 - miss(*_logits(model, parameters, data))

    for rho in (0.0, *TRAK_GRID):
        clock = Clock()
        with clock.stage("features"):
            task = AttributionTask(loss_func=output, model=model, checkpoints=problem.states)
            attributor = TRAKAttributor(
                task=task,
                correct_probability_func=probability,
                projector_kwargs={"proj_dim": width},
                regularization=rho * unit,
            )
            attributor.cache(_loader(problem.train))
        with clock.stage("scores"):
            scores = attributor.attribute(_loader(problem.queries)).T
        yield Answer(
            setting=f"rho {rho:g}" if rho else "regularization 0",
            scores=scores.detach(),
            clock=clock,
        )


def _influence_task(problem: Problem, number: int) -> AttributionTask:
    model = problem.model(number)

    def loss(parameters: object, data: Pair) -> Tensor:
        return nn.functional.cross_entropy(*_logits(model, parameters, data))

    def fall(parameters: object, data: Pair) -> Tensor:
        return -margin(*_logits(model, parameters, data)).mean()

    states = [problem.states[number]]
    return AttributionTask(loss_func=loss, model=model, checkpoints=states, target_func=fall)


def _loss_task(problem: Problem, number: int) -> AttributionTask:
    model = problem.model(number)

    def loss(parameters: object, data: Pair) -> Tensor:
        return nn.functional.cross_entropy(*_logits(model, parameters, data))

    return AttributionTask(loss_func=loss, model=model, checkpoints=[problem.states[number]])


def ekfac(problem: Problem, options: Mapping[str, str]) -> Iterator[Answer]:
    """EK-FAC; its Fisher matrix is that of the target, so the target is the loss."""
    del options
    unit = fisher_scale(problem)
    first = Clock()
    fitted = []
    with first.stage("features"):
        for number in range(len(problem.states)):
            attributor = IFAttributorEKFAC(task=_loss_task(problem, number))
            attributor.cache(_loader(problem.train))
            fitted.append(attributor)
    missing = []
    for number in range(len(problem.states)):
        with torch.no_grad():
            lost = miss(problem.model(number)(problem.queries[0]), problem.queries[1])
        missing.append(lost.clamp_min(1e-20)[:, None])
    for rho in (0.0, *EKFAC_GRID):
        clock = first.fork()
        total: Tensor | float = 0.0
        with clock.stage("scores"):
            for attributor, lost in zip(fitted, missing, strict=True):
                attributor.damping = rho * unit
                loaders = (_loader(problem.train), _loader(problem.queries))
                # A fall of the loss by 1 - p is a rise of the margin by 1.
                total = total + attributor.attribute(*loaders).T.detach() / lost
        yield Answer(
            setting=f"rho {rho:g}" if rho else "damping 0",
            scores=torch.as_tensor(total),
            clock=clock,
        )


def cg(problem: Problem, options: Mapping[str, str]) -> Iterator[Answer]:
    """Conjugate gradients, ten steps on the Hessian of the mean loss."""
    del options
    unit = fisher_scale(problem)
    for rho in (0.0, *CG_GRID):
        clock = Clock()
        total: Tensor | float = 0.0
        with clock.stage("scores"):
            for number in range(len(problem.states)):
                attributor = IFAttributorCG(
                    task=_influence_task(problem, number), regularization=rho * unit
                )
                attributor.cache(_loader(problem.train))
                loaders = (_loader(problem.train), _loader(problem.queries))
                total = total + attributor.attribute(*loaders).T.detach()
        yield Answer(
            setting=f"rho {rho:g}" if rho else "regularization 0",
            scores=torch.as_tensor(total),
            clock=clock,
        )


if __name__ == "__main__":
    serve("dattri", {"trak": trak, "ekfac": ekfac, "cg": cg})
