"""Whether the process that left something behind is still there."""

import os


def alive(pid: int) -> bool:
    """Whether this machine has a process of this id, of whatever user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
