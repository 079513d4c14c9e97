"""What crosses between environments: a problem goes in, answers come out, and the clock is one.

Only NumPy, safetensors and Torch are imported here, for a peer's environment has nothing of ours.
An answer holds scores [m, n] in this project's sign: > 0 means that training on the row raises the
query's margin log p(y) - log(1 - p(y)).
"""

import argparse
import importlib.metadata
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

State = dict[str, Tensor]
Pair = tuple[Tensor, Tensor]


def network(architecture: str) -> nn.Sequential:
    """The benchmarks' own networks in plain Torch, for pictures in rows of pixels.

    "mlp" and "cnn" take 8 x 8 digits, "fashion" 28 x 28. The CNN's pooling averages: with the
    maximum, training noise leaves a ceiling of 0.64 where it is 0.78 with the mean.
    """
    if architecture == "mlp":
        return nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )
    if architecture == "cnn":
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )
    if architecture == "fashion":
        return nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)),
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(1568, 10),
        )
    raise ValueError(f"architecture {architecture!r} is unknown; say mlp, cnn or fashion")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Rows, queries and the state dicts of independently trained networks."""

    folder: Path
    architecture: str
    train: Pair
    queries: Pair
    states: list[State]
    masks: NDArray[np.bool_]
    outputs: NDArray[np.float32]

    def model(self, number: int = 0) -> nn.Sequential:
        """One trained network, in eval mode."""
        net = network(self.architecture)
        net.load_state_dict(self.states[number])
        return net.eval()

    def few(self) -> "Problem":
        """A few rows and queries at one checkpoint, to warm up on."""
        train, queries = (
            (inputs[:16], targets[:16]) for inputs, targets in (self.train, self.queries)
        )
        return replace(
            self,
            train=train,
            queries=queries,
            states=self.states[:1],
            masks=self.masks[:, :16],
            outputs=self.outputs[:, :16],
        )


@dataclass
class Clock:
    """CPU (user + system, all threads) and wall seconds by stage; a stage may be entered again."""

    cpu: dict[str, float] = field(default_factory=dict)
    wall: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what happens inside to a stage: "features" or "scores"."""
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu
            self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall

    def fork(self) -> "Clock":
        """A clock that has counted the same features, for another damping of the same features."""
        return Clock(
            {"features": self.cpu.get("features", 0.0)},
            {"features": self.wall.get("features", 0.0)},
        )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Scores [m, n] of one setting; the first answer of a run is the method's own default."""

    setting: str
    scores: NDArray[np.floating] | Tensor
    clock: Clock


# A method gets the problem and its options (numbers by name) and yields answers.
Method = Callable[[Problem, Mapping[str, str]], Iterator[Answer]]


def write_problem(
    folder: Path,
    *,
    architecture: str,
    train: tuple[NDArray[np.float32], NDArray[np.int64]],
    queries: tuple[NDArray[np.float32], NDArray[np.int64]],
    states: Sequence[State],
    masks: NDArray[np.bool_],
    outputs: NDArray[np.float32],
) -> None:
    """Write rows and queries, checkpoints, and the tuning masks [M, n] with outputs [M, m]."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "problem.npz",
        architecture=np.array(architecture),
        train_inputs=train[0],
        train_targets=train[1],
        query_inputs=queries[0],
        query_targets=queries[1],
        masks=masks,
        outputs=outputs,
    )
    for number, state in enumerate(states):
        tensors = {name: value.detach().contiguous() for name, value in state.items()}
        save_file(tensors, folder / f"checkpoint_{number:02}.safetensors")


def read_problem(folder: Path, checkpoints: int) -> Problem:
    """What `write_problem` wrote, with the first checkpoints only."""
    with np.load(folder / "problem.npz") as arrays:
        return Problem(
            folder=folder,
            architecture=str(arrays["architecture"]),
            train=(
                torch.from_numpy(arrays["train_inputs"]),
                torch.from_numpy(arrays["train_targets"]),
            ),
            queries=(
                torch.from_numpy(arrays["query_inputs"]),
                torch.from_numpy(arrays["query_targets"]),
            ),
            states=[
                load_file(folder / f"checkpoint_{number:02}.safetensors")
                for number in range(checkpoints)
            ],
            masks=arrays["masks"],
            outputs=arrays["outputs"],
        )


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Log p(y) - log(1 - p(y)) of each row: [n]."""
    own = logits.gather(1, targets[:, None]).squeeze(1)
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return own - others.logsumexp(1)


