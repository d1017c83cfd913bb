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

import pytest
from pika.exceptions import StreamLostError

from tareas import Reject
from tareas.errors import Denied, Trouble, Unreachable
from tareas.rabbit import connection as broker
from tareas.task import MAX_BYTES, MAX_DEPTH
from tareas.tell.events import Events
from tareas.work import idle, signals
from tests.unit.fakes import (
    IDLE,
    Channel,
    Connection,
    Delivery,
    Journal,
    KeepAlive,
    full,
    hand_out,
    no_such_queue,
    stop,
)
from worker import WORKING, Worker

DEADLINE = 30.0  # seconds that no test comes near
LAST = Delivery(redelivered=True, headers={"x-delivery-count": 4})  # attempt 5 of 5
LAST_OF_A_HANDLER = Delivery(b'{"id": "a"}', redelivered=True, headers={"x-delivery-count": 4})
SPENT = Delivery(redelivered=True, headers={"x-delivery-count": 5})
BURIED = ["dead letter sent", "dead letter confirmed", "dead_lettered", "ack"]


class Bench:
    """A worker whose RabbitMQ, keep-alive and rests are fakes; its signals and its events are real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.journal = Journal()
        self.worker: Worker = Worker("unused")
        self.keep_alive = KeepAlive()
        self.while_resting: Callable[[], object] = lambda: None
        self._monkeypatch = monkeypatch

    def connection(self, *deliveries: Delivery, **options: Any) -> Connection:
        return Connection(self.journal, *deliveries, **options)

    def run(self, handler: Callable[[dict[str, Any]], Any] | None, *outcomes: Connection | Exception,
            kind: type[Worker] = Worker, **options: Any) -> int:
        """Start a worker that finds these when it connects; the exit status."""
        hand_out(self._monkeypatch, *outcomes)
        events = Events("w", as_json=True, stream=self.journal.stream)
        self._monkeypatch.setattr("worker.KeepAlive", self.keep_alive)
        self.worker = kind("w", queue="q", handler=handler, events=events, **options)
        self._monkeypatch.setattr(self.worker.stopping, "rest", self._rest)
        self._monkeypatch.setattr("random.uniform", lambda least, most: most)  # rests before connecting again
        return self.worker.start()

    def _rest(self, seconds: float) -> None:
        served = "" if self.keep_alive.inside else ", unserved"
        self.journal.add(f"rest {seconds:g}{served}")
        self.while_resting()

    def counts(self) -> tuple[int, int, int]:
        return self.worker.tasks_processed, self.worker.tasks_failed, self.worker.tasks_dead_lettered

    @property
    def channel(self) -> Channel:
        """The one that the worker consumes from."""
        connection = self.worker._connection
        assert isinstance(connection, Connection)
        return connection.channels[0]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


# -- handlers: each gets the bench, to do what happens while a task runs


def fine(bench: Bench, task: dict[str, Any]) -> None:
    assert task == {"id": "a", "complexity": 0}
    assert bench.keep_alive.inside


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
    """When this handler meets this delivery, that is the story, and these the counts: processed, failed, dead."""

    handler: Callable[[Bench, dict[str, Any]], Any]
    story: list[str]
    counts: tuple[int, int, int]
    delivery: Delivery = field(default_factory=Delivery)
    troubles: list[Exception | None] = field(default_factory=list)


TABLE = {
    "done": Row(fine, ["started", "done", "ack"], (1, 0, 0)),
    "done in the last attempt": Row(fine, ["started", "done", "ack"], (1, 0, 0), LAST),
    "fails, attempts left": Row(
        fails, ["started", "failed", "rest 1", "requeued", "nack, requeue"], (0, 1, 0)),
    "fails in the last but one": Row(
        fails, ["started", "failed", "rest 8", "requeued", "nack, requeue"], (0, 1, 0),
        Delivery(redelivered=True, headers={"x-delivery-count": 3})),
    "fails in the last attempt": Row(fails, ["started", "failed", *BURIED], (0, 1, 1), LAST),
    "attempts used up on arrival": Row(fine, BURIED, (0, 0, 1), SPENT),
    "rejected in the first attempt": Row(rejects, ["started", "failed", *BURIED], (0, 1, 1)),
    "rejected in the last attempt": Row(rejects, ["started", "failed", *BURIED], (0, 1, 1), LAST),
    "invalid": Row(fine, BURIED, (0, 0, 1), Delivery(body=b"{}")),
    "invalid, attempts used up": Row(fine, BURIED, (0, 0, 1), Delivery(b"{}", True, {"x-delivery-count": 5})),
    "sys.exit is a failure": Row(
        exits, ["started", "failed", "rest 1", "requeued", "nack, requeue"], (0, 1, 0)),
    "KeyboardInterrupt is a failure": Row(
        interrupts, ["started", "failed", "rest 1", "requeued", "nack, requeue"], (0, 1, 0)),
    "a cancelled coroutine is a failure": Row(
        is_cancelled, ["started", "failed", "rest 1", "requeued", "nack, requeue"], (0, 1, 0)),
    "a coroutine is work not done": Row(
        returns_a_coroutine, ["started", "failed", "rest 1", "requeued", "nack, requeue"], (0, 1, 0)),
    "a generator is work not done": Row(
        returns_a_generator, ["started", "failed", "rest 1", "requeued", "nack, requeue"], (0, 1, 0)),
    # The dead letter is refused: the task stays where it is, and nothing is claimed.
    "no room for the dead letter": Row(
        rejects, ["started", "failed", "dead letter sent", "waiting", "rest 1", "close channel 2", "nack, requeue"],
        (0, 1, 0), troubles=[full()]),
    "no room for an invalid body": Row(
        fine, ["dead letter sent", "waiting", "rest 1", "close channel 2", "nack, requeue"],
        (0, 0, 0), Delivery(body=b"{}"), [full()]),
    "no room, attempts used up": Row(
        fine, ["dead letter sent", "waiting", "rest 1", "close channel 2", "nack, requeue"],
        (0, 0, 0), SPENT, [full()]),
    # A stop while the task runs: RabbitMQ would send the next task upon the ack, so the consumer goes first.
    "stopped, done": Row(is_stopped, ["started", "stopping", "cancel", "done", "ack", "close connection"], (1, 0, 0)),
    "stopped, fails": Row(
        is_stopped_and_fails,
        ["started", "stopping", "failed", "cancel", "rest 1", "requeued", "nack, requeue", "close connection"],
        (0, 1, 0)),
    "stopped, rejected": Row(
        is_stopped_and_rejects, ["started", "stopping", "failed", "cancel", *BURIED, "close connection"], (0, 1, 1)),
}


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_how_a_delivery_is_settled(row: Row, bench: Bench) -> None:
    status = bench.run(lambda task: row.handler(bench, task),
                       bench.connection(row.delivery, troubles=row.troubles))
    assert bench.journal.story() == row.story
    assert (bench.counts(), status) == (row.counts, 0)
    assert not bench.channel.unacknowledged  # settled, once


# -- what was lost, and what is given back


def serving_fails(bench: Bench) -> None:
    bench.keep_alive.lose(StreamLostError("the cable"))


def channel_closes(bench: Bench) -> None:
    bench.channel.is_open = False


def consumer_is_cancelled(bench: Bench) -> None:
    bench.channel.consumer_tags.clear()


LOSSES = [serving_fails, channel_closes, consumer_is_cancelled]


def meanwhile(happens: Callable[[Bench], object]) -> list[str]:
    """What is told as it happens, amid a task or a rest."""
    return ["connection_lost"] if happens is serving_fails else []


def lost(happens: Callable[[Bench], object]) -> list[str]:
    """How any other loss is told; what is still open of the connection is closed: RabbitMQ would keep our task for
    it."""
    return [*([] if happens is serving_fails else ["cancelled"]), "close connection"]


def anew(happens: Callable[[Bench], object]) -> list[str]:
    """The loss, and the next connection."""
    return [*lost(happens), "waiting", "rest 0.25, unserved", "declare q.dead", "declare q", "prefetch 1", "connected",
            "consume q as w"]


@pytest.mark.parametrize("happens", LOSSES)
@pytest.mark.parametrize("fate", [fine, fails, rejects])
def test_a_task_whose_connection_is_lost_while_it_runs_is_discarded_and_never_settled(
    happens: Callable[[Bench], object], fate: Callable[[Bench, dict[str, Any]], Any], bench: Bench
) -> None:
    """Not on the next channel either, whose tags begin anew: there it would ack another task."""

    def handler(task: dict[str, Any]) -> None:
        if task["id"] == "a":
            happens(bench)
            fate(bench, task)

    bench.run(handler, bench.connection(LAST), bench.connection(Delivery(b'{"id": "b"}')))
    failed = [] if fate is fine else ["failed"]
    assert bench.journal.story() == ["started", *meanwhile(happens), *failed, "discarded", *anew(happens), "started",
                                     "done", "ack"]
    assert bench.journal.told("discarded")["id"] == "a"
    assert bench.counts() == (1, len(failed), 0)


@pytest.mark.parametrize("happens", LOSSES)
def test_a_task_whose_connection_is_lost_while_the_worker_rests_is_not_given_back(
    happens: Callable[[Bench], object], bench: Bench
) -> None:
    def once() -> None:
        bench.while_resting = lambda: None
        happens(bench)

    bench.while_resting = once
    bench.run(lambda task: fails(bench, task), bench.connection(Delivery()), bench.connection())
    assert bench.journal.story() == ["started", "failed", "rest 1", *meanwhile(happens), *anew(happens)]


def test_a_connection_lost_while_the_dead_letter_waits_for_its_confirm_keeps_the_task(bench: Bench) -> None:
    first = bench.connection(LAST, troubles=[StreamLostError("the cable")])
    bench.run(lambda task: fails(bench, task), first, bench.connection())
    assert bench.journal.story() == ["started", "failed", "dead letter sent", "connection_lost", *anew(serving_fails)]
    assert bench.counts() == (0, 1, 0)


def test_a_dead_letter_that_no_queue_takes_keeps_the_task_and_the_queue_is_declared_anew(bench: Bench) -> None:
    """Neither ack nor nack: closing the connection gives the task back."""
    first = bench.connection(LAST, troubles=[no_such_queue()])
    bench.run(lambda task: fails(bench, task), first, bench.connection(SPENT))
    assert bench.journal.story() == ["started", "failed", "dead letter sent", "waiting", "rest 1",
                                     *anew(channel_closes), *BURIED]
    assert bench.counts() == (0, 1, 1)


def test_after_a_refused_dead_letter_the_next_one_has_a_new_channel_that_confirms(bench: Bench) -> None:
    """A channel of RabbitMQ 3.10 that met the queue without its leader refuses for ever."""
    connection = bench.connection(Delivery(), Delivery(), Delivery(), troubles=[full()])
    bench.run(lambda task: rejects(bench, task), connection)
    assert bench.journal.story()[-12:] == ["started", "failed", *BURIED] * 2
    assert len(connection.channels) == 3  # to consume, the one given up, and that of both others


def test_after_a_lost_connection_dead_letters_go_over_the_next_one(bench: Bench) -> None:
    def handler(task: dict[str, Any]) -> None:
        if task["id"] == "b":
            serving_fails(bench)
        rejects(bench, task)

    connections = [bench.connection(Delivery(), Delivery(b'{"id": "b"}')), bench.connection(Delivery())]
    bench.run(handler, *connections)
    assert [len(connection.published) for connection in connections] == [1, 1]
    assert bench.counts() == (0, 3, 2)


@pytest.mark.parametrize("happens", LOSSES)
def test_a_stopped_worker_whose_connection_is_lost_ends_without_another(
    happens: Callable[[Bench], object], bench: Bench
) -> None:
    def handler(task: dict[str, Any]) -> None:
        is_stopped(bench, task)
        happens(bench)

    assert bench.run(handler, bench.connection(Delivery())) == 0
    assert bench.journal.story() == ["started", "stopping", *meanwhile(happens), "discarded", *lost(happens)]


def test_what_a_stopped_worker_is_sent_goes_back_untouched(bench: Bench) -> None:
    """The stop came between two tasks: the next delivery is on its way already."""
    connection = bench.connection(Delivery(), Delivery(b"{}"), at_first=stop)
    assert bench.run(lambda task: pytest.fail("a task after the stop"), connection) == 0
    assert bench.journal.story() == ["stopping", "cancel", "nack, requeue", "close connection"]


def test_an_event_that_cannot_be_told_is_not_acknowledged(bench: Bench) -> None:
    """Nobody reads our output any more: an ack without its `done` would look like a loss. No new connection either."""
    bench.journal.stream.broken_at = "done"
    with pytest.raises(BrokenPipeError):
        bench.run(lambda task: fine(bench, task), bench.connection(Delivery()))
    assert bench.journal.story() == ["started"]
    assert bench.worker.tasks_processed == 0


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
    connection = bench.connection(Delivery(), Delivery())
    began = time.monotonic()
    assert bench.run(lambda task: handler(lambda: twice(signum)), connection) == status
    assert time.monotonic() - began < DEADLINE
    assert bench.journal.story() == ["started", "stopping", "abandoned"]
    assert bench.journal.told("abandoned") == {"id": "a", "attempt": 1}
    assert bench.counts() == (0, 0, 0)
    assert bench.worker.seconds_busy > 0


def test_a_second_signal_while_the_worker_rests_gives_the_task_back_too(impatient: None, bench: Bench) -> None:
    bench.while_resting = lambda: twice(signal.SIGINT)
    assert bench.run(lambda task: fails(bench, task), bench.connection(Delivery())) == 130
    assert bench.journal.story() == ["started", "failed", "rest 1", "stopping"]


def stopped_in(handler: Callable[[dict[str, Any]], Any], bench: Bench, *deliveries: Delivery, **options: Any) -> str:
    bench.run(handler, bench.connection(*deliveries, **options))
    return str(bench.journal.told("stopping")["reason"])


def test_the_first_signal_says_what_it_finds_in_hand(bench: Bench) -> None:
    def stops(task: object) -> None:
        signal.raise_signal(signal.SIGINT)

    assert stopped_in(stops, bench, Delivery()) == f"Ctrl+C: {WORKING}"


def test_the_first_signal_says_that_a_task_rests(bench: Bench) -> None:
    bench.while_resting = lambda: signal.raise_signal(signal.SIGTERM)
    said = stopped_in(lambda task: fails(bench, task), bench, Delivery())
    assert said == "SIGTERM: the task that rests goes back at once"


def test_the_first_signal_says_that_nothing_is_in_hand_between_two_tasks(bench: Bench) -> None:
    assert stopped_in(lambda task: None, bench, Delivery()) == "SIGTERM: nothing in hand"


def test_the_first_signal_says_that_a_dead_letter_waits(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    monkeypatch.setattr("tareas.rabbit.letters.publish", lambda *args: signal.raise_signal(signal.SIGTERM))
    said = stopped_in(lambda task: None, bench, Delivery(b"no task"))
    assert said.startswith("SIGTERM: waiting until the dead letter is confirmed")


def test_a_handlers_task_shows_no_length_that_only_the_simulation_has(
    monkeypatch: pytest.MonkeyPatch, bench: Bench
) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(Events, "tell", lambda self, word, **facts: told.append({"word": word, **facts}))
    for handler, length in ((None, 0), (lambda task: None, None)):
        told.clear()
        monkeypatch.setattr("worker.KeepAlive", bench.keep_alive)
        worker = Worker("w", queue="q", handler=handler, events=Events("w", stream=bench.journal.stream))
        hand_out(monkeypatch, bench.connection(Delivery()))
        worker.start()
        (started,) = (facts for facts in told if facts["word"] == "started")
        assert started.get("complexity") == length


def test_the_grace_time_bounds_the_task_in_hand(bench: Bench) -> None:
    def handler(task: dict[str, Any]) -> None:
        signal.raise_signal(signal.SIGTERM)
        threading.Event().wait(DEADLINE)

    began = time.monotonic()
    assert bench.run(handler, bench.connection(Delivery()), grace=0.01) == 143
    assert bench.journal.story() == ["started", "stopping", "abandoned"]
    assert time.monotonic() - began < DEADLINE


# -- attempts and rests


@pytest.mark.parametrize(
    ("version", "redelivered", "headers", "attempt"),
    [
        ("3.10.8", False, None, 1),
        ("4.0.5", False, {"x-delivery-count": 4, "x-acquired-count": 4}, 1),  # forged by the publisher
        ("4.3.6", False, {"x-delivery-count": 4, "x-acquired-count": 4}, 1),
        ("3.10.8", True, {"x-delivery-count": 1}, 2),
        ("4.0.5", True, {"x-delivery-count": 3}, 4),
        ("4.0.5", True, {"x-delivery-count": 3, "x-acquired-count": 0}, 4),  # before 4.3 still the publisher's
        ("4.2.9", True, {"x-delivery-count": 1, "x-acquired-count": 4}, 2),
        ("4.3.0", True, {"x-acquired-count": 2}, 3),
        ("4.3.6", True, {"x-delivery-count": 1, "x-acquired-count": 3}, 4),
        ("4.10.0", True, {"x-delivery-count": 1, "x-acquired-count": 3}, 4),  # above 4.3, as numbers
        ("5.0.0", True, {"x-delivery-count": 1, "x-acquired-count": 3}, 4),
        ("4.3.6", True, {"x-delivery-count": 4}, 2),
        ("4.0.5", True, None, 2),
        ("4.0.5", True, {}, 2),
        ("4.0.5", True, {"x-delivery-count": "4"}, 2),
        ("4.0.5", True, {"x-delivery-count": -7}, 2),
        ("", True, {"x-delivery-count": 2}, 3),  # it does not say its version
    ],
)
def test_which_attempt_a_delivery_is(
    version: str, redelivered: bool, headers: dict[str, Any] | None, attempt: int, bench: Bench
) -> None:
    seen = []
    bench.run(lambda task: seen.append(bench.worker.attempt),
              bench.connection(Delivery(redelivered=redelivered, headers=headers), version=version))
    assert bench.journal.told("started") == {"id": "a", "attempt": attempt, "redelivered": redelivered}
    assert bench.journal.told("done")["attempt"] == attempt
    assert seen == [attempt]


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
    connection = bench.connection(*attempts(9))
    bench.run(lambda task: fails(bench, task), connection, max_attempts=9, retry_delay=retry_delay)
    again = [word for rest in rests for word in ("started", "failed", f"rest {rest}", "requeued", "nack, requeue")]
    assert bench.journal.story() == [*again, "started", "failed", *BURIED]


@pytest.mark.parametrize("retry_delay", [0.0, 1.0])
def test_an_attempt_far_above_a_thousand_rests_no_longer(retry_delay: float, bench: Bench) -> None:
    """RabbitMQ 4.3 sets no bound to a task that is given back."""
    delivery = Delivery(redelivered=True, headers={"x-delivery-count": 5000})
    bench.run(lambda task: fails(bench, task), bench.connection(delivery), max_attempts=10**9, retry_delay=retry_delay)
    rest = "30" if retry_delay else "0"
    assert bench.journal.story() == ["started", "failed", f"rest {rest}", "requeued", "nack, requeue"]


def test_max_attempts_1_gives_nothing_back(bench: Bench) -> None:
    bench.run(lambda task: fails(bench, task), bench.connection(Delivery()), max_attempts=1)
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
    connection = bench.connection(delivery, Delivery())
    bench.run((lambda task: fine(bench, task)) if with_handler else None, connection)
    assert bench.journal.story() == [*BURIED, "started", "done", "ack"]
    (letter,) = connection.published
    assert letter.body == body
    assert letter.properties.headers["tareas-reason"].startswith("invalid task: ")
    assert reason in letter.properties.headers["tareas-reason"]
    assert letter.properties.headers["tareas-attempts"] == 3
    told = bench.journal.told("dead_lettered")
    assert (told["id"], told["attempt"]) == (None, 3)
    assert reason in told["reason"]
    assert bench.counts() == (1, 0, 1)


def test_a_task_whose_headers_pika_cannot_read_is_dead_lettered_and_the_worker_goes_on(bench: Bench) -> None:
    """A timestamp in milliseconds, say. It would end the connection of one worker after the other."""
    table = b"\x04when" + b"T" + (1_700_000_000_000_000).to_bytes(8, "big")
    delivery = Delivery(encoded_headers=len(table).to_bytes(4, "big") + table)
    connection = bench.connection(delivery, Delivery())
    bench.run(lambda task: fine(bench, task), connection)
    assert bench.journal.story() == [*BURIED, "started", "done", "ack"]
    assert "headers cannot be read" in connection.published[0].properties.headers["tareas-reason"]


# -- what a dead letter says


@pytest.mark.parametrize(
    ("handler", "delivery", "reason", "number"),
    [
        (fails, LAST, f"ZeroDivisionError: by zero (test_worker.py, line {fails.__code__.co_firstlineno + 1})", 5),
        (rejects, Delivery(), "rejected: Reject: no such customer", 1),
        (fine, SPENT, "5 attempts used up, the last without an answer: the worker died, lost its connection, or was"
         " stopped and gave the task back", 5),
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
    connection = bench.connection(
        Delivery(delivery.body, delivery.redelivered, {**(delivery.headers or {}), "mine": 1}, properties=properties)
    )
    bench.run(None if handler is None else functools.partial(handler, bench), connection)
    (letter,) = connection.published
    assert (letter.exchange, letter.routing_key, letter.mandatory) == ("", "q.dead", True)
    assert letter.body == delivery.body
    sent = letter.properties
    assert (sent.message_id, sent.content_type, sent.app_id) == ("a", "application/json", "shop")
    assert sent.delivery_mode == 2  # it must outlive a restart, whatever the publisher thought
    why = {name: sent.headers[name] for name in ("mine", "tareas-reason", "tareas-attempts", "tareas-worker")}
    assert why == {"mine": 1, "tareas-reason": reason, "tareas-attempts": number, "tareas-worker": "w"}
    assert abs(float(sent.headers["tareas-time"]) - time.time()) < DEADLINE
    assert bench.journal.told("dead_lettered") == {"id": "a", "attempt": number, "reason": reason}


# -- what the worker counts


def test_what_a_worker_counts(bench: Bench) -> None:
    def handler(task: dict[str, Any]) -> None:
        began = time.monotonic()
        time.sleep(0.01)
        spent.append(time.monotonic() - began)
        if task["id"] == "b":
            fails(bench, task)

    spent: list[float] = []
    connection = bench.connection(
        Delivery(), Delivery(b'{"id": "b"}'), Delivery(b'{"id": "b"}', True, {"x-delivery-count": 4}), Delivery(b"{}"),
        Delivery(b'{"id": "c"}'))
    bench.run(handler, connection)
    assert bench.counts() == (2, 2, 2)
    assert sum(spent) <= bench.worker.seconds_busy
    told = bench.journal.told("stopped")
    assert told == {"processed": 2, "failed": 2, "dead_lettered": 2, "busy": round(bench.worker.seconds_busy, 3)}


def test_rests_and_dead_letters_are_no_work(bench: Bench) -> None:
    bench.while_resting = lambda: time.sleep(0.05)
    bench.run(lambda task: fails(bench, task), bench.connection(Delivery(), LAST))
    assert bench.worker.seconds_busy < 0.05 <= bench.journal.told("requeued")["rest"]


# -- the contract with who imports it


def test_a_worker_is_made_with_its_name_alone_and_connects_nowhere() -> None:
    made = Worker("worker-1")
    assert (made.worker_id, made.tasks_processed) == ("worker-1", 0)
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):  # AMQP_URL, as the tests set it
        broker.connect(made.addresses, made.worker_id)


def test_process_task_can_be_made_ones_own(bench: Bench) -> None:
    class Mine(Worker):
        def process_task(self, task_data: dict[str, Any]) -> None:
            seen.append(task_data)

    seen: list[dict[str, Any]] = []
    bench.run(None, bench.connection(Delivery()), kind=Mine)
    assert seen == [{"id": "a", "complexity": 0}]
    assert bench.journal.story() == ["started", "done", "ack"]


def test_without_a_handler_the_task_is_simulated_with_the_attempt_at_hand(bench: Bench) -> None:
    body = b'{"id": "a", "complexity": 0, "fail_attempts": 2}'
    bench.run(None, bench.connection(*(Delivery(body, one.redelivered, one.headers) for one in attempts(3))))
    again = ["started", "failed", "rest 1", "requeued", "nack, requeue"]
    assert bench.journal.story() == [*again, *again[:2], "rest 2", *again[3:], "started", "done", "ack"]


def test_a_handler_s_task_is_its_own_even_with_the_keys_of_the_simulation(bench: Bench) -> None:
    delivery = Delivery(b'{"id": "a", "fail_attempts": "often", "crash_attempts": 9}')
    bench.run(lambda task: None, bench.connection(delivery))
    assert bench.journal.story() == ["started", "done", "ack"]


# -- the life of a worker


def test_the_order_of_the_protocol(bench: Bench) -> None:
    """One task at a time, never acknowledged unseen; the dead-letter queue is there before the first task."""
    bench.run(None, bench.connection(Delivery()))
    assert bench.journal.words == [
        "declare q.dead", "declare q", "prefetch 1", "connected", "consume q as w", "started", "done", "ack", IDLE,
        "stopping", "close connection", "stopped",
    ]  # fmt: skip


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle worker looks at its queue without waiting."""
    for name in ("TICK", "DRAIN_TICK", "STARVED"):
        monkeypatch.setattr(idle, name, 1e-6)


