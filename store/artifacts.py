"""Sealed folders on disk, addressed by what went into them.

An artifact is `<root>/<stage>/<key>/`: its files and, written last, `manifest.json`. It is built
in a draft folder on the same file system and appears by one rename, so a folder with a manifest
is complete and anything else does not count. Nothing here knows what the files mean.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from safetensors import SafetensorError

from schemas.errors import CorruptArtifact, StorageError
from schemas.manifest import FileRecord, Manifest
from store.processes import alive

MANIFEST_NAME = "manifest.json"
DRAFTS = ".drafts"
# A pid says nothing about a process on another machine, so its drafts are only removed by age.
FOREIGN_DRAFT_SECONDS = 7 * 86_400

_REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
# NumPy's own writer (ndarray.tofile) reports a full disk as an OSError without an errno.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written|No space left|File too large")
# Polars and safetensors write from Rust, whose errors carry the number in their text only.
_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")
_STAGE = re.compile(r"[a-z][a-z0-9_-]*")
_KEY = re.compile(r"[0-9a-f]+")


def artifact_key(stage: str, version: int, *parts: Any) -> str:
    """Name what a stage makes from these parts: 20 hex characters.

    The key is sha256 over the canonical JSON of (stage, version, parts): dictionaries in any
    order, tuples or lists, dataclasses or pydantic models give the same key when their values
    are the same. Bump `version` when the numbers a stage makes change.

    Args:
        stage: The stage's name.
        version: The version of its algorithm.
        *parts: JSON values, dataclasses, pydantic models, or lists and dictionaries of them.

    Raises:
        TypeError: A part has no canonical form (an array, a set, an open file).
        ValueError: A number is NaN or infinite.
    """
    text = json.dumps(
        [stage, version, list(parts)],
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
        default=_plain,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} has no canonical form; pass its digest instead")


@contextlib.contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn the operating system's refusals to write into StorageError.

    Args:
        doing: What was being done, for the message: "sealing features 3f2a".
    """
    try:
        yield
    except (OSError, pl.exceptions.PolarsError, SafetensorError) as error:
        if not _refused(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise StorageError(
            f"{doing}: the disk refused a write ({reason}); free some space and run again, "
            "what was sealed before is kept"
        ) from error


def _refused(error: Exception) -> bool:
    number = getattr(error, "errno", None)
    if number is not None:
        return number in _REFUSALS
    match = _RUST_ERRNO.search(str(error))
    if match is not None:
        return int(match.group(1)) in _REFUSALS
    return _SHORT_WRITE.search(str(error)) is not None


class Draft:
    """An artifact that is being written.

    Attributes:
        path: The folder to write files into; sub-folders are allowed.
        facts: JSON values to keep in the manifest; may be filled until the block ends.
        manifest: The sealed manifest, set when the block has ended without an exception.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path = path
        self.facts = facts
        self._manifest: Manifest | None = None

    @property
    def manifest(self) -> Manifest:
        """The receipt of the sealed artifact."""
        if self._manifest is None:
            raise RuntimeError("a draft has no manifest before its `with` block has ended")
        return self._manifest


class Artifacts:
    """The artifacts of one workspace.

    Safe for many threads and processes: the first to seal a key wins, the others receive the
    winner's manifest. Keys are digests of everything that decides the content, so it is the same.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, stage: str, key: str) -> Manifest | None:
        """The manifest of a complete artifact, or None.

        Complete: the manifest can be read and every file it names is there with its size.
        Contents are not read; `verify` does that.
        """
        folder = self._place(stage, key)
        try:
            text = (folder / MANIFEST_NAME).read_text(encoding="utf-8")
            manifest = Manifest.from_json(text)
        except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, CorruptArtifact):
            return None
        if all(_size(folder / record.name) == record.bytes for record in manifest.files):
            return manifest
        return None

    def folder(self, manifest: Manifest) -> Path:
        """Where the artifact's files are."""
        return self._place(manifest.stage, manifest.key)

    def verify(self, manifest: Manifest) -> None:
        """Read every file of the artifact and compare it with its digest.

        Raises:
            CorruptArtifact: A file is missing, has another size, or other bytes.
        """
        folder = self.folder(manifest)
        remedy = f"run `winnow run SPEC --refresh {manifest.stage}` to rebuild it"
        for record in manifest.files:
            path = folder / record.name
            size = _size(path)
            if size is None:
                raise CorruptArtifact(f"{path} is missing; {remedy}")
            if size != record.bytes:
                raise CorruptArtifact(
                    f"{path} has {size:,} bytes and was sealed with {record.bytes:,}; {remedy}"
                )
            if _sha256(path) != record.sha256:
                raise CorruptArtifact(f"{path} differs from its sealed digest; {remedy}")

    @contextlib.contextmanager
    def seal(
        self,
        stage: str,
        key: str,
        *,
        version: int,
        inputs: Mapping[str, str] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Iterator[Draft]:
        """Write an artifact: fill `draft.path` in the block; it is sealed when the block ends.

        On an exception the draft is removed and nothing appears. If a complete artifact of this
        key exists by then, it is kept and the draft is dropped.

        Args:
            stage: The stage's name.
            key: What `artifact_key` made of the stage's inputs.
            version: The version of the stage's algorithm.
            inputs: The keys or digests this was made from, by name.
            facts: JSON values for the manifest; `draft.facts` may add to them.

        Raises:
            StorageError: The disk is full or refuses.
        """
        with storage_errors(f"sealing {stage} {key}"):
            self.sweep(stage)
            path = self._draft_path(stage, key)
            path.mkdir(parents=True)
            draft = Draft(path, dict(facts or {}))
            try:
                yield draft
                draft._manifest = self._close(
                    draft, stage=stage, key=key, version=version, inputs=dict(inputs or {})
                )
            finally:
                shutil.rmtree(path, ignore_errors=True)

    def discard(self, stage: str, key: str) -> bool:
        """Remove an artifact, complete or not; True if there was one.

        It leaves its place by one rename, so it is never seen half removed.
        """
        aside = self._draft_path(stage, key)
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._place(stage, key).rename(aside)
        except FileNotFoundError:
            return False
        shutil.rmtree(aside, ignore_errors=True)
        return True

    def sweep(self, stage: str) -> list[Path]:
        """Remove the drafts of processes that have died; returns what was removed."""
        removed = []
        for draft in _children(self.root / stage / DRAFTS):
            if _abandoned(draft):
                shutil.rmtree(draft, ignore_errors=True)
                removed.append(draft)
        return removed

    def keys(self, stage: str) -> set[str]:
        """Keys of a stage's artifacts, complete or not."""
        names = (folder.name for folder in _children(self.root / stage))
        return {name for name in names if _KEY.fullmatch(name)}

    def manifests(self, stage: str) -> list[Manifest]:
        """Every complete artifact of a stage, by key."""
        found = (self.find(stage, key) for key in self.keys(stage))
        return sorted((m for m in found if m is not None), key=lambda manifest: manifest.key)

    def _close(
        self, draft: Draft, *, stage: str, key: str, version: int, inputs: dict[str, str]
    ) -> Manifest:
        manifest = Manifest(
            stage=stage,
            key=key,
            version=version,
            inputs=inputs,
            facts=draft.facts,
            files=tuple(_flush_files(draft.path)),
            created_at=datetime.now(UTC),
        )
        receipt = draft.path / MANIFEST_NAME
        receipt.write_text(manifest.to_json(), encoding="utf-8")
        _fsync(receipt)
        _fsync_folders(draft.path)
        return self._publish(draft.path, manifest)

    def _publish(self, draft: Path, manifest: Manifest) -> Manifest:
        place = self.folder(manifest)
        while True:
            try:
                # rename(2) refuses a folder that exists and is not empty: exactly one writer wins.
                draft.rename(place)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                winner = self.find(manifest.stage, manifest.key)
                if winner is not None:
                    return winner
                self.discard(manifest.stage, manifest.key)
            else:
                _fsync(place.parent)
                return manifest

    def _place(self, stage: str, key: str) -> Path:
        if not (_STAGE.fullmatch(stage) and _KEY.fullmatch(key)):
            raise ValueError(f"{stage}/{key} cannot be the place of an artifact")
        return self.root / stage / key

    def _draft_path(self, stage: str, key: str) -> Path:
        owner = f"{os.getpid()}@{socket.gethostname()}"
        folder = self._place(stage, key).parent / DRAFTS
        return folder / f"{key}~{uuid.uuid4().hex[:8]}~{owner}"


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _abandoned(draft: Path) -> bool:
    pid, _, host = draft.name.rpartition("~")[2].partition("@")
    if host == socket.gethostname() and pid.isdecimal():
        return not alive(int(pid))
    try:
        return time.time() - draft.stat().st_mtime > FOREIGN_DRAFT_SECONDS
    except FileNotFoundError:
        return False


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_files(folder: Path) -> Iterator[FileRecord]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _fsync(path)
        name = path.relative_to(folder).as_posix()
        yield FileRecord(name=name, bytes=path.stat().st_size, sha256=_sha256(path))


def _fsync_folders(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
