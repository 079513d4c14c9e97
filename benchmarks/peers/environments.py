"""One virtual environment for each peer, under a folder that git ignores.

Torch comes first and pinned, so that a CPU build found by pip stays; a peer's own requirements
could otherwise replace it by gigabytes of CUDA packages, and numpy by another major version.
"""

import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"
HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
ROOT = REPOSITORY / ".venv-peers"


class PeerError(Exception):
    """A peer could not be installed or run; the message is its last line."""


def names() -> list[str]:
    """Every peer that has a requirements file."""
    return sorted(path.stem for path in HERE.glob("*.txt"))


def python_of(name: str) -> Path | None:
    """The interpreter of a peer's environment, once it is complete."""
    return _python(name) if (ROOT / name / ".ready").is_file() else None


def install(name: str) -> Path:
    """Make a peer's environment, or keep the one that is there.

    Raises:
        PeerError: There is no such peer, or pip failed.
    """
    if name not in names():
        raise PeerError(f"there is no peer {name!r}; choose of {', '.join(names())}")
    ready = python_of(name)
    if ready is not None:
        return ready
    python = _python(name)
    call([sys.executable, "-m", "venv", "--clear", str(ROOT / name)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    call([*pip, TORCH, "numpy", "safetensors"])
    call([*pip, TORCH, "--requirement", str(HERE / f"{name}.txt")])
    (ROOT / name / ".ready").touch()
    return python


def call(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Run a command in the repository's root and return what it printed.

    Raises:
        PeerError: It failed.
    """
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        # Progress bars go to the same stream, after the reason at times.
        lines = [line for line in done.stderr.splitlines() if line.strip() and "it/s" not in line]
        reason = lines[-1].strip() if lines else f"exit status {done.returncode}"
        # A report names no path of the machine it was made on.
        raise PeerError(reason.replace(f"{REPOSITORY}/", ""))
    return done.stdout


def _python(name: str) -> Path:
    return ROOT / name / ("Scripts" if sys.platform == "win32" else "bin") / "python"
