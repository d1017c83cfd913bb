"""Worker and producer outlive the broker: one line for each change of state, no traceback, and afterwards tasks flow.

Two commands at work on a queue of their own, in every test: a producer that reads a pipe, a worker with a handler that
can be held up. At the end every task that RabbitMQ had confirmed is done, and both end in order.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pika
import pytest

from tareas.lab.node import Node
from tareas.lab.ports import free
from tests.faults.harness import SETTLED
from tests.integration.test_contract import consumers, declare, publish, ready, take, told, until, work_arguments
from tests.support import OPEN, Command, Run

STATES = ("connected", "connection_lost", "cancelled", "returned", "refused", "blocked", "stopped", "finished")
HOLD = ("--handler", "tests.faults.handlers:hold")
HELD = "held"  # the id of the task that the worker has in hand when it happens
BOOTS = 200  # seconds for a test that starts a node or two on a busy machine


class Pair:
    """A producer and a worker, and what was sent through them."""

    def __init__(self, run: Run, url: str, queue: str, folder: Path) -> None:
        self.queue = queue
        self.sent: list[str] = []
        self._gate = folder / "gate"
        common = ("--json", "--queue", queue, "--url", url)
        self.producer: Command = run("producer.py", "-", *common, stdin=OPEN)
        self.worker: Command = run("worker.py", "w", *HOLD, *common)

    @property
    def both(self) -> tuple[Command, Command]:
        return self.producer, self.worker

    def send(self, *names: str, **facts: Any) -> None:
        """Tasks down the producer's pipe."""
        for name in names:
            self.producer.send(json.dumps({"id": name, "complexity": 0, **facts}) + "\n")
            self.sent.append(name)

    def flow(self) -> None:
        """Some more tasks, and wait until they are done."""
        names = [f"task-{number}" for number in range(len(self.sent), len(self.sent) + 5)]
        self.send(*names)
        for name in names:
            self.worker.wait_event("done", id=name)

    def hold(self) -> None:
        """The worker is in the middle of a task, until release()."""
        self.send(HELD, until=str(self._gate))
        self.worker.wait_event("started", id=HELD)

    def release(self) -> None:
        self._gate.touch()

    def wait_until_killable(self) -> None:
        """A quorum queue younger than that may lose confirmed messages when its node is killed."""
        declared = max(command.wait_event("connected")["time"] for command in self.both)
        until(lambda: time.time() > declared + SETTLED)

    def end(self, *states: str, gone: tuple[str, ...] = ()) -> None:
        """Let both end, and look at all they said: each went through these states, then its own end.

        gone: tasks that someone took out of the queue.
        """
        self.flow()
        self.producer.close_stdin()
        assert self.producer.wait() == 0, self.producer.report()
        self.worker.signal()
        assert self.worker.wait() == 0, self.worker.report()
        for command, last in zip(self.both, ("finished", "stopped"), strict=True):
            assert command.err == "", command.report()
            assert states_of(command) == ["connected", *states, last], command.report()
            for one, other in itertools.pairwise(waits(command)):
                assert one != other, "it says twice that it waits, for the same reason"
        confirmed = Counter(event["id"] for event in self.producer.event_list("confirmed"))
        assert confirmed == Counter(self.sent)
        done = Counter(event["id"] for event in self.worker.event_list("done"))
        assert done.keys() == set(self.sent) - set(gone)
        again = {event["id"] for event in self.worker.event_list("started", redelivered=True)}
        assert {name for name, times in done.items() if times > 1} <= again, "done twice and not announced"
        assert not self.worker.event_list("dead_lettered") and not self.worker.event_list("failed")

    def held_was_discarded(self) -> None:
        """Its result could not be acknowledged; it was done in its second attempt."""
        assert len(self.worker.event_list("discarded", id=HELD)) == 1
        assert [event["attempt"] for event in self.worker.event_list("done", id=HELD)] == [2]


def states_of(command: Command) -> list[str]:
    return [word for word in told(command) if word in STATES]


