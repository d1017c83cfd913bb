"""Fixtures of the fault matrix."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tareas.lab.node import Node
from tests.faults.harness import FULL, Fleet

LIMIT = 3600 if FULL else 300  # seconds for a row: its own waits end long before, and say what was missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT))


@pytest.fixture
def fleet(url: str, queue: str, tmp_path: Path) -> Iterator[Fleet]:
    """Producers and workers on the node that all tests share."""
    with Fleet(url, queue, tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture
def killable_fleet(killable: Node, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    """Producers and workers on `killable`, on a queue of the row's own, declared."""
    name = re.sub(r"\W", "-", request.node.originalname)
    with Fleet(killable.url, f"{name}-{uuid.uuid4().hex[:6]}", tmp_path / "fleet") as fleet:
        fleet.declare()
        yield fleet
