"""Fixtures of the fault matrix."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tareas.local_broker import Node
from tareas.programs import Programs
from tests.faults.harness import FULL, Fleet, node_fleet

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
def own_fleet(own_node: Node, tmp_path: Path) -> Iterator[Fleet]:
    """Producers and workers on a node of the test's own (own_node), which may be killed after wait_until_safe()."""
    with node_fleet(own_node, tmp_path / "fleet") as fleet:
        yield fleet


@pytest.fixture(scope="session")
def lasting_node(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The node of killable, which saves its boot."""
    node = Node(tmp_path_factory.mktemp("node"), programs)
    try:
        yield node
    finally:
        node.kill()
        node.close()


@pytest.fixture
def killable(lasting_node: Node) -> Node:
    """A node that rows share one after the other, running: each may do to it what it likes, but for its alarms."""
    lasting_node.start()
    return lasting_node


@pytest.fixture
def killable_fleet(killable: Node, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    """Producers and workers on `killable`, on a queue of the row's own, declared."""
    name = re.sub(r"\W", "-", request.node.originalname)
    with Fleet(killable.url, f"{name}-{uuid.uuid4().hex[:6]}", tmp_path / "fleet") as fleet:
        fleet.declare()
        yield fleet
