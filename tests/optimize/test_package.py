import subprocess
import sys

import pytest

import optimize


def test_every_promised_name_can_be_had() -> None:
    for name in optimize.__all__:
        assert getattr(optimize, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'guess'"):
        _ = optimize.guess


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import optimize, sys; print([m for m in ('numpy', 'scipy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
