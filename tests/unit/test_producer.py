"""What a producer keeps account of: what is published, what is confirmed, and what must be published again."""

from __future__ import annotations

import copy
import heapq
import itertools
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pika
import pytest
from pika.exceptions import (
    ChannelClosedByBroker,
    ConnectionClosedByClient,
    ProbableAuthenticationError,
    StreamLostError,
)

from producer import Producer
from tareas.errors import BadLine, Denied, QueueDiffers
from tareas.tell.events import Events
from tareas.work import signals, window
from tareas.work.sources import Item
from tareas.work.window import Window
from tests.unit.fakes import Journal

DEADLINE = 30.0  # seconds that no test comes near


def item(name: str, size: int = 10) -> Item:
    return Item(name, b"x" * size)


def items(count: int, size: int = 10) -> list[Item]:
    return [item(f"t{n}", size) for n in range(1, count + 1)]


class Given:
    """A source of these; None: the pipe has nothing just now; an exception is raised. fd: what is to be waited for."""

    def __init__(self, *steps: Item | BadLine | None, fd: int | None = None) -> None:
        self.ended = False
        self.total: int | None = len(steps)
        self._steps = deque(steps)
        self._fd = fd

    def take(self) -> Item | None:
        if not self._steps:
            self.ended = True
            return None
        step = self._steps.popleft()
        if isinstance(step, BadLine):
            raise step
        return step

    def fileno(self) -> int | None:
        return self._fd

    def left(self) -> str:
        return f"{len(self._steps)} more" if self._steps else ""


# -- a RabbitMQ that is none, behind what a producer uses of pika's SelectConnection


class Unforeseen(BaseException):
    """What a step of the test asserts does not hold. The producer takes an AssertionError for one of pika's."""


class Loop:
    """pika's loop, with a clock that jumps to the next timer when there is nothing else to do."""

    READ = 1

    def __init__(self) -> None:
        self.now = 0.0
        self.soon: deque[Callable[[], object]] = deque()  # what RabbitMQ has sent
        self.steps: Iterator[None] = iter(())  # what the test lets happen when all of that is read
        self.waiting_for: dict[int, Callable[[int, int], object]] = {}
        self.stopped = False
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._number = itertools.count()

    def call_later(self, delay: float, callback: Callable[[], object]) -> None:
        heapq.heappush(self._timers, (self.now + delay, next(self._number), callback))

    def add_handler(self, fd: int, callback: Callable[[int, int], object], events: int) -> None:
        assert events == self.READ and fd not in self.waiting_for
        self.waiting_for[fd] = callback

    def remove_handler(self, fd: int) -> None:
        del self.waiting_for[fd]

    def start(self) -> None:
        while not self.stopped:
            if self.soon:
                self.soon.popleft()()
            elif not self._step():
                self.tick()

    def tick(self) -> None:
        """Let the next timer go off."""
        self.now, _, callback = heapq.heappop(self._timers)
        callback()

    def _step(self) -> bool:
        try:
            return next(self.steps, self) is None
        except AssertionError as error:
            raise Unforeseen from error

    def stop(self) -> None:
        self.stopped = True


class Channel:
    def __init__(self, connection: Connection) -> None:
        self.is_open = True
        self.confirms: Callable[[Any], object] | None = None
        self.returns: Callable[..., object] | None = None
        self.closes: Callable[..., object] | None = None
        self._connection = connection
        self._tags = itertools.count(1)

    def add_on_close_callback(self, callback: Callable[..., object]) -> None:
        self.closes = callback

    def add_on_return_callback(self, callback: Callable[..., object]) -> None:
        self.returns = callback

    def confirm_delivery(self, ack_nack_callback: Callable[[Any], object], callback: Callable[[Any], object]) -> None:
        self._connection.journal.add("confirm mode")
        self.confirms = ack_nack_callback
        self._connection.ioloop.soon.append(lambda: callback(None))

    def queue_declare(self, queue: str, durable: bool, arguments: Any, callback: Callable[[Any], object]) -> None:
        self._connection.journal.add(f"declare {queue}{'' if durable else ', not durable'}")
        if self._connection.refusal is not None:
            self._connection.ioloop.soon.append(lambda: self.closes and self.closes(self, self._connection.refusal))
        else:
            self._connection.ioloop.soon.append(lambda: callback(None))

    channel_number = 7

    def basic_publish(self, exchange: str, queue: str, body: bytes, properties: Any, mandatory: bool) -> None:
        """Of a message too big for one frame."""
        self.arrived(exchange, queue, body, copy.copy(properties), mandatory)

    def arrived(self, exchange: str, queue: str, body: bytes, properties: Any, mandatory: bool) -> None:
        assert self.is_open and self.confirms
        tag = next(self._tags)
        self._connection.sent[tag] = SimpleNamespace(
            exchange=exchange, queue=queue, body=body, properties=properties, mandatory=mandatory)
        self._connection.published.append(properties.message_id)
        self._connection.bytes += len(body)
        self._connection.most = max(self._connection.most, len(self._connection.sent))
        self._connection.most_bytes = max(self._connection.most_bytes, self._connection.bytes)

    def close(self) -> None:
        self.is_open = False


