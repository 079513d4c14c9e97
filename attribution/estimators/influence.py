"""Influence functions (Koh & Liang 2017): tau[q, i] = -grad f_q^T (H + s I)^-1 grad l_i.

H is the curvature of the SUM of training losses at a checkpoint, f_q any output, l_i the training
loss of row i; tau > 0: having i in training raises f_q. s = ridge + rho * unit, where unit is
tr(J^T D J) / min(n, p) of the Gauss-Newton matrix, whichever curvature is inverted. Checkpoints
are averaged. Gradients and vectors pass in blocks; what is kept is the [q, n] result.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.estimators.curvature import Hessian, LossCurvature
from attribution.estimators.gradient_products import RowGradients
from attribution.estimators.request import Clock, Record, Request, open_sink
from attribution.estimators.solvers import (
    EXACT_LIMIT,
    LANCZOS_BLOCK,
    ConjugateGradients,
    Exact,
    Lissa,
    Solver,
    SolverName,
    lanczos,
    nystrom,
)
from attribution.estimators.tuning import GRID, given_damping, tune_on_bank
from attribution.outputs import Output
from attribution.streams import Purpose, torch_seed
from schemas.errors import ShapeError

# Entries of the vectors and solutions of one block (256 MiB of float32).
BLOCK_ENTRIES = 2**26
QUERY_BLOCK = 512
# Factors and eigenvectors of all checkpoints are kept between tuning and scoring up to this size.
KEPT_BYTES = 2**31


@dataclass(frozen=True, kw_only=True)
class _Options:
    hessian: str
    solver: str
    ridge: float
    rank: int
    iterations: int
    tolerance: float
    scale: float | None


@dataclass(frozen=True, kw_only=True)
class _System:
    """One checkpoint: gradients of both sides, and the curvature's solver."""

    train: RowGradients
    queries: RowGradients
    solver: Solver
    unit: float


def estimate(
    request: Request,
    *,
    hessian: str = Hessian.GAUSS_NEWTON,
    solver: str = SolverName.LANCZOS,
    damping: float | str = "auto",
    ridge: float = 0.0,
    rank: int = 256,
    iterations: int = 1000,
    tolerance: float = 1e-5,
    scale: float | str = "auto",
) -> tuple[NDArray[np.float32], Record]:
    """Influence functions from checkpoints and rows.

    Args:
        request: What is asked.
        hessian: "gauss-newton" (J^T D J, never negative) or "hessian" (at a point that is no
            minimum it may be indefinite; then the damping must lift it).
        solver: "lanczos": top eigenpairs, H taken as 0 on the rest of each gradient; "arnoldi":
            the same with the rest dropped (Schioppa et al. 2022); "nystrom" (Frangella et al.
            2023); "cg": the system itself, on the full-data product; "exact": dense, p up to
            20 000; "lissa" (Agarwal et al. 2017). On digits (17k parameters, tuned, one
            checkpoint) LDS was 0.64 with lanczos, nystrom and cg; tuning is cheapest with
            eigenpairs, which answer for every damping.
        damping: rho >= 0 in units of tr(J^T D J) / min(n, p), or "auto": tuned on the bank, 1
            without one. It comes on top of the ridge.
        ridge: n * weight decay, where the recipe minimises mean loss + weight decay / 2 |theta|^2:
            added to H, and ridge / n * theta to the gradient of each row.
        rank: Eigenpairs of "arnoldi", "lanczos" and "nystrom".
        iterations: Most products with H of "cg" and "lissa".
        tolerance: Relative residual of "cg"; relative size of the last step of "lissa".
        scale: Of "lissa", above half of the largest eigenvalue; "auto" finds it by power
            iterations.

    Raises:
        ShapeError: An option is out of range; H + s I is not positive definite; or a solver
            diverges or does not converge.
        RecipeError: The model has no second derivative where one is needed.
    """
    options = _Options(
        hessian=hessian,
        solver=solver,
        ridge=ridge,
        rank=rank,
        iterations=iterations,
        tolerance=tolerance,
        scale=None if scale == "auto" else float(scale),
    )
    given = given_damping(damping)
    _check(options, given.rho if given else None)
    n_query, n_train = len(request.queries), len(request.train)
    target, send = open_sink(request.out, n_query, n_train)
    clock = Clock()
    systems = _Systems(request, options)
    chosen = given or tune_on_bank(
        lambda masks: _predict(systems, masks, GRID, ridge),
        request.bank,
        n_train=n_train,
        n_query=n_query,
        aggregate=request.aggregate,
    )
    clock.stop("tune")
    scores = np.zeros((n_query, n_train), dtype=np.float32)
    facts, units = [], []
    for system in systems:
        shift = ridge + chosen.rho * system.unit
        for rows, block in _query_blocks(system, 1):
            solved = _definite(system.solver.solve(block, [shift])[0], chosen.rho)
            scores[rows] -= _host(system.train.project(solved).T) / len(systems)
        facts.append(system.solver.facts)
        units.append(system.unit)
    for start in range(0, n_query, QUERY_BLOCK):
        rows = slice(start, min(start + QUERY_BLOCK, n_query))
        send(rows, scores[rows])
    clock.stop("score")
    record = {
        "damping": chosen.rho,
        "damping_table": chosen.table,
        "chosen_from": chosen.chosen_from,
        "unit": units,
        "solver": facts,
        "fingerprint": [f"exact:checkpoint={number}" for number in range(len(systems))],
        "options": {
            "hessian": str(hessian),
            "solver": str(solver),
            "ridge": ridge,
            "rank": rank,
            "iterations": iterations,
            "tolerance": tolerance,
            "scale": scale,
            "seed": request.seed,
        },
        "batch_size": request.batch_size,
        "seconds": clock.seconds,
    }
    return target, record