def leave(channel: Channel) -> None:
    """Idle, and nobody stops the worker."""


@pytest.mark.parametrize(
    ("handler", "delivery", "status"),
    [(fine, Delivery(), 0), (fails, Delivery(), 0), (rejects, Delivery(), 3), (fine, Delivery(b"{}"), 3)],
)
def test_a_drained_worker_ends_with_3_when_it_has_dead_lettered(
    handler: Callable[[Bench, dict[str, Any]], Any], delivery: Delivery, status: int, restless: None, bench: Bench
) -> None:
    connection = bench.connection(delivery, when_idle=leave)
    assert bench.run(lambda task: handler(bench, task), connection, drain=True) == status


def test_a_worker_that_is_not_to_drain_stays_though_the_queue_is_empty(restless: None, bench: Bench) -> None:
    def look(channel: Channel) -> None:
        for _ in range(20):
            channel.connection.timers.pop(0)()
        assert channel.consumer_tags
        stop(channel)

    assert bench.run(None, bench.connection(when_idle=look)) == 0
    assert bench.journal.words[-4:] == [IDLE, "stopping", "close connection", "stopped"]


@pytest.mark.parametrize("drain", [False, True])
def test_tasks_that_are_ready_and_do_not_come_make_it_connect_anew(drain: bool, restless: None, bench: Bench) -> None:
    """RabbitMQ 3.10 does not tell the consumers of a queue that is deleted and declared again at once."""
    bench.run(None, bench.connection(ready=1, when_idle=leave), bench.connection(), drain=drain)
    assert bench.journal.told("cancelled")["reason"].startswith("tasks are ready and none comes")
    begin = bench.journal.words.index("cancelled")
    assert bench.journal.words[begin : begin + 10] == [*anew(channel_closes), IDLE]


