"""Which pika the tests run on, and that a deprecation cannot pass unseen: neither here nor in what the tests start."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pika
import pytest


def child(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)


def test_what_the_tests_start_has_the_same_pika() -> None:
    assert child("import pika; print(pika.__version__, pika.__file__)").stdout.split() == [
        pika.__version__, pika.__file__,
    ]  # fmt: skip


def test_a_deprecation_is_an_error() -> None:
    with pytest.raises(DeprecationWarning):
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    for code in ("warnings.warn('old', DeprecationWarning)", "warnings.warn('old', DeprecationWarning, 2)"):
        done = child(f"import warnings; {code}")
        assert done.returncode == 1 and done.stderr.endswith("DeprecationWarning: old\n")