class _Systems:
    """The systems of all checkpoints, made when they are needed and kept while they are small."""

    def __init__(self, request: Request, options: _Options) -> None:
        self._request, self._options = request, options
        self._kept: dict[int, _System] = {}

    def __len__(self) -> int:
        return len(self._request.checkpoints)

    def __iter__(self) -> Iterator[_System]:
        for number, state in enumerate(self._request.checkpoints):
            if number in self._kept:
                yield self._kept[number]
                continue
            system = _system(self._request, self._options, state, number)
            held = sum(other.solver.nbytes for other in self._kept.values())
            if held + system.solver.nbytes <= KEPT_BYTES:
                self._kept[number] = system
            yield system


def _system(request: Request, options: _Options, state: Mapping[str, Any], number: int) -> _System:
    common: dict[str, Any] = {"device": request.device, "dtype": request.dtype}
    common["batch_size"] = request.batch_size
    curvature = LossCurvature(
        request.model,
        state,
        request.train,
        task=request.task,
        hessian=options.hessian,
        seed=request.seed,
        **common,
    )
    pull = options.ridge / len(request.train) * curvature.theta if options.ridge else None
    train = RowGradients(
        request.model, state, request.train, output=Output.LOSS, pull=pull, **common
    )
    queries = RowGradients(request.model, state, request.queries, output=request.output, **common)
    return _System(
        train=train,
        queries=queries,
        solver=_solver(curvature, options, torch_seed(request.seed, Purpose.SOLVER, number)),
        unit=curvature.mean_eigenvalue(),
    )