class Connection:
    """One connection. steps(connection): what happens on it, up to each `yield`; after the last one, and without any,
    RabbitMQ confirms whatever comes. refusal: closes the channel at the first declare. failure: it never opens."""

    def __init__(
        self, steps: Callable[[Connection], Iterator[None]] | None = None, refusal: Exception | None = None,
        failure: Exception | None = None,
    ) -> None:
        self.journal = Journal()  # its own, unless `play` gives it another
        self.ioloop = Loop()
        self.is_open = self.is_closing = self.is_closed = False
        self.params = SimpleNamespace(frame_max=131_072)
        self.channels: list[Channel] = []
        self.sent: dict[int, Any] = {}  # by delivery tag, neither confirmed nor refused
        self.published: list[str] = []  # message_ids, in order
        self.bytes = 0  # of those in sent
        self.most = self.most_bytes = 0  # at a time
        self.refusal = refusal
        self._steps = steps
        self._failure = failure

    def open(self, on_open_callback: Any, on_open_error_callback: Any, on_close_callback: Any) -> Connection:
        self._on_close = on_close_callback

        def opened() -> None:
            self.is_open = True
            on_open_callback(self)

        failure = self._failure
        self.ioloop.soon.append(opened if failure is None else lambda: on_open_error_callback(self, failure))
        self.ioloop.steps = self._all_steps()
        return self

    def _all_steps(self) -> Iterator[None]:
        if self._steps is not None:
            yield from self._steps(self)
        while self.sent:
            self.ack(max(self.sent), multiple=True)
            yield

    def channel(self, on_open_callback: Callable[[Channel], object]) -> None:
        self.channels.append(Channel(self))
        self.sent.clear()
        self.bytes = 0
        channel = self.channels[-1]
        self.ioloop.soon.append(lambda: on_open_callback(channel))

    def add_on_connection_blocked_callback(self, callback: Callable[..., object]) -> None:
        self._blocked = callback

    def add_on_connection_unblocked_callback(self, callback: Callable[..., object]) -> None:
        self._unblocked = callback

    def _adapter_call_later(self, delay: float, callback: Callable[[], object]) -> Any:
        return SimpleNamespace(cancel=lambda: None)

    def _output_marshaled_frames(self, frames: list[bytes]) -> None:
        """Read what goes over the wire, as RabbitMQ does: each message is three frames."""
        data = b"".join(frames)
        while data:
            parts = []
            for _ in range(3):
                consumed, frame = pika.frame.decode_frame(data)
                data = data[consumed:]
                parts.append(frame)
            (method, header, body), channel = parts, self.channels[-1]
            assert {part.channel_number for part in parts} == {channel.channel_number}
            assert header.body_size == len(body.fragment)
            publish = method.method
            channel.arrived(publish.exchange, publish.routing_key, body.fragment, header.properties, publish.mandatory)

    def close(self) -> None:
        self.journal.add("close")
        self.is_open, self.is_closing = False, True
        self.ioloop.soon.append(lambda: self._on_close(self, ConnectionClosedByClient(200, "")))

    # what RabbitMQ does

    def ack(self, tag: int, multiple: bool = False) -> None:
        self._answer(pika.spec.Basic.Ack(tag, multiple))

    def nack(self, tag: int, multiple: bool = False) -> None:
        self._answer(pika.spec.Basic.Nack(tag, multiple))

    def _answer(self, method: Any) -> None:
        last, multiple = method.delivery_tag, method.multiple
        for tag in [tag for tag in self.sent if tag == last or (multiple and tag < last)]:
            self.bytes -= len(self.sent.pop(tag).body)
        confirms = self.channels[-1].confirms
        assert confirms
        self.ioloop.soon.append(lambda: confirms(SimpleNamespace(method=method)))

    def bring_back(self, tag: int) -> None:
        """No queue: the task comes back; its confirm is another step."""
        sent, channel = self.sent[tag], self.channels[-1]
        assert channel.returns
        channel.returns(channel, None, sent.properties, sent.body)

    def block(self) -> None:
        self._blocked(self, SimpleNamespace(method=SimpleNamespace(reason="low on disk")))

    def unblock(self) -> None:
        self._unblocked(self, None)

    def lose(self) -> None:
        self.is_open, self.is_closed = False, True
        self.ioloop.soon.append(lambda: self._on_close(self, StreamLostError("the cable")))


