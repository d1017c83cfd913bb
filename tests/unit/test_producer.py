"""What a producer keeps account of: what is published, what is confirmed, and what must be published again."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from producer import STOP_WAIT, TICK, Producer
from tareas.errors import BadLine, Denied, QueueDiffers, Refused, Trouble, Unreachable
from tareas.tell.events import Events
from tareas.work import signals, window
from tareas.work.sources import Item
from tests.unit.fakes import Connection, Journal, confirm_all, hand_out

DEADLINE = 30.0  # seconds that no test comes near


def item(name: str, size: int = 10, line: int = 0) -> Item:
    return Item(name, b"x" * size, line)


def items(count: int, size: int = 10) -> list[Item]:
    return [item(f"t{n}", size, n) for n in range(1, count + 1)]


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

    def left(self, after: int | None = None) -> str:
        left = len(self._steps) if after is None else (self.total or 0) - after
        return f"{left} more" if left else ""

    def place(self, item: Item) -> str:
        return f"line {item.line} (task {item.id!r}, {len(item.body):,} bytes)"


Steps = Callable[[Connection], Iterator[None]]


def rabbitmq(steps: Steps | None = None, refusal: Exception | None = None) -> Connection:
    """steps: what happens, up to each `yield`, whenever the producer waits. After the last one, and without any,
    RabbitMQ confirms whatever comes."""

    def all_steps(connection: Connection) -> Iterator[None]:
        if steps is not None:
            yield from steps(connection)
        yield from confirm_all(connection)

    return Connection(steps=all_steps, refusal=refusal)


def until_published(connection: Connection) -> Iterator[None]:
    while not connection.sent:
        yield


def lose(connection: Connection) -> Iterator[None]:
    connection.lose()
    yield


class Play:
    """A producer with its source on these connections, one after the other: `status` of its end, or its `error`."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, source: Given, outcomes: tuple[Any, ...], **options: Any
    ) -> None:
        self.journal = Journal(monkeypatch)
        self.connections = [each for each in outcomes if isinstance(each, Connection)]
        self.rests: list[float] = []
        self.status: int | None = None
        self.error: Exception | None = None
        left = hand_out(monkeypatch, "producer", self.journal, *outcomes)
        events = Events("producer", as_json=True, stream=self.journal.stream)
        self.journal.stream.broken_at = options.pop("broken_at", "")
        self.producer = Producer(source, queue="q", events=events, **options)
        monkeypatch.setattr(self.producer.stopping, "rest", self._rest)
        try:
            self.status = self.producer.start()
        except Exception as error:
            self.error = error
        assert left == []

    def _rest(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.journal.now += seconds

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
    return lambda source, *outcomes, **options: Play(monkeypatch, source, outcomes, **options)


Start = Callable[..., Play]


@pytest.fixture
def ten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten tasks on their way instead of a thousand, where the number does not matter."""
    monkeypatch.setattr(window, "MOST", 10)


# -- the usual way


def test_the_order_of_the_protocol(play: Start) -> None:
    """Nothing is published before it can be confirmed, and before both queues are there."""
    played = play(Given(*items(1)), rabbitmq())
    assert played.journal.words == ["declare q.dead", "declare q", "confirm mode", "connected", "published",
                                    "confirmed", "close", "finished"]  # fmt: skip
    assert (played.status, played.finished) == (0, (1, 1))


def test_a_message_can_survive_a_restart_and_tells_who_wants_what(play: Start) -> None:
    seen: list[Any] = []

    def steps(connection: Connection) -> Iterator[None]:
        seen.extend(connection.sent.values())
        yield

    play(Given(item("a"), item("b")), rabbitmq(steps))
    assert [(sent.exchange, sent.routing_key, sent.mandatory) for sent in seen] == [("", "q", True)] * 2
    assert [(sent.properties.message_id, sent.body) for sent in seen] == [("a", b"x" * 10), ("b", b"x" * 10)]
    for sent in seen:
        assert (sent.properties.delivery_mode, sent.properties.content_type) == (2, "application/json")
        assert sent.properties.app_id == "producer.py"
        assert isinstance(sent.properties.timestamp, int) and abs(sent.properties.timestamp - time.time()) < DEADLINE
        assert sent.properties.encode()  # AMQP can carry it


def test_nothing_to_publish_is_a_success(play: Start) -> None:
    played = play(Given(), rabbitmq())
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
    def steps(connection: Connection) -> Iterator[None]:
        for tag, multiple in answers:
            connection.ack(tag, multiple)
            yield

    played = play(Given(*items(4)), rabbitmq(steps))
    assert played.told("confirmed") == order.split()
    assert (played.status, played.finished) == (0, (4, 4))


def test_it_does_not_end_before_the_last_confirm(play: Start) -> None:
    def steps(connection: Connection) -> Iterator[None]:
        connection.ack(2, multiple=True)
        yield from [None] * 100
        assert connection.is_open and connection.sent
        asserted.append(True)

    asserted: list[bool] = []
    played = play(Given(*items(3)), rabbitmq(steps))
    assert asserted and played.finished == (3, 3)


# -- how much may be on its way


def test_a_thousand_tasks_are_on_their_way_and_no_more(play: Start) -> None:
    def steps(connection: Connection) -> Iterator[None]:
        assert len(connection.sent) == 1000
        for tag in (1, 7, 500):
            connection.ack(tag)
            yield
            assert len(connection.sent) == 1000  # one for one
        connection.ack(600, multiple=True)
        yield
        reached.append(len(connection.sent))

    reached: list[int] = []
    played = play(Given(*items(2500)), rabbitmq(steps))
    assert reached == [1000] and played.connections[0].most == 1000
    assert (played.status, played.finished) == (0, (2500, 2500))
    assert played.connections[0].published == [f"t{n}" for n in range(1, 2501)]


def test_big_tasks_are_fewer(play: Start) -> None:
    """8 MiB in all, one task's rest over it at most: RabbitMQ and this process must hold it in memory."""
    size = 2**20 - 1
    played = play(Given(*items(40, size)), rabbitmq())
    assert played.connections[0].most == 9
    assert 8 * 2**20 <= played.connections[0].most_bytes < 8 * 2**20 + size
    assert played.finished == (40, 40)


def test_the_bytes_of_what_was_lost_do_not_count_any_more(play: Start) -> None:
    def steps(connection: Connection) -> Iterator[None]:
        connection.ack(1)
        yield
        yield from lose(connection)

    played = play(Given(*items(40, 2**20)), *(rabbitmq(steps) for _ in range(3)), rabbitmq())
    assert [each.most for each in played.connections] == [8, 8, 8, 8]


def test_a_task_larger_than_what_was_stored_travels_alone(play: Start) -> None:
    """If RabbitMQ takes it for too large, it ends the channel, and does not say which one it was."""

    def steps(connection: Connection) -> Iterator[None]:
        for sent in (["t1"], ["big"], ["big2", "t2"]):
            assert [each.properties.message_id for each in connection.sent.values()] == sent
            connection.ack(max(connection.sent), multiple=True)
            yield

    played = play(Given(item("t1"), item("big", 5000), item("big2", 8000), item("t2")), rabbitmq(steps))
    assert (played.error, played.finished) == (None, (4, 4))


def too_large(connection: Connection) -> Iterator[None]:
    connection.lose(Refused("RabbitMQ at h closed the channel: message size 5000 is larger than 4500", 406, True))
    yield


def test_a_task_that_rabbitmq_does_not_take_is_named_and_what_came_before_is_confirmed_once(play: Start) -> None:
    def steps(connection: Connection) -> Iterator[None]:
        connection.ack(2, multiple=True)
        yield
        yield from too_large(connection)

    played = play(Given(*items(2), item("big", 5000, 3), item("t4")), rabbitmq(steps))
    assert isinstance(played.error, Trouble) and played.error.status == 1
    for words in ("line 3 (task 'big', 5,000 bytes)", "message size 5000 is larger", "1 more",
                  "2 of the 3 tasks read are confirmed"):  # fmt: skip
        assert words in str(played.error)
    assert (played.connections[0].published, played.told("confirmed")) == (["t1", "t2", "big"], ["t1", "t2"])


def test_if_it_may_be_any_of_several_they_are_published_again_one_at_a_time(play: Start) -> None:
    def second(connection: Connection) -> Iterator[None]:
        for _ in range(2):
            connection.ack(max(connection.sent))
            yield
        yield from too_large(connection)

    first = rabbitmq(too_large)
    played = play(Given(*items(5)), first, rabbitmq(second))
    assert (first.most, played.connections[1].most) == (5, 1)
    assert "line 3" in str(played.error) and played.told("confirmed") == ["t1", "t2"]


# -- what RabbitMQ does not store


def test_a_refused_task_is_published_again_after_a_rest_and_told_once(play: Start) -> None:
    """Until RabbitMQ takes one: from then on it is a new refusal."""

    def steps(connection: Connection) -> Iterator[None]:
        connection.nack(2, multiple=True)
        connection.ack(3)
        refused_at = connection.journal.now
        yield
        yield from until_published(connection)
        rests.append(connection.sent[4].at - refused_at)
        assert connection.published[3:] == ["t1", "t2"]
        connection.ack(4)
        yield
        connection.nack(5)
        yield
        yield from until_published(connection)

    rests: list[float] = []
    played = play(Given(*items(3)), rabbitmq(steps))
    assert "renew" not in played.journal.words
    assert played.told("refused") == ["t1", "t2"]
    assert 0.1 <= rests[0] < 0.1 + 2 * TICK
    assert played.again == ["t1", "t2", "t2"]
    assert played.told("confirmed") == ["t3", "t1", "t2"]
    assert (played.status, played.finished) == (0, (3, 3))


def test_nothing_new_is_published_while_the_queue_is_full(ten: None, play: Start) -> None:
    def steps(connection: Connection) -> Iterator[None]:
        connection.nack(1)
        connection.ack(2)
        yield
        while len(connection.published) == 10:
            yield
        assert connection.published[10:12] == ["t1", "t11"]

    played = play(Given(*items(15)), rabbitmq(steps))
    assert played.error is None and played.finished == (15, 15)


def refuses(times: int, rests: list[float]) -> Callable[[Connection], Iterator[None]]:
    """A queue that is full so many times; how long the producer rests after each of them."""

    def steps(connection: Connection) -> Iterator[None]:
        for _ in range(times):
            connection.nack(max(connection.sent))
            refused_at = connection.journal.now
            yield
            yield from until_published(connection)
            rests.append(connection.sent[max(connection.sent)].at - refused_at)

    return steps


def test_the_rests_of_a_full_queue_double_up_to_two_seconds_and_every_fifth_brings_a_new_channel(play: Start) -> None:
    """A channel of RabbitMQ 3.10 that met the queue without its leader refuses for ever."""
    rests: list[float] = []
    played = play(Given(item("a")), rabbitmq(refuses(11, rests)))
    for rest, least in zip(rests, [0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2, 2, 2, 2], strict=True):
        assert least <= rest < least + 2 * TICK
    assert played.journal.words.count("renew") == 2
    assert [word for word in played.journal.words if "declare q" in word or word in ("renew", "confirm mode")] == [
        "declare q.dead", "declare q", "confirm mode",
        *["renew", "declare q.dead", "declare q", "confirm mode"] * 2]  # fmt: skip
    assert played.told("refused") == ["a"]
    assert played.finished == (1, 1)


def test_a_channel_that_refuses_one_task_after_the_other_takes_its_connection_along(play: Start) -> None:
    """RabbitMQ 3.10 does so while the machine of the queue's leader stands still: seven seconds for each task."""

    def steps(connection: Connection) -> Iterator[None]:
        for _ in range(5):
            connection.nack(min(connection.sent))
            before = len(connection.published)
            while len(connection.published) == before:
                yield
        while True:
            yield

    first, second = rabbitmq(steps), rabbitmq()
    played = play(Given(*items(20)), first, second)
    assert played.told("connection_lost") == ["RabbitMQ at 127.0.0.1:1 refuses one task after the other, and takes "
                                              "its time for each: trying another connection"]
    assert "renew" not in played.journal.words
    assert sorted(second.published) == sorted(f"t{n}" for n in range(1, 21))
    assert (played.status, played.finished) == (0, (20, 20))


def test_a_queue_that_stays_full_for_long_is_waited_out(play: Start) -> None:
    rests: list[float] = []
    played = play(Given(item("a")), rabbitmq(refuses(1100, rests)))
    assert played.error is None
    assert all(2 <= rest < 2 + 2 * TICK for rest in rests[5:])
    assert (played.status, played.finished) == (0, (1, 1))


@pytest.mark.parametrize("multiple", [False, True])
def test_what_comes_back_is_not_confirmed_by_the_confirm_that_follows(multiple: bool, play: Start) -> None:
    """The queue was deleted: RabbitMQ returns the task, then confirms it all the same."""

    def steps(connection: Connection) -> Iterator[None]:
        connection.bring_back(1)
        connection.bring_back(3)
        for tag in (3,) if multiple else (1, 2, 3):
            connection.ack(tag, multiple)
        yield

    played = play(Given(*items(3)), rabbitmq(steps))
    assert played.told("returned") == ["t1"]
    assert played.journal.words.count("declare q") == played.journal.words.count("declare q.dead") == 2
    assert played.again == ["t1", "t3"]
    assert played.told("confirmed") == ["t2", "t1", "t3"]
    assert (played.status, played.finished) == (0, (3, 3))


def test_of_two_tasks_that_are_alike_the_one_that_came_back_is_published_again(play: Start) -> None:
    def steps(connection: Connection) -> Iterator[None]:
        connection.bring_back(1)
        connection.ack(2, multiple=True)
        yield

    played = play(Given(item("a"), item("a")), rabbitmq(steps))
    assert played.again == ["a"]
    assert played.finished == (2, 2)


def test_an_alarm_stops_the_publishing_until_it_is_over(ten: None, play: Start) -> None:
    def steps(connection: Connection) -> Iterator[None]:
        connection.block()
        connection.ack(10, multiple=True)
        yield
        assert len(connection.published) == 10
        connection.unblock()
        yield
        assert len(connection.published) == 12
        reached.append(True)

    reached: list[bool] = []
    played = play(Given(*items(12)), rabbitmq(steps))
    assert reached
    assert (played.told("blocked"), len(played.told("unblocked"))) == (["low on disk"], 1)


# -- a lost connection


def test_what_was_not_confirmed_is_published_again_first_and_in_its_order(play: Start) -> None:
    def steps(connection: Connection) -> Iterator[None]:
        connection.ack(1)
        connection.ack(4)
        yield
        connection.lose()
        yield

    played = play(Given(*items(6), *[None] * 3, item("t7"), fd=7), rabbitmq(steps), rabbitmq())
    first, second = played.connections
    assert first.published == ["t1", "t2", "t3", "t4", "t5", "t6"]
    assert second.published == ["t2", "t3", "t5", "t6", "t7"]
    assert played.again == ["t2", "t3", "t5", "t6"]
    assert sorted(played.told("confirmed")) == [f"t{n}" for n in range(1, 8)]
    assert (played.status, played.finished) == (0, (7, 7))
    assert len(played.told("connection_lost")) == 1 and played.rests == [0.25]


def test_what_was_on_its_way_goes_before_what_had_been_refused(play: Start) -> None:
    def steps(connection: Connection) -> Iterator[None]:
        connection.nack(1)
        connection.nack(3)
        yield
        connection.lose()
        yield

    played = play(Given(*items(4)), rabbitmq(steps), rabbitmq())
    assert played.connections[1].published == ["t2", "t4", "t1", "t3"]
    assert played.finished == (4, 4)


def test_a_return_whose_confirm_is_lost_does_not_spoil_the_next_confirm(play: Start) -> None:
    def steps(connection: Connection) -> Iterator[None]:
        connection.bring_back(1)
        connection.lose()
        yield

    played = play(Given(*items(2)), rabbitmq(steps), rabbitmq())
    assert played.connections[1].published == ["t1", "t2"]
    assert played.finished == (2, 2)


def test_connection_after_connection_nothing_is_lost_and_nothing_counted_twice(play: Start) -> None:
    def steps(connection: Connection) -> Iterator[None]:
        connection.ack(2)
        yield
        connection.lose()
        yield

    played = play(Given(*items(5)), *(rabbitmq(steps) for _ in range(4)), rabbitmq())
    assert [each.published for each in played.connections] == [
        ["t1", "t2", "t3", "t4", "t5"], ["t1", "t3", "t4", "t5"], ["t1", "t4", "t5"], ["t1", "t5"], ["t1"]]
    assert (played.status, played.finished) == (0, (5, 5))


def test_confirms_that_came_before_the_loss_count(ten: None, play: Start) -> None:
    def steps(connection: Connection) -> Iterator[None]:
        for tag in (1, 2, 3):
            connection.ack(tag)
        connection.lose()
        yield

    played = play(Given(*items(15)), rabbitmq(steps), rabbitmq())
    assert played.told("confirmed")[:3] == ["t1", "t2", "t3"]
    assert played.connections[1].published[:3] == ["t4", "t5", "t6"] and played.finished == (15, 15)


def test_the_rests_before_it_connects_again_grow_until_something_is_confirmed(play: Start) -> None:
    def one(connection: Connection) -> Iterator[None]:
        connection.ack(1)
        yield
        yield from lose(connection)

    played = play(Given(*items(3)), Unreachable("not up"), rabbitmq(lose), rabbitmq(one), rabbitmq(lose), rabbitmq())
    assert played.rests == [0.25, 0.375, 0.25, 0.375]
    assert played.finished == (3, 3)


def test_a_refused_login_ends_it_at_first_and_is_waited_out_later(play: Start) -> None:
    def one(connection: Connection) -> Iterator[None]:
        connection.ack(1)
        yield
        yield from lose(connection)

    assert isinstance(play(Given(*items(1)), Denied("no")).error, Denied)
    played = play(Given(*items(2)), rabbitmq(one), Denied("no users yet"), rabbitmq())
    assert (played.error, played.finished) == (None, (2, 2))


def test_a_queue_with_other_arguments_ends_it(play: Start) -> None:
    played = play(Given(*items(1)), rabbitmq(refusal=QueueDiffers("queue 'q' exists with other arguments")))
    assert isinstance(played.error, QueueDiffers)
    assert played.told("published") == []


@pytest.mark.parametrize(
    ("left", "end"),
    [("", "; 1 of the 3 tasks read are confirmed"),
     ("line 4 and on of x (tail -n +4)",
      "; not published: line 4 and on of x (tail -n +4); unconfirmed before it: 2")],
)  # fmt: skip
def test_no_connection_within_the_time_allowed_says_what_is_confirmed_and_where_to_go_on(
    left: str, end: str, play: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(connection: Connection) -> Iterator[None]:
        connection.ack(1)
        yield
        yield from lose(connection)

    source = Given(*items(3))
    monkeypatch.setattr(source, "left", lambda after=None: left)
    played = play(source, rabbitmq(steps), Unreachable("not up"), connect_timeout=0)
    assert isinstance(played.error, Trouble)
    assert str(played.error).startswith("no connection within 0 s: not up")
    assert str(played.error).endswith(end)


def test_a_connection_on_which_nothing_is_confirmed_any_more_is_replaced(play: Start) -> None:
    """RabbitMQ 4.3 did so after a node that stood still had come back: heartbeats went on, confirms did not."""

    def silent(connection: Connection) -> Iterator[None]:
        connection.ack(1)
        while True:
            yield

    played = play(Given(*items(3)), rabbitmq(silent), rabbitmq())
    assert played.error is None and "did not answer within 30 s" in played.told("connection_lost")[0]
    assert len(played.again) == 2
    assert len(played.told("confirmed")) == 3


def test_that_is_noticed_too_by_a_producer_that_is_fed_slowly(play: Start) -> None:
    """A task every eight seconds: bytes move all the time, and no confirm comes."""

    def silent(connection: Connection) -> Iterator[None]:
        while True:
            yield

    fed = [each for name in ("t1", "t2", "t3", "t4", "t5") for each in (item(name), *[None] * 80)]
    played = play(Given(*fed, fd=7), rabbitmq(silent), rabbitmq())
    assert played.error is None and "did not answer within 30 s" in played.told("connection_lost")[0]
    assert len(played.told("confirmed")) == 5


def test_a_link_that_is_slow_is_no_silence(play: Start) -> None:
    """What was published is still on its way."""

    def slow(connection: Connection) -> Iterator[None]:
        for _ in range(1000):
            connection.sending = connection.journal.now
            yield
        connection.ack(3, multiple=True)
        yield

    played = play(Given(*items(3)), rabbitmq(slow))
    assert (played.error, played.finished, played.told("connection_lost")) == (None, (3, 3), [])


def test_a_pipe_that_is_silent_for_long_is_no_silence_of_rabbitmq(play: Start) -> None:
    def steps(connection: Connection) -> Iterator[None]:
        connection.ack(1)
        yield
        connection.journal.now += 100
        yield from [None] * 50

    played = play(Given(item("t1"), *[None] * 60, item("t2"), fd=7), rabbitmq(steps))
    assert (played.error, played.finished, played.told("connection_lost")) == (None, (2, 2), [])


@pytest.mark.parametrize("word", ["connected", "published", "confirmed", "refused", "returned", "connection_lost"])
def test_an_event_that_cannot_be_told_ends_the_producer_and_is_no_lost_connection(word: str, play: Start) -> None:
    def steps(connection: Connection) -> Iterator[None]:
        if word == "connection_lost":
            connection.lose()
        else:
            {"refused": connection.nack, "returned": connection.bring_back}.get(word, connection.ack)(1)
        yield

    played = play(Given(*items(3)), rabbitmq(steps), broken_at=word)
    assert isinstance(played.error, BrokenPipeError)
    assert "waiting" not in played.journal.words and played.told("confirmed") == []


# -- signals


def sends(signum: int, times: int = 1) -> Callable[[Connection], Iterator[None]]:
    def steps(connection: Connection) -> Iterator[None]:
        for _ in range(times):
            signal.raise_signal(signum)
        yield

    return steps


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_waits_for_the_confirms_of_what_is_on_its_way(signum: int, status: int, play: Start) -> None:
    played = play(Given(*items(5), None, item("t6"), fd=7), rabbitmq(sends(signum)))
    assert played.told("confirmed") == ["t1", "t2", "t3", "t4", "t5"]
    assert (played.status, played.finished) == (status, (5, 5))
    assert played.journal.words[-2:] == ["close", "finished"]
    assert played.journal.events[-1]["left"] == "1 more"


def refuses_one_amid_a_stop(connection: Connection) -> Iterator[None]:
    connection.nack(1)
    signal.raise_signal(signal.SIGINT)
    yield


def test_a_stop_says_what_is_left_and_that_something_before_it_may_be(play: Start) -> None:
    played = play(Given(*items(2), None, item("t3"), fd=7), rabbitmq(refuses_one_amid_a_stop))
    assert played.finished == (2, 1)
    assert played.journal.events[-1]["left"] == "1 more; unconfirmed before it: 1"


def test_a_stop_publishes_nothing_more_not_even_again(play: Start) -> None:
    played = play(Given(*items(2)), rabbitmq(refuses_one_amid_a_stop))
    assert (played.again, played.told("confirmed")) == ([], ["t2"])
    assert (played.status, played.finished) == (130, (2, 1))


def test_a_stop_that_comes_when_all_is_on_its_way_changes_nothing(play: Start) -> None:
    played = play(Given(*items(3)), rabbitmq(sends(signal.SIGINT)))
    assert (played.status, played.finished) == (0, (3, 3))


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_does_not_wait_and_claims_nothing(
    signum: int, status: int, play: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "REPEAT", 0.0)
    played = play(Given(*items(3)), rabbitmq(sends(signum, times=2)))
    assert (played.status, played.finished, played.told("confirmed")) == (status, (3, 0), [])


def test_after_a_signal_it_waits_for_confirms_no_longer_than_it_says(play: Start) -> None:
    """An alarm, say, of which nobody knows the end."""

    def steps(connection: Connection) -> Iterator[None]:
        connection.block()
        began.append(connection.journal.now)
        signal.raise_signal(signal.SIGTERM)
        while True:
            yield

    began: list[float] = []
    played = play(Given(*items(3)), rabbitmq(steps))
    assert played.told("stopping")[0].startswith(f"waiting for 3 confirms, {STOP_WAIT:g} s at most")
    assert (played.status, played.finished) == (143, (3, 0))
    assert STOP_WAIT <= played.journal.now - began[0] < STOP_WAIT + 1


# -- the input


@pytest.mark.parametrize("status", [1, 2])
def test_what_comes_before_a_bad_line_is_confirmed_and_counted_in_the_error(status: int, play: Start) -> None:
    played = play(Given(*items(3), BadLine("stdin, line 4: not JSON", status=status), item("t5")), rabbitmq())
    assert isinstance(played.error, BadLine)
    assert str(played.error) == "stdin, line 4: not JSON; 3 of the 3 tasks read are confirmed"
    assert played.error.status == status
    assert played.finished == (3, 3)


def test_a_bad_line_and_a_lost_connection_lose_nothing_of_what_came_before(play: Start) -> None:
    played = play(Given(*items(2), BadLine("line 3")), rabbitmq(lose), rabbitmq())
    assert isinstance(played.error, BadLine) and played.finished == (2, 2)


def test_a_pipe_with_nothing_to_read_is_waited_for_and_meanwhile_confirms_are_read(play: Start) -> None:
    def steps(connection: Connection) -> Iterator[None]:
        assert connection.watched == [7]
        connection.ack(1)
        yield
        yield
        assert connection.is_open and not connection.sent  # all is confirmed, but the input goes on
        connection.readable(7)
        yield
        assert connection.watched == [7]  # again
        reached.append(True)

    reached: list[bool] = []
    played = play(Given(item("t1"), *[None] * 9, item("t2"), None, fd=7), rabbitmq(steps))
    assert reached
    assert (played.status, played.finished) == (0, (2, 2))
