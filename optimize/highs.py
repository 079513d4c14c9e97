"""HiGHS, the solver of integer programmes that SciPy brings, made to keep to itself."""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scipy.optimize import OptimizeResult, milp

# Standard output belongs to the process: one thread at a time may turn it away.
_OUTPUT = threading.Lock()


def integer_programme(cost: Any, **stated: Any) -> OptimizeResult:
    """`scipy.optimize.milp`, whose arguments these are, without a word on standard output."""
    with _silenced():
        return milp(cost, **stated)


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep standard output clean, where others may be printing JSON.

    HiGHS as SciPy 1.17 holds it prints a debugging line from C where it repairs a solution
    ("transformNewIntegerFeasibleSolution"), whatever its options say.
    """
    libc = ctypes.CDLL(None)
    with _OUTPUT, Path(os.devnull).open("wb") as nowhere:
        libc.fflush(None)
        kept = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            libc.fflush(None)
            os.dup2(kept, 1)
            os.close(kept)
