"""What a worker does with a delivery: the decision between ack, nack and dead letter as a table, in its order."""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pika
import pytest
from hypothesis import given, strategies as st

from tareas import Reject
from tareas.errors import ConsumerGone, Denied, Lost, Nacked, QueueDiffers, Refused, Trouble, Unreachable, Unroutable
from tareas.rabbit.connect import connect
from tareas.task import MAX_BYTES, MAX_DEPTH
from tareas.tell.events import Events
from tareas.work import prefetch, signals
from tareas.work.link import Hand
from tests.unit.fakes import IDLE, Connection, Delivery, Journal, arrived, hand_out, stop
from worker import Worker

DEADLINE = 30.0  # seconds that no test comes near
LAST = Delivery(redelivered=True, headers={"x-delivery-count": 4})  # attempt 5 of 5
LAST_OF_A_HANDLER = Delivery(b'{"id": "a"}', redelivered=True, headers={"x-delivery-count": 4})
SPENT = Delivery(redelivered=True, headers={"x-delivery-count": 5})
BURIED = ["sent to q.dead", "stored", "dead_lettered", "ack"]
GIVEN_BACK = ["requeued", "nack, requeue"]
FULL = Nacked("queue 'q.dead' is full, or has lost its leader")


class Bench:
    """A worker whose connections and rests are fakes; its signals and its events are real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.journal = Journal(monkeypatch)
        self.worker: Worker = Worker("unused")
        self.while_resting: Callable[[], object] = lambda: None
        self._monkeypatch = monkeypatch

    def run(self, handler: Callable[[dict[str, Any]], Any] | None, *outcomes: Connection | Exception,
            kind: type[Worker] = Worker, **options: Any) -> int:
        """Start a worker that finds these when it connects; the exit status."""
        hand_out(self._monkeypatch, "worker", self.journal, *outcomes)
        events = Events("w", as_json=True, stream=self.journal.stream)
        self.worker = kind("w", queue="q", handler=handler, events=events, **options)
        self._monkeypatch.setattr(self.worker.stopping, "rest", self._rest)
        return self.worker.start()

    def _rest(self, seconds: float) -> None:
        self.journal.add(f"rest {seconds:g}")
        self.journal.now += seconds
        self.while_resting()

    def counts(self) -> tuple[int, int, int]:
        return self.worker.tasks_processed, self.worker.tasks_failed, self.worker.tasks_dead_lettered

    @property
    def connection(self) -> Connection:
        """The one that the worker uses."""
        connection: Any = self.worker.link.connection
        assert isinstance(connection, Connection)
        return connection


def rabbitmq(*deliveries: Delivery, **options: Any) -> Connection:
    return Connection(*deliveries, **{"steps": stop, **options})


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


# -- handlers: each gets the bench, to do what happens while a task runs


def fine(bench: Bench, task: dict[str, Any]) -> None:
    assert task == {"id": "a", "complexity": 0}


def fails(bench: Bench, task: dict[str, Any]) -> None:
    raise ZeroDivisionError("by zero")


def rejects(bench: Bench, task: dict[str, Any]) -> None:
    raise Reject("no such customer")


def exits(bench: Bench, task: dict[str, Any]) -> None:
    raise SystemExit(0)


def interrupts(bench: Bench, task: dict[str, Any]) -> None:
    raise KeyboardInterrupt  # not the user's Ctrl+C, of which Python makes none here


def is_cancelled(bench: Bench, task: dict[str, Any]) -> None:
    raise asyncio.CancelledError  # as asyncio.run does; a BaseException


def returns_a_coroutine(bench: Bench, task: dict[str, Any]) -> Any:
    async def work() -> None: ...

    return work()


def returns_a_generator(bench: Bench, task: dict[str, Any]) -> Any:
    return (n for n in range(3))


def is_stopped(bench: Bench, task: dict[str, Any]) -> None:
    signal.raise_signal(signal.SIGTERM)


def is_stopped_and_fails(bench: Bench, task: dict[str, Any]) -> None:
    is_stopped(bench, task)
    fails(bench, task)


def is_stopped_and_rejects(bench: Bench, task: dict[str, Any]) -> None:
    is_stopped(bench, task)
    rejects(bench, task)


# -- the table


@dataclass
class Row:
    """When this handler meets this delivery, that is the story, and these the counts: processed, failed, dead.
    stopped_resting: SIGTERM comes while the worker rests."""

    handler: Callable[[Bench, dict[str, Any]], Any]
    story: list[str]
    counts: tuple[int, int, int]
    delivery: Delivery = field(default_factory=Delivery)
    troubles: list[Any] = field(default_factory=list)
    stopped_resting: bool = False


def sigterm(connection: Connection) -> None:
    signal.raise_signal(signal.SIGTERM)


FAILED = ["started", "failed", "rest 1", *GIVEN_BACK]
REFUSED = ["sent to q.dead", "waiting", "rest 1", "nack, requeue"]
STOPPED_REFUSED = ["sent to q.dead", "waiting", "rest 1", "stopping", "cancel", "nack, requeue", "close"]
STOPPED_BURYING = ["sent to q.dead", "stopping", "stored", "dead_lettered", "cancel", "ack", "close"]
NONE = Delivery(body=b"{}")
TABLE = {
    "done": Row(fine, ["started", "done", "ack"], (1, 0, 0)),
    "done in the last attempt": Row(fine, ["started", "done", "ack"], (1, 0, 0), LAST),
    "fails, attempts left": Row(fails, FAILED, (0, 1, 0)),
    "fails in the last but one": Row(
        fails, ["started", "failed", "rest 8", *GIVEN_BACK], (0, 1, 0),
        Delivery(redelivered=True, headers={"x-delivery-count": 3})),
    "fails in the last attempt": Row(fails, ["started", "failed", *BURIED], (0, 1, 1), LAST),
    "attempts used up on arrival": Row(fine, BURIED, (0, 0, 1), SPENT),
    "rejected in the first attempt": Row(rejects, ["started", "failed", *BURIED], (0, 1, 1)),
    "rejected in the last attempt": Row(rejects, ["started", "failed", *BURIED], (0, 1, 1), LAST),
    "invalid": Row(fine, BURIED, (0, 0, 1), NONE),
    "invalid, attempts used up": Row(fine, BURIED, (0, 0, 1), Delivery(b"{}", True, {"x-delivery-count": 5})),
    "sys.exit is a failure": Row(exits, FAILED, (0, 1, 0)),
    "KeyboardInterrupt is a failure": Row(interrupts, FAILED, (0, 1, 0)),
    "a cancelled coroutine is a failure": Row(is_cancelled, FAILED, (0, 1, 0)),
    "a coroutine is work not done": Row(returns_a_coroutine, FAILED, (0, 1, 0)),
    "a generator is work not done": Row(returns_a_generator, FAILED, (0, 1, 0)),
    # The dead letter is refused: the task stays where it is, and nothing is claimed.
    "no room for the dead letter": Row(rejects, ["started", "failed", *REFUSED], (0, 1, 0), troubles=[FULL]),
    "no room for an invalid body": Row(fine, REFUSED, (0, 0, 0), NONE, [FULL]),
    "no room, attempts used up": Row(fine, REFUSED, (0, 0, 0), SPENT, [FULL]),
    # A stop at each step: RabbitMQ would send the next task upon the ack or nack, so the consumer goes first.
    "stopped, done": Row(is_stopped, ["started", "stopping", "cancel", "done", "ack", "close"], (1, 0, 0)),
    "stopped, fails": Row(
        is_stopped_and_fails, ["started", "stopping", "failed", "cancel", "rest 1", *GIVEN_BACK, "close"], (0, 1, 0)),
    "stopped, rejected": Row(
        is_stopped_and_rejects, ["started", "stopping", "failed", "cancel", *BURIED, "close"], (0, 1, 1)),
    "stopped while it rests": Row(
        fails, ["started", "failed", "rest 1", "stopping", "cancel", *GIVEN_BACK, "close"], (0, 1, 0),
        stopped_resting=True),
    "stopped while the dead letter is on its way": Row(
        rejects, ["started", "failed", *STOPPED_BURYING], (0, 1, 1), troubles=[sigterm]),
    "stopped while that of an invalid body is": Row(fine, STOPPED_BURYING, (0, 0, 1), NONE, [sigterm]),
    "stopped after the dead letter is refused": Row(
        rejects, ["started", "failed", *STOPPED_REFUSED], (0, 1, 0), troubles=[FULL], stopped_resting=True),
    "stopped after that of an invalid body is": Row(fine, STOPPED_REFUSED, (0, 0, 0), NONE, [FULL], True),
}


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_how_a_delivery_is_settled(row: Row, bench: Bench) -> None:
    connection = rabbitmq(row.delivery, Delivery(b"{}") if "cancel" in row.story else Delivery(), troubles=row.troubles)
    if row.stopped_resting:
        bench.while_resting = lambda: signal.raise_signal(signal.SIGTERM)
    if "cancel" not in row.story:
        connection.ready.pop()
    status = bench.run(lambda task: row.handler(bench, task), connection)
    assert bench.journal.story() == row.story
    assert (bench.counts(), status) == (row.counts, 0)
    assert (connection.settled, connection.unacked) == ([1], {})  # once; and after a stop no other one has come


def test_what_rabbitmq_takes_no_copy_of_it_moves_itself(bench: Bench) -> None:
    """Its max_message_size was lowered. The second time nobody asks: the answer would be another lost connection."""
    too_large = Refused("message larger than 10", 406, too_large=True)

    def refuse(connection: Connection) -> None:
        connection.lose(too_large)

    first, second = rabbitmq(NONE, troubles=[refuse]), rabbitmq(NONE, NONE)
    bench.run(None, first, second)
    moved = ["dead_lettered", "nack, drop"]
    assert bench.journal.story() == ["sent to q.dead", "connection_lost", *ANEW, *moved, *moved]
    assert second.settled == [1, 2]


# -- what was lost, and what is given back

LOSSES = {
    "connection_lost": Lost("the cable"),
    "cancelled": ConsumerGone("RabbitMQ cancelled the consumer"),
    "connection_lost ": Refused("RabbitMQ closed the channel: consumer timeout", 406),
}
losses = pytest.mark.parametrize(("told", "reason"), [(word.strip(), error) for word, error in LOSSES.items()])
ANEW = ["close", "waiting", "rest 0.25", "declare q.dead", "declare q", "confirm mode", "connected", "prefetch 1",
        "consume q as w"]  # fmt: skip


@losses
@pytest.mark.parametrize("fate", [fine, fails, rejects])
def test_a_task_whose_connection_is_lost_while_it_runs_is_discarded_and_never_settled(
    told: str, reason: Exception, fate: Callable[[Bench, dict[str, Any]], Any], bench: Bench
) -> None:
    """Not on the next connection either, whose tags begin anew: there it would ack another task."""

    def handler(task: dict[str, Any]) -> None:
        if task["id"] == "a":
            bench.connection.lose(reason)
            fate(bench, task)

    bench.run(handler, rabbitmq(LAST), rabbitmq(Delivery(b'{"id": "b"}')))
    failed = [] if fate is fine else ["failed"]
    assert bench.journal.story() == ["started", told, *failed, "discarded", *ANEW, "started", "done", "ack"]
    assert bench.journal.told("discarded")["id"] == "a"
    assert bench.counts() == (1, len(failed), 0)


@pytest.mark.parametrize(("seconds", "looks"), [(0.5, 0), (2, 1)])
def test_after_a_long_task_the_connection_is_looked_at_before_the_task_is_called_done(
    seconds: float, looks: int, bench: Bench
) -> None:
    """The machine may have stood still. But not after each: it is a question to the other thread."""
    def handler(task: dict[str, Any]) -> None:
        bench.journal.now += seconds

    first = rabbitmq(Delivery(), at_look=Connection.lose)
    bench.run(handler, first, *[rabbitmq()] * looks)
    assert first.looks == looks
    assert bench.journal.story() == (["started", "connection_lost", "discarded", *ANEW] if looks else
                                     ["started", "done", "ack"])


@losses
def test_a_task_whose_connection_is_lost_while_the_worker_rests_is_not_given_back(
    told: str, reason: Exception, bench: Bench
) -> None:
    def once() -> None:
        bench.while_resting = lambda: None
        bench.connection.lose(reason)

    bench.while_resting = once
    bench.run(lambda task: fails(bench, task), rabbitmq(Delivery()), rabbitmq())
    assert bench.journal.story() == ["started", "failed", "rest 1", told, *ANEW]


@losses
def test_a_connection_lost_while_the_dead_letter_waits_for_its_confirm_keeps_the_task(
    told: str, reason: Exception, bench: Bench
) -> None:
    first = rabbitmq(LAST, troubles=[lambda connection: connection.lose(reason)])
    bench.run(lambda task: fails(bench, task), first, rabbitmq())
    assert bench.journal.story() == ["started", "failed", "sent to q.dead", told, *ANEW]
    assert bench.counts() == (0, 1, 0)


def test_a_dead_letter_says_why_the_last_attempt_had_no_answer(bench: Bench) -> None:
    """The worker that lost its connection amid it knows; another one can only guess."""
    def handler(task: dict[str, Any]) -> None:
        bench.connection.lose(Lost("consumer_timeout, says RabbitMQ"))

    second = rabbitmq(SPENT, SPENT)
    bench.run(handler, rabbitmq(LAST), second)
    assert [letter.properties.headers["tareas-reason"] for letter in second.letters] == [
        "5 attempts used up, the last without an answer: consumer_timeout, says RabbitMQ"] * 2


def test_a_dead_letter_that_no_queue_takes_keeps_the_task_and_the_queue_is_declared_anew(bench: Bench) -> None:
    """Neither ack nor nack: closing the connection gives the task back."""
    first = rabbitmq(LAST, troubles=[Unroutable("queue 'q.dead' does not exist")])
    bench.run(lambda task: fails(bench, task), first, rabbitmq(SPENT))
    assert bench.journal.story() == ["started", "failed", "sent to q.dead", "waiting", "rest 1", "close",
                                     "connection_lost", *ANEW[2:], *BURIED]
    assert bench.counts() == (0, 1, 1)


@pytest.mark.parametrize(("troubles", "rounds"), [([FULL] * 5, 5), ([FULL] * 4 + [None] + [FULL] * 4, 9)])
def test_five_refused_dead_letters_in_a_row_bring_another_channel(
    troubles: list[Any], rounds: int, bench: Bench
) -> None:
    """A channel of RabbitMQ 3.10 that met the queue without its leader refuses for ever."""
    connection = rabbitmq(*[NONE] * len(troubles), troubles=list(troubles))
    bench.run(None, connection)
    assert len(connection.settled) == rounds
    assert ("renew" in bench.journal.words) == (rounds == 5) and "connection_lost" not in bench.journal.words
    assert [event["reason"] for event in bench.journal.events if event["event"] == "waiting"] == [
        "the dead-letter queue 'q.dead' is full, or has lost its leader"] * (1 if rounds == 5 else 2)


def test_after_a_lost_connection_dead_letters_go_over_the_next_one(bench: Bench) -> None:
    def handler(task: dict[str, Any]) -> None:
        if task["id"] == "b":
            bench.connection.lose()
        rejects(bench, task)

    connections = [rabbitmq(Delivery(), Delivery(b'{"id": "b"}')), rabbitmq(Delivery())]
    bench.run(handler, *connections)
    assert [len(connection.letters) for connection in connections] == [1, 1]
    assert bench.counts() == (0, 3, 2)


@losses
def test_a_stopped_worker_whose_connection_is_lost_ends_without_another(
    told: str, reason: Exception, bench: Bench
) -> None:
    def handler(task: dict[str, Any]) -> None:
        is_stopped(bench, task)
        bench.connection.lose(reason)

    assert bench.run(handler, rabbitmq(Delivery())) == 0
    assert bench.journal.story() == ["started", "stopping", told, "discarded", "close"]


def test_what_a_stopped_worker_is_sent_goes_back_untouched(bench: Bench) -> None:
    """The stop came between two tasks: the next delivery is on its way already."""
    connection = rabbitmq(Delivery(), NONE, at_consume=sigterm)
    assert bench.run(lambda task: pytest.fail("a task after the stop"), connection) == 0
    assert bench.journal.story() == ["stopping", "cancel", "nack, requeue", "close"]


# -- a bug of ours, or an output that takes nothing


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("ours"), OSError(28, "disk full"), AssertionError()])
@pytest.mark.parametrize("word", ["started", "failed", "done", "requeued", "dead_lettered"])
def test_an_event_that_cannot_be_told_ends_the_worker_and_nothing_is_acknowledged(
    word: str, error: Exception, bench: Bench
) -> None:
    """An ack without its `done` would look like a loss. And it is no lost connection: the task would be done again, and
    again, until its attempts are spent."""
    fate = {"done": fine, "dead_lettered": rejects}.get(word, fails)
    bench.journal.stream.broken_at, bench.journal.stream.error = word, error
    connection = rabbitmq(Delivery(), NONE)
    with pytest.raises(type(error)) as caught:
        bench.run(lambda task: fate(bench, task), connection)
    assert caught.value is error
    assert connection.settled == [] and "waiting" not in bench.journal.words
    assert bench.journal.words[-1] == "close" and bench.worker.tasks_processed == 0


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("ours")])
def test_it_ends_the_worker_too_when_the_connection_is_lost_and_acks_are_due(
    error: Exception, wide: None, bench: Bench
) -> None:
    def handler(task: dict[str, Any]) -> None:
        if task["id"] == "t4":
            bench.connection.lose()

    bench.journal.stream.broken_at, bench.journal.stream.error = "discarded", error
    with pytest.raises(type(error)):
        bench.run(handler, rabbitmq(*firsts(8)), prefetch=6)


# -- more than one task at hand


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks that ended well are enough for the prefetch that was asked for."""
    monkeypatch.setattr(prefetch, "WELL", 2)