class Play:
    """A producer with its source on these connections, one after the other: `status` of its end, or its `error`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, source: Given, connections: tuple[Connection, ...],
                 **options: Any) -> None:
        self.journal = Journal()
        self.connections = connections
        self.rests: list[float] = []
        self.status: int | None = None
        self.error: Exception | None = None
        left = list(connections)

        def connect(parameters: Any, **callbacks: Any) -> Connection:
            if not left:
                pytest.fail("it connects once more than the test has foreseen")
            left[0].journal = self.journal
            return left.pop(0).open(**callbacks)

        monkeypatch.setattr(pika, "SelectConnection", connect)
        monkeypatch.setattr("random.uniform", lambda least, most: most)
        events = Events("producer", as_json=True, stream=self.journal.stream)
        self.producer = Producer(source, queue="q", events=events, **options)
        monkeypatch.setattr(self.producer.stopping, "rest", self.rests.append)
        try:
            self.status = self.producer.start()
        except Exception as error:
            self.error = error
        assert left == []

    def told(self, word: str) -> list[Any]:
        """The ids, or else the reasons, of the events of this kind."""
        events = [event for event in self.journal.events if event["event"] == word]
        return [event.get("id", event.get("reason")) for event in events]

    @property
    def again(self) -> list[str]:
        return [event["id"] for event in self.journal.events if event["event"] == "published" and event.get("again")]

    @property
    def finished(self) -> tuple[int, int]:
        """The last line: published, confirmed."""
        last = self.journal.events[-1]
        assert last["event"] == "finished"
        return last["published"], last["confirmed"]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Play]:
    return lambda source, *connections, **options: Play(monkeypatch, source, connections, **options)


Start = Callable[..., Play]


@pytest.fixture
def ten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten tasks on their way instead of a thousand, where the number does not matter."""
    monkeypatch.setattr(window, "MOST", 10)


# -- the usual way


def test_the_order_of_the_protocol(play: Start) -> None:
    """Nothing is published before it can be confirmed, and before both queues are there."""
    played = play(Given(*items(1)), Connection())
    assert played.journal.words == ["confirm mode", "declare q.dead", "declare q", "connected", "published",
                                    "confirmed", "close", "finished"]  # fmt: skip
    assert (played.status, played.finished) == (0, (1, 1))


def test_a_message_can_survive_a_restart_and_tells_who_wants_what(play: Start) -> None:
    seen: list[Any] = []

    def steps(rabbitmq: Connection) -> Iterator[None]:
        seen.extend(rabbitmq.sent.values())
        yield

    play(Given(item("a"), item("b")), Connection(steps))
    assert [(sent.exchange, sent.queue, sent.mandatory, sent.body) for sent in seen] == [("", "q", True, b"x" * 10)] * 2
    assert [sent.properties.message_id for sent in seen] == ["a", "b"]
    for sent in seen:
        assert (sent.properties.delivery_mode, sent.properties.content_type) == (2, "application/json")
        assert sent.properties.app_id == "producer.py"
        assert isinstance(sent.properties.timestamp, int) and abs(sent.properties.timestamp - time.time()) < DEADLINE
        assert sent.properties.encode()  # AMQP can carry it


