"""Hypothesis: few examples where everyone waits for them (make check), many in make test. And the scripted peer."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.unit.peer import Peer

settings.register_profile("quick", max_examples=30, deadline=None)
settings.register_profile("thorough", max_examples=150, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture
def peer() -> Iterator[Peer]:
    """The other end of a connection."""
    made = Peer()
    yield made
    made.close()