def first(name: str) -> Delivery:
    return Delivery(b'{"id": "%s"}' % name.encode())


def firsts(count: int) -> list[Delivery]:
    return [first(f"t{n}") for n in range(1, count + 1)]


ALONE = ["started", "done", "ack", "started", "cancel", "done", "ack"]  # the first two
WIDE = [*ALONE, "prefetch 4", "consume q as w"]
TWO = ["started", "done"] * 2


def test_acks_go_out_together_after_half_the_prefetch_or_when_nothing_waits(wide: None, bench: Bench) -> None:
    connection = rabbitmq(*firsts(7))
    bench.run(lambda task: None, connection, prefetch=4)
    assert bench.journal.story() == [*WIDE, *TWO, "ack up to 4", *TWO, "ack up to 6", "started", "done", "ack up to 7"]
    assert connection.settled == [1, 2, 3, 4, 5, 6, 7]


def test_a_task_that_came_back_is_alone_in_hand_and_the_prefetch_narrow_again(wide: None, bench: Bench) -> None:
    in_hand: list[int] = []

    def handler(task: dict[str, Any]) -> None:
        in_hand.append(len(connection.unacked))

    back = Delivery(b'{"id": "back"}', True, {"x-delivery-count": 1})
    connection = rabbitmq(*firsts(3), back, first("t4"), first("t5"), first("t6"))
    bench.run(handler, connection, prefetch=4)
    assert bench.journal.story() == [
        *WIDE, "started", "done", "cancel", "ack up to 3", *["started", "done", "ack"] * 3,
        "prefetch 1", "consume q as w", "started", "done", "ack",
    ]  # fmt: skip
    assert [event["id"] for event in bench.journal.events if event["event"] == "done"] == [
        "t1", "t2", "t3", "t4", "t5", "back", "t6"]  # fmt: skip
    assert in_hand[5] == 1


