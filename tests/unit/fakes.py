"""A connection to no RabbitMQ. It writes down, in order, what a command does, and does what the test has scripted."""

from __future__ import annotations

import copy
import io
import itertools
import json
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pika
import pytest

from tareas.errors import Lost
from tareas.rabbit import addresses

IDLE = "idle"  # in the journal: all deliveries are through, and the worker waits for more


class Journal:
    """What happened, in order and in words: an event when it is flushed, a call of AMQP when it is made. And the clock,
    which goes on only while somebody waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.words: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.stream = _Stream(self)
        self.now = time.monotonic()
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("random.uniform", lambda least, most: most)  # rests before connecting again

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
        self.broken_at = ""  # the event that cannot be written, and then raises this
        self.error: Exception = BrokenPipeError()

    def flush(self) -> None:
        lines = self.getvalue().splitlines()
        self.seek(0)
        self.truncate()
        for event in map(json.loads, lines):
            if event["event"] == self.broken_at:
                raise self.error
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


class Connection:
    """Stands for tareas.rabbit.connection.Connection: a test sees to it that the two have the same methods.

    deliveries: what its queue holds; they come as RabbitMQ sends them, as many ahead as basic_qos has said.
    steps(connection): what happens while the command waits for something to come, up to each `yield`.
    troubles: what each publish_and_confirm raises, None for nothing, or what it calls. refusal: what the first declare
    raises. at_consume, at_look: called when the consumer is there, and at each look. stuck: ready tasks that stay.
    """

    def __init__(
        self, *deliveries: Delivery, steps: Callable[[Connection], Iterator[None] | None] = lambda connection: None,
        troubles: list[Any] | None = None, refusal: Exception | None = None, stuck: int = 0,
        at_consume: Callable[[Connection], object] = lambda connection: None,
        at_look: Callable[[Connection], object] = lambda connection: None, version: tuple[int, ...] = (4, 0, 5),
    ) -> None:  # fmt: skip
        self.journal: Journal
        self.address = addresses.parse("amqp://a")[0]
        self.version, self.frame_max = version, 131_072
        self.lost: Exception | None = None
        self.blocked, self.sending = False, 0.0
        self.steps, self.troubles, self.refusal, self.stuck = steps, troubles or [], refusal, stuck
        self.at_consume, self.at_look = at_consume, at_look
        self.ready = deque(deliveries)
        self.consumers = 1  # as RabbitMQ counts them
        self.letters: list[Any] = []  # what was published and waited for
        self.sent: dict[int, Any] = {}  # by delivery tag, neither confirmed nor refused
        self.published: list[str] = []  # the message_id of each, in order
        self.most = self.most_bytes = 0  # sent, at a time
        self.unacked: dict[int, tuple[str, Delivery]] = {}  # by delivery tag; the consumer, and what it got
        self.settled: list[int] = []  # delivery tags
        self.delivered = self.looks = 0
        self.watched: list[int] = []
        self._prefetch = self._waits = 0
        self._tags, self._numbers = itertools.count(1), itertools.count(1)
        self._callbacks: dict[str, Any] = {}  # by consumer tag
        self._confirmed: Any = None
        self._returned: Any = None
        self._inbox: deque[tuple[Any, Any]] = deque()  # a callback, and what it gets
        self._script: Iterator[None] | None = None
        self.is_open = True

    # -- what the test does

    def opened(self, journal: Journal, on_alarm: Any, on_lost: Any) -> Connection:
        self.journal, self._on_alarm, self._on_lost = journal, on_alarm, on_lost
        return self

    def lose(self, reason: Exception | None = None) -> None:
        self.lost = reason or Lost("the cable")
        self._on_lost(self.lost)

    def block(self) -> None:
        self.blocked = True
        self._on_alarm("blocked", reason="low on disk")

    def unblock(self) -> None:
        self.blocked = False
        self._on_alarm("unblocked")

    def ack(self, tag: int, multiple: bool = False) -> None:
        self._answer(pika.spec.Basic.Ack(tag, multiple))

    def nack(self, tag: int, multiple: bool = False) -> None:
        self._answer(pika.spec.Basic.Nack(tag, multiple))

    def _answer(self, method: Any) -> None:
        for tag in list(self.sent):
            if tag == method.delivery_tag or (method.multiple and tag < method.delivery_tag):
                del self.sent[tag]
        if self._confirmed is not None:  # else the channel is not in confirm mode
            self._inbox.append((self._confirmed, (SimpleNamespace(method=method),)))

    def bring_back(self, tag: int) -> None:
        """No queue: the message comes back. Its confirm is another step."""
        self._inbox.append((self._returned, (self.sent[tag].properties, self.sent[tag].body)))

    def readable(self, fd: int) -> None:
        self.watched.remove(fd)
        self._inbox.append((lambda: None, ()))

    # -- what the command does

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check(self) -> None:
        if self.lost is not None:
            raise self.lost

    def queue_declare(
        self, queue: str, *, passive: bool = False, durable: bool = False, arguments: dict[str, Any] | None = None
    ) -> Any:
        self._check()
        if self.refusal is not None:
            raise self.refusal
        if not passive:
            self.journal.add(f"declare {queue}" if durable and arguments else f"declare {queue}, to be lost")
        return SimpleNamespace(message_count=len(self.ready) + self.stuck, consumer_count=self.consumers)

    def queue_delete(self, queue: str) -> None:
        self.journal.add(f"delete {queue}")

    def basic_qos(self, prefetch_count: int) -> None:
        self.journal.add(f"prefetch {prefetch_count}")
        self._prefetch = prefetch_count

    def basic_consume(
        self, queue: str, on_message_callback: Any, *, auto_ack: bool = False, consumer_tag: str = "",
        arguments: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._check()
        self.journal.add(f"consume {queue} as {consumer_tag}{', acknowledged unseen' if auto_ack else ''}")
        self._callbacks[consumer_tag] = on_message_callback
        self._send_ahead()
        self.at_consume(self)

    def basic_cancel(self, consumer_tag: str) -> None:
        self._check()
        self.journal.add("cancel")
        del self._callbacks[consumer_tag]

    def _send_ahead(self) -> None:
        for name, callback in self._callbacks.items():
            while self.ready and sum(consumer == name for consumer, _ in self.unacked.values()) < self._prefetch:
                each, tag = self.ready.popleft(), next(self._tags)
                self.unacked[tag] = name, each
                self.delivered += 1
                headers = pika.data.decode_table(each.encoded_headers, 0)[0] if each.encoded_headers else each.headers
                method = SimpleNamespace(delivery_tag=tag, redelivered=each.redelivered)
                properties = pika.BasicProperties(headers=headers, **(each.properties or {}))
                self._inbox.append((self._deliver, (callback, method, properties, each.body)))

    def _deliver(self, callback: Any, *delivery: Any) -> None:
        self._check()
        callback(self, *delivery)

    def confirm_delivery(self, ack_nack_callback: Any = None, on_return_callback: Any = None) -> None:
        self._check()
        self.journal.add("confirm mode")
        self._confirmed, self._returned = ack_nack_callback, on_return_callback

    def publish_and_confirm(self, routing_key: str, body: bytes, properties: pika.BasicProperties) -> None:
        self._check()
        self.journal.add(f"sent to {routing_key}")
        self.letters.append(SimpleNamespace(routing_key=routing_key, body=body, properties=properties))
        trouble = self.troubles.pop(0) if self.troubles else None
        if isinstance(trouble, Exception):
            raise trouble
        if trouble is not None:
            trouble(self)
        self._check()
        self.journal.add("stored")

    def basic_publish(
        self, exchange: str, routing_key: str, body: bytes, properties: pika.BasicProperties, mandatory: bool = False
    ) -> None:
        self._check()
        self.sent[next(self._numbers)] = SimpleNamespace(
            exchange=exchange, routing_key=routing_key, body=body, properties=copy.copy(properties),
            mandatory=mandatory, at=self.journal.now,
        )
        self.published.append(str(properties.message_id))
        self.most = max(self.most, len(self.sent))
        self.most_bytes = max(self.most_bytes, sum(len(each.body) for each in self.sent.values()))

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        self._settle(f"ack up to {delivery_tag}" if multiple else "ack", delivery_tag, multiple)

    def basic_nack(self, delivery_tag: int, multiple: bool = False, requeue: bool = True) -> None:
        self._settle("nack, requeue" if requeue else "nack, drop", delivery_tag, multiple)

    def _settle(self, how: str, last: int, multiple: bool) -> None:
        """RabbitMQ closes the channel on a tag that is not its own; and it sends the next delivery at once."""
        self._check()
        self.journal.add(how if last in self.unacked else f"{how} of what is not its own")
        for tag in [tag for tag in self.unacked if tag == last or (multiple and tag < last)]:
            del self.unacked[tag]
            self.settled.append(tag)
        self._send_ahead()

    def look(self) -> None:
        self.looks += 1
        self.at_look(self)
        self._check()

    def flush(self) -> None:
        self._check()

    def process_data_events(self, time_limit: float = 0.0) -> bool:
        if not self._inbox and time_limit and self.lost is None:
            self._waits += 1
            assert self._waits < 100_000 or pytest.fail("it waits for ever")
            self.journal.now += time_limit + 0.001
            if self._script is None:
                self._script = self.steps(self) or iter(())
            next(self._script, None)
        if self._inbox:
            handle, arguments = self._inbox.popleft()
            handle(*arguments)
            return True
        self._check()
        return False

    def waiting(self) -> list[tuple[Any, Any, bytes]]:
        found = [arguments[1:] for _, arguments in self._inbox]
        self._inbox.clear()
        return found

    def watch(self, fd: int) -> None:
        self._check()
        if fd not in self.watched:
            self.watched.append(fd)

    def renew(self) -> None:
        """Another channel: what the old one held is in its queue again, in its order."""
        self._check()
        self.journal.add("renew")
        self.ready.extendleft(reversed([each for _, each in self.unacked.values()]))
        for held in (self.unacked, self._callbacks, self.sent):
            held.clear()
        self._confirmed = self._returned = None
        self._tags, self._numbers = itertools.count(1), itertools.count(1)

    def close(self, seconds: float = 0.0) -> None:
        if self.is_open:
            self.journal.add("close")
        self.is_open = False

    def abort(self) -> None:
        self.close()

    def forget(self) -> None:
        self.journal.add("forget")


def arrived(properties: pika.BasicProperties) -> pika.BasicProperties:
    """As whoever gets them reads them."""
    made = pika.BasicProperties()
    made.decode(b"".join(properties.encode()))
    return made


def stop(connection: Connection) -> None:
    """What ends most tests of a worker, when all deliveries are through: SIGTERM, for real."""
    connection.journal.add(IDLE)
    signal.raise_signal(signal.SIGTERM)


def confirm_all(connection: Connection) -> Iterator[None]:
    """RabbitMQ confirms whatever comes."""
    while True:
        if connection.sent:
            connection.ack(max(connection.sent), multiple=True)
        yield


def hand_out(monkeypatch: pytest.MonkeyPatch, command: str, journal: Journal, *outcomes: Connection | Exception) -> Any:
    """Let a command connect to these, one after the other; an exception is raised. Returns those that are left."""
    left = list(outcomes)

    def connect(nodes: Any, name: str, *, tries: int = 1, on_alarm: Any = None, on_lost: Any = None) -> Connection:
        if not left:
            pytest.fail("it connects once more than the test has foreseen")  # a BaseException: nobody swallows it
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        outcome.address = nodes[0]
        return outcome.opened(journal, on_alarm, on_lost or (lambda error: None))

    monkeypatch.setattr(f"{command}.connect", connect)
    return left
