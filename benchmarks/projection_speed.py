"""Seconds and GB/s of sketching a block of gradients, for every kind of projection.

One block [256, 1_000_000] float32 to 4096 columns; the dense kinds take a shorter block, for they
do 2 * dim operations an entry where the sparse kind does one, and are compared with a product of
the same shape. GB/s counts the gradients that are read, once. Beside them: one `torch.sum` over
the block (what reading it costs) and one `index_add_` with columns and signs given (what the
sparse kind would be in plain Torch, without drawing them). Timings alternate and the best of each
is kept: on a shared machine the best is what the code can do.
Run: python -m benchmarks.projection_speed [--device cuda]
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from attribution.projection import Projection, sketch, sketch_implementation


def main() -> None:
    """Print one line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rows", type=int, default=256, help="rows of the block")
    parser.add_argument("--parameters", type=int, default=1_000_000, help="entries of a row")
    parser.add_argument("--dense", type=int, default=50_000, help="entries for dense kinds")
    parser.add_argument("--dim", type=int, default=4096, help="columns of the sketch")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each; best is kept")
    arguments = parser.parse_args()

    device, dim = arguments.device, arguments.dim
    generator = torch.Generator(device).manual_seed(0)
    whole = torch.randn(arguments.rows, arguments.parameters, device=device, generator=generator)
    short = whole[:, : min(arguments.dense, arguments.parameters)].contiguous()
    columns = torch.randint(dim, (whole.shape[1],), device=device, generator=generator)
    signs = torch.randint(2, (whole.shape[1],), device=device, generator=generator) * 2.0 - 1
    matrix = torch.randn(short.shape[1], dim, device=device, generator=generator)
    rows: list[tuple[str, Tensor, Callable[[], Tensor]]] = [
        ("torch.sum", whole, whole.sum),
        (
            "torch index_add_",
            whole,
            lambda: whole.new_zeros(len(whole), dim).index_add_(1, columns, whole * signs),
        ),
        ("sparse, 1 nonzero", whole, sketcher(whole, Projection(dim=dim))),
        ("sparse, 4 nonzeros", whole, sketcher(whole, Projection(dim=dim, nonzeros=4))),
        ("hadamard", whole, sketcher(whole, Projection(kind="hadamard", dim=dim))),
        ("torch matmul", short, lambda: short @ matrix),
        ("rademacher", short, sketcher(short, Projection(kind="rademacher", dim=dim))),
        ("gaussian", short, sketcher(short, Projection(kind="gaussian", dim=dim))),
    ]
    best = dict.fromkeys((name for name, _, _ in rows), float("inf"))
    for turn in range(arguments.repeats + 1):
        for name, _, work in rows:
            seconds = timed(work, device)
            if turn:  # the first compiles
                best[name] = min(best[name], seconds)

    print(f"{torch.get_num_threads()} threads, {device}: {sketch_implementation(device)}")
    print(f"{'':<20} {'entries of a row':>16} {'seconds':>9} {'GB/s':>8} {'ns an entry':>12}")
    for name, block, _ in rows:
        rate, each = block.nbytes / best[name] / 1e9, best[name] / block.numel() * 1e9
        print(f"{name:<20} {block.shape[1]:>16,} {best[name]:>9.4f} {rate:>8.2f} {each:>12.3f}")
    print(f"sparse, 1 nonzero: {best['sparse, 1 nonzero'] / best['torch.sum']:.1f} torch.sum")


def sketcher(block: Tensor, projection: Projection) -> Callable[[], Tensor]:
    """A call that sketches the block."""
    size = block.shape[1]
    return lambda: sketch([(0, block)], projection, seed=0, checkpoint=0, p=size)


def timed(work: Callable[[], Tensor], device: str) -> float:
    """Seconds of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