@pytest.mark.parametrize("fate", [fails, rejects])
def test_before_a_task_that_fails_rests_what_is_done_is_acknowledged(
    fate: Callable[[Bench, dict[str, Any]], Any], wide: None, bench: Bench
) -> None:
    """Its rest would hold what is done, and a crash meanwhile would have it done twice. The prefetch stays: a cancel
    would cost an attempt of what is on its way."""
    connection = rabbitmq(*firsts(5))
    bench.run(lambda task: fate(bench, task) if task["id"] == "t4" else None, connection, prefetch=4)
    end = ["ack up to 3", "rest 1", *GIVEN_BACK] if fate is fails else ["ack up to 3", *BURIED]
    assert bench.journal.story() == [*WIDE, "started", "done", "started", "failed", *end, "started", "done",
                                     "ack up to 5"]


def test_a_stopped_worker_finishes_what_is_at_hand_and_takes_no_more(wide: None, bench: Bench) -> None:
    connection = rabbitmq(*firsts(9))
    bench.run(lambda task: is_stopped(bench, task) if task["id"] == "t4" else None, connection, prefetch=4)
    assert bench.journal.story() == [*WIDE, "started", "done", "started", "stopping", "cancel", "done", "ack up to 4",
                                     *TWO, "ack up to 6", "close"]
    assert len(connection.ready) == 3


