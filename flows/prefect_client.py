"""Prefect in this process: which API it speaks to, what it shows, and what it has still to send.

Prefect reads its settings where it is imported, so the environment is set before that, and the
settings themselves where somebody has imported it already.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

LOOPBACK = "127.0.0.1"
DRAIN_SECONDS = 6.0
# Prefect sends nothing and announces nothing. It looks for the second where it is imported first,
# which may be before any server is known: the command line sets both before everything else.
UNTRACKED = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}


@contextlib.contextmanager
def pointed_at(api_url: str, *, home: Path | None, debug: bool) -> Iterator[None]:
    """Make Prefect in this process, and in its children, speak to one API and keep quiet."""
    wanted = {
        "PREFECT_API_URL": api_url,
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        **UNTRACKED,
        # Prefect's logging.yml reads its handlers' levels from the environment.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG" if debug else "WARNING",
    }
    if home is not None:
        wanted |= {
            "PREFECT_HOME": str(home),
            "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
            # httpx would send even loopback requests to a configured proxy.
            "NO_PROXY": ",".join(filter(None, (os.environ.get("NO_PROXY"), LOOPBACK))),
        }
    before = {name: os.environ.get(name) for name in wanted}
    loaded_before = "prefect" in sys.modules
    os.environ.update(wanted)
    try:
        with contextlib.ExitStack() as stack:
            if loaded_before:
                # Prefect read its settings at import; the environment alone would come too late.
                from prefect import settings

                updates: dict[settings.Setting, object] = {settings.PREFECT_API_URL: api_url}
                if home is not None:
                    updates[settings.PREFECT_HOME] = home
                stack.enter_context(settings.temporary_settings(updates=updates))
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def logging_to(path: Path, *, debug: bool) -> Iterator[None]:
    """Write what flows and tasks log to a file, whatever the terminal shows."""
    from prefect.logging.configuration import PROCESS_LOGGING_CONFIG, setup_logging
    from prefect.logging.handlers import PrefectConsoleHandler

    if not PROCESS_LOGGING_CONFIG:
        setup_logging()  # Prefect's first set-up drops the handlers it finds
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("prefect")
    logger.addHandler(handler)
    consoles = [] if debug else _console_handlers(PrefectConsoleHandler)
    levels = [console.level for console in consoles]
    for console in consoles:
        console.addFilter(_is_news)
        # The environment sets the level only where Prefect is imported after it.
        console.setLevel(max(console.level, logging.WARNING))
    try:
        yield
    finally:
        for console, level in zip(consoles, levels, strict=True):
            console.removeFilter(_is_news)
            console.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


def _console_handlers(kind: type[logging.Handler]) -> list[logging.Handler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, kind)]


TOLD_LATER = ("Finished in state", "Crash detected")


def _is_news(record: logging.LogRecord) -> bool:
    """Keep a failure's traceback, once for each task and once for the flow, off the terminal.

    The exception itself comes out of the flow and is told once; the log file has it all.
    """
    engine = record.name.startswith(("prefect.flow_runs", "prefect.task_runs", "prefect.engine"))
    told_later = record.exc_info or record.getMessage().startswith(TOLD_LATER)
    return not (engine and told_later)


def drain() -> None:
    """Send what Prefect still queues: task states travel as events, and would be lost."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    EventsWorker.drain_all(timeout=DRAIN_SECONDS)
    APILogWorker.drain_all(timeout=DRAIN_SECONDS)
