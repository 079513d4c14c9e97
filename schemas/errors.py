"""Every error that winnow raises on purpose, as one tree.

    WinnowError                        exit code 1: a run failed
    ├── RequestError                   exit code 2: the request is wrong, nothing was touched
    │   ├── SpecError                  the TOML spec; holds every problem found in it
    │   ├── DataError                  the rows: NaN, duplicate ids, empty classes, unreadable files
    │   ├── RecipeError                the user's own Python file or model
    │   ├── CheckpointError            weights that cannot be read or do not fit the model
    │   ├── ShapeError                 arrays whose shapes or values do not fit together
    │   ├── DeviceUnavailable          the asked device is not there
    │   ├── InfeasibleProblem          no choice satisfies the constraints
    │   ├── QueryError                 SQL that cannot run, or asks for what it may not have
    │   ├── LedgerHeld                 another process writes this workspace's ledger
    │   └── NotFound                   a name, a run or a file that does not exist
    ├── CorruptArtifact                a sealed file is missing or differs from its digest
    ├── TrainingDiverged               a loss became NaN or infinite
    ├── StorageError                   the disk is full or refuses
    ├── MigrationError                 the ledger was made by another version
    └── ServerUnavailable              Prefect or MLflow does not answer

A message is one line that says what was found and what to do.
"""

from collections.abc import Iterable
from typing import ClassVar


class WinnowError(Exception):
    """Anything winnow refuses or fails to do, with a message for a person."""

    exit_code: ClassVar[int] = 1


class RequestError(WinnowError):
    """What was asked for is wrong; nothing has been touched."""

    exit_code: ClassVar[int] = 2


class SpecError(RequestError):
    """The spec is wrong.

    Args:
        source: The file (or other name) the spec came from.
        problems: One line for each problem: ``path: what was found; what to do``.
    """

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            message = f"{source}: {self.problems[0]}"
        else:
            lines = "".join(f"\n  {problem}" for problem in self.problems)
            message = f"{source}: {len(self.problems)} problems{lines}"
        super().__init__(message)


class DataError(RequestError):
    """The rows cannot be used as they are; the message names the first bad one."""


class RecipeError(RequestError):
    """The user's Python file cannot be loaded, or returns something else than was agreed."""


class CheckpointError(RequestError):
    """Weights that cannot be read, or that do not fit the model."""


class ShapeError(RequestError):
    """Arrays whose shapes, types or values do not fit together."""


class DeviceUnavailable(RequestError):
    """The asked device is not there; winnow never falls back silently."""


class InfeasibleProblem(RequestError):
    """No choice satisfies the constraints; the message names those in conflict."""


class QueryError(RequestError):
    """SQL that cannot run, or that asks for what it may not have."""


class LedgerHeld(RequestError):
    """Another process holds the ledger; the message names its pid."""


class NotFound(RequestError):
    """A name, run or file that does not exist."""


class CorruptArtifact(WinnowError):
    """A sealed artifact lost a file, or a file no longer has its digest."""


class TrainingDiverged(WinnowError):
    """A loss became NaN or infinite during training."""


class StorageError(WinnowError):
    """The disk is full, or the operating system refused a write."""


class MigrationError(WinnowError):
    """The ledger was made by another version of winnow."""


class ServerUnavailable(WinnowError):
    """A Prefect or MLflow server does not answer."""