def test_nothing_to_publish_is_a_success(play: Start) -> None:
    played = play(Given(), Connection())
    assert (played.status, played.finished, played.told("published")) == (0, (0, 0), [])


@pytest.mark.parametrize(
    ("answers", "order"),
    [
        ([(1, False), (2, False), (3, False), (4, False)], "t1 t2 t3 t4"),
        ([(4, True)], "t1 t2 t3 t4"),
        ([(2, True), (4, True)], "t1 t2 t3 t4"),
        ([(3, False), (1, False), (4, False), (2, False)], "t3 t1 t4 t2"),
        ([(2, False), (3, True), (4, True)], "t2 t1 t3 t4"),
    ],
)
def test_a_confirm_is_for_one_task_or_for_all_up_to_one(
    answers: list[tuple[int, bool]], order: str, play: Start
) -> None:
    def steps(rabbitmq: Connection) -> Iterator[None]:
        for tag, multiple in answers:
            rabbitmq.ack(tag, multiple)
            yield

    played = play(Given(*items(4)), Connection(steps))
    assert played.told("confirmed") == order.split()
    assert (played.status, played.finished) == (0, (4, 4))


def test_it_does_not_end_before_the_last_confirm(play: Start) -> None:
    def steps(rabbitmq: Connection) -> Iterator[None]:
        rabbitmq.ack(2, multiple=True)
        yield
        assert rabbitmq.is_open and rabbitmq.sent
        asserted.append(True)

    asserted: list[bool] = []
    played = play(Given(*items(3)), Connection(steps))
    assert asserted and played.finished == (3, 3)


# -- how much may be on its way


def test_a_thousand_tasks_are_on_their_way_and_no_more(play: Start) -> None:
    def steps(rabbitmq: Connection) -> Iterator[None]:
        assert len(rabbitmq.sent) == 1000
        for tag in (1, 7, 500):
            rabbitmq.ack(tag)
            yield
            assert len(rabbitmq.sent) == 1000  # one for one
        rabbitmq.ack(600, multiple=True)
        yield
        reached.append(len(rabbitmq.sent))

    reached: list[int] = []
    played = play(Given(*items(2500)), Connection(steps))
    assert reached == [1000] and played.connections[0].most == 1000
    assert (played.status, played.finished) == (0, (2500, 2500))
    assert played.connections[0].published == [f"t{n}" for n in range(1, 2501)]


def test_big_tasks_are_fewer(play: Start) -> None:
    """8 MiB in all, one task's rest over it at most: RabbitMQ and this process must hold it in memory."""
    size = 2**20 - 1
    played = play(Given(*items(40, size)), Connection())
    assert played.connections[0].most == 9
    assert 8 * 2**20 <= played.connections[0].most_bytes < 8 * 2**20 + size
    assert played.finished == (40, 40)


def test_the_bytes_of_what_was_lost_do_not_count_any_more(play: Start) -> None:
    def steps(rabbitmq: Connection) -> Iterator[None]:
        rabbitmq.lose()
        yield

    played = play(Given(*items(40, 2**20)), *(Connection(steps) for _ in range(3)), Connection())
    assert [rabbitmq.most for rabbitmq in played.connections] == [8, 8, 8, 8]


# -- what RabbitMQ does not store


def test_a_refused_task_is_published_again_after_a_rest_and_told_once(play: Start) -> None:
    """Until RabbitMQ takes one: from then on it is a new refusal."""

    def steps(rabbitmq: Connection) -> Iterator[None]:
        rabbitmq.nack(2, multiple=True)
        rabbitmq.ack(3)
        yield
        assert rabbitmq.published == ["t1", "t2", "t3"]  # it rests
        published_at.append(rabbitmq.ioloop.now)
        while not rabbitmq.sent:
            rabbitmq.ioloop.tick()
            yield
        published_at.append(rabbitmq.ioloop.now)
        assert rabbitmq.published[3:] == ["t1", "t2"]
        rabbitmq.ack(4)
        yield
        rabbitmq.nack(5)
        yield
        while not rabbitmq.sent:
            rabbitmq.ioloop.tick()
            yield

    published_at: list[float] = []
    played = play(Given(*items(3)), Connection(steps))
    assert len(played.connections[0].channels) == 1
    assert played.told("refused") == ["t1", "t2"]
    assert published_at[1] - published_at[0] == pytest.approx(0.1)
    assert played.again == ["t1", "t2", "t2"]
    assert played.told("confirmed") == ["t3", "t1", "t2"]
    assert (played.status, played.finished) == (0, (3, 3))


