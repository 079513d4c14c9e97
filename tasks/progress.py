"""How far a run is, for whoever watches: a small file, and listeners in the same process.

Tasks call ``advance``. While ``recording`` is active the state is also kept in a JSON file that is
replaced in one step, so that `winnow status` in another process reads it at any time and never
needs the ledger. Nothing here knows Prefect, and no result depends on it.

A recorded run holds a lock beside the file: a workspace has one run at a time, and a reader can
tell a run that goes on from one that was killed, whatever became of its pid.
"""

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from schemas.errors import LedgerHeld

Listener = Callable[["StageProgress"], None]

# A file write costs about 0.1 ms, a stage may advance thousands of times a second.
WRITE_EVERY_SECONDS = 0.2


class Outcome(StrEnum):
    """What became of the recorded run."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"  # interrupted; or its process ended without a word (kill -9, power)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProgress:
    """How far one stage is; times are seconds since the epoch."""

    stage: str
    done: int
    total: int
    unit: str = ""
    started_at: float
    updated_at: float

    @property
    def amount(self) -> str:
        """How far it is, as in '24 of 40 epochs'."""
        return f"{self.done} of {self.total} {self.unit}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """How far a run is, or was when it ended."""

    label: str
    pid: int
    outcome: Outcome
    started_at: float
    updated_at: float
    stages: tuple[StageProgress, ...]


_lock = threading.RLock()
_listeners: list[Listener] = []
_recorder: "_Recorder | None" = None
_stages: dict[str, StageProgress] = {}


def advance(stage: str, done: int, total: int, unit: str = "") -> None:
    """Say that ``done`` of ``total`` units of a stage are finished; from any thread.

    Args:
        stage: The stage.
        done: Units that are finished.
        total: Units in all.
        unit: What is counted, in the plural: epochs here may be models in a plan.
    """
    now = time.time()
    with _lock:
        known = _stages.get(stage)
        started_at = known.started_at if known is not None and done >= known.done else now
        state = StageProgress(
            stage=stage,
            done=done,
            total=total,
            unit=unit,
            started_at=started_at,
            updated_at=now,
        )
        _stages[stage] = state
        if _recorder is not None:
            _recorder.note(tuple(_stages.values()), soon=done >= total or known is None)
        for listener in tuple(_listeners):
            listener(state)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call ``listener`` with each stage's state, in the thread that advanced it."""
    with _lock:
        _listeners.append(listener)
    try:
        yield
    finally:
        with _lock:
            _listeners.remove(listener)


@contextlib.contextmanager
def recording(path: Path, label: str = "") -> Iterator[None]:
    """Keep the progress of one run in a file, until it ends well or badly.

    Within a recording of the same file it does nothing: the command line records from before the
    server starts, and the flow records by itself when a worker runs it.

    Args:
        path: The progress file (``Workspace.progress``).
        label: What is being run, for people: the name of the spec.

    Raises:
        LedgerHeld: Another run of the workspace goes on; the message names its pid.
    """
    global _recorder
    if _recorder is not None and _recorder.path == path:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock_file(path).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            refuse_second_run(path)
            raise LedgerHeld(
                f"{path.parent} is in use by another run; wait until it ends"
            ) from None
        recorder = _Recorder(path, label)
        with _lock:
            before, _recorder = _recorder, recorder
            _stages.clear()
            recorder.write(())
        outcome = Outcome.DONE
        try:
            yield
        except BaseException as error:
            outcome = Outcome.FAILED if isinstance(error, Exception) else Outcome.STOPPED
            raise
        finally:
            with _lock:
                _recorder = before
                recorder.outcome = outcome
                recorder.write(tuple(_stages.values()))


def refuse_second_run(path: Path) -> None:
    """Raise LedgerHeld while another process records its run in this progress file."""
    progress = read_progress(path)
    if progress is not None and progress.outcome is Outcome.RUNNING:
        raise LedgerHeld(
            f"process {progress.pid} runs '{progress.label}' in {path.parent}; "
            "wait until it ends (`winnow status`), or stop that process"
        )


def read_progress(path: Path) -> RunProgress | None:
    """Return the progress in a file, or None where there is none that can be read.

    A run that says "running" and whose process is gone is reported as stopped.
    """
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        stages = tuple(StageProgress(**stage) for stage in fields.pop("stages"))
        progress = RunProgress(**fields | {"outcome": Outcome(fields["outcome"]), "stages": stages})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if progress.outcome is Outcome.RUNNING and not _held(_lock_file(path)):
        return replace(progress, outcome=Outcome.STOPPED)
    return progress


class _Recorder:
    """Writes one run's progress file, seldom enough."""

    def __init__(self, path: Path, label: str) -> None:
        self.path = path
        self.label = label
        self.outcome = Outcome.RUNNING
        self.started_at = time.time()
        self.written = 0.0

    def note(self, stages: tuple[StageProgress, ...], *, soon: bool) -> None:
        """Write, unless the last write was a moment ago and nothing ended since."""
        if soon or time.monotonic() - self.written >= WRITE_EVERY_SECONDS:
            self.write(stages)

    def write(self, stages: tuple[StageProgress, ...]) -> None:
        """Replace the file; a run does not fail because its progress cannot be shown."""
        self.written = time.monotonic()
        state = RunProgress(
            label=self.label,
            pid=os.getpid(),
            outcome=self.outcome,
            started_at=self.started_at,
            updated_at=time.time(),
            stages=stages,
        )
        draft = self.path.with_name(self.path.name + ".draft")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(asdict(state)), encoding="utf-8")
            draft.replace(self.path)


def _lock_file(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _held(lock_path: Path) -> bool:
    """Tell whether a living process holds the lock; the kernel drops it with its process."""
    try:
        with lock_path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