def _solver(curvature: LossCurvature, options: _Options, seed: int) -> Solver:
    p, rank = curvature.size, min(options.rank, curvature.size)

    def drawn(count: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(min(count, p), p, generator=generator).to(curvature.theta)

    common = {"tolerance": options.tolerance, "iterations": options.iterations}
    if options.solver == SolverName.EXACT:
        if p > EXACT_LIMIT:
            raise ShapeError(
                f"solver 'exact' holds {p} x {p} numbers, and its limit is {EXACT_LIMIT} "
                "parameters; use solver='cg'"
            )
        return Exact(curvature.dense())
    if options.solver == SolverName.CG:
        return ConjugateGradients(curvature.product, **common)  # type: ignore[arg-type]
    if options.solver == SolverName.LISSA:
        return Lissa(curvature.product, start=drawn(4), scale=options.scale, **common)  # type: ignore[arg-type]
    if options.solver == SolverName.NYSTROM:
        return nystrom(curvature.product, drawn(rank))
    rest = options.solver == SolverName.LANCZOS
    # A deep space finds eigenvectors, a wide block makes products cheap.
    block = max(1, min(LANCZOS_BLOCK, rank // 8))
    return lanczos(curvature.product, drawn(block), rank, rest=rest)


def _predict(
    systems: _Systems, masks: NDArray[np.bool_], grid: Sequence[float], ridge: float
) -> NDArray[np.float64]:
    """Sums of scores over each mask, [grid, M, q]: systems are solved for the thinner side."""
    n_query = len(systems._request.queries)
    totals = np.zeros((len(grid), len(masks), n_query))
    for system in systems:
        shifts = [ridge + rho * system.unit for rho in grid]
        members = torch.from_numpy(masks)
        if len(masks) <= n_query:
            for rows in _blocks(len(masks), system, len(grid)):
                solved = system.solver.solve(system.train.combine(members[rows]), shifts)
                found = system.queries.project(solved.flatten(0, 1)).T
                totals[:, rows] -= _host(found).reshape(len(grid), -1, n_query)
            continue
        for rows, block in _query_blocks(system, len(grid)):
            found = system.train.project(system.solver.solve(block, shifts).flatten(0, 1))
            summed = members.to(found) @ found
            parts = _host(summed).reshape(len(masks), len(grid), -1)
            totals[:, :, rows] -= parts.transpose(1, 0, 2)
    return totals / len(systems)


def _query_blocks(system: _System, n_shifts: int) -> Iterator[tuple[slice, Tensor]]:
    for rows in _blocks(len(system.queries), system, n_shifts):
        yield rows, system.queries.rows(rows.start, rows.stop)


def _blocks(count: int, system: _System, n_shifts: int) -> Iterator[slice]:
    # CG holds a solution and a direction for each shift, and four vectors more.
    fitting = BLOCK_ENTRIES // (system.train.size * (2 * n_shifts + 4))
    step = max(1, min(QUERY_BLOCK, fitting))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _definite(solved: Tensor, rho: float) -> Tensor:
    if not bool(torch.isfinite(solved).all()):
        raise ShapeError(
            f"H + s I is not positive definite at damping {rho:g}; raise the damping, or use "
            "hessian='gauss-newton'"
        )
    return solved


def _check(options: _Options, rho: float | None) -> None:
    if options.solver not in set(SolverName):
        raise ShapeError(f"unknown solver {options.solver!r}; say one of {', '.join(SolverName)}")
    if options.hessian not in set(Hessian):
        raise ShapeError(f"unknown hessian {options.hessian!r}; say {' or '.join(Hessian)}")
    if options.solver == SolverName.NYSTROM and options.hessian != Hessian.GAUSS_NEWTON:
        raise ShapeError(
            "solver 'nystrom' needs a curvature that is never negative; use "
            "hessian='gauss-newton' or solver='lanczos'"
        )
    if not 0.0 <= options.ridge < float("inf"):
        raise ShapeError(f"ridge is {options.ridge}; give n * weight decay, 0 or more")
    if rho is not None and (not 0.0 <= rho < float("inf") or rho + options.ridge == 0.0):
        raise ShapeError(
            f"damping is {rho} with ridge {options.ridge}; give a positive number (1 is one mean "
            "eigenvalue); only with a ridge may it be 0"
        )
    if options.rank < 1 or options.iterations < 1 or not options.tolerance > 0:
        raise ShapeError(
            f"rank is {options.rank}, iterations {options.iterations}, tolerance "
            f"{options.tolerance}; each must be positive"
        )
    if options.scale is not None and not 0 < options.scale < float("inf"):
        raise ShapeError(f"scale is {options.scale}; give a positive number, or 'auto'")


def _host(values: Tensor) -> NDArray[Any]:
    return values.to("cpu").numpy()