def waits(command: Command) -> list[str]:
    """Why it said it waits, one after the other; a connection between two makes them differ."""
    reasons = []
    for number, event in enumerate(command.events):
        if event["event"] == "waiting":
            reasons.append(event["reason"])
        elif event["event"] == "connected":
            reasons.append(f"event {number}")
    return reasons


@pytest.fixture
def pair(killable: Node, request: pytest.FixtureRequest, run: Run, tmp_path: Path) -> Pair:
    """Both commands, connected, on a queue of the test's own; tasks flow."""
    both = Pair(run, killable.url, request.node.originalname, tmp_path)
    for command in both.both:
        command.wait_event("connected")
    both.flow()
    return both


# -- the broker goes, and comes back


@pytest.mark.timeout(BOOTS)
def test_both_wait_for_a_broker_that_is_not_up_yet(lasting_node: Node, run: Run, tmp_path: Path) -> None:
    lasting_node.stop()
    pair = Pair(run, lasting_node.url, "early", tmp_path)
    for command in pair.both:
        assert "nobody listens" in command.wait_event("waiting")["reason"]
    pair.send("early-1", "early-2")
    lasting_node.start()
    for command in pair.both:
        command.wait_event("connected")
    pair.end()
    for command in pair.both:
        assert told(command)[0] == "waiting"


@pytest.mark.timeout(BOOTS)
@pytest.mark.parametrize("how", ["stopped in order", "killed"])
def test_both_outlive_a_broker_that_is(how: str, killable: Node, pair: Pair) -> None:
    """The worker holds a task, and is done with it before the broker is back; tasks are sent meanwhile."""
    pair.hold()
    pair.wait_until_killable()
    if how == "killed":
        killable.kill()
    else:
        killable.stop()
    assert not killable.running and killable.pid is None and free(killable.port)
    pair.producer.wait_event("connection_lost")
    pair.send("meanwhile-1", "meanwhile-2")
    pair.release()
    pair.worker.wait_event("connection_lost")
    for command in pair.both:
        command.wait_for("nobody listens")
    killable.start()
    pair.end("connection_lost", "connected")
    pair.held_was_discarded()
    (why,) = (event["reason"] for event in pair.producer.event_list("connection_lost"))
    assert ("broker forced connection closure" in why) == (how != "killed"), why


def test_both_outlive_an_operator_who_closes_their_connections(killable: Node, pair: Pair) -> None:
    """The worker says so at once, finishes its task, connects again and gets it a second time."""
    pair.hold()
    killable.ctl("close_all_connections", "--global", "closed by the operator")
    pair.producer.wait_event("connected", count=2)
    pair.send("meanwhile-1", "meanwhile-2")
    pair.worker.wait_event("connection_lost")
    assert states_of(pair.worker) == ["connected", "connection_lost"]
    pair.release()
    pair.end("connection_lost", "connected")
    pair.held_was_discarded()
    for command in pair.both:
        (lost,) = command.event_list("connection_lost")
        assert "closed by the operator" in lost["reason"]


# -- the queue goes, while the broker stays


def consuming(run: Run, channel: Any, url: str, queue: str, *options: object) -> Command:
    """A worker to which RabbitMQ would send tasks."""
    worker = run("worker.py", "w", "--json", "--queue", queue, "--url", url, *options)
    worker.wait_event("connected")
    until(lambda: consumers(channel, queue) == 1)
    return worker


def stop(worker: Command, *states: str) -> None:
    """It ends in order, and has said these changes of state and no others."""
    worker.signal()
    assert worker.wait() == 0, worker.report()
    assert worker.err == ""
    assert states_of(worker) == [*states, "stopped"], worker.report()
    assert len(worker.event_list("waiting")) == states.count("connected") - 1


def tasks(*names: str) -> list[dict[str, Any]]:
    return [{"id": name, "complexity": 0} for name in names]


def test_an_idle_worker_outlives_its_queue(channel: Any, queue: str, url: str, run: Run) -> None:
    """The queue is deleted. The worker says so, declares it anew and does what comes then."""
    worker = consuming(run, channel, url, queue)
    channel.queue_delete(queue)
    worker.wait_event("connected", count=2)
    publish(channel, queue, *tasks("a", "b"))
    for name in ("a", "b"):
        worker.wait_event("done", id=name)
    stop(worker, "connected", "cancelled", "connected")


