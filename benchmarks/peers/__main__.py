"""`python -m benchmarks.peers [NAME ...]`: make the environments of peers, by default of all."""

import sys

from benchmarks.peers.environments import PeerError, install, names


def main() -> int:
    """Install each peer and say what happened."""
    failed = 0
    for name in sys.argv[1:] or names():
        try:
            install(name)
        except PeerError as error:
            print(f"{name}: not installed: {error}")
            failed += 1
        else:
            print(f"{name}: ready")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