def test_nothing_new_is_published_while_the_queue_is_full(ten: None, play: Start) -> None:
    def steps(rabbitmq: Connection) -> Iterator[None]:
        rabbitmq.nack(1)
        yield
        rabbitmq.ack(2)
        yield
        assert len(rabbitmq.published) == 10
        while len(rabbitmq.published) == 10:
            rabbitmq.ioloop.tick()
            yield
        assert rabbitmq.published[10:12] == ["t1", "t11"]

    played = play(Given(*items(15)), Connection(steps))
    assert played.error is None and played.finished == (15, 15)


def refuses(times: int, rests: list[float]) -> Callable[[Connection], Iterator[None]]:
    """A queue that is full so many times; how long the producer rests after each of them."""

    def steps(rabbitmq: Connection) -> Iterator[None]:
        for _ in range(times):
            rabbitmq.nack(max(rabbitmq.sent))
            yield
            before = rabbitmq.ioloop.now
            while not rabbitmq.sent:
                rabbitmq.ioloop.tick()
                yield
            rests.append(round(rabbitmq.ioloop.now - before, 3))

    return steps


def test_the_rests_of_a_full_queue_double_up_to_two_seconds_and_every_fifth_brings_a_new_channel(play: Start) -> None:
    """A channel of RabbitMQ 3.10 that met the queue without its leader refuses for ever."""
    rests: list[float] = []
    played = play(Given(item("a")), Connection(refuses(11, rests)))
    assert rests == [0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2, 2, 2, 2]
    assert len(played.connections[0].channels) == 3
    assert played.told("refused") == ["a"]
    assert played.finished == (1, 1)


def test_a_channel_that_refuses_one_task_after_the_other_takes_its_connection_along(play: Start) -> None:
    """RabbitMQ 3.10 does so while the machine of the queue's leader stands still: seven seconds for each task."""

    def steps(rabbitmq: Connection) -> Iterator[None]:
        for _ in range(5):
            rabbitmq.nack(min(rabbitmq.sent))
            before = len(rabbitmq.published)
            while len(rabbitmq.published) == before and rabbitmq.is_open:
                rabbitmq.ioloop.tick()
                yield
        while True:
            yield

    first, second = Connection(steps), Connection()
    played = play(Given(*items(20)), first, second)
    assert played.told("connection_lost") == ["RabbitMQ at 127.0.0.1:1 refuses one task after the other, and takes "
                                              "its time for each: trying another connection"]
    assert len(first.channels) == 1
    assert sorted(second.published) == sorted(f"t{n}" for n in range(1, 21))
    assert (played.status, played.finished) == (0, (20, 20))


def test_a_queue_that_stays_full_for_long_is_waited_out(play: Start) -> None:
    rests: list[float] = []
    played = play(Given(item("a")), Connection(refuses(1100, rests)))
    assert played.error is None
    assert (set(rests[5:]), played.status, played.finished) == ({2.0}, 0, (1, 1))


@pytest.mark.parametrize("multiple", [False, True])
def test_what_comes_back_is_not_confirmed_by_the_confirm_that_follows(multiple: bool, play: Start) -> None:
    """The queue was deleted: RabbitMQ returns the task, then confirms it all the same."""

    def steps(rabbitmq: Connection) -> Iterator[None]:
        rabbitmq.bring_back(1)
        rabbitmq.bring_back(3)
        for tag in (3,) if multiple else (1, 2, 3):
            rabbitmq.ack(tag, multiple)
        yield

    played = play(Given(*items(3)), Connection(steps))
    assert played.told("returned") == ["t1"]
    assert played.journal.words.count("declare q") == played.journal.words.count("declare q.dead") == 2
    assert played.again == ["t1", "t3"]
    assert played.told("confirmed") == ["t2", "t1", "t3"]
    assert (played.status, played.finished) == (0, (3, 3))


