"""The process that is a workspace's Prefect server; started by path, never imported.

It lives exactly as long as somebody holds a shared lock on the workspace's ``users.lock``. A thread
waits for the exclusive lock on that file; the kernel grants it when the last user has gone, however
that user went (``kill -9`` included), and the server stops. No polling, no pid to trust, and a
second user may join a server that the first one started.

    python -P prefect_server.py LISTENING_FD USERS_LOCK

Only the standard library is imported before the watch begins: a user killed while the server is
still importing must not leave it behind.
"""

import fcntl
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

GRACE_SECONDS = 3.0


def leave_with_the_last_user(users_lock: Path, stopping: threading.Event) -> None:
    """Block until nobody uses the server, then end this process."""
    # Held, on purpose, until the process ends: newcomers wait for that and start a fresh server.
    descriptor = os.open(users_lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    stopping.set()
    time.sleep(GRACE_SECONDS)
    os._exit(0)


def stop_when_told(stopping: threading.Event, server: Any) -> None:
    """Ask uvicorn for an orderly end once the last user has gone."""
    stopping.wait()
    server.should_exit = True


def main() -> None:
    """Serve the Prefect API on the socket inherited as a file descriptor."""
    listening_fd, users_lock = int(sys.argv[1]), Path(sys.argv[2])
    stopping = threading.Event()
    threading.Thread(
        target=leave_with_the_last_user, args=(users_lock, stopping), daemon=True
    ).start()

    import uvicorn

    config = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        log_level="error",
        lifespan="on",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    threading.Thread(target=stop_when_told, args=(stopping, server), daemon=True).start()
    server.run(sockets=[socket.socket(fileno=listening_fd)])


if __name__ == "__main__":
    main()