def test_a_worker_in_a_task_outlives_its_queue(channel: Any, queue: str, url: str, run: Run, tmp_path: Path) -> None:
    """What it holds goes with the queue: it does not claim that as done, and goes on with what comes then."""
    gate = tmp_path / "gate"
    worker = consuming(run, channel, url, queue, *HOLD)
    publish(channel, queue, {"id": HELD, "complexity": 0, "until": str(gate)}, *tasks("gone"))
    worker.wait_event("started", id=HELD)
    until(lambda: ready(channel, queue) == 1)
    channel.queue_delete(queue)
    worker.wait_event("cancelled")  # while the task runs
    gate.touch()
    worker.wait_event("connected", count=2)
    publish(channel, queue, *tasks("a", "b"))
    for name in ("a", "b"):
        worker.wait_event("done", id=name)
    stop(worker, "connected", "cancelled", "connected")
    assert "queue deleted" in worker.event_list("cancelled")[0]["reason"]
    assert [event["id"] for event in worker.event_list("started")] == [HELD, "a", "b"]
    assert [event["id"] for event in worker.event_list("done")] == ["a", "b"]
    assert len(worker.event_list("discarded", id=HELD)) == 1


def test_a_producer_outlives_its_queue(channel: Any, queue: str, url: str, run: Run) -> None:
    producer = run("producer.py", "-", "--json", "--queue", queue, "--url", url, stdin=OPEN)
    producer.wait_event("connected")
    channel.queue_delete(queue)
    until(lambda: nowhere(channel, queue))
    names = [f"task-{number}" for number in range(20)]
    producer.send("".join(json.dumps(task) + "\n" for task in tasks(*names)))
    for name in names:
        producer.wait_event("confirmed", id=name)
    producer.close_stdin()
    assert producer.wait() == 0, producer.report()
    assert producer.err == ""
    assert states_of(producer) == ["connected", "returned", "finished"], producer.report()
    assert sorted(json.loads(body)["id"] for _, _, body in take(channel, queue, 20)) == sorted(names)
    assert Counter(event["id"] for event in producer.event_list("confirmed")) == Counter(names)


def nowhere(channel: Any, queue: str) -> bool:
    """Whether RabbitMQ knows, everywhere, that the queue is gone: it may take messages for it a little longer."""
    try:
        publish(channel, queue, b"probe")
    except pika.exceptions.UnroutableError:
        return True
    return False


def test_a_worker_notices_a_queue_that_was_deleted_and_declared_again_at_once(
    channel: Any, queue: str, url: str, run: Run
) -> None:
    """RabbitMQ 3.10 does not tell it; tasks that are ready and do not come do."""
    worker = consuming(run, channel, url, queue)
    channel.queue_delete(queue)
    channel.queue_declare(queue, durable=True, arguments=work_arguments(queue))
    publish(channel, queue, *tasks("a", "b"))
    for name in ("a", "b"):
        worker.wait_event("done", id=name)
    stop(worker, "connected", "cancelled", "connected")


def test_a_purge_is_nothing_to_a_worker(channel: Any, queue: str, url: str, run: Run, tmp_path: Path) -> None:
    """What it holds stays its own and is done; the others are gone; new ones come on the same connection."""
    gate = tmp_path / "gate"
    worker = consuming(run, channel, url, queue, *HOLD)
    publish(channel, queue, {"id": HELD, "complexity": 0, "until": str(gate)}, *tasks("gone-1", "gone-2"))
    worker.wait_event("started", id=HELD)
    until(lambda: ready(channel, queue) == 2)
    channel.queue_purge(queue)
    gate.touch()
    publish(channel, queue, *tasks("a", "b"))
    for name in ("a", "b"):
        worker.wait_event("done", id=name)
    stop(worker, "connected")
    assert [event["id"] for event in worker.event_list("done")] == [HELD, "a", "b"]
    declare(channel, queue)
    take(channel, queue, 0)
