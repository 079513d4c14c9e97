"""Which batches there are of a problem of kind screen: what is declared, answered, and waits.

A batch is known by the digest of its file, its answer by that and by what was asked. There is no
list of batches: sealed receipts alone say which are answered.
"""

from collections.abc import Iterable
from pathlib import Path

from schemas.errors import NotFound
from schemas.manifest import Manifest
from schemas.spec import LoadedSpec, ScreenSpec
from store.artifacts import Artifacts, artifact_key
from tasks.screening.batches import batch_digest

STAGE, CHECK, RECEIPT = "screening", "screen-check", "screened"
VERSION = 1


def inbox_files(loaded: LoadedSpec, problem: ScreenSpec) -> list[Path]:
    """The files of a problem's inbox, by name.

    Raises:
        NotFound: It has none.
    """
    if problem.inbox is None:
        raise NotFound(
            f"problem '{problem.name}' has no inbox; name a batch, or write "
            "inbox = 'incoming/*.csv' in the spec"
        )
    pattern, folder = Path(problem.inbox).expanduser(), loaded.path.parent
    if pattern.is_absolute():
        pattern, folder = pattern.relative_to(pattern.anchor), Path(pattern.anchor)
    return sorted(path for path in folder.glob(str(pattern)) if path.is_file())


def screening_key(loaded: LoadedSpec, problem: ScreenSpec, digest: str) -> str:
    """Key of the answer to a batch: by what is asked, and the batch's content.

    The trusted rows are no part of it. Rows that were let in may be trusted by now; the batch that
    brought them is not asked again, or it would be found to be a copy of itself.
    """
    return artifact_key(STAGE, VERSION, loaded.spec.name, problem.decides, digest)


def checked_key(loaded: LoadedSpec, screening: str) -> str:
    """Key of the retraining that checks an answer, by the answer's own."""
    return artifact_key(CHECK, VERSION, screening, loaded.spec.verdict)


def waiting(
    loaded: LoadedSpec,
    artifacts: Artifacts,
    problem: ScreenSpec,
    files: Iterable[Path],
    *,
    verify: bool,
) -> list[Path]:
    """Of some files those that nobody has answered, or checked; of equal files the first."""
    found: dict[str, Path] = {}
    for path in files:
        key = screening_key(loaded, problem, batch_digest(path))
        if artifacts.find(RECEIPT, checked_key(loaded, key) if verify else key) is None:
            found.setdefault(key, path)
    return list(found.values())


def answers(loaded: LoadedSpec, artifacts: Artifacts, problem: ScreenSpec) -> list[Manifest]:
    """The answers to a problem that are sealed, the oldest first."""
    own = {"spec": loaded.spec.name, "problem": problem.name}
    found = [
        manifest
        for manifest in artifacts.manifests(STAGE)
        if own.items() <= dict(manifest.facts).items()
    ]
    return sorted(found, key=lambda each: (each.created_at, each.key))
