"""Advisory locks on files (flock(2)): the kernel drops them with the process that holds them.

A shared lock says "I use this"; whoever is to end with its last user waits for the exclusive one.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_held: set[int] = set()


def _drop_after_fork() -> None:
    """A forked child (a data loader's worker) must not keep alive what only its parent uses."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_drop_after_fork)


@contextlib.contextmanager
def lock_held(path: Path, kind: int) -> Iterator[int]:
    """Hold fcntl.LOCK_SH or LOCK_EX on a file, waiting for it if need be; gives the descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    _held.add(descriptor)
    try:
        fcntl.flock(descriptor, kind)
        yield descriptor
    finally:
        if descriptor in _held:  # not so in a forked child
            _held.discard(descriptor)
            os.close(descriptor)


def convert_lock(descriptor: int, kind: int) -> bool:
    """Change a held lock without waiting; False where others stand against it, and it is lost."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Tell whether anybody holds a lock on a file."""
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDWR)
    try:
        return not convert_lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)
