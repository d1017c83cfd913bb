"""The queue is full, or someone deletes, empties or replaces it: said in a line, and nothing claimed that is not so."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tareas.lab.node import Node
from tareas.rabbit import queues
from tests.faults.feed import Feed, Round, wait_confirmed, wait_started
from tests.faults.harness import Fleet, Member, scaled, tasks

HOLD = ("--handler", "tests.faults.handlers:hold")
RATE = scaled(40, 200)  # tasks a second
MOST = scaled(10, 500)  # tasks in a full queue
# Seconds after a deletion in which RabbitMQ may still take tasks for the queue that was: its routing table is a copy.
LATE = 1.0


def test_queue_full(killable: Node, killable_fleet: Fleet) -> None:
    """The operator bounds the queue's length: the producer says what was not stored, and stores it when there is room.

    Then the same with the dead-letter queue: the worker keeps the task until its copy is stored.
    """
    fleet, queue = killable_fleet, killable_fleet.queue
    with limited(killable, queue):
        # RabbitMQ counts the length a little late, and lets some more in.
        with Feed(fleet, RATE) as feed:
            fleet.wait_event(feed.producer, "refused")
            fleet.faults += 1
            feed.wait_written(feed.written + 20)
        assert len(fleet.confirmed) >= MOST and feed.producer.running, "it ended before all was stored"
        stored = set(fleet.confirmed)
        fleet.start_workers(1)
        fleet.wait_settled()
    assert feed.producer.having("published", again=True)
    assert len(fleet.done) == feed.written > len(stored)
    fleet.stop_workers()

    rejected = tasks(2 * MOST, prefix="rejected", reject=True)
    with limited(killable, queues.dead(queue)):
        (worker,) = fleet.start_workers(1, *HOLD, "--max-attempts", "1000")
        fleet.produce(rejected, wait=True)
        told = fleet.wait_event(worker, "waiting")
        assert "is full" in told["reason"] and "dead" in told["reason"]
        fleet.faults += 1
        assert len(fleet.dead) < len(rejected)
    ending = fleet.ends("queue full")
    assert sorted({letter.id for letter in ending.letters}) == [task["id"] for task in rejected]
    assert not fleet.having("connection_lost")


@contextlib.contextmanager
def limited(node: Node, queue: str) -> Iterator[None]:
    """A policy lets this queue hold MOST messages."""
    pattern = f"^{queue.replace('.', '[.]')}$"
    node.ctl("set_policy", "full", pattern, json.dumps({"max-length": MOST}), "--apply-to", "queues")
    try:
        yield
    finally:
        node.ctl("clear_policy", "full")


class Robbed(Fleet):
    """A fleet some of whose tasks an operator takes away.

    taken: those that may be gone by his will. They are not waited for, and the audit finds them "still in the queue";
    a task that was published after the deed and is gone all the same is lost, as everywhere.
    """

    def __init__(self, url: str, queue: str, folder: Path) -> None:
        super().__init__(url, queue, folder)
        self.taken: set[str] = set()

    def unsettled(self) -> set[str]:
        return super().unsettled() - self.taken

    def ids_left(self) -> list[str]:
        return [*super().ids_left(), *self.gone()]

    def gone(self) -> set[str]:
        """What was taken and never came back."""
        return {task_id for task_id in self.taken if not self.done[task_id] and task_id not in self.dead}

    def take(self, deed: str, arguments: dict[str, Any] | None = None) -> None:
        """Delete, purge or redeclare the queue as another client; what was in it then is taken."""
        with self.channel() as channel:
            if deed == "purge":
                channel.queue_purge(self.queue)
            else:
                channel.queue_delete(self.queue)
            if deed == "redeclare":
                ours = dict(queues.declarations(self.queue))[self.queue]
                channel.queue_declare(self.queue, durable=True, arguments=arguments or ours)
        at = time.time()
        self.faults += 1
        self.wait("the events up to then", lambda: time.time() > at + LATE)
        last_published = {event["id"]: event["time"] for event in self.having("published")}
        settled = self.done.keys() | self.dead.keys()
        self.taken |= {i for i, published in last_published.items() if published <= at + LATE and i not in settled}


@pytest.fixture
def robbed(url: str, queue: str, tmp_path: Path) -> Iterator[Robbed]:
    fleet = Robbed(url, queue, tmp_path / "fleet")
    with fleet:
        fleet.declare()
        yield fleet


@pytest.mark.parametrize("deed", ["delete", "purge", "redeclare"])
def test_queue_taken_while_consuming(robbed: Robbed, tmp_path: Path, deed: str) -> None:
    """Two workers hold a task each, others are ready: exactly those are gone, and what was held is not claimed.

    After a purge the workers go on as if nothing had been; else each says so in a line, and consumes anew.
    """
    fleet = robbed
    workers = fleet.start_workers(2, *HOLD)
    gone: set[str] = set()
    for number in range(scaled(1, 10)):
        gate = tmp_path / f"gate-{number}"
        held = [f"held-{number}-{n}" for n in range(len(workers))]
        ready = tasks(scaled(10, 200), prefix=f"ready-{number}")
        fleet.produce([{"id": name, "complexity": 0, "until": str(gate)} for name in held], wait=True)
        wait_started(fleet, *held)
        fleet.produce(ready, wait=True)
        taken = Round(fleet, workers)
        fleet.take(deed)
        gate.touch()
        if deed == "purge":
            fleet.wait_done(0, *held)
        else:
            # RabbitMQ 3.10 does not tell a consumer that its queue was replaced: it sees tasks ready and none come.
            fleet.produce([] if deed == "delete" else tasks(20, prefix=f"meanwhile-{number}"), wait=True)
            taken.wait_lost()
            taken.wait_said("connected")
        gone |= {task["id"] for task in ready}
        after = tasks(20, prefix=f"after-{number}")
        fleet.produce(after, wait=True)
        fleet.wait_done(0, *(task["id"] for task in after))
    ending = fleet.ends(f"queue taken while consuming: {deed}")
    assert fleet.gone() >= gone, "tasks of a queue that is no more were done"
    assert all(name.startswith("held") for name in fleet.gone() - gone)
    assert not ending.letters
    if deed == "purge":
        assert fleet.gone() == gone and not fleet.having("cancelled") and not fleet.having("connection_lost")
    for event in fleet.having("cancelled"):
        assert "queue" in event["reason"] and "\n" not in event["reason"]


@pytest.mark.parametrize("deed", ["delete", "purge", "redeclare"])
def test_queue_taken_while_publishing(robbed: Robbed, deed: str) -> None:
    """The producer publishes all the while: what came after the deed is stored, and confirmed only then."""
    fleet = robbed
    with Feed(fleet, RATE) as feed:
        for _ in range(scaled(2, 10)):
            wait_confirmed(fleet)
            said = Round(fleet, [feed.producer])
            fleet.take(deed)
            if deed == "delete":  # nobody consumes yet: the queue is back because the producer declared it
                # A publish that meets the deletion itself can crash RabbitMQ 4.0's channel, which ends the connection.
                said.wait_said("returned", "connection_lost")
            wait_confirmed(fleet)
        written = feed.written
        feed.wait_written(written + 20)
    fleet.wait_producers()
    assert len(fleet.confirmed) == feed.written
    fleet.start_workers(2)
    ending = fleet.ends(f"queue taken while publishing: {deed}")
    assert len(fleet.done) >= 20 and not ending.letters and not ending.left[len(fleet.gone()) :]
    for event in feed.producer.having("returned"):
        assert f"no queue {fleet.queue}" in event["reason"]


def test_queue_replaced_by_another(robbed: Robbed) -> None:
    """Someone declares it with other arguments: each command says which one differs and ends, exit status 1."""
    fleet = robbed
    fleet.statuses_allowed.add(1)
    worker = fleet.start("consuming", "worker.py", "consuming")
    fleet.wait_event(worker, "connected")
    fleet.produce(tasks(20), wait=True)
    fleet.wait_settled()
    fleet.take("redeclare", {"x-queue-type": "classic"})
    with fleet.channel() as channel:  # RabbitMQ 3.10 does not tell the worker: it learns from a task that stays ready
        channel.basic_publish("", fleet.queue, b"not ours")
    late = [fleet.start("connecting", "worker.py", "connecting"), fleet.start("publishing", "producer.py")]
    for member in (worker, *late):
        wait_end(fleet, member)
        assert_differs(member)
    assert not any(member.having("done") for member in late) and not late[1].having("published")
    with fleet.channel() as channel:
        channel.queue_delete(fleet.queue)
    fleet.start_workers(1)
    fleet.produce(tasks(20, prefix="after"))
    ending = fleet.ends("queue replaced by another")
    assert ending.verdict.done == 40 and not fleet.gone()


def wait_end(fleet: Fleet, member: Member) -> None:
    fleet.wait(f"the end of {member.name}", lambda: not member.running)


def assert_differs(member: Member) -> None:
    """One line, which names the argument and the ways out."""
    assert member.wait() == 1, member.report()
    (line,) = member.errors.read_text().splitlines()
    assert "inequivalent arg '" in line and "--queue" in line, line
