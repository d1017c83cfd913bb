"""A RabbitMQ that is none: it gives a worker the deliveries of a test and writes down, in order, what it does."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pika
import pika.data
import pytest
from pika.exceptions import NackError, UnroutableError

IDLE = "idle"  # in the journal: all deliveries are through, and the worker asks for more


class Journal:
    """What happened, in order and in words: an event when it is flushed, an AMQP call when it is made."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.stream = _Stream(self)

    def add(self, word: str) -> None:
        self.words.append(word)

    def story(self) -> list[str]:
        """What happened between the first delivery and the end of the last one."""
        begin = next(n for n, word in enumerate(self.words) if word.startswith("consume")) + 1
        ends = [self.words.index(word, begin) for word in (IDLE, "stopped") if word in self.words[begin:]]
        return self.words[begin : min(ends, default=None)]

    def told(self, word: str) -> dict[str, Any]:
        """The only event of this kind, without its time."""
        (event,) = (event for event in self.events if event["event"] == word)
        return {name: fact for name, fact in event.items() if name not in ("time", "event", "who")}


class _Stream(io.StringIO):
    """Where Events writes JSON Lines. What is not flushed was not told: a killed worker would take it along."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal
        self.broken_at = ""  # the event that cannot be written

    def flush(self) -> None:
        lines = self.getvalue().splitlines()
        self.seek(0)
        self.truncate()
        for event in map(json.loads, lines):
            if event["event"] == self.broken_at:
                raise BrokenPipeError
            self._journal.events.append(event)
            self._journal.add(event["event"])


@dataclass
class Delivery:
    """A message on its way to a worker. encoded_headers: as they came over the wire, for pika to decode."""

    body: bytes = b'{"id": "a", "complexity": 0}'
    redelivered: bool = False
    headers: dict[str, Any] | None = None
    encoded_headers: bytes = b""
    properties: dict[str, Any] | None = None


class Channel:
    """What a worker uses of pika's BlockingChannel. It settles only what it has delivered, as RabbitMQ does."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.is_open = True
        self.connection = connection
        self.consumer_tags: list[str] = []
        self.unacknowledged: set[int] = set()
        self._impl = self  # the inner channel of pika's blocking one
        self._name = name
        self._journal = connection.journal
        self._confirms = False
        self._callback: Any = None

    def queue_declare(self, queue: str, durable: bool = False, passive: bool = False, arguments: Any = None) -> Any:
        if not passive:
            self._journal.add(f"declare {queue}")
        return SimpleNamespace(method=SimpleNamespace(message_count=self.connection.ready, consumer_count=1))

    def basic_qos(self, prefetch_count: int) -> None:
        self._journal.add(f"prefetch {prefetch_count}")

    def basic_consume(self, queue: str, on_message_callback: Any, auto_ack: bool, consumer_tag: str) -> None:
        self._journal.add(f"consume {queue} as {consumer_tag}{', acknowledged unseen' if auto_ack else ''}")
        self._callback = on_message_callback
        self.consumer_tags.append(consumer_tag)

    def start_consuming(self) -> None:
        """Deliver all there is; then let the timers of the connection run, until somebody cancels the consumer."""
        self.connection.at_first(self)
        for tag, delivery in enumerate(self.connection.deliveries, 1):
            if not self.consumer_tags:
                return
            self.unacknowledged.add(tag)
            headers = delivery.headers
            if delivery.encoded_headers:
                headers = pika.data.decode_table(delivery.encoded_headers, 0)[0]
            properties = pika.BasicProperties(headers=headers, **(delivery.properties or {}))
            self._callback(self, SimpleNamespace(delivery_tag=tag, redelivered=delivery.redelivered), properties,
                           delivery.body)
        if self.consumer_tags:
            self._journal.add(IDLE)
            self.connection.when_idle(self)
        while self.consumer_tags:
            self.connection.timers.pop(0)()

    def stop_consuming(self) -> None:
        self.consumer_tags.clear()

    def basic_cancel(self, consumer_tag: str) -> None:
        self._journal.add("cancel")
        self.consumer_tags.remove(consumer_tag)

    def basic_ack(self, delivery_tag: int) -> None:
        self._settle("ack", delivery_tag)

    def basic_nack(self, delivery_tag: int, requeue: bool) -> None:
        self._settle("nack, requeue" if requeue else "nack, drop", delivery_tag)

    def _settle(self, how: str, tag: int) -> None:
        known = self.is_open and tag in self.unacknowledged
        self._journal.add(how if known else f"{how} of what is not its own")
        self.unacknowledged.discard(tag)

    def confirm_delivery(self) -> None:
        self._confirms = True

    def basic_publish(self, exchange: str, routing_key: str, body: bytes, properties: Any, mandatory: bool) -> None:
        """As with pika, it returns when the confirm has come; without confirm_delivery it is never known."""
        self._journal.add("dead letter sent")
        self.connection.published.append(SimpleNamespace(
            exchange=exchange, routing_key=routing_key, body=body, properties=properties, mandatory=mandatory
        ))
        trouble = self.connection.troubles.pop(0) if self.connection.troubles else None
        if trouble is not None:
            raise trouble
        if self._confirms:
            self._journal.add("dead letter confirmed")

    def close(self) -> None:
        self.is_open = False
        self._journal.add(f"close {self._name}")


