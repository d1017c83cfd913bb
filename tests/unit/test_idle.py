"""The looks of an idle worker, on a clock and a connection made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tareas.errors import ConsumerGone
from tareas.work.idle import DRAIN_TICK, STARVED, Idle
from tests.unit.fakes import Connection, Delivery, Journal


class Bench:
    """An idle worker, and a queue whose counts the test sets."""

    def __init__(self, journal: Journal, drain: bool) -> None:
        self.journal, self.looks = journal, 0
        self.queue = Connection()
        self.idle = Idle("q", drain)

    def queue_declare(self, queue: str, *, passive: bool) -> Any:
        assert queue == "q" and passive
        self.looks += 1
        return SimpleNamespace(message_count=len(self.queue.ready), consumer_count=self.queue.consumers)

    def ended(self, seconds: float) -> bool:
        """Whether the worker ends within so many seconds without a delivery."""
        until = self.journal.now + seconds
        while self.journal.now < until:
            self.journal.now += self.idle.tick
            if self.idle.drained(self):  # type: ignore[arg-type]
                return True
        return False


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Journal:
    return Journal(monkeypatch)


def test_a_drained_queue_is_looked_at_twice_before_the_end(journal: Journal) -> None:
    bench = Bench(journal, drain=True)
    assert bench.ended(1) and bench.looks == 2


def test_a_worker_that_is_not_to_drain_never_ends_and_looks_now_and_then(journal: Journal) -> None:
    bench = Bench(journal, drain=False)
    assert not bench.ended(60) and 20 < bench.looks <= 30


def test_what_is_ready_or_was_just_delivered_keeps_a_drain_alive(journal: Journal) -> None:
    bench = Bench(journal, drain=True)
    bench.queue.ready.append(Delivery())
    assert not bench.ended(1)
    bench.queue.ready.clear()
    for _ in range(20):  # a task at each look: none of them finds the worker idle
        bench.idle.busy()
        assert not bench.ended(DRAIN_TICK)
    assert bench.ended(1)


def test_a_queue_that_does_not_answer_is_not_drained(journal: Journal) -> None:
    """RabbitMQ then counts no task and no consumer, though we are one."""
    bench = Bench(journal, drain=True)
    bench.queue.consumers = 0
    assert not bench.ended(1) and bench.looks > 2
    bench.queue.consumers = 1
    assert bench.ended(1)


@pytest.mark.parametrize("drain", [False, True])
def test_ready_tasks_that_never_come_end_the_connection(drain: bool, journal: Journal) -> None:
    bench, began = Bench(journal, drain), journal.now
    bench.queue.ready.append(Delivery())
    with pytest.raises(ConsumerGone, match="deleted"):
        bench.ended(60)
    assert 1.9 * STARVED <= journal.now - began < 4 * STARVED


def test_an_idle_worker_that_gets_tasks_now_and_then_is_not_starved(journal: Journal) -> None:
    bench = Bench(journal, drain=False)
    bench.queue.ready.append(Delivery())
    for _ in range(10):
        assert not bench.ended(1.5 * STARVED)
        bench.idle.busy()
