"""Sealed means complete: whatever is interrupted, lost or raced."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import CorruptArtifact, StorageError
from store.artifacts import Artifacts, artifact_key

ROOT = Path(__file__).parents[2]


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(tmp_path / "artifacts")


def seal(artifacts: Artifacts, key: str = "aa", text: str = "hello") -> None:
    with artifacts.seal("features", key, version=1, inputs={"data": "d1"}) as draft:
        (draft.path / "a.txt").write_text(text)
        (draft.path / "blocks").mkdir()
        np.save(draft.path / "blocks" / "0.npy", np.arange(5))
        draft.facts["rows"] = 5


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def drafts(artifacts: Artifacts) -> list[Path]:
    return list((artifacts.root / "features" / ".drafts").glob("*"))


def test_a_key_depends_on_values_and_not_on_how_they_are_held() -> None:
    @dataclasses.dataclass(frozen=True)
    class Options:
        dim: int
        nonzeros: int

    plain = artifact_key("features", 1, {"nonzeros": 1, "dim": 8}, [1, 2])
    assert plain == artifact_key("features", 1, Options(dim=8, nonzeros=1), (1, 2))
    assert len(plain) == 20
    assert plain != artifact_key("features", 2, {"nonzeros": 1, "dim": 8}, [1, 2])
    assert plain != artifact_key("scores", 1, {"nonzeros": 1, "dim": 8}, [1, 2])
    assert artifact_key("a", 1, "b", "c") != artifact_key("a", 1, "bc")


def test_the_key_of_a_version_is_golden() -> None:
    # A change here orphans every artifact on every disk.
    assert artifact_key("features", 1, {"dim": 8}) == "69e1139cc76f6eaa0a64"


def test_a_part_without_a_canonical_form_is_refused() -> None:
    with pytest.raises(TypeError, match="ndarray has no canonical form"):
        artifact_key("features", 1, np.arange(3))
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifact_key("features", 1, float("nan"))


def test_a_sealed_artifact_is_found_with_its_facts(artifacts: Artifacts) -> None:
    assert artifacts.find("features", "aa") is None
    seal(artifacts)
    manifest = artifacts.find("features", "aa")
    assert manifest is not None
    assert manifest.facts == {"rows": 5}
    assert manifest.inputs == {"data": "d1"}
    assert [record.name for record in manifest.files] == ["a.txt", "blocks/0.npy"]
    artifacts.verify(manifest)
    assert (artifacts.folder(manifest) / "a.txt").read_text() == "hello"
    assert artifacts.manifests("features") == [manifest]
    assert drafts(artifacts) == []


def test_an_exception_in_the_block_leaves_nothing(artifacts: Artifacts) -> None:
    def fail() -> None:
        with artifacts.seal("features", "aa", version=1) as draft:
            (draft.path / "a.txt").write_text("half")
            raise KeyError("oops")

    with pytest.raises(KeyError, match="oops"):
        fail()
    assert artifacts.find("features", "aa") is None
    assert drafts(artifacts) == []


def test_a_draft_has_no_manifest_before_it_is_sealed(artifacts: Artifacts) -> None:
    with (
        artifacts.seal("features", "aa", version=1) as draft,
        pytest.raises(RuntimeError, match="no manifest before"),
    ):
        _ = draft.manifest
    assert draft.manifest == artifacts.find("features", "aa")


def test_a_truncated_file_is_named_and_the_artifact_no_longer_found(artifacts: Artifacts) -> None:
    seal(artifacts)
    manifest = artifacts.find("features", "aa")
    assert manifest is not None
    (artifacts.folder(manifest) / "a.txt").write_text("hell")
    with pytest.raises(CorruptArtifact, match=r"a\.txt has 4 bytes and was sealed with 5.*refresh"):
        artifacts.verify(manifest)
    assert artifacts.find("features", "aa") is None
    seal(artifacts)
    artifacts.verify(manifest)


def test_a_changed_or_missing_file_is_named(artifacts: Artifacts) -> None:
    seal(artifacts)
    manifest = artifacts.find("features", "aa")
    assert manifest is not None
    (artifacts.folder(manifest) / "a.txt").write_text("hallo")
    with pytest.raises(CorruptArtifact, match=r"a\.txt differs from its sealed digest"):
        artifacts.verify(manifest)
    (artifacts.folder(manifest) / "a.txt").unlink()
    with pytest.raises(CorruptArtifact, match=r"a\.txt is missing"):
        artifacts.verify(manifest)


def test_discarding_makes_room_for_another(artifacts: Artifacts) -> None:
    assert not artifacts.discard("features", "aa")
    seal(artifacts, text="old")
    assert artifacts.discard("features", "aa")
    assert artifacts.find("features", "aa") is None
    seal(artifacts, text="new")
    assert (artifacts.root / "features" / "aa" / "a.txt").read_text() == "new"


def test_many_threads_sealing_one_key_end_with_one_artifact(artifacts: Artifacts) -> None:
    barrier = threading.Barrier(8)
    seen = []

    def work(number: int) -> None:
        with artifacts.seal("features", "aa", version=1) as draft:
            (draft.path / "a.txt").write_text(str(number))
            barrier.wait()
        seen.append(draft.manifest)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert len({manifest.files[0].sha256 for manifest in seen}) == 1
    artifacts.verify(seen[0])
    assert drafts(artifacts) == []


KILLED = """
    import os, signal, sys, pathlib
    from store import artifacts as module

    store = module.Artifacts(pathlib.Path(sys.argv[1]))
    calls, limit = 0, int(sys.argv[2])

    def die_at_the_limit(function):
        def wrapped(*arguments, **options):
            global calls
            calls += 1
            if calls == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return wrapped

    # Every system call that sealing makes: stop before the n-th.
    for owner, name in ((os, "fsync"), (pathlib.Path, "rename"), (pathlib.Path, "write_text")):
        setattr(owner, name, die_at_the_limit(getattr(owner, name)))
    with store.seal("features", "aa", version=1) as draft:
        (draft.path / "a.txt").write_text("hello")
        (draft.path / "b.txt").write_text("world")
    print("sealed")
