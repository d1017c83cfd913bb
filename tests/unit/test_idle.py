"""The looks of an idle worker, on a clock and a connection made by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tareas.errors import ConsumerGone
from tareas.work import idle


class Bench:
    """A connection whose timers run when the test says so, and a queue whose counts the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, drain: bool) -> None:
        self.now = 0.0
        self.ready = 0
        self.consumers = 1
        self.looks = 0
        self.deliveries = 0
        self.stop = False
        self.ended = False
        self.connection = self
        self._timer: tuple[float, Callable[[], None]] | None = None
        monkeypatch.setattr(idle, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.idle = idle.Idle(self, self, self.count, drain, lambda: self.stop, lambda: self.deliveries)

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        assert self._timer is None or self._timer[0] <= self.now, "two timers at once"
        self._timer = (self.now + seconds, call)

    def count(self) -> Any:
        self.looks += 1
        return SimpleNamespace(message_count=self.ready, consumer_count=self.consumers)

    def stop_consuming(self) -> None:
        self.ended = True

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._timer and not self.ended and self._timer[0] <= until:
            due, call = self._timer
            self.now, self._timer = due, None
            call()
        self.now = until


def test_a_stop_that_was_asked_for_ends_the_consuming_within_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, drain=False)
    bench.run(10)
    assert not bench.ended and not bench.idle.stopped
    bench.stop = True
    bench.run(idle.TICK)
    assert bench.ended and bench.idle.stopped


def test_a_drained_queue_is_looked_at_twice_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, drain=True)
    bench.run(1)
    assert bench.ended and bench.looks == 2


def test_what_is_ready_or_was_just_delivered_keeps_a_drain_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, drain=True)
    bench.ready = 1
    bench.run(1)
    assert not bench.ended
    for _ in range(20):  # a task at each look: none of them finds the worker idle
        bench.deliveries += 1
        bench.ready = 0
        bench.run(idle.DRAIN_TICK)
    assert not bench.ended
    bench.run(1)
    assert bench.ended


def test_a_queue_that_does_not_answer_is_not_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    """RabbitMQ then counts no task and no consumer, though we are one."""
    bench = Bench(monkeypatch, drain=True)
    bench.consumers = 0
    bench.run(1)
    assert not bench.ended and bench.looks > 2
    bench.consumers = 1
    bench.run(1)
    assert bench.ended


def test_ready_tasks_that_never_come_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    for drain in (False, True):
        bench = Bench(monkeypatch, drain)
        bench.ready = 3
        with pytest.raises(ConsumerGone, match="deleted"):
            bench.run(60)
        assert bench.now < 4 * idle.STARVED


def test_an_idle_worker_that_gets_tasks_now_and_then_is_not_starved(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, drain=False)
    bench.ready = 3
    for _ in range(10):
        bench.run(1.5 * idle.STARVED)
        bench.deliveries += 1
    assert not bench.ended