def test_of_two_tasks_that_are_alike_the_one_that_came_back_is_published_again(play: Start) -> None:
    def steps(rabbitmq: Connection) -> Iterator[None]:
        rabbitmq.bring_back(1)
        rabbitmq.ack(2, multiple=True)
        yield

    played = play(Given(item("a"), item("a")), Connection(steps))
    assert played.again == ["a"]
    assert played.finished == (2, 2)


def test_while_the_queue_is_declared_anew_nothing_is_published(ten: None, play: Start) -> None:
    def steps(rabbitmq: Connection) -> Iterator[None]:
        rabbitmq.bring_back(1)
        rabbitmq.ack(1)
        rabbitmq.ioloop.soon.rotate(1)  # the confirm is read before the answers to the declares
        rabbitmq.ioloop.soon.popleft()()
        assert len(rabbitmq.published) == 10
        yield

    played = play(Given(*items(11)), Connection(steps))
    assert played.error is None
    assert played.connections[0].published[10:] == ["t1", "t11"]


def test_an_alarm_stops_the_publishing_until_it_is_over(ten: None, play: Start) -> None:
    def steps(rabbitmq: Connection) -> Iterator[None]:
        rabbitmq.block()
        rabbitmq.ack(10, multiple=True)
        yield
        assert len(rabbitmq.published) == 10
        rabbitmq.unblock()
        yield
        assert len(rabbitmq.published) == 12
        reached.append(True)

    reached: list[bool] = []
    played = play(Given(*items(12)), Connection(steps))
    assert reached
    assert (played.told("blocked"), len(played.told("unblocked"))) == (["low on disk"], 1)


# -- a lost connection


def test_what_was_not_confirmed_is_published_again_first_and_in_its_order(play: Start) -> None:
    def steps(rabbitmq: Connection) -> Iterator[None]:
        rabbitmq.ack(1)
        rabbitmq.ack(4)
        yield
        rabbitmq.lose()
        yield

    played = play(Given(*items(6), *[None] * 3, item("t7"), fd=7), Connection(steps), Connection())
    first, second = played.connections
    assert first.published == ["t1", "t2", "t3", "t4", "t5", "t6"]
    assert second.published == ["t2", "t3", "t5", "t6", "t7"]
    assert played.again == ["t2", "t3", "t5", "t6"]
    assert sorted(played.told("confirmed")) == [f"t{n}" for n in range(1, 8)]
    assert (played.status, played.finished) == (0, (7, 7))
    assert len(played.told("connection_lost")) == 1 and played.rests == [0.25]


def test_what_was_on_its_way_goes_before_what_had_been_refused(play: Start) -> None:
    def steps(rabbitmq: Connection) -> Iterator[None]:
        rabbitmq.nack(1)
        rabbitmq.nack(3)
        yield
        rabbitmq.lose()
        yield

    played = play(Given(*items(4)), Connection(steps), Connection())
    assert played.connections[1].published == ["t2", "t4", "t1", "t3"]
    assert played.finished == (4, 4)


def test_a_return_whose_confirm_is_lost_does_not_spoil_the_next_confirm(play: Start) -> None:
    def steps(rabbitmq: Connection) -> Iterator[None]:
        rabbitmq.bring_back(1)
        rabbitmq.lose()
        yield

    played = play(Given(*items(2)), Connection(steps), Connection())
    assert played.connections[1].published == ["t1", "t2"]
    assert played.finished == (2, 2)


def test_connection_after_connection_nothing_is_lost_and_nothing_counted_twice(play: Start) -> None:
    def steps(rabbitmq: Connection) -> Iterator[None]:
        rabbitmq.ack(2)
        yield
        rabbitmq.lose()
        yield

    played = play(Given(*items(5)), *(Connection(steps) for _ in range(4)), Connection())
    assert [rabbitmq.published for rabbitmq in played.connections] == [
        ["t1", "t2", "t3", "t4", "t5"], ["t1", "t3", "t4", "t5"], ["t1", "t4", "t5"], ["t1", "t5"], ["t1"]]
    assert (played.status, played.finished) == (0, (5, 5))


def test_the_addresses_are_tried_in_turn_and_there_is_a_rest_after_the_last(play: Start) -> None:
    down = [Connection(failure=ConnectionRefusedError(111, "refused")) for _ in range(5)]
    played = play(Given(*items(1)), *down, Connection(), url="amqp://a,amqp://b,amqp://c")
    assert played.rests == [0.0, 0.0, 0.25, 0.0, 0.0]
    assert played.finished == (1, 1)


