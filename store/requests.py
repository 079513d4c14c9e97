"""Requests that rows be forgotten, a small file each: recorded once, in order, for good.

A file appears by one rename when all of it is on disk, so a request is there whole or not at all.
Its name holds its number and a digest of its content; a file that was edited is refused.
"""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from schemas.errors import CorruptArtifact
from schemas.unlearning import ForgetRequest
from store.artifacts import storage_errors

SUFFIX = ".json"


def record(folder: Path, write: Callable[[int], ForgetRequest]) -> ForgetRequest:
    """Keep a request under the next number.

    Args:
        folder: Where requests are; made if it is not there.
        write: Makes the request from its number.

    Raises:
        StorageError: The disk is full or refuses; nothing was recorded.
        CorruptArtifact: An earlier request was edited.
    """
    with storage_errors("recording a request"):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            request = write(len(recorded(folder)) + 1)
            path = folder / f"{request.id}{SUFFIX}"
            draft = path.with_suffix(".draft")
            with draft.open("w", encoding="utf-8") as file:
                file.write(request.model_dump_json(indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    return request


def recorded(folder: Path) -> list[ForgetRequest]:
    """Every request, in the order of their numbers.

    Raises:
        CorruptArtifact: One was edited, or one in between is gone.
    """
    requests = [_read(path) for path in folder.glob(f"[0-9]*{SUFFIX}")]
    requests.sort(key=lambda request: request.number)
    for place, request in enumerate(requests, start=1):
        if request.number != place:
            raise CorruptArtifact(
                f"request {place} is gone from {folder}; put its file back, later certificates "
                "count on it"
            )
    return requests


def _read(path: Path) -> ForgetRequest:
    try:
        request = ForgetRequest.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError):
        request = None
    if request is None or request.id != path.stem:
        raise CorruptArtifact(
            f"{path} is not what was recorded; put the file back as it was, and make another "
            "request for whatever else must go"
        )
    return request