def test_no_ack_covers_a_task_that_came_back_and_waits_behind_younger_ones(wide: None, bench: Bench) -> None:
    """Those are done before it, and end well, as many as make the prefetch wide; its tag is below theirs."""
    connection = rabbitmq(*firsts(2), Delivery(b'{"id": "back"}', True), *firsts(5)[2:])
    bench.run(lambda task: None, connection, prefetch=4)
    assert bench.journal.story()[9:] == ["cancel", *["started", "done", "ack"] * 4, "prefetch 1", "consume q as w"]


FATES = st.lists(st.sampled_from([*["fine"] * 6, "fails", "rejects", "invalid", "back", "back and fails", "spent"]),
                 max_size=20)  # fmt: skip


@given(FATES, st.integers(1, 8), st.integers(1, 3), st.none() | st.integers(0, 19))
def test_whatever_comes_each_is_settled_once_and_never_before_it_is_told(
    fates: list[str], most: int, well: int, stop_at: int | None
) -> None:
    class Watched(Connection):
        def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
            told = {event.get("id") for event in bench.journal.events if event["event"] in ("done", "dead_lettered")}
            covered = [tag for tag in self.unacked if tag == delivery_tag or (multiple and tag < delivery_tag)]
            assert {ids[tag - 1] for tag in covered} <= told
            super().basic_ack(delivery_tag, multiple)

    def handler(task: dict[str, Any]) -> None:
        if stop_at is not None and task["id"] == f"t{stop_at}":
            is_stopped(bench, task)
        if "fails" in task["fate"]:
            raise ZeroDivisionError
        if task["fate"] == "rejects":
            raise Reject

    ids = [None if fate == "invalid" else f"t{n}" for n, fate in enumerate(fates)]
    deliveries = [
        NONE if fate == "invalid" else
        Delivery(f'{{"id": "t{n}", "fate": "{fate}"}}'.encode(), fate.startswith(("back", "spent")),
                 {"x-delivery-count": 9 if fate == "spent" else 1})
        for n, fate in enumerate(fates)
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(prefetch, "WELL", well)
        bench = Bench(monkeypatch)
        connection = Watched(*deliveries, steps=stop)
        bench.run(handler, connection, prefetch=most)
    assert not connection.unacked and len(set(connection.settled)) == len(connection.settled)
    assert not any("not its own" in word for word in bench.journal.words)
    assert len(connection.settled) + len(connection.ready) == len(fates)
    assert not connection.ready or stop_at is not None


# -- the second signal


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal counts at once."""
    monkeypatch.setattr(signals, "REPEAT", 0.0)


def twice(signum: int) -> None:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signum)


def swallows(work: Callable[[], None]) -> None:
    try:
        work()
    except BaseException:
        return


def turns_into_its_own(work: Callable[[], None]) -> None:
    try:
        work()
    except BaseException as error:
        raise OSError("of the handler") from error


def lets_by(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:
        time.sleep(DEADLINE)  # Abandoned is no Exception: a handler that tries again, as many do, must not catch it


@pytest.mark.parametrize("handler", [lets_by, swallows, turns_into_its_own])
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_abandoned_task_goes_back_without_a_word_to_rabbitmq(
    handler: Callable[[Callable[[], None]], None], signum: int, status: int, impatient: None, bench: Bench
) -> None:
    """However the handler takes it: nothing of this task is settled, as the process, and its connection, end."""
    def runs(task: dict[str, Any]) -> None:
        bench.journal.now += 1
        handler(lambda: twice(signum))

    connection = rabbitmq(Delivery(), Delivery())
    assert bench.run(runs, connection) == status
    assert bench.journal.story() == ["started", "stopping", "abandoned", "close"]
    assert bench.journal.told("abandoned") == {"id": "a", "attempt": 1}
    assert (bench.counts(), connection.settled, bench.worker.seconds_busy) == ((0, 0, 0), [], 1)


def test_a_second_signal_while_the_worker_rests_gives_the_task_back_too(impatient: None, bench: Bench) -> None:
    bench.while_resting = lambda: twice(signal.SIGINT)
    assert bench.run(lambda task: fails(bench, task), rabbitmq(Delivery())) == 130
    assert bench.journal.story() == ["started", "failed", "rest 1", "stopping", "close"]


def test_an_abandoned_task_is_told_by_the_exit_status_though_the_connection_is_lost_and_acks_are_due(
    impatient: None, wide: None, bench: Bench
) -> None:
    def handler(task: dict[str, Any]) -> None:
        if task["id"] == "t4":
            bench.connection.lose()
            twice(signal.SIGINT)

    assert bench.run(handler, rabbitmq(*firsts(8)), prefetch=6) == 130


def stopped_in(
    handler: Callable[[dict[str, Any]], Any] | None, bench: Bench, *deliveries: Delivery, **options: Any
) -> str:
    bench.run(handler, rabbitmq(*deliveries, **options))
    return str(bench.journal.told("stopping")["reason"])


def test_the_first_signal_says_what_it_finds_in_hand(bench: Bench) -> None:
    def stops(task: object) -> None:
        signal.raise_signal(signal.SIGINT)

    assert stopped_in(stops, bench, Delivery()) == f"Ctrl+C: {Hand.WORKING.value}"


@pytest.mark.parametrize("hand", [Hand.RESTING, Hand.NOTHING, Hand.BURYING])
def test_the_first_signal_says_what_else_it_finds(hand: Hand, bench: Bench) -> None:
    if hand is Hand.RESTING:
        bench.while_resting = lambda: signal.raise_signal(signal.SIGTERM)
        said = stopped_in(lambda task: fails(bench, task), bench, Delivery())
    elif hand is Hand.BURYING:
        said = stopped_in(None, bench, NONE, troubles=[sigterm])
    else:
        said = stopped_in(lambda task: None, bench, Delivery())
    assert said == f"SIGTERM: {hand.value}"


def test_a_handlers_task_shows_no_length_that_only_the_simulation_has(
    monkeypatch: pytest.MonkeyPatch, bench: Bench
) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(Events, "tell", lambda self, word, **facts: told.append({"word": word, **facts}))
    for handler, length in ((None, 0), (lambda task: None, None)):
        told.clear()
        worker = Worker("w", queue="q", handler=handler, events=Events("w", stream=bench.journal.stream))
        hand_out(monkeypatch, "worker", bench.journal, rabbitmq(Delivery()))
        worker.start()
        (started,) = (facts for facts in told if facts["word"] == "started")
        assert started.get("complexity") == length


def test_the_grace_time_bounds_the_task_in_hand(bench: Bench) -> None:
    def handler(task: dict[str, Any]) -> None:
        signal.raise_signal(signal.SIGTERM)
        threading.Event().wait(DEADLINE)

    assert bench.run(handler, rabbitmq(Delivery()), grace=0.01) == 143
    assert bench.journal.story() == ["started", "stopping", "abandoned", "close"]


# -- attempts and rests


def test_the_attempt_is_told_and_is_the_simulations_too(bench: Bench) -> None:
    seen = []
    delivery = Delivery(redelivered=True, headers={"x-delivery-count": 1, "x-acquired-count": 3})
    bench.run(lambda task: seen.append(bench.worker.attempt), rabbitmq(delivery, version=(4, 3, 6)))
    assert bench.journal.told("started") == {"id": "a", "attempt": 4, "redelivered": True}
    assert (bench.journal.told("done")["attempt"], seen) == (4, [4])


def attempts(count: int) -> list[Delivery]:
    return [Delivery(redelivered=n > 0, headers={"x-delivery-count": n}) for n in range(count)]


@pytest.mark.parametrize(
    ("retry_delay", "rests"),
    [
        (1.0, ["1", "2", "4", "8", "16", "30", "30", "30"]),
        (0.5, ["0.5", "1", "2", "4", "8", "16", "30", "30"]),
        (0.0, ["0"] * 8),
        (60.0, ["30"] * 8),
    ],
)
def test_the_rest_before_the_next_attempt_doubles_up_to_a_bound(
    retry_delay: float, rests: list[str], bench: Bench
) -> None:
    connection = rabbitmq(*attempts(9))
    bench.run(lambda task: fails(bench, task), connection, max_attempts=9, retry_delay=retry_delay)
    again = [word for rest in rests for word in ("started", "failed", f"rest {rest}", "requeued", "nack, requeue")]
    assert bench.journal.story() == [*again, "started", "failed", *BURIED]


@pytest.mark.parametrize("retry_delay", [0.0, 1.0])
def test_an_attempt_far_above_a_thousand_rests_no_longer(retry_delay: float, bench: Bench) -> None:
    """RabbitMQ 4.3 sets no bound to a task that is given back."""
    delivery = Delivery(redelivered=True, headers={"x-delivery-count": 5000})
    bench.run(lambda task: fails(bench, task), rabbitmq(delivery), max_attempts=10**9, retry_delay=retry_delay)
    rest = "30" if retry_delay else "0"
    assert bench.journal.story() == ["started", "failed", f"rest {rest}", "requeued", "nack, requeue"]


def test_max_attempts_1_gives_nothing_back(bench: Bench) -> None:
    bench.run(lambda task: fails(bench, task), rabbitmq(Delivery()), max_attempts=1)
    assert bench.journal.story() == ["started", "failed", *BURIED]


# -- bodies that are no task


INVALID = {
    "empty": (b"", "empty"),
    "not UTF-8": (b'{"id": "\xff"}', "not UTF-8"),
    "not JSON": (b"hello", "not JSON"),
    "two of them": (b'{"id": "a"} {"id": "b"}', "not JSON: more follows"),
    "a list": (b'[{"id": "a"}]', "a JSON list, not an object"),
    "no id": (b'{"complexity": 1}', "has no id"),
    "an id with escape codes": (b'{"id": "\\u001b[31mred", "complexity": 1}', "is not printable"),
    "NaN": (b'{"id": "a", "complexity": NaN}', "NaN is not JSON"),
    "over 1 MiB": (b'{"id": "a", "x": "' + b"x" * MAX_BYTES + b'"}', "bytes are more than 1,048,576"),
    "too deep": (b'{"id": "a", "x": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "nested more than 100 deep"),
}


@pytest.mark.parametrize(("body", "reason"), INVALID.values(), ids=INVALID)
@pytest.mark.parametrize("with_handler", [False, True], ids=["simulated", "handler"])
def test_a_body_that_is_no_task_is_dead_lettered_with_its_reason_and_the_worker_goes_on(
    body: bytes, reason: str, with_handler: bool, bench: Bench
) -> None:
    delivery = Delivery(body, redelivered=True, headers={"x-delivery-count": 2})
    connection = rabbitmq(delivery, Delivery())
    bench.run((lambda task: fine(bench, task)) if with_handler else None, connection)
    assert bench.journal.story() == [*BURIED, "started", "done", "ack"]
    (letter,) = connection.letters
    assert letter.body == body
    assert letter.properties.headers["tareas-reason"].startswith("invalid task: ")
    assert reason in letter.properties.headers["tareas-reason"]
    assert letter.properties.headers["tareas-attempts"] == 3
    told = bench.journal.told("dead_lettered")
    assert (told["id"], told["attempt"]) == (None, 3)
    assert reason in told["reason"]
    assert bench.counts() == (1, 0, 1)


@pytest.mark.parametrize(
    ("kind", "readable"),
    [
        # In milliseconds: from 1.5 on pika gives what is no time for Python as a number.
        (b"T" + (1_700_000_000_000_000).to_bytes(8, "big"), pika.__version__ >= "1.5"),
        (b"?", False),  # AMQP knows no such kind
    ],
    ids=["timestamp", "unknown"],
)
def test_a_task_whose_headers_pika_cannot_read_is_dead_lettered_and_the_worker_goes_on(
    bench: Bench, kind: bytes, readable: bool
) -> None:
    """They would end the connection of one worker after the other."""
    table = b"\x04when" + kind
    delivery = Delivery(encoded_headers=len(table).to_bytes(4, "big") + table)
    connection = rabbitmq(delivery, Delivery())
    bench.run(lambda task: fine(bench, task), connection)
    done = ["started", "done", "ack"]
    assert bench.journal.story() == [*(done if readable else BURIED), *done]
    for letter in connection.letters:
        assert "headers cannot be read" in letter.properties.headers["tareas-reason"]


# -- what a dead letter says


@pytest.mark.parametrize(
    ("handler", "delivery", "reason", "number"),
    [
        (fails, LAST, f"ZeroDivisionError: by zero (test_worker.py, line {fails.__code__.co_firstlineno + 1})", 5),
        (rejects, Delivery(), "rejected: Reject: no such customer", 1),
        (fine, SPENT, "5 attempts used up, the last without an answer: the worker died, lost its connection, took"
         " longer than RabbitMQ's consumer_timeout, or was stopped and gave the task back", 5),
        (None, LAST_OF_A_HANDLER, 'NothingToSimulate: the task has no "complexity": SECONDS, and this worker no '
         "--handler", 5),
        (None, Delivery(b'{"id": "a", "complexity": -1}'),
         "invalid task: its complexity -1 is not in seconds from 0 to 86,400", 1),
    ],
)
def test_a_dead_letter_says_why_and_is_else_what_the_publisher_sent(
    handler: Callable[[Bench, dict[str, Any]], Any] | None, delivery: Delivery, reason: str, number: int, bench: Bench
) -> None:
    properties = {"message_id": "a", "content_type": "application/json", "app_id": "shop", "delivery_mode": 1}
    connection = rabbitmq(
        Delivery(delivery.body, delivery.redelivered, {**(delivery.headers or {}), "mine": 1}, properties=properties)
    )
    bench.run(None if handler is None else functools.partial(handler, bench), connection)
    (letter,) = connection.letters
    assert letter.routing_key == "q.dead"
    assert letter.body == delivery.body
    sent = arrived(letter.properties)
    assert (sent.message_id, sent.content_type, sent.app_id) == ("a", "application/json", "shop")
    assert sent.delivery_mode == 2  # it must outlive a restart, whatever the publisher thought
    why = {name: sent.headers[name] for name in ("mine", "tareas-reason", "tareas-attempts", "tareas-worker")}
    assert why == {"mine": 1, "tareas-reason": reason, "tareas-attempts": number, "tareas-worker": "w"}
    assert abs(float(sent.headers["tareas-time"]) - time.time()) < DEADLINE
    assert bench.journal.told("dead_lettered") == {"id": "a", "attempt": number, "reason": reason}


# -- what the worker counts


def test_what_a_worker_counts(bench: Bench) -> None:
    """Rests and dead letters are no work."""
    def handler(task: dict[str, Any]) -> None:
        bench.journal.now += 0.5
        if task["id"] == "b":
            fails(bench, task)

    connection = rabbitmq(
        Delivery(), Delivery(b'{"id": "b"}'), Delivery(b'{"id": "b"}', True, {"x-delivery-count": 4}), NONE, first("c"))
    bench.run(handler, connection)
    assert bench.counts() == (2, 2, 2)
    assert bench.journal.told("stopped") == {"processed": 2, "failed": 2, "dead_lettered": 2, "busy": 2.0}
    assert bench.journal.told("requeued")["rest"] == 1


# -- the contract with who imports it


def test_a_worker_is_made_with_its_name_alone_and_connects_nowhere() -> None:
    made = Worker("worker-1")
    assert (made.worker_id, made.tasks_processed) == ("worker-1", 0)
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):  # AMQP_URL, as the tests set it
        connect(made.addresses, made.worker_id)


def test_process_task_can_be_made_ones_own(bench: Bench) -> None:
    class Mine(Worker):
        def process_task(self, task_data: dict[str, Any]) -> None:
            seen.append(task_data)

    seen: list[dict[str, Any]] = []
    bench.run(None, rabbitmq(Delivery()), kind=Mine)
    assert seen == [{"id": "a", "complexity": 0}]
    assert bench.journal.story() == ["started", "done", "ack"]


def test_without_a_handler_the_task_is_simulated_with_the_attempt_at_hand(bench: Bench) -> None:
    body = b'{"id": "a", "complexity": 0, "fail_attempts": 2}'
    bench.run(None, rabbitmq(*(Delivery(body, one.redelivered, one.headers) for one in attempts(3))))
    again = ["started", "failed", "rest 1", "requeued", "nack, requeue"]
    assert bench.journal.story() == [*again, *again[:2], "rest 2", *again[3:], "started", "done", "ack"]


def test_a_handler_s_task_is_its_own_even_with_the_keys_of_the_simulation(bench: Bench) -> None:
    delivery = Delivery(b'{"id": "a", "fail_attempts": "often", "crash_attempts": 9}')
    bench.run(lambda task: None, rabbitmq(delivery))
    assert bench.journal.story() == ["started", "done", "ack"]


# -- the life of a worker


def test_the_order_of_the_protocol(bench: Bench) -> None:
    """One task at a time, never acknowledged unseen; the dead-letter queue is there before the first task."""
    bench.run(None, rabbitmq(Delivery()))
    assert bench.journal.words == [
        "declare q.dead", "declare q", "confirm mode", "connected", "prefetch 1", "consume q as w", "started", "done",
        "ack", IDLE, "stopping", "cancel", "close", "stopped",
    ]  # fmt: skip


def leave(connection: Connection) -> None:
    """Idle, and nobody stops the worker."""


@pytest.mark.parametrize(
    ("handler", "delivery", "status"),
    [(fine, Delivery(), 0), (fails, Delivery(), 0), (rejects, Delivery(), 3), (fine, NONE, 3)],
)
def test_a_drained_worker_ends_with_3_when_it_has_dead_lettered(
    handler: Callable[[Bench, dict[str, Any]], Any], delivery: Delivery, status: int, bench: Bench
) -> None:
    assert bench.run(lambda task: handler(bench, task), rabbitmq(delivery, steps=leave), drain=True) == status


def test_a_drained_worker_has_acknowledged_all(wide: None, bench: Bench) -> None:
    connection = rabbitmq(*firsts(9), steps=leave)
    assert bench.run(lambda task: None, connection, drain=True, prefetch=50) == 0
    assert connection.settled == list(range(1, 10))


def test_a_worker_that_is_not_to_drain_stays_though_the_queue_is_empty(bench: Bench) -> None:
    def look(connection: Connection) -> Any:
        yield from [None] * 100
        stop(connection)

    began = bench.journal.now
    assert bench.run(None, rabbitmq(steps=look)) == 0
    assert bench.journal.words[-5:] == [IDLE, "stopping", "cancel", "close", "stopped"]
    assert bench.journal.now > began + 20


@pytest.mark.parametrize("drain", [False, True])
def test_tasks_that_are_ready_and_do_not_come_make_it_connect_anew(drain: bool, bench: Bench) -> None:
    """RabbitMQ 3.10 does not tell the consumers of a queue that is deleted and declared again at once."""
    bench.run(None, rabbitmq(stuck=1, steps=leave), rabbitmq(), drain=drain)
    assert bench.journal.told("cancelled")["reason"].startswith("tasks are ready and none comes")
    begin = bench.journal.words.index("cancelled")
    assert bench.journal.words[begin - 1 : begin + 9] == ["close", "cancelled", *ANEW[1:]]


@losses
def test_a_consumer_that_is_lost_while_it_waits_begins_anew(told: str, reason: Exception, bench: Bench) -> None:
    bench.run(None, rabbitmq(steps=lambda connection: connection.lose(reason)), rabbitmq())
    begin = bench.journal.words.index(told)
    assert bench.journal.words[begin : begin + 11] == [told, *ANEW, IDLE]
    assert bench.journal.told("waiting")["reason"] == str(reason)


def test_a_refused_login_ends_it_at_first_and_is_waited_out_later(bench: Bench) -> None:
    """A broker that comes back may not know its users yet."""
    with pytest.raises(Denied):
        bench.run(None, Denied("no"))
    assert bench.journal.words == []
    bench.run(None, Unreachable("not up"), rabbitmq(steps=Connection.lose), Denied("no users yet"), Unreachable("gone"),
              rabbitmq())
    waited = [event["reason"] for event in bench.journal.events if event["event"] == "waiting"]
    assert waited == ["not up", "the cable", "no users yet", "gone"]


def test_a_queue_with_other_arguments_ends_it_at_any_time(bench: Bench) -> None:
    differs = QueueDiffers("queue 'q' exists with other arguments")
    for connections in ([rabbitmq(refusal=differs)], [rabbitmq(steps=Connection.lose), rabbitmq(refusal=differs)]):
        with pytest.raises(QueueDiffers):
            bench.run(None, *connections)


def test_a_stop_while_it_waits_for_rabbitmq_ends_it_with_its_summary(bench: Bench) -> None:
    bench.while_resting = lambda: signal.raise_signal(signal.SIGINT)
    assert bench.run(None, Unreachable("not up")) == 0
    assert bench.journal.words == ["waiting", "rest 0.25", "stopping", "stopped"]


def test_no_connection_within_the_time_allowed_is_said_with_the_reason(bench: Bench) -> None:
    with pytest.raises(Trouble, match="no connection within 1 s: not up"):
        bench.run(None, *[Unreachable("not up")] * 4, connect_timeout=1)
    assert bench.journal.words == ["waiting", "rest 0.25", "rest 0.375", "rest 0.5625"]


def test_an_idle_worker_whose_connection_was_good_has_its_time_again(bench: Bench) -> None:
    """It is the time without a connection that is bounded, and the rest after a good one is short again."""

    def steady(connection: Connection) -> Any:
        bench.journal.now += 100
        connection.lose()

    bench.run(None, Unreachable("not up"), rabbitmq(steps=steady), rabbitmq(Delivery()), connect_timeout=50)
    assert [word for word in bench.journal.words if word.startswith("rest")] == ["rest 0.25"] * 2


@pytest.mark.parametrize(("deliveries", "rest"), [([], "rest 0.375"), ([Delivery()], "rest 0.25")])
def test_only_progress_makes_the_rests_short_again(deliveries: list[Delivery], rest: str, bench: Bench) -> None:
    """A connection that is made and lost at once, again and again, is no progress; an ack is."""
    connections = [rabbitmq(*deliveries, steps=Connection.lose) for _ in range(2)]
    bench.run(None, *connections, rabbitmq())
    assert [word for word in bench.journal.words if word.startswith("rest")] == ["rest 0.25", rest]


def gone(connection: Connection) -> None:
    connection.lose(ConsumerGone("RabbitMQ cancelled the consumer"))


def test_a_worker_that_has_worked_ends_with_its_summary_even_when_there_is_no_way_on(bench: Bench) -> None:
    def works(task: dict[str, Any]) -> None:
        bench.journal.now += 1

    with pytest.raises(Trouble, match="no connection within 0 s: not up"):
        bench.run(works, rabbitmq(Delivery(), steps=gone), Unreachable("not up"), connect_timeout=0)
    assert bench.journal.words[-1] == "stopped"
    assert bench.journal.told("stopped")["processed"] == 1


def test_a_worker_that_has_done_nothing_leaves_the_reason_to_stand_alone(bench: Bench) -> None:
    with pytest.raises(Trouble):
        bench.run(None, rabbitmq(steps=gone), Unreachable("not up"), connect_timeout=0)
    assert "stopped" not in bench.journal.words