def test_a_consumer_that_rabbitmq_cancels_begins_anew(bench: Bench) -> None:
    bench.run(None, bench.connection(when_idle=Channel.stop_consuming), bench.connection())
    begin = bench.journal.words.index("cancelled")
    assert bench.journal.words[begin : begin + 10] == [*anew(channel_closes), IDLE]


def test_a_refused_login_ends_it_at_first_and_is_waited_out_later(bench: Bench) -> None:
    """A broker that comes back may not know its users yet."""
    with pytest.raises(Denied):
        bench.run(None, Denied("no"))
    assert bench.journal.words == []
    bench.run(None, Unreachable("not up"), bench.connection(at_first=lambda channel: serving_fails(bench),
              when_idle=Channel.stop_consuming), Denied("no users yet"), Unreachable("gone"), bench.connection())
    waited = [event["reason"] for event in bench.journal.events if event["event"] == "waiting"]
    assert waited[0] == "not up" and waited[-2:] == ["no users yet", "gone"]


def test_a_stop_while_it_waits_for_rabbitmq_ends_it_with_its_summary(bench: Bench) -> None:
    bench.while_resting = lambda: signal.raise_signal(signal.SIGINT)
    assert bench.run(None, Unreachable("not up")) == 0
    assert bench.journal.words == ["waiting", "rest 0.25, unserved", "stopping", "stopped"]