def test_a_refused_login_ends_it_at_first_and_is_waited_out_later(play: Start) -> None:
    def steps(rabbitmq: Connection) -> Iterator[None]:
        rabbitmq.lose()
        yield

    refused = ProbableAuthenticationError("refused")
    assert isinstance(play(Given(*items(1)), Connection(failure=refused)).error, Denied)
    played = play(Given(*items(1)), Connection(steps), Connection(failure=refused), Connection())
    assert (played.error, played.finished) == (None, (1, 1))


def test_a_queue_with_other_arguments_ends_it_with_the_way_out(play: Start) -> None:
    refusal = ChannelClosedByBroker(406, "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue")
    played = play(Given(*items(1)), Connection(refusal=refusal))
    assert isinstance(played.error, QueueDiffers)
    assert "x-queue-type differs" in str(played.error) and "--queue NAME" in str(played.error)
    assert played.told("published") == []


def test_no_connection_within_the_time_allowed_says_what_is_confirmed(play: Start) -> None:
    def steps(rabbitmq: Connection) -> Iterator[None]:
        rabbitmq.ack(1)
        yield
        rabbitmq.lose()
        yield

    played = play(Given(*items(3)), Connection(steps), connect_timeout=-1)
    assert str(played.error).startswith("no connection within -1 s: ")
    assert str(played.error).endswith("; 1 of the 3 tasks read are confirmed")


