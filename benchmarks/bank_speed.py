"""Models a second: a stack of masked perceptrons beside a plain PyTorch loop on the same batches.

The plain loop is written as anyone would write it: `torch.optim.SGD`, `nn.CrossEntropyLoss`, one
model after the other; its batches are indexed from tensors in memory, in the stack's own order, so
that both compute the same thing. Timings alternate, and the best of each is kept: on a shared
machine the best is what the code can do. Run: python -m benchmarks.bank_speed
"""

import argparse
import time

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attribution.bank import draw_masks
from attribution.models import build, fresh
from attribution.training import Recipe, epoch_order, train_models

N_TRAIN = 1_400
RECIPE = Recipe(lr=0.05, momentum=0.9, weight_decay=0.0, epochs=30, batch_size=50)


def main() -> None:
    """Print both rates, their ratio and the largest difference between the trained weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=100, help="models in the stack")
    parser.add_argument("--plain", type=int, default=6, help="models in the plain loop")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each; best is kept")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()

    data = load_digits()
    inputs = torch.tensor(data.data[:N_TRAIN] / 16.0, dtype=torch.float32)
    targets = torch.tensor(data.target[:N_TRAIN], dtype=torch.int64)
    model = build("mlp", (64,), 10, hidden=[128, 64])
    masks, seeds, _ = draw_masks(N_TRAIN, arguments.models, [0.5], 1, seed=0)

    stack_seconds, plain_seconds = [], []
    stack_cpu, plain_cpu = [], []
    for _ in range(arguments.repeats):
        start, cpu = time.perf_counter(), time.process_time()
        trained = train_models(
            model,
            (inputs, targets),
            masks=masks,
            seeds=seeds,
            training=RECIPE,
            device=arguments.device,
        )
        stack_seconds.append(time.perf_counter() - start)
        stack_cpu.append(time.process_time() - cpu)
        start, cpu = time.perf_counter(), time.process_time()
        plain = [
            plain_loop(model, inputs, targets, masks[row], int(seeds[row]), arguments.device)
            for row in range(arguments.plain)
        ]
        plain_seconds.append(time.perf_counter() - start)
        plain_cpu.append(time.process_time() - cpu)

    difference = max(
        float((trained.states[name][row] - value).abs().max())
        for row, state in enumerate(plain)
        for name, value in state.items()
    )
    stack = arguments.models / min(stack_seconds)
    loop = arguments.plain / min(plain_seconds)
    print(f"{torch.get_num_threads()} threads, {arguments.device}, path {trained.path}")
    stack_each = 1e3 * min(stack_cpu) / arguments.models
    loop_each = 1e3 * min(plain_cpu) / arguments.plain
    print(f"stack       {stack:8.1f} models/s {stack_each:8.1f} ms of CPU a model")
    print(f"plain loop  {loop:8.1f} models/s {loop_each:8.1f} ms of CPU a model")
    print(f"ratio       {stack / loop:8.1f}")
    print(f"largest difference of a weight after {RECIPE.epochs} epochs: {difference:.1e}")


def plain_loop(
    model: nn.Module, inputs: Tensor, targets: Tensor, mask: np.ndarray, seed: int, device: str
) -> dict[str, Tensor]:
    """One model, trained as in any tutorial."""
    net = fresh(model, seed).to(device)
    inputs, targets = inputs.to(device), targets.to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=RECIPE.lr, momentum=RECIPE.momentum)
    criterion = nn.CrossEntropyLoss()
    subset = np.flatnonzero(mask)
    for epoch in range(RECIPE.epochs):
        order = torch.from_numpy(subset[epoch_order(seed, epoch, len(subset))]).to(device)
        for rows in order.split(RECIPE.batch_size):
            optimizer.zero_grad()
            criterion(net(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    return {name: value.detach().cpu() for name, value in net.state_dict().items()}


if __name__ == "__main__":
    main()
