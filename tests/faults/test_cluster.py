"""Three nodes, each queue on all of them: a node dies, or is cut off, and nobody but it stops working."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tareas.errors import NodeTrouble
from tareas.lab.cluster import Cluster
from tareas.lab.node import Node
from tareas.lab.programs import Programs
from tests.faults.feed import Feed, Round, connected_to
from tests.faults.harness import DEADLINE, FULL, Fleet, scaled

pytestmark = pytest.mark.cluster

HOLD = ("--handler", "tests.faults.handlers:hold")
RATE = scaled(40, 200)  # tasks a second
SILENT = 8  # seconds
RETURNED = 5_000  # ms until RabbitMQ 4.3 gives up a consumer whose node is gone; a minute if nobody sets it


@pytest.fixture(scope="module")
def clusters(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Cluster]]:
    """Gives a cluster that runs: the one of the row before, three boots less. On 3.10 a new one for each row: there a
    cluster that has lived through a row keeps its scars."""
    settings = [
        "cluster_partition_handling = pause_minority",  # as RabbitMQ recommends: who was cut off joins the others again
        f"net_ticktime = {SILENT}",  # seconds until a silent node counts as gone; a minute by itself
    ]
    made: list[Cluster] = []

    def running() -> Cluster:
        if made and programs.name.startswith("3."):
            made.pop().close()
        if not made:
            made.append(Cluster(tmp_path_factory.mktemp("cluster"), programs, config="\n".join(settings)))
        made[0].start()
        return made[0]

    try:
        yield running
    finally:
        for cluster in made:
            cluster.close()


@pytest.fixture
def three_nodes(clusters: Callable[[], Cluster]) -> Cluster:
    """Three nodes, running."""
    return clusters()


@pytest.fixture
def fleet(three_nodes: Cluster, tmp_path: Path) -> Iterator[Fleet]:
    """Producers and workers that know the three addresses, on a queue of their own, declared."""
    if not FULL and tuple(map(int, three_nodes.nodes[0].version.split(".")[:2])) >= (4, 3):
        definition = f'{{"consumer-disconnected-timeout": {RETURNED}}}'
        three_nodes.nodes[0].ctl("set_policy", "returned", ".*", definition, "--apply-to", "queues")
    with Fleet(three_nodes.urls, f"cluster-{uuid.uuid4().hex[:6]}", tmp_path / "fleet") as fleet:
        fleet.declare()
        yield fleet


def test_leaders_node_killed(three_nodes: Cluster, fleet: Fleet) -> None:
    """SIGKILL of the node that leads the queue, while tasks are published and consumed; it comes back, and so on."""
    start_workers(fleet, three_nodes)
    with Feed(fleet, RATE, url=three_nodes.urls) as feed:
        fleet.wait_event(feed.producer, "confirmed")
        fleet.wait_until_safe()
        for _ in range(scaled(1, 6)):
            everyone = Round(fleet)
            everyone.wait_flow()
            leader = three_nodes.leader(fleet.queue)
            victims = Round(fleet, connected_to(fleet, leader))  # perhaps nobody
            leader.kill()
            fleet.faults += 1
            victims.wait_lost()
            everyone.wait_back()  # tasks are confirmed: another node leads
            leader.start()
            wait_together(fleet, three_nodes)
            everyone.wait_flow()
    ending = fleet.ends("cluster: leader's node killed")
    assert fleet.having("connection_lost"), "nobody was connected to the node that died"
    assert not ending.letters


def test_minority_partition(three_nodes: Cluster, fleet: Fleet, tmp_path: Path) -> None:
    """The node that leads the queue is cut off from the other two and from its clients, and comes back.

    SIGSTOP does it, as seen from outside: no answer, no FIN. Who was connected to it goes to the majority; the task
    that a worker got from it is given to another when the node is back, or when the others give it up.
    """
    options = "?heartbeat=2&socket_timeout=3&stack_timeout=3"
    start_workers(fleet, three_nodes, options)
    urls = ",".join(node.url + options for node in three_nodes.nodes)
    for number in range(scaled(1, 5)):
        with Feed(fleet, RATE, f"fed-{number}", url=urls) as feed:
            everyone = Round(fleet)
            everyone.wait_flow()
            leader = three_nodes.leader(fleet.queue)
            victims = Round(fleet, connected_to(fleet, leader))  # perhaps nobody
            holders = [member for member in victims.members if member in fleet.workers] or fleet.workers
            _, gate = feed.hold(holders[0], tmp_path)
            with frozen(leader):
                fleet.faults += 1
                gate.touch()
                victims.wait_lost()
                everyone.wait_back()  # tasks are confirmed: another node leads
            if leader.version.startswith("3."):  # before 4.0 it may stay apart for minutes: the operator restarts it
                leader.kill()
                leader.start()
            wait_together(fleet, three_nodes)
            everyone.wait_flow()
    ending = fleet.ends("cluster: a minority partition")
    assert fleet.having("connection_lost"), "nobody was connected to the node that was cut off"
    assert not ending.letters


def start_workers(fleet: Fleet, cluster: Cluster, options: str = "") -> None:
    """One for each node, which knows the others too."""
    urls = [node.url + options for node in cluster.nodes]
    for n in range(len(urls)):
        fleet.start_workers(1, *HOLD, url=",".join(urls[n:] + urls[:n]))


@contextlib.contextmanager
def frozen(node: Node) -> Iterator[None]:
    """The node stands still (SIGSTOP)."""
    pid = node.pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def wait_together(fleet: Fleet, cluster: Cluster) -> None:
    """Wait until all three nodes hold the queue again, so that the next one that dies leaves a majority."""
    asked = cluster.nodes[0]
    asked.ctl("await_online_nodes", str(len(cluster.nodes)), deadline=DEADLINE)

    def together() -> bool:
        with contextlib.suppress(NodeTrouble):  # in an election nobody answers
            listed = json.loads(asked.ctl("list_queues", "name", "online", "--formatter", "json"))
            return any(row["name"] == fleet.queue and len(row["online"]) == len(cluster.nodes) for row in listed)
        return False

    fleet.wait("all nodes hold the queue", together)