def test_a_connection_on_which_nothing_is_confirmed_any_more_is_replaced(
    play: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ 4.3 did so after a node that stood still had come back: heartbeats went on, confirms did not."""

    def silent(rabbitmq: Connection) -> Iterator[None]:
        rabbitmq.ack(1)
        monkeypatch.setattr("producer.SILENCE", -1)
        while rabbitmq.is_open:
            rabbitmq.ioloop.tick()
            yield

    def healthy(rabbitmq: Connection) -> Iterator[None]:
        monkeypatch.setattr("producer.SILENCE", 30)
        yield from ()

    played = play(Given(*items(3)), Connection(silent), Connection(healthy))
    assert played.error is None and len(played.told("connection_lost")) == 1
    assert len(played.again) == 2
    assert len(played.told("confirmed")) == 3


def test_no_connection_within_the_time_allowed_says_where_to_go_on(
    play: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(rabbitmq: Connection) -> Iterator[None]:
        rabbitmq.ack(1)
        yield
        rabbitmq.lose()
        yield

    source = Given(*items(3))
    monkeypatch.setattr(source, "left", lambda: "line 4 and on of x (tail -n +4)")
    played = play(source, Connection(steps), connect_timeout=-1)
    assert str(played.error).endswith(
        "; not published: line 4 and on of x (tail -n +4); unconfirmed before it: 2"
    )


# -- signals


def sends(signum: int, times: int = 1) -> Callable[[Connection], Iterator[None]]:
    def steps(rabbitmq: Connection) -> Iterator[None]:
        for _ in range(times):
            signal.raise_signal(signum)
        yield

    return steps


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_waits_for_the_confirms_of_what_is_on_its_way(signum: int, status: int, play: Start) -> None:
    played = play(Given(*items(5), None, item("t6"), fd=7), Connection(sends(signum)))
    assert played.told("confirmed") == ["t1", "t2", "t3", "t4", "t5"]
    assert (played.status, played.finished) == (status, (5, 5))
    assert played.journal.words[-2:] == ["close", "finished"]
    assert played.journal.events[-1]["left"] == "1 more"


def refuses_one_amid_a_stop(rabbitmq: Connection) -> Iterator[None]:
    rabbitmq.nack(1)
    signal.raise_signal(signal.SIGINT)
    yield


def test_a_stop_says_what_is_left_and_that_something_before_it_may_be(play: Start) -> None:
    played = play(Given(*items(2), None, item("t3"), fd=7), Connection(refuses_one_amid_a_stop))
    assert played.finished == (2, 1)
    assert played.journal.events[-1]["left"] == "1 more; unconfirmed before it: 1"


def test_a_stop_publishes_nothing_more_not_even_again(play: Start) -> None:
    played = play(Given(*items(2)), Connection(refuses_one_amid_a_stop))
    assert (played.again, played.told("confirmed")) == ([], ["t2"])
    assert (played.status, played.finished) == (130, (2, 1))


def test_a_stop_that_comes_when_all_is_on_its_way_changes_nothing(play: Start) -> None:
    played = play(Given(*items(3)), Connection(sends(signal.SIGINT)))
    assert (played.status, played.finished) == (0, (3, 3))


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_does_not_wait_and_claims_nothing(
    signum: int, status: int, play: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "REPEAT", 0.0)
    played = play(Given(*items(3)), Connection(sends(signum, times=2)))
    assert (played.status, played.finished, played.told("confirmed")) == (status, (3, 0), [])


# -- the input


@pytest.mark.parametrize("status", [1, 2])
def test_what_comes_before_a_bad_line_is_confirmed_and_counted_in_the_error(status: int, play: Start) -> None:
    played = play(Given(*items(3), BadLine("stdin, line 4: not JSON", status=status), item("t5")), Connection())
    assert isinstance(played.error, BadLine)
    assert str(played.error) == "stdin, line 4: not JSON; 3 of the 3 tasks read are confirmed"
    assert played.error.status == status
    assert played.finished == (3, 3)


def test_a_bad_line_and_a_lost_connection_lose_nothing_of_what_came_before(play: Start) -> None:
    def steps(rabbitmq: Connection) -> Iterator[None]:
        rabbitmq.lose()
        yield

    played = play(Given(*items(2), BadLine("line 3")), Connection(steps), Connection())
    assert isinstance(played.error, BadLine) and played.finished == (2, 2)


def test_a_pipe_with_nothing_to_read_is_waited_for_by_the_loop(play: Start) -> None:
    """Heartbeats go on, and confirms are read."""

    def steps(rabbitmq: Connection) -> Iterator[None]:
        assert list(rabbitmq.ioloop.waiting_for) == [7]
        rabbitmq.ack(1)  # and it is not waited for twice
        yield
        assert rabbitmq.is_open  # all is confirmed, but the input goes on
        rabbitmq.ioloop.waiting_for[7](7, Loop.READ)
        assert rabbitmq.published == ["t1", "t2"]
        assert list(rabbitmq.ioloop.waiting_for) == [7]
        rabbitmq.ioloop.waiting_for[7](7, Loop.READ)
        assert rabbitmq.ioloop.waiting_for == {}
        reached.append(True)

    reached: list[bool] = []
    played = play(Given(item("t1"), None, None, item("t2"), None, fd=7), Connection(steps))
    assert reached
    assert (played.status, played.finished) == (0, (2, 2))


# -- the window, by itself: what many connections and orders of answers would have to show


def filled(*names: str) -> Window:
    made = Window()
    for name in names:
        made.published(item(name))
    return made


@pytest.mark.parametrize(
    ("tag", "multiple", "settled"),
    [(1, False, "a"), (3, False, "c"), (1, True, "a"), (2, True, "ab"), (4, True, "abcd"), (9, True, "abcd")],
)
def test_an_answer_settles_one_or_all_up_to_one(tag: int, multiple: bool, settled: str) -> None:
    made = filled(*"abcd")
    assert made.settle(tag, multiple) == [(item(name), False) for name in settled]
    assert len(made) == 4 - len(settled)
    made.lost()
    assert [one.id for one in made.again] == [name for name in "abcd" if name not in settled]


def test_a_new_channel_counts_from_1() -> None:
    made = filled("a", "b")
    made.lost()
    made.published(made.again.popleft())
    assert made.settle(1, multiple=False) == [(item("a"), False)]


def test_the_room_comes_back_with_the_answer() -> None:
    made = filled(*map(str, range(window.MOST)))
    assert not made.has_room()
    made.settle(500, multiple=False)
    assert made.has_room()


def test_the_room_for_bytes_comes_back_with_the_answer_and_with_the_loss() -> None:
    made = Window()
    made.published(item("big", window.MOST_BYTES))
    assert not made.has_room()
    made.settle(1, multiple=False)
    assert made.has_room()
    made.published(item("big", window.MOST_BYTES))
    made.lost()
    assert made.has_room()
