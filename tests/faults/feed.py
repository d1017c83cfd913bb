"""A producer that reads a pipe, which the test fills: whatever the speed, a fault meets one that still publishes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tareas.lab.node import Node
from tests.faults.harness import Fleet, Member, Task

TURN = 0.05  # seconds between two pours
HELD_WITHIN = 80.0  # seconds: more than a worker waits for RabbitMQ's answer to a call, before it connects anew
LOST = {"connection_lost", "cancelled"}


class Feed:
    """Tasks poured into a producer of this fleet, `per_second` of them, until the `with` block ends, or end().

    facts: as in harness.tasks. written: how many so far.
    """

    def __init__(self, fleet: Fleet, per_second: float, prefix: str = "fed", url: str | None = None, **facts: Any):
        self._fleet = fleet
        self._prefix, self._facts, self._per_second = prefix, facts, per_second
        self.producer = fleet.start(f"producer-{prefix}", "producer.py", "-", url=url, piped=True)
        self.written = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._pour, daemon=True)
        self._thread.start()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.end()
        self._over.set()

    def _pour(self) -> None:
        due = 0.0
        while not self._over.wait(TURN):
            due += TURN * self._per_second
            while due >= 1 and not self._over.is_set():
                due -= 1
                self.write({"id": f"{self._prefix}-{self.written:06d}", "complexity": 0, **self._facts})
                self.written += 1

    def write(self, task: Task) -> None:
        """One more task. It waits while the pipe is full."""
        pipe = self.producer.process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError, ValueError):  # the producer was killed
            os.write(pipe.fileno(), json.dumps(task).encode() + b"\n")  # so short a write is never split

    def hold(self, member: Member, folder: Path) -> tuple[str, Path]:
        """Give out tasks for handlers.hold that wait for a file each, until this worker has one in hand.

        Returns the task's id and the file, which is yet to be made.
        """
        fleet, until, number = self._fleet, time.monotonic() + HELD_WITHIN, itertools.count()
        while True:
            assert time.monotonic() < until, f"{member.name} gets no task\n{fleet.report()}"
            n = next(number)
            held = f"held-{self._prefix}-{n}"
            gate = folder / held
            self.write({"id": held, "complexity": 0, "until": str(gate)})
            wait_started(fleet, held)
            if fleet.started[held][-1]["who"] == member.name:
                return held, gate
            gate.touch()

    def wait_written(self, count: int) -> None:
        """Wait until so many tasks were poured in all."""
        self._fleet.wait(f"{count} poured", lambda: self.written >= count)

    def end(self) -> None:
        """The end of the input; the producer ends when all is confirmed."""
        self._over.set()
        # Not join(): a full pipe holds the thread until the producer reads on.
        self._fleet.wait("the pipe read", lambda: not self._thread.is_alive())
        pipe = self.producer.process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError):
            pipe.close()


class Round:
    """One fault: from here on, what its victims say. members: None for all that run."""

    def __init__(self, fleet: Fleet, members: Sequence[Member] | None = None) -> None:
        fleet.poll()
        self._fleet = fleet
        producers = [member for member in fleet.members if member.name.startswith("producer") and member.running]
        self.members = [*producers, *fleet.workers] if members is None else list(members)
        self._seen = {member.name: len(member.events) for member in self.members}

    def said(self, member: Member, *words: str) -> list[dict[str, Any]]:
        """Its events of these kinds since the round began."""
        return [event for event in member.events[self._seen[member.name] :] if event["event"] in words]

    def all_said(self, *words: str) -> bool:
        """Whether each member has told one of these since."""
        return all(self.said(member, *words) for member in self.members)

    def wait_said(self, *words: str) -> None:
        """Wait until each has told one of these since."""
        self._fleet.wait(" or ".join(words), lambda: self.all_said(*words))

    def wait_reason(self, words: str) -> None:
        """Wait until each says that it waits, and this of why."""

        def says(member: Member) -> bool:
            return any(words in event["reason"] for event in self.said(member, "waiting"))

        self._fleet.wait(f"all wait: {words}", lambda: all(map(says, self.members)))

    def wait_end_of(self, task_id: str, *words: str) -> None:
        """Wait until one has told one of these of this task since."""

        def says(member: Member) -> bool:
            return any(event["id"] == task_id for event in self.said(member, *words))

        self._fleet.wait(f"{words} of {task_id}", lambda: any(map(says, self.members)))

    def wait_lost(self) -> None:
        """Wait until each has lost its connection and says so, a worker at the end of the task in its hand."""
        self.wait_said(*LOST)

    def wait_back(self) -> None:
        """Wait until each is connected again, and tasks are confirmed and done again."""
        self._fleet.wait("connected again", lambda: all(is_connected(member) for member in self.members))
        self.wait_flow()

    def wait_flow(self, count: int = 5) -> None:
        """Wait until so many more tasks are confirmed, and done, than now."""
        done = len(self._fleet.done)
        wait_confirmed(self._fleet, count)
        self._fleet.wait("more tasks done", lambda: len(self._fleet.done) >= done + count)


def wait_started(fleet: Fleet, *task_ids: str) -> None:
    """Wait until some worker has had each of these in hand."""
    fleet.wait(f"{task_ids} started", lambda: all(fleet.started[task_id] for task_id in task_ids))


def wait_confirmed(fleet: Fleet, count: int = 10) -> None:
    """Wait until so many more tasks are confirmed than now."""
    confirmed = len(fleet.confirmed)
    fleet.wait("more tasks confirmed", lambda: len(fleet.confirmed) >= confirmed + count)


def connected_to(fleet: Fleet, node: Node) -> list[Member]:
    """The producers and workers that run and whose last `connected` names this node."""
    members = [member for member in fleet.members if member.running and member.having("connected")]
    return [member for member in members if member.having("connected")[-1]["address"].endswith(f":{node.port}")]


def is_connected(member: Member) -> bool:
    """Whether its last word about its connection says so."""
    words = [event["event"] for event in member.events if event["event"] in LOST | {"connected"}]
    return bool(words) and words[-1] == "connected"