def miss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - p(y) of each row, without cancellation: the loss's gradient is -(1 - p) the margin's."""
    return torch.sigmoid(-margin(logits, targets))


def per_margin(scores: Tensor, model: nn.Module, queries: Pair) -> Tensor:
    """Scores [m, n] of falls of the query's loss, turned into rises of its margin."""
    with torch.no_grad():
        lost = miss(model(queries[0]), queries[1])
    return scores / lost.clamp_min(1e-20)[:, None]


def margin_energy(problem: Problem) -> float:
    """Sum over training rows of ||gradient of the margin||^2, at the first checkpoint."""
    model = problem.model()

    def of(parameters: State, row: Tensor, target: Tensor) -> Tensor:
        return margin(functional_call(model, parameters, row[None]), target[None])[0]

    return _energy(of, model, *problem.train)


def fisher_scale(problem: Problem) -> float:
    """Mean non-zero eigenvalue of the Fisher matrix of the mean loss, at the first checkpoint.

    Dampings are tried in this unit: trace / min(n, p), n training rows and p parameters.
    """
    model = problem.model()
    inputs, _ = problem.train
    with torch.no_grad():
        probabilities = model(inputs).softmax(1)

    def of(parameters: State, row: Tensor, weight: Tensor, label: Tensor) -> Tensor:
        logp = functional_call(model, parameters, row[None]).log_softmax(1)
        return logp[0].gather(0, label[None])[0] * weight.sqrt()

    total = 0.0
    for label in range(probabilities.shape[1]):
        labels = torch.full((len(inputs),), label)
        total += _energy(of, model, inputs, probabilities[:, label], labels)
    size = sum(parameter.numel() for parameter in model.parameters())
    return total / len(inputs) / min(len(inputs), size)


def _energy(of: Callable[..., Tensor], model: nn.Module, *columns: Tensor) -> float:
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    gradient = vmap(grad(of), in_dims=(None, *(0 for _ in columns)))
    total = 0.0
    for rows in zip(*(column.split(256) for column in columns), strict=True):
        total += sum(float(part.square().sum()) for part in gradient(parameters, *rows).values())
    return total


def options_of(words: Sequence[str]) -> dict[str, str]:
    """``name=value`` words as a dictionary."""
    return dict(word.split("=", 1) for word in words)


def serve(package: str, methods: Mapping[str, Method]) -> None:
    """Run one method as the command line asks, and write its answers beside their cost."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--method", required=True, choices=list(methods))
    parser.add_argument("--checkpoints", type=int, default=1)
    parser.add_argument("--option", action="append", default=[], help="name=value")
    asked = parser.parse_args()
    problem = read_problem(asked.folder, asked.checkpoints)
    options = options_of(asked.option)
    # Lazy imports and compiled kernels are loaded before the clock runs, for everyone. A default
    # that cannot invert a few rows has loaded them too.
    with suppress(RuntimeError):
        next(methods[asked.method](problem.few(), options))
    answers = list(methods[asked.method](problem, options))
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    np.savez(
        asked.result,
        settings=np.array([answer.setting for answer in answers]),
        scores=np.stack([np.asarray(answer.scores, dtype=np.float32) for answer in answers]),
        cpu=np.array([sum(answer.clock.cpu.values()) for answer in answers]),
        wall=np.array([sum(answer.clock.wall.values()) for answer in answers]),
        features_cpu=np.array([answer.clock.cpu.get("features", np.nan) for answer in answers]),
        peak=np.array(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit),
        version=np.array(importlib.metadata.version(package)),
        torch=np.array(torch.__version__),
        numpy=np.array(np.__version__),
    )
