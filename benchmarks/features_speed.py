"""What features cost beside one plain batched forward and backward pass of the same rows.

The plain pass is the one that anyone would write: loss summed over the batch, `backward()`, all
weight gradients made. Featurising is gradients and sketch of the same batch, by kind of
projection. Timings alternate, and the best of each is kept: on a shared machine the best is what
the code can do. Gram matrix, solve and scores are timed apart, on sketches of the widths that
featurising makes. Run: python -m benchmarks.features_speed
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attribution.gradients import PerExampleGradients
from attribution.models import build
from attribution.projection import Projection, sketch


@dataclass(frozen=True)
class Case:
    """A model and a batch of rows for it."""

    name: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor


def cases(batch: int) -> list[Case]:
    """The four models, each with a million parameters or more."""
    torch.manual_seed(0)
    pictures = torch.randn(batch, 3, 32, 32)
    transformer = build("transformer", (64,), 10, vocabulary=1000, width=128, depth=4)
    made = [
        ("mlp", build("mlp", (784,), 10, hidden=[768, 512, 256]), torch.randn(batch, 784)),
        ("cnn", build("cnn", (3, 32, 32), 10, channels=[64, 128, 256], hidden=[160]), pictures),
        ("resnet", build("resnet", (3, 32, 32), 10, width=48, blocks=[2, 2, 2]), pictures),
        ("transformer", transformer, torch.randint(1, 1000, (batch, 64))),
    ]
    targets = torch.arange(batch) % 10
    return [Case(name, model, inputs, targets) for name, model, inputs in made]


def main() -> None:
    """Print seconds, CPU seconds and ratios for each model and kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64, help="rows in a batch")
    parser.add_argument("--dim", type=int, default=2048, help="width of the sketch")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each; best is kept")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="of weights and gradients")
    parser.add_argument("--only", default="", help="one model's name")
    parser.add_argument("--kinds", default="sparse,factored,auto", help="projections, with commas")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    print(f"{arguments.batch} rows, k = {arguments.dim}, {arguments.device}, {arguments.dtype}")
    print(
        f"{'model':<12} {'p':>9} {'what':<18} {'seconds':>9} {'cpu s':>9} {'ratio':>6} {'cpu':>6}"
    )
    for case in cases(arguments.batch):
        if arguments.only in ("", case.name):
            _compare(case, arguments, dtype)
    _scores(arguments)


def _compare(case: Case, arguments: argparse.Namespace, dtype: torch.dtype) -> None:
    device = arguments.device
    model = case.model.to(device, dtype).eval()
    inputs, targets = case.inputs.to(device), case.targets.to(device)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    size = sum(parameter.numel() for parameter in model.parameters())

    def plain() -> None:
        model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(inputs).float(), targets, reduction="sum").backward()

    owner = PerExampleGradients(model, None, output="margin", device=device, dtype=dtype)
    jobs: dict[str, Callable[[], object]] = {"forward+backward": plain}
    for kind in arguments.kinds.split(","):
        projection = Projection(kind=kind, dim=arguments.dim)

        def features(projection: Projection = projection) -> Tensor:
            blocks = owner.run(inputs, targets).blocks()
            return sketch(blocks, projection, seed=0, checkpoint=0, p=size)

        jobs[f"features {kind}"] = features
    best = _best(jobs, arguments.repeats, device)
    base = best["forward+backward"]
    for name, (seconds, cpu) in best.items():
        print(
            f"{case.name:<12} {size:>9,} {name:<18} {seconds:>9.4f} {cpu:>9.4f} "
            f"{seconds / base[0]:>6.2f} {cpu / base[1]:>6.2f}"
        )


def _scores(arguments: argparse.Namespace) -> None:
    train = torch.randn(5000, arguments.dim, device=arguments.device)
    queries = torch.randn(500, arguments.dim, device=arguments.device)
    ridge = float(train.square().sum()) / arguments.dim
    kernel = train.T @ train
    kernel.diagonal().add_(ridge)
    factor = torch.linalg.cholesky(kernel)
    weights = torch.cholesky_solve(queries.T, factor)
    jobs: dict[str, Callable[[], object]] = {
        "gram": lambda: train.T @ train,
        "solve": lambda: torch.cholesky_solve(queries.T, torch.linalg.cholesky(kernel)),
        "scores": lambda: weights.T @ train.T,
    }
    for name, (seconds, cpu) in _best(jobs, arguments.repeats, arguments.device).items():
        print(f"5,000 x 500  {'':>9} {name:<18} {seconds:>9.4f} {cpu:>9.4f}")


def _best(
    jobs: dict[str, Callable[[], object]], repeats: int, device: str
) -> dict[str, tuple[float, float]]:
    """The best seconds and CPU seconds of each job, in turns, after one run that warms up."""
    best = dict.fromkeys(jobs, (float("inf"), float("inf")))
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            start, cpu = time.perf_counter(), time.process_time()
            job()
            if device == "cuda":
                torch.cuda.synchronize()
            spent = time.perf_counter() - start, time.process_time() - cpu
            if turn:
                best[name] = (min(best[name][0], spent[0]), min(best[name][1], spent[1]))
    return best


if __name__ == "__main__":
    main()
