"""Runs a command that must not outlive its user; started by path, never imported.

    python -P leash.py LOCK COMMAND [ARGUMENT ...]

The user holds a shared lock on LOCK. When the kernel grants the exclusive one, the user has gone
(``kill -9`` included) and the command is ended with every process of its session: MLflow's server
starts workers, and they used to stay.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

GRACE_SECONDS = 3.0


def end_with_the_user(lock: Path, group: int) -> None:
    """Block until nobody holds the lock, then end the command's process group."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    for end, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, 0.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, end)
        time.sleep(seconds)
    os._exit(0)


def main() -> int:
    """Run the command; its exit status is ours."""
    with subprocess.Popen(sys.argv[2:], start_new_session=True) as process:  # noqa: S603
        watch = (Path(sys.argv[1]), process.pid)
        threading.Thread(target=end_with_the_user, args=watch, daemon=True).start()
        # Ending this process by SIGTERM must end the command too.
        signal.signal(signal.SIGTERM, lambda *_: os.killpg(process.pid, signal.SIGTERM))
        return process.wait()


if __name__ == "__main__":
    sys.exit(main())
