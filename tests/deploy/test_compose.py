"""The compose files on a real engine: containers are killed and made anew, and nothing is lost.

How to run them: conftest.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tareas.tell.audit import audit
from tests.deploy.compose import QUEUE, Project, docker, until
from tests.support import Command, Run

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

HELD = "held"  # a task that takes long enough to kill whoever holds it
LONG = 10.0  # seconds


@pytest.fixture
def project(request: pytest.FixtureRequest) -> Iterator[Project]:
    docker("info")  # an engine answers
    project = Project(request.param)
    try:
        yield project
    finally:
        for container in project.containers("worker"):
            print(docker("logs", container)[-4000:])
        project.close()


def tasks(name: str, count: int, *more: dict[str, Any]) -> str:
    made = [{"id": f"{name}-{number}", "complexity": 0.3} for number in range(count)]
    return "".join(json.dumps(task) + "\n" for task in [*more, *made])


def publish(run: Run, url: str, text: str) -> Command:
    producer = run("producer.py", "-", "--json", "--url", url, stdin=text)
    assert producer.wait(300) == 0, producer.report()
    return producer


def confirmed(producers: list[Command]) -> int:
    return sum(len(producer.event_list("confirmed")) for producer in producers)


def settled(project: Project) -> set[str]:
    events = [event for told in project.worker_events().values() for event in told]
    return {event["id"] for event in events if event["event"] in ("done", "dead_lettered")}


def assert_nothing_lost(project: Project, producers: list[Command]) -> None:
    told = [event for producer in producers for event in producer.events]
    verdict = audit([*told, *(event for events in project.worker_events().values() for event in events)])
    print(verdict.line())
    assert verdict.problems() == [] and verdict.confirmed == verdict.done == confirmed(producers)
    assert verdict.dead == 0


def kill_the_holder(project: Project) -> None:
    """SIGKILL for the container that holds the long task; another worker gets it."""
    (container, *_) = until(lambda: project.holders(HELD), "a worker holds the long task")
    docker("kill", container)
    assert container in project.holders(HELD), "it was done before it could be killed"
    until(lambda: project.count("started", id=HELD, redelivered=True), "another worker has it")


def stop_the_workers(project: Project) -> None:
    """As `docker compose stop` and a smaller --scale do it: each ends with its summary, status 0."""
    before = [each["Id"] for each in project.inspect("worker") if each["State"]["Running"]]
    project.compose("stop", "worker")
    ended = {each["Id"]: each["State"]["ExitCode"] for each in project.inspect("worker")}
    assert [ended[container] for container in before] == [0] * len(before)
    for container in before:
        assert project.worker_events()[container][-1]["event"] == "stopped"


@pytest.mark.parametrize("project", ["docker-compose.yml"], indirect=True)
def test_one_node_and_three_workers(project: Project, run: Run) -> None:
    port = "RABBITMQ_PORT"
    # up: RabbitMQ alone gets healthy
    project.compose("up", "-d")
    until(lambda: project.states("rabbitmq") == ["running healthy"], "RabbitMQ is healthy")
    assert project.containers("worker") == []
    (node,) = project.inspect("rabbitmq")
    assert {port["HostIp"] for ports in node["HostConfig"]["PortBindings"].values() for port in ports} == {"127.0.0.1"}
    told = project.compose("exec", "rabbitmq", "rabbitmqctl", "eval", "application:get_env(rabbit, consumer_timeout).")
    assert "{ok,90000000}" in told
    refused = run("producer.py", "--url", project.url(port, "guest", "guest"))
    assert refused.wait() == 1 and "login" in refused.err  # the user is the one of the environment, and no other

    # up --scale worker=3: they log in, and consume
    project.compose("up", "-d", "--scale", "worker=3")
    until(lambda: project.count("connected") >= 3, "three workers are connected")
    assert project.states("worker") == ["running"] * 3

    # a worker's container is killed, another one's process dies; then RabbitMQ's container is made anew
    crash = {"id": "crash", "complexity": 0.1, "crash_attempts": 1}
    load = tasks("a", 120, {"id": HELD, "complexity": LONG}, crash)
    producers = [publish(run, project.url(port), load)]
    kill_the_holder(project)
    until(lambda: project.count("started", id="crash") >= 2, "the crash is tried again")
    project.compose("up", "-d", "--force-recreate", "rabbitmq")
    (anew,) = project.inspect("rabbitmq")
    assert anew["Id"] != node["Id"]
    assert len(settled(project)) < 122, "all was done before RabbitMQ was stopped"
    until(lambda: len(settled(project)) == 122, "all tasks are done")
    assert any(each["RestartCount"] for each in project.inspect("worker"))
    assert_nothing_lost(project, producers)

    # what waits in the queue survives a new container, after a clean stop and after a SIGKILL
    stop_the_workers(project)
    producers.append(publish(run, project.url(port), tasks("b", 10)))
    project.compose("up", "-d", "--force-recreate", "rabbitmq")
    until(lambda: project.states("rabbitmq") == ["running healthy"], "RabbitMQ is healthy again")
    assert project.ready(port) == 10
    project.compose("kill", "rabbitmq")
    project.compose("rm", "--force", "rabbitmq")
    project.compose("up", "-d", "--scale", "worker=3")
    until(lambda: len(settled(project)) == 132, "all tasks are done")
    assert_nothing_lost(project, producers)
    assert project.ready(port) == project.ready(port, f"{QUEUE}.dead") == 0

    # RABBITMQ_BIND lets other machines in: 127.0.0.2 stands for this machine's address there
    project.environment["RABBITMQ_BIND"] = "127.0.0.2"
    project.compose("up", "-d", "--scale", "worker=3")
    until(lambda: project.states("rabbitmq") == ["running healthy"], "RabbitMQ is healthy at another address")
    there = project.url(port).replace("@127.0.0.1:", "@127.0.0.2:")
    publish(run, there, tasks("c", 10))
    told = project.compose("exec", "rabbitmq", "rabbitmqctl", "eval", "application:get_env(rabbit, loopback_users).")
    assert "guest" in told  # it may come from its own machine only
    until(lambda: len(settled(project)) == 142, "all tasks are done")


@pytest.mark.parametrize("project", ["compose.cluster.yml"], indirect=True)
def test_three_nodes_and_three_workers(project: Project, run: Run) -> None:
    nodes = ("rabbit-1", "rabbit-2", "rabbit-3")
    ports = dict(zip(nodes, ("RABBITMQ_PORT_1", "RABBITMQ_PORT_2", "RABBITMQ_PORT_3"), strict=True))
    # up --scale worker=3: one cluster, and both queues have a copy on each node
    project.compose("up", "-d", "--scale", "worker=3")
    until(lambda: project.count("connected") >= 3, "three workers are connected")
    assert [project.states(node) for node in nodes] == [["running healthy"]] * 3
    told = json.loads(project.compose("exec", nodes[0], "rabbitmqctl", "-q", "cluster_status", "--formatter=json"))
    assert sorted(told["running_nodes"]) == [f"rabbit@{node}" for node in nodes]

    def queues(node: str) -> list[dict[str, Any]]:
        asked = ("rabbitmqctl", "-q", "list_queues", "name", "leader", "members", "online", "--formatter=json")
        found: list[dict[str, Any]] = json.loads(project.compose("exec", node, *asked))
        return found

    def led_by(node: str) -> str:
        (leader,) = (queue["leader"] for queue in queues(node) if queue["name"] == QUEUE)
        return str(leader).partition("@")[2]

    assert {queue["name"] for queue in queues(nodes[0])} == {QUEUE, f"{QUEUE}.dead"}
    until(lambda: all(len(queue["online"]) == 3 for queue in queues(nodes[0])), "each queue has three copies")

    # the container of the node that leads the queue is killed, then a worker's
    leader = led_by(nodes[0])
    urls = ",".join(project.url(port) for port in ports.values())
    producers = [publish(run, urls, tasks("a", 120, {"id": HELD, "complexity": LONG}))]
    project.compose("kill", leader)
    assert len(settled(project)) < 100, "too much was done before the node was killed"
    kill_the_holder(project)
    producers.append(publish(run, urls, tasks("b", 30)))  # two nodes are enough
    until(lambda: len(settled(project)) == 151, "all tasks are done by two nodes")
    assert_nothing_lost(project, producers)

    # the node comes back, and gets what it has missed: now another one may go
    project.compose("up", "-d", "--scale", "worker=3")
    until(lambda: project.states(leader) == ["running healthy"], "the node is back")
    until(lambda: all(len(queue["online"]) == 3 for queue in queues(leader)), "and has its copies again")
    stop_the_workers(project)
    producers.append(publish(run, urls, tasks("c", 30)))
    leader = led_by(leader)
    project.compose("kill", leader)
    project.compose("up", "-d", "--no-deps", "--scale", "worker=3", "worker")
    until(lambda: len(settled(project)) == 181, "all tasks are done")
    assert_nothing_lost(project, producers)

    # new containers for all nodes at once, as after a new image
    project.compose("up", "-d", "--no-deps", *nodes)
    until(lambda: project.states(leader) == ["running healthy"], "the node is back")
    stop_the_workers(project)
    producers.append(publish(run, urls, tasks("d", 10)))
    project.compose("up", "-d", "--force-recreate", *nodes)
    until(lambda: all(project.states(node) == ["running healthy"] for node in nodes), "the three are back")
    assert project.ready(ports[nodes[0]]) == 10
    project.compose("up", "-d", "--scale", "worker=3")
    until(lambda: len(settled(project)) == 191, "all tasks are done")
    assert_nothing_lost(project, producers)