def stop(channel: Channel) -> None:
    """What ends most tests, when all deliveries are through: SIGTERM, for real."""
    signal.raise_signal(signal.SIGTERM)


class Connection:
    """What a worker uses of pika's BlockingConnection, with the deliveries that its consumer is to get.

    troubles: what each publication of a dead letter raises, None for nothing. ready: tasks in the queue.
    at_first, when_idle: called before the first delivery and after the last one.
    """

    def __init__(
        self,
        journal: Journal,
        *deliveries: Delivery,
        version: str = "4.0.5",
        troubles: list[Exception | None] | None = None,
        ready: int = 0,
        at_first: Callable[[Channel], object] = lambda channel: None,
        when_idle: Callable[[Channel], object] = stop,
    ) -> None:
        self.journal = journal
        self.deliveries = deliveries
        self.troubles = troubles or []
        self.ready = ready
        self.at_first = at_first
        self.when_idle = when_idle
        self.is_open = True
        self.channels: list[Channel] = []
        self.published: list[Any] = []  # dead letters
        self.timers: list[Callable[[], object]] = []
        self.server_properties = {"version": version}
        self._impl = self  # the inner connection of pika's blocking one

    def channel(self) -> Channel:
        self.channels.append(Channel(self, f"channel {len(self.channels) + 1}"))
        return self.channels[-1]

    def call_later(self, delay: float, callback: Callable[[], object]) -> None:
        self.timers.append(callback)

    def _adapter_call_later(self, delay: float, callback: Callable[[], object]) -> Any:
        return SimpleNamespace(cancel=lambda: None)

    def add_on_connection_blocked_callback(self, callback: object) -> None:
        pass

    def add_on_connection_unblocked_callback(self, callback: object) -> None:
        pass

    def close(self) -> None:
        self.is_open = False
        self.journal.add("close connection")


class KeepAlive:
    """Stands for the class and its only object, the thread that serves the connection: `inside` while it would."""

    def __init__(self) -> None:
        self.inside = False
        self.lost: Exception | None = None

    def __call__(self, on_lost: Callable[[Exception], None]) -> KeepAlive:
        self._on_lost = on_lost
        return self

    def lose(self, error: Exception) -> None:
        """The connection ends while the thread serves it."""
        self.lost = error
        self._on_lost(error)

    def serve(self, connection: object, heartbeat: float) -> None:
        self.lost = None

    def end(self) -> None:
        self.inside = False

    def __enter__(self) -> KeepAlive:
        self.inside = True
        return self

    def __exit__(self, *error: object) -> None:
        self.inside = False


def full() -> NackError:
    """What pika raises for a message that RabbitMQ does not store."""
    return NackError([])


def no_such_queue() -> UnroutableError:
    """What pika raises for a mandatory message that comes back."""
    return UnroutableError([])


def hand_out(monkeypatch: pytest.MonkeyPatch, *outcomes: Connection | Exception) -> None:
    """Let the worker connect to these, one after the other; an exception is raised."""
    left = list(outcomes)

    def connect(nodes: Any, name: str) -> tuple[Any, Any]:
        if not left:
            pytest.fail("it connects once more than the test has foreseen")  # a BaseException: nobody swallows it
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome, nodes[0]

    monkeypatch.setattr("tareas.rabbit.connection.connect", connect)