def test_no_connection_within_the_time_allowed_is_said_with_the_reason(bench: Bench) -> None:
    with pytest.raises(Trouble, match="no connection within 0 s: not up"):
        bench.run(None, Unreachable("not up"), connect_timeout=0)


def test_an_idle_worker_whose_connection_was_good_has_its_time_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the time without a connection that is bounded, and the rest after a good one is short again."""

    def steady(channel: Channel) -> None:
        monkeypatch.setattr("time.monotonic", lambda: began + 100)
        channel.stop_consuming()

    began = time.monotonic()
    idle = bench.connection(when_idle=steady)
    bench.run(None, Unreachable("not up"), idle, bench.connection(Delivery()), connect_timeout=50)
    assert [word for word in bench.journal.words if word.startswith("rest")] == ["rest 0.25, unserved"] * 2


def test_a_worker_that_has_worked_ends_with_its_summary_even_when_there_is_no_way_on(bench: Bench) -> None:
    with pytest.raises(Trouble, match="no connection within 0 s: RabbitMQ cancelled"):
        bench.run(None, bench.connection(Delivery(), when_idle=Channel.stop_consuming), connect_timeout=0)
    assert bench.journal.words[-1] == "stopped"
    assert bench.journal.told("stopped")["processed"] == 1


def test_a_worker_that_has_done_nothing_leaves_the_reason_to_stand_alone(bench: Bench) -> None:
    with pytest.raises(Trouble):
        bench.run(None, bench.connection(when_idle=Channel.stop_consuming), connect_timeout=0)
    assert "stopped" not in bench.journal.words