"""


def test_a_kill_at_any_step_leaves_nothing_or_a_complete_artifact(artifacts: Artifacts) -> None:
    steps = range(1, 12)
    processes = [python(KILLED, artifacts.root / str(step), step) for step in steps]
    outcomes = []
    for step, process in zip(steps, processes, strict=True):
        out, err = process.communicate()
        store = Artifacts(artifacts.root / str(step))
        manifest = store.find("features", "aa")
        if manifest is not None:
            store.verify(manifest)
        outcomes.append((process.returncode == 0, manifest is not None))
        assert (out == "sealed\n") == (process.returncode == 0), err
        left = len(drafts(store))
        removed = store.sweep("features")
        assert len(removed) == left
        seal(store, text="again")
        assert store.find("features", "aa") is not None
        assert drafts(store) == []
    # Interrupted without a trace, interrupted after the rename, and not interrupted: all occur.
    assert {(False, False), (False, True), (True, True)} == set(outcomes)


WAITING = """
    import sys, pathlib
    from store.artifacts import Artifacts

    with Artifacts(pathlib.Path(sys.argv[1])).seal("features", "aa", version=1) as draft:
        (draft.path / "a.txt").write_text("half")
        print("ready", flush=True)
        sys.stdin.read()
"""


def test_the_draft_of_a_living_process_is_not_swept(artifacts: Artifacts) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WAITING), str(artifacts.root)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "ready\n"
        assert artifacts.sweep("features") == []
        assert len(drafts(artifacts)) == 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(artifacts.sweep("features")) == 1
    finally:
        process.kill()
        process.communicate()


def test_a_draft_of_another_machine_is_removed_only_when_old(artifacts: Artifacts) -> None:
    foreign = artifacts.root / "features" / ".drafts" / "aa~00000000~1@elsewhere"
    foreign.mkdir(parents=True)
    assert artifacts.sweep("features") == []
    os.utime(foreign, (0, 0))
    assert artifacts.sweep("features") == [foreign]


FULL = """
    import json, resource, sys, pathlib
    import numpy as np, polars as pl
    from schemas.errors import StorageError
    from store.artifacts import Artifacts

    store = Artifacts(pathlib.Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    big = np.random.default_rng(0).standard_normal(50_000)
    ways = {
        "a1": lambda path: np.save(path / "a.npy", big),
        "b2": lambda path: (path / "a.bin").write_bytes(big.tobytes()),
        "c3": lambda path: pl.DataFrame({"a": big}).write_parquet(path / "a.parquet"),
    }
    caught = {}
    for name, write in ways.items():
        try:
            with store.seal("features", name, version=1) as draft:
                write(draft.path)
        except StorageError as error:
            caught[name] = str(error)
    print(json.dumps(caught))
"""


def test_a_refused_write_is_a_storage_error_and_keeps_what_was_sealed(artifacts: Artifacts) -> None:
    # RLIMIT_FSIZE makes write(2) fail with EFBIG, on the same path as ENOSPC.
    seal(artifacts)
    process = python(FULL, artifacts.root)
    out, err = process.communicate()
    assert process.returncode == 0, err
    caught = json.loads(out)
    assert sorted(caught) == ["a1", "b2", "c3"]
    assert all("free some space and run again" in message for message in caught.values())
    manifest = artifacts.find("features", "aa")
    assert manifest is not None
    artifacts.verify(manifest)
    assert artifacts.find("features", "a1") is None
    assert drafts(artifacts) == []


def test_errors_of_the_block_that_are_not_the_disk_pass_through(artifacts: Artifacts) -> None:
    with (
        pytest.raises(FileNotFoundError),
        artifacts.seal("features", "aa", version=1) as draft,
    ):
        (draft.path / "nothing.txt").read_text()
    assert not issubclass(FileNotFoundError, StorageError)


def test_a_path_cannot_leave_the_root(artifacts: Artifacts) -> None:
    with pytest.raises(ValueError, match="cannot be the place of an artifact"):
        artifacts.find("features", "../../etc")
