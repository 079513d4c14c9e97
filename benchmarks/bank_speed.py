"""Models a second: many masked models as one beside a plain PyTorch loop on the same batches.

Three cases: a perceptron and a small CNN on digits, a CNN on Fashion-MNIST. The plain loop is
written as anyone would write it: `torch.optim.SGD`, `nn.CrossEntropyLoss`, one model after the
other; its batches are indexed from tensors in memory, in the stack's own order, so that both
compute the same thing. It runs on one thread and on all, and the faster counts: networks so small
gain little from a second. Timings alternate, and the best of each is kept: on a shared machine the
best is what the code can do. Run: python -m benchmarks.bank_speed

Arithmetic is counted (products only, 2 a multiply-add; no derivative by the inputs) and set beside
what one core reaches in a large sgemm and in our own product while all is in the cache. On
processors for which MKL has no AVX-512 code, ours is the faster of the two.

The weights' difference tells that both trained the same. Where two numbers of a pooling window, or
a number and zero, lie within rounding, either may go the other way: CNNs part by some 1e-2 then,
ours and the plain loop alike from the same training in float64, where the two agree.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attribution.bank import draw_masks
from attribution.models import build, fresh
from attribution.training import Recipe, TrainedModels, epoch_order, train_models
from attribution.training.kernels import VECTOR_BYTES, product
from benchmarks.peers.exchange import network
from tasks.intake.arrays import read_idx

Result = TypeVar("Result")

N_DIGITS, N_FASHION = 1_400, 2_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model, its data [n, ...] and [n], its recipe, and how many are trained each way."""

    name: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    recipe: Recipe
    models: int
    plain: int

    @property
    def flop(self) -> float:
        """Floating-point operations of one model's training on half of the rows."""
        found: list[int] = []

        def count(module: nn.Module, _inputs: object, output: Tensor) -> None:
            taps = module.weight[0].numel()
            # Forward, by the weights, and by what comes in, which the first layer does not need.
            found.append(2 * taps * output[0].numel() * (3 if found else 2))

        layers = [m for m in self.model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        hooks = [layer.register_forward_hook(count) for layer in layers]
        with torch.no_grad():
            self.model(self.inputs[:1])
        for hook in hooks:
            hook.remove()
        return float(sum(found)) * self.recipe.epochs * (len(self.inputs) // 2)


def main() -> None:
    """Print both rates of each case, their ratio, and the largest difference between weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=200, help="perceptrons in the stack")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each; best is kept")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", nargs="*", default=[], help="mlp, cnn, fashion")
    arguments = parser.parse_args()
    peaks = _sgemm_rate(), _product_rate()
    print(f"{torch.get_num_threads()} threads, {arguments.device}")
    print(f"one core: sgemm {peaks[0]:.0f} GFLOP/s, our product in the cache {peaks[1]:.0f}")
    for key, make in CASES.items():
        if not arguments.only or key in arguments.only:
            case = make(arguments.models)
            if case is None:
                print(f"\n{key}: WINNOW_DATA names no folder with fashion_mnist; left out")
            else:
                _measure(case, arguments.device, arguments.repeats, max(peaks))


def perceptrons(models: int) -> Case:
    """64-128-64-10 on digits."""
    inputs, targets = _digits()
    return Case(
        name="MLP 64-128-64-10, digits",
        model=build("mlp", (64,), 10, hidden=[128, 64]),
        inputs=inputs,
        targets=targets,
        recipe=Recipe(lr=0.05, momentum=0.9, weight_decay=1e-3, epochs=30, batch_size=50),
        models=models,
        plain=4,
    )


def pictures(models: int) -> Case:
    """The small CNN that the comparisons with other packages train, on digits."""
    inputs, targets = _digits()
    return Case(
        name="CNN, digits",
        model=network("cnn"),
        inputs=inputs,
        targets=targets,
        recipe=Recipe(lr=0.05, momentum=0.9, weight_decay=1e-3, epochs=6, batch_size=50),
        models=max(1, models // 5),
        plain=2,
    )


def fashion(models: int) -> Case | None:
    """The built-in CNN on 28 x 28 pictures; None where they are not at hand."""
    folder = Path(os.environ.get("WINNOW_DATA", "")) / "fashion_mnist"
    if not folder.is_dir():
        return None
    rows = read_idx(folder)
    return Case(
        name=f"CNN, {N_FASHION:,} of Fashion-MNIST",
        model=build("cnn", (1, 28, 28), 10),
        inputs=torch.as_tensor(rows.inputs[:N_FASHION], dtype=torch.float32),
        targets=torch.as_tensor(rows.targets[:N_FASHION]),
        recipe=Recipe(lr=0.05, momentum=0.9, weight_decay=1e-3, epochs=2, batch_size=50),
        models=max(1, models // 16),
        plain=2,
    )


CASES: dict[str, Callable[[int], Case | None]] = {
    "mlp": perceptrons,
    "cnn": pictures,
    "fashion": fashion,
}


def plain_loop(case: Case, mask: np.ndarray, seed: int, device: str) -> dict[str, Tensor]:
    """One model, trained as in any tutorial."""
    recipe = case.recipe
    net = fresh(case.model, seed).to(device)
    inputs, targets = case.inputs.to(device), case.targets.to(device)
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    criterion = nn.CrossEntropyLoss()
    subset = np.flatnonzero(mask)
    for epoch in range(recipe.epochs):
        order = torch.from_numpy(subset[epoch_order(seed, epoch, len(subset))]).to(device)
        for rows in order.split(recipe.batch_size):
            optimizer.zero_grad()
            criterion(net(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    return {name: value.detach().cpu() for name, value in net.state_dict().items()}


def _measure(case: Case, device: str, repeats: int, peak: float) -> None:
    masks, seeds, _ = draw_masks(len(case.inputs), case.models, [0.5], 1, seed=0)
    places = range(min(case.plain, case.models))

    def stack(rows: slice) -> TrainedModels:
        return train_models(
            case.model,
            (case.inputs, case.targets),
            masks=masks[rows],
            seeds=seeds[rows],
            training=case.recipe,
            device=device,
        )

    def loop() -> list[dict[str, Tensor]]:
        return [plain_loop(case, masks[row], int(seeds[row]), device) for row in places]

    # Compiled code is loaded before the clock runs.
    stack(slice(0, 1))
    stacks, loops = [], []
    for _ in range(repeats):
        stacks.append(_timed(lambda: stack(slice(None))))
        loops += [_timed(loop, threads) for threads in {1, torch.get_num_threads()}]
    trained, plain = stacks[-1][0], loops[-1][0]
    wall, cpu = (min(one[k] for one in stacks) / case.models for k in (1, 2))
    plain_wall, plain_cpu = (min(one[k] for one in loops) / len(places) for k in (1, 2))
    difference = max(
        float((trained.states[name][row] - value).abs().max())
        for row, state in enumerate(plain)
        for name, value in state.items()
    )
    rate, plain_rate = (case.flop / seconds / 1e9 for seconds in (cpu, plain_cpu))
    print(f"\n{case.name}, {case.models} models, path {trained.path}")
    for name, seconds, busy, speed in (
        ("as one", wall, cpu, rate),
        ("plain loop", plain_wall, plain_cpu, plain_rate),
    ):
        print(
            f"{name:<11} {1 / seconds:8.1f} models/s {1e3 * busy:8.1f} ms of CPU a model "
            f"{speed:6.0f} GFLOP/s a core, {speed / peak:4.0%} of the peak"
        )
    print(f"ratio       {plain_wall / wall:8.1f}")
    print(f"largest difference of a weight after {case.recipe.epochs} epochs: {difference:.1e}")


def _timed(work: Callable[[], Result], threads: int = 0) -> tuple[Result, float, float]:
    """What a call returns, and its wall and CPU seconds (all threads).

    Args:
        work: Takes nothing.
        threads: How many Torch may use; 0 leaves that as it is.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    torch.set_num_threads(before)
    return result, *seconds


def _digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    inputs = torch.tensor(data.data[:N_DIGITS] / 16.0, dtype=torch.float32)
    return inputs, torch.tensor(data.target[:N_DIGITS], dtype=torch.int64)


def _sgemm_rate(side: int = 1_024) -> float:
    """GFLOP/s of one core in a large matrix product."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    out = torch.empty(side, side)
    best = min(_timed(lambda: torch.mm(a, b, out=out), 1)[2] for _ in range(10))
    return 2e-9 * side**3 / best


def _product_rate() -> float:
    """GFLOP/s of one core in `product` over lines that stay in the first cache."""
    n_rows, n_steps, wide = 100_000, 64, 4 * VECTOR_BYTES // 4
    a = np.ones(50 * n_steps, dtype=np.float32)
    b, c = (np.ones(n * wide, dtype=np.float32) for n in (n_steps, 50))
    # The same fifty rows again and again, in one call.
    rows, steps = np.arange(n_rows) % 50, np.arange(n_steps)
    p, r, s = rows * n_steps, rows * wide, steps * wide

    def work() -> None:
        product(a, p, steps, b, s, c, r, wide, np.float32(0))

    work()
    best = min(_timed(work)[2] for _ in range(10))
    return 2e-9 * n_rows * n_steps * wide / best


if __name__ == "__main__":
    main()
