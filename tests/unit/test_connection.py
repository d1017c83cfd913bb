"""The connection itself, its other end scripted: answers, losses, bounds, and whose error comes out where."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from pika import spec

from tareas.errors import (
    Broken,
    ConsumerGone,
    Denied,
    Lost,
    Nacked,
    QueueDiffers,
    Refused,
    Trouble,
    Unreachable,
    Unroutable,
)
from tareas.rabbit import connect as connecting, handover, inside, loop
from tareas.rabbit.connect import connect
from tareas.rabbit.connection import Connection
from tests.unit import fakes
from tests.unit.peer import DEADLINE, HEADER, START, Answer, Peer, close_channel, close_connection, cut, ignore, until

MAIN = threading.main_thread()


@pytest.fixture
def opened(peer: Peer) -> Iterator[Callable[..., Connection]]:
    """Opens connections to the peer, and sees to it that nothing of them is left."""
    threads, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    made: list[Connection] = []

    def open_one(**options: Any) -> Connection:
        made.append(Connection(peer.address(options.pop("url", "")), "test", **options))
        return made[-1]

    yield open_one
    for each in made:
        with contextlib.suppress(Exception):
            each.close(0.1)  # a peer that ignores a question does not answer the goodbye either
    until(lambda: set(threading.enumerate()) <= threads, "the end of its thread")
    peer.close()
    until(lambda: len(os.listdir("/proc/self/fd")) < files, "the end of its files")  # one less: the peer listened


Opened = Callable[..., Connection]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of a moment."""
    for name, seconds in (("ANSWER_TIMEOUT", 0.3), ("TICK", 0.02), ("TURN", 0.02)):
        monkeypatch.setattr(loop, name, seconds)


def declare(connection: Connection) -> Any:
    return connection.queue_declare("q", durable=True)


# -- the one that stands for it elsewhere


def test_the_fake_has_the_methods_of_the_real_one() -> None:
    for name, real in inspect.getmembers(Connection, inspect.isfunction):
        if not name.startswith("_"):
            fake = getattr(fakes.Connection, name)
            assert [(it.name, it.kind) for it in inspect.signature(real).parameters.values()] == [
                (it.name, it.kind) for it in inspect.signature(fake).parameters.values()
            ], name
    made = fakes.Connection()
    for name in ("lost", "blocked", "sending", "version", "frame_max", "address"):
        assert hasattr(made, name)


# -- answers


def test_a_call_returns_when_rabbitmq_has_answered(peer: Peer, opened: Opened) -> None:
    connection = opened()
    assert (connection.version, connection.frame_max, connection.lost, connection.blocked) == (
        (4, 3, 6), 131_072, None, False)
    answer = connection.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})
    assert (answer.message_count, answer.consumer_count) == (7, 2)
    connection.basic_qos(prefetch_count=3)
    connection.basic_consume("q", lambda *it: None, consumer_tag="w", arguments={"x": 1})
    connection.basic_cancel("w")
    connection.queue_delete("q")
    declared, qos, consumed, cancelled = (
        peer.wait_for(kind) for kind in (spec.Queue.Declare, spec.Basic.Qos, spec.Basic.Consume, spec.Basic.Cancel))
    assert (declared.queue, declared.durable, declared.passive) == ("q", True, False)
    assert declared.arguments == {"x-queue-type": "quorum"}
    assert (qos.prefetch_count, consumed.queue, consumed.consumer_tag, consumed.no_ack) == (3, "q", "w", False)
    assert consumed.arguments == {"x": 1} and cancelled.consumer_tag == "w"
    connection.queue_declare("q", passive=True)
    assert peer.wait_for(spec.Queue.Declare, 2).passive
    assert peer.of(spec.Connection.StartOk)[0].client_properties["connection_name"] == "test"


def test_what_is_handed_over_goes_out_in_the_order_of_the_calls(peer: Peer, opened: Opened) -> None:
    connection = opened()
    for tag in range(1, 200, 2):
        connection.basic_ack(tag, multiple=tag % 3 == 0)
        connection.basic_nack(tag + 1, requeue=tag % 3 == 0)
    declare(connection)
    settled = peer.of((spec.Basic.Ack, spec.Basic.Nack))
    assert [each.delivery_tag for each in settled] == list(range(1, 201))
    assert all(each.multiple == (each.delivery_tag % 3 == 0) for each in settled[::2])
    assert all(each.requeue == (each.delivery_tag % 3 == 1) for each in settled[1::2])


def test_closing_sends_what_was_handed_over_before_it(peer: Peer, opened: Opened) -> None:
    with opened() as connection:
        connection.basic_ack(1)
    peer.wait_for(None)
    assert [type(each) for each in peer.heard[-4:-1]] == [spec.Basic.Ack, spec.Channel.Close, spec.Connection.Close]


# -- losses


def lost_amid_a_call(peer: Peer, opened: Opened, answer: Answer, **options: Any) -> tuple[Connection, Exception]:
    peer.answers[spec.Queue.Declare] = answer
    connection = opened(**options)
    with pytest.raises((Lost, Trouble)) as caught:
        declare(connection)
    assert connection.lost is caught.value
    return connection, caught.value


CLOSED = [
    (cut, Lost, "broke"),
    (close_connection(320, "CONNECTION_FORCED - broker forced"), Lost, "closed the connection: CONNECTION_FORCED"),
    (close_channel(404, "NOT_FOUND - no exchange"), Refused, "cannot be declared: NOT_FOUND"),
    (close_channel(405, "RESOURCE_LOCKED - cannot obtain exclusive access"), QueueDiffers, "RESOURCE_LOCKED"),
    (close_channel(406, "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue"), QueueDiffers,
     "inequivalent arg 'x-queue-type'"),
    (close_channel(406, "PRECONDITION_FAILED - queue limit in vhost"), Trouble, "queue limit in vhost"),
    (close_channel(403, "ACCESS_REFUSED - configure access"), Denied, "does not permit user 'eva' to declare"),
]


@pytest.mark.parametrize(("answer", "kind", "words"), CLOSED, ids=[each[2] for each in CLOSED])
def test_a_loss_amid_a_call_is_the_answer_to_it_and_to_all_after_it_and_is_told_once(
    answer: Answer, kind: type[Exception], words: str, peer: Peer, opened: Opened
) -> None:
    told: list[tuple[Exception, Any]] = []
    connection, error = lost_amid_a_call(
        peer, opened, answer, on_lost=lambda error: told.append((error, threading.current_thread())))
    assert isinstance(error, kind) and words in str(error) and "secret" not in str(error)
    calls: list[tuple[Callable[..., Any], Any]] = [
        (declare, [connection]), (connection.basic_ack, [1]), (connection.basic_nack, [1]),
        (connection.basic_cancel, ["w"]), (connection.renew, []), (connection.process_data_events, []),
        (connection.watch, [0]), (connection.look, []),
    ]  # fmt: skip
    for call, arguments in calls:
        with pytest.raises(kind) as caught:
            call(*arguments)
        assert caught.value is error
    [(first, thread)] = told
    assert first is error and thread is not MAIN
    connection.close()
    assert len(told) == 1


def test_a_loss_is_told_at_once_whatever_the_caller_does(peer: Peer, opened: Opened) -> None:
    told = threading.Event()
    connection = opened(on_lost=lambda error: told.set())
    peer.cut()
    assert told.wait(DEADLINE) and isinstance(connection.lost, Lost)


def test_a_look_finds_what_the_thread_had_no_time_to_find(peer: Peer, opened: Opened) -> None:
    """The whole process stood still, and its main thread is the first to go on."""
    connection, still, free = opened(), threading.Event(), threading.Event()
    connection.look()
    connection._hand_over(lambda: (still.set(), free.wait(DEADLINE)))  # type: ignore[func-returns-value]
    assert still.wait(DEADLINE)
    peer.send(spec.Basic.Ack(1))
    peer.cut()
    peer.wait_for(None)
    threading.Timer(0.05, free.set).start()
    with pytest.raises(Lost):
        connection.look()


def test_our_own_close_is_no_loss(peer: Peer, opened: Opened) -> None:
    told: list[Exception] = []
    connection = opened(on_lost=told.append)
    connection.close()
    connection.close()
    assert told == []
    with pytest.raises(Lost, match=r"was closed|ended"):
        declare(connection)


def test_a_consumer_that_rabbitmq_cancels_ends_the_connection(peer: Peer, opened: Opened) -> None:
    told: list[Exception] = []
    connection = opened(on_lost=told.append)
    connection.basic_consume("q", lambda *it: None, consumer_tag="w")
    peer.send(spec.Basic.Cancel("w", True))
    until(lambda: connection.lost)
    assert isinstance(connection.lost, ConsumerGone) and told == [connection.lost]


def test_a_channel_closed_for_a_message_that_is_too_large_says_so(peer: Peer, opened: Opened) -> None:
    connection = opened()
    peer.send(spec.Channel.Close(406, "PRECONDITION_FAILED - message size 9 is larger than max size 8", 0, 0))
    until(lambda: connection.lost)
    assert isinstance(connection.lost, Refused) and (connection.lost.code, connection.lost.too_large) == (406, True)


# -- bounds


def test_an_answer_that_does_not_come_ends_the_connection(hasty: None, peer: Peer, opened: Opened) -> None:
    began = time.monotonic()
    _, error = lost_amid_a_call(peer, opened, ignore)
    assert 0.3 <= time.monotonic() - began < DEADLINE
    assert type(error) is Lost and "did not answer" in str(error)


def keeps_sending(seconds: float, data: bytes) -> Answer:
    def answer(peer: Peer, frame: Any) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            peer.send_bytes(data)
            time.sleep(0.02)
        peer.send(spec.Queue.DeclareOk("q", 7, 2))

    return answer


def test_heartbeats_are_no_movement(hasty: None, peer: Peer, opened: Opened) -> None:
    beats = keeps_sending(1, pika.frame.Heartbeat().marshal())
    _, error = lost_amid_a_call(peer, opened, beats)
    assert "did not answer" in str(error)


def test_a_bound_counts_from_the_last_byte_that_moved(hasty: None, peer: Peer, opened: Opened) -> None:
    """A slow link: something comes all the time, only not the answer."""
    peer.answers[spec.Queue.Declare] = keeps_sending(1, pika.frame.Method(1, spec.Basic.Ack(1)).marshal())
    connection = opened()
    connection.confirm_delivery(lambda frame: None)
    assert declare(connection).message_count == 7


def test_an_alarm_stops_the_clock(hasty: None, peer: Peer, opened: Opened) -> None:
    told: list[Any] = []

    def blocked(peer: Peer, frame: Any) -> None:
        peer.send(spec.Connection.Blocked("low on \x1b disk"), 0)
        time.sleep(0.8)
        seen.append((connection.blocked, connection.silence))
        peer.send(spec.Connection.Unblocked(), 0)
        time.sleep(0.1)
        peer.send(spec.Queue.DeclareOk("q", 7, 2))

    seen: list[Any] = []
    peer.answers[spec.Queue.Declare] = blocked
    connection = opened(on_alarm=lambda word, **facts: told.append((word, facts)))
    assert declare(connection).message_count == 7
    assert told == [("blocked", {"reason": "low on \\x1b disk"}), ("unblocked", {})]
    assert seen == [(True, 0.0)] and not connection.blocked
    time.sleep(0.02)
    assert 0 < connection.silence < DEADLINE


def test_a_goodbye_that_is_not_answered_is_not_waited_for(peer: Peer, opened: Opened) -> None:
    peer.answers[spec.Connection.Close] = ignore
    began = time.monotonic()
    opened().close(0.2)
    assert 0.2 <= time.monotonic() - began < 3


# -- what RabbitMQ sends by itself


def test_deliveries_come_in_order_in_the_callers_thread(peer: Peer, opened: Opened) -> None:
    came: list[Any] = []
    connection = opened()
    connection.basic_consume("q", lambda *it: came.append((*it, threading.current_thread())), consumer_tag="w")
    for tag in range(1, 101):
        peer.deliver(tag, b"%d" % tag, redelivered=tag == 7)
    while len(came) < 100:
        assert connection.process_data_events(DEADLINE)
    assert not connection.process_data_events() and not connection.process_data_events(0.01)
    assert [(method.delivery_tag, body) for _, method, _, body, _ in came] == [(n, b"%d" % n) for n in range(1, 101)]
    channel, method, properties, _, thread = came[6]
    assert (channel, method.redelivered, properties.message_id, thread) == (connection, True, "m7", MAIN)


def test_what_has_arrived_can_be_taken_at_once(peer: Peer, opened: Opened) -> None:
    connection = opened()
    connection.basic_consume("q", lambda *it: pytest.fail("it was taken"), consumer_tag="w")
    for tag in (1, 2):
        peer.deliver(tag)
    declare(connection)  # its answer comes behind them
    assert [(method.delivery_tag, body) for method, _, body in connection.waiting()] == [(1, b"x"), (2, b"x")]
    assert connection.waiting() == [] and not connection.process_data_events()


def test_what_arrives_while_a_consumer_is_cancelled_is_ours(peer: Peer, opened: Opened) -> None:
    """pika would give it back, at the cost of an attempt."""
    connection = opened()
    connection.basic_consume("q", lambda *it: None, consumer_tag="w")

    def late(peer: Peer, frame: Any) -> None:
        peer.deliver(1)
        peer.send(spec.Basic.CancelOk("w"))

    peer.answers[spec.Basic.Cancel] = late
    connection.basic_cancel("w")
    assert [method.delivery_tag for method, _, _ in connection.waiting()] == [1]
    connection.basic_consume("q", lambda *it: None, consumer_tag="w")  # the name is free again
    assert not [each for each in peer.heard if isinstance(each, spec.Basic.Reject)]


def test_after_a_loss_no_delivery_is_handled_but_confirms_are(peer: Peer, opened: Opened) -> None:
    """A delivery is someone else's then. A confirm is as true as before."""
    came: list[Any] = []
    connection = opened()
    connection.confirm_delivery(came.append)
    connection.basic_consume("q", lambda *it: pytest.fail("it is lost"), consumer_tag="w")
    peer.send(spec.Basic.Ack(1))
    peer.send(spec.Basic.Nack(2))
    peer.deliver(1)
    peer.cut()
    until(lambda: connection.lost)
    assert connection.process_data_events() and connection.process_data_events()
    assert [(type(frame.method), frame.method.delivery_tag) for frame in came] == [
        (spec.Basic.Ack, 1), (spec.Basic.Nack, 2)]
    for _ in range(3):
        with pytest.raises(Lost) as caught:
            connection.process_data_events(DEADLINE)
        assert caught.value is connection.lost


def test_returns_come_before_their_confirm(peer: Peer, opened: Opened) -> None:
    came: list[Any] = []
    connection = opened()
    connection.confirm_delivery(lambda frame: came.append(frame.method.delivery_tag),
                                lambda properties, body: came.append((properties.message_id, body)))
    peer.bring_back()
    peer.send(spec.Basic.Ack(1))
    while len(came) < 2:
        assert connection.process_data_events(DEADLINE)
    assert came == [("m", b"x"), 1]


def test_a_file_that_can_be_read_wakes_the_caller_once_each_time(peer: Peer, opened: Opened) -> None:
    reading, writing = os.pipe()
    connection = opened()
    for _ in range(2):
        connection.watch(reading)
        connection.watch(reading)
        assert not connection.process_data_events(0.05)
        os.write(writing, b"x")
        assert connection.process_data_events(DEADLINE)
        assert not connection.process_data_events(0.05)
        os.read(reading, 1)
    os.close(reading)
    os.close(writing)


# -- publishing


def published(peer: Peer) -> list[str]:
    return [each.properties.message_id for each in peer.of(pika.frame.Header)]


def test_messages_are_gathered_until_the_caller_waits_or_there_are_enough(peer: Peer, opened: Opened) -> None:
    connection = opened()
    for number in range(3):
        connection.basic_publish("", "q", b"x", pika.BasicProperties(message_id=f"m{number}"), mandatory=True)
    declare(connection)
    assert published(peer) == []
    connection.process_data_events()
    peer.wait_for(pika.frame.Header, 3)
    for number in range(3, 60):
        connection.basic_publish("", "q", b"x" * 2000, pika.BasicProperties(message_id=f"m{number}"), mandatory=True)
    peer.wait_for(pika.frame.Header, 30)
    connection.flush()
    peer.wait_for(pika.frame.Header, 60)
    assert published(peer) == [f"m{number}" for number in range(60)]
    sent = peer.of(spec.Basic.Publish)
    assert all((each.exchange, each.routing_key, each.mandatory) == ("", "q", True) for each in sent)


def answers_publish(*steps: Callable[[Peer], object]) -> Answer:
    return lambda peer, frame: [step(peer) for step in steps]


@pytest.mark.parametrize(
    ("steps", "error"),
    [
        ([lambda peer: peer.send(spec.Basic.Ack(1))], None),
        ([lambda peer: peer.send(spec.Basic.Nack(1))], Nacked),
        ([Peer.bring_back, lambda peer: peer.send(spec.Basic.Ack(1))], Unroutable),
        ([Peer.cut], Lost),
        ([lambda peer: peer.send(spec.Channel.Close(406, "message size 9 is larger than", 0, 0))], Refused),
    ],
    ids=["stored", "nacked", "returned", "lost", "too large"],
)
def test_one_message_and_its_confirm(
    steps: list[Callable[[Peer], object]], error: Any, peer: Peer, opened: Opened
) -> None:
    peer.answers[pika.frame.Body] = answers_publish(*steps)
    connection = opened()
    connection.confirm_delivery()
    said = ""
    try:
        connection.publish_and_confirm("q.dead", b"x", pika.BasicProperties(message_id="m"))
        assert error is None
    except Exception as caught:
        assert isinstance(caught, error or ()), caught
        said = str(caught)
    if error in (Nacked, Unroutable):
        assert "'q.dead'" in said
        assert declare(connection).message_count == 7  # the connection lives
        peer.answers[pika.frame.Body] = answers_publish(lambda peer: peer.send(spec.Basic.Ack(2)))
        connection.publish_and_confirm("q.dead", b"x", pika.BasicProperties())
    [publish] = peer.of(spec.Basic.Publish)[:1]
    assert (publish.exchange, publish.routing_key, publish.mandatory) == ("", "q.dead", True)


def test_the_confirm_of_a_message_that_nobody_waits_for_any_more_is_not_the_next_ones(
    peer: Peer, opened: Opened
) -> None:
    connection = opened()
    connection.confirm_delivery()
    timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        connection.publish_and_confirm("q", b"x", pika.BasicProperties())
    timer.join()
    peer.answers[pika.frame.Body] = answers_publish(
        lambda peer: peer.send(spec.Basic.Ack(1)), lambda peer: peer.send(spec.Basic.Nack(2)))
    with pytest.raises(Nacked):
        connection.publish_and_confirm("q", b"x", pika.BasicProperties())


def test_another_channel_begins_anew(peer: Peer, opened: Opened) -> None:
    connection = opened()
    connection.confirm_delivery()
    peer.answers[pika.frame.Body] = answers_publish(lambda peer: peer.send(spec.Basic.Ack(1)))
    for _ in range(3):
        connection.publish_and_confirm("q", b"x", pika.BasicProperties())
        connection.renew()
        connection.confirm_delivery()
    assert (len(peer.of(spec.Channel.Close)), len(peer.of(spec.Channel.Open))) == (3, 4)
    assert connection.lost is None and declare(connection).message_count == 7


# -- an error of our own


def bug(*arguments: Any, **facts: Any) -> None:
    raise ValueError("ours")


def test_a_bug_in_a_callback_of_the_thread_comes_out_of_the_next_call_as_what_it_is(
    peer: Peer, opened: Opened
) -> None:
    told: list[Exception] = []
    connection = opened(on_alarm=bug, on_lost=told.append)
    peer.send(spec.Connection.Blocked("disk"), 0)
    until(lambda: connection.lost)
    for call in (connection.process_data_events, connection.renew, functools.partial(connection.basic_ack, 1)):
        with pytest.raises(ValueError, match="ours"):
            call()
    with pytest.raises(ValueError, match="ours"):
        connection.close()
    assert told == []  # it is no lost connection


@pytest.mark.parametrize("name", ["moved", "send_heartbeat"])
def test_a_bug_in_a_turn_of_the_loop_is_no_loss(name: str, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another pika, say, that lacks what inside.py touches."""
    connection = opened(url="heartbeat=1")
    monkeypatch.setattr(inside, name, bug)
    if name == "send_heartbeat":
        monkeypatch.setattr(handover, "LATE", -0.1)  # each turn is late
    with pytest.raises(ValueError, match="ours"):
        connection.process_data_events(DEADLINE)


def test_a_bug_amid_a_call_is_the_answer_to_it(peer: Peer, opened: Opened) -> None:
    peer.answers[spec.Queue.Declare] = lambda peer, frame: peer.send(spec.Connection.Blocked("disk"), 0)
    with pytest.raises(ValueError, match="ours"):
        declare(opened(on_alarm=bug))


@pytest.mark.parametrize("error", [ValueError("ours"), BrokenPipeError(), AssertionError(), OSError(28, "full")])
def test_a_bug_where_the_loss_is_told_comes_before_the_loss(error: Exception, peer: Peer, opened: Opened) -> None:
    def raises(lost: Exception) -> None:
        raise error

    peer.answers[spec.Queue.Declare] = cut
    connection = opened(on_lost=raises)
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            declare(connection)
        assert caught.value is error


@pytest.mark.parametrize("kind", ["delivery", "confirm", "return"])
def test_a_bug_where_something_is_handled_is_the_callers_own(kind: str, peer: Peer, opened: Opened) -> None:
    connection = opened()
    connection.confirm_delivery(bug, bug)
    connection.basic_consume("q", bug, consumer_tag="w")
    {"delivery": lambda: peer.deliver(1), "confirm": lambda: peer.send(spec.Basic.Ack(1)), "return": peer.bring_back}[
        kind]()
    with pytest.raises(ValueError, match="ours"):
        connection.process_data_events(DEADLINE)
    assert connection.lost is None and declare(connection).message_count == 7


def test_a_call_that_pika_cannot_write_is_no_lost_connection(peer: Peer, opened: Opened) -> None:
    connection = opened()
    with pytest.raises(Exception) as caught:
        connection.basic_ack("one")  # type: ignore[arg-type]
    assert not isinstance(caught.value, Lost)


# -- how it begins


@pytest.mark.parametrize(
    ("heard", "code", "text", "kind", "words"),
    [
        (spec.Connection.StartOk, 403, "ACCESS_REFUSED - Login was refused", Denied,
         "refuses the login of user 'eva': ACCESS_REFUSED - Login was refused"),
        (spec.Connection.Open, 530, "NOT_ALLOWED - access to vhost 'x' refused", Denied, "has no such vhost, or user"),
        (spec.Connection.Open, 530, "NOT_ALLOWED - vhost x not found", Denied, "NOT_ALLOWED - vhost x not found"),
        (spec.Connection.Open, 530, "NOT_ALLOWED - access refused: connection limit (1) is reached", Lost,
         "connection limit (1) is reached"),
        (spec.Connection.Open, 530, "NOT_ALLOWED - vhost '/' is down", Lost, "vhost '/' is down"),
        (spec.Connection.Open, 541, "INTERNAL_ERROR", Lost, "INTERNAL_ERROR"),
        (spec.Channel.Open, 320, "CONNECTION_FORCED", Lost, "CONNECTION_FORCED"),
    ],
)  # fmt: skip
def test_only_rabbitmqs_own_words_are_a_refusal(
    heard: Any, code: int, text: str, kind: type[Exception], words: str, peer: Peer, opened: Opened
) -> None:
    told: list[Exception] = []
    peer.answers[heard] = close_connection(code, text)
    with pytest.raises(kind) as caught:
        opened(on_lost=told.append)
    assert type(caught.value) is kind and words in str(caught.value) and "secret" not in str(caught.value)
    assert told == []  # there was no connection yet


PLACES = [HEADER, spec.Connection.StartOk, spec.Connection.TuneOk, spec.Connection.Open, spec.Channel.Open]


@pytest.mark.parametrize("heard", PLACES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("amid", [False, True], ids=["after", "amid"])
def test_a_stream_that_ends_amid_the_handshake_is_broken(heard: Any, amid: bool, peer: Peer, opened: Opened) -> None:
    def answer(peer: Peer, frame: Any) -> None:
        if amid:
            peer.send_bytes(pika.frame.Method(0, START).marshal()[:20])
        peer.cut()

    peer.answers[heard] = answer
    with pytest.raises(Broken) as caught:
        opened()
    assert str(peer.address().shown) in str(caught.value)


def test_what_speaks_no_amqp_and_what_does_not_listen(peer: Peer, opened: Opened) -> None:
    def web(peer: Peer, frame: Any) -> None:
        peer.send_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        peer.cut()

    peer.answers[HEADER] = web
    with pytest.raises(Broken, match="before it spoke AMQP"):
        opened()
    peer.answers[HEADER] = ignore
    with pytest.raises(Lost, match=r"no answer from .* in time"):
        opened(url="stack_timeout=0.2&socket_timeout=0.2")
    address = peer.address()
    peer.server.shutdown(2)
    peer.server.close()
    until(lambda: not peer._thread.is_alive())
    with pytest.raises(Lost, match="nobody listens"):
        Connection(address, "test")


def test_the_addresses_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: dict[str, list[Any]] = {}
    asked: list[str] = []

    def one(address: str, name: str, **options: Any) -> Any:
        asked.append(address)
        outcome = outcomes[address].pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def tried(tries: int, **each: list[Any]) -> Any:
        asked.clear()
        outcomes.update(each)
        with pytest.raises((Unreachable, Denied)) if all(
            isinstance(it, Exception) for its in each.values() for it in its) else contextlib.nullcontext() as caught:
            return connect(list(each), "test", tries=tries)  # type: ignore[arg-type]
        return type(caught.value), str(caught.value), "".join(asked)

    monkeypatch.setattr(connecting, "Connection", one)
    monkeypatch.setattr(connecting, "REST", 0)
    made = object()
    assert tried(1, a=[Lost("1")], b=[made]) is made and asked == ["a", "b"]
    assert tried(1, a=[Lost("1")], b=[Denied("2")]) == (Unreachable, "1; 2", "ab")
    assert tried(1, a=[Denied("1")], b=[Denied("2")]) == (Denied, "1; 2", "ab")
    assert tried(3, a=[Broken("1"), Broken("1"), Broken("2")], b=[Lost("3")]) == (Unreachable, "2; 3", "aaab")
    assert tried(3, a=[Broken("1"), Denied("2")]) == (Denied, "2", "aa")
    assert tried(3, a=[Broken("1"), made]) is made


# -- the thread


def test_the_thread_takes_no_signals(peer: Peer, opened: Opened) -> None:
    """Python runs handlers in the main thread: a signal that the kernel gives to another one would not wake it."""
    blocked: set[int] = set()
    opened(on_alarm=lambda word, **facts: blocked.update(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    peer.send(spec.Connection.Blocked("disk"), 0)
    until(lambda: blocked)
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGALRM} <= blocked


def test_heartbeats_go_out_whatever_the_caller_does(hasty: None, peer: Peer, opened: Opened) -> None:
    opened(url="heartbeat=1")
    peer.wait_for(pika.frame.Heartbeat)


def test_a_thread_that_gets_its_turn_too_late_sends_heartbeats_first(peer: Peer, opened: Opened) -> None:
    """A task that holds Python's lock lets it run for one system call at a time."""
    connection = opened()
    connection._pika._due = time.monotonic() - 10
    peer.deliver(1)  # something to look at
    peer.wait_for(pika.frame.Heartbeat)
    until(lambda: connection._pika._due > time.monotonic())
    declare(connection)
    assert len(peer.of(pika.frame.Heartbeat)) == 1


@pytest.mark.parametrize("way", ["close", "abort", "lost", "refused"])
def test_nothing_of_it_is_left(way: str, peer: Peer, opened: Opened) -> None:
    """The fixture looks for threads and files."""
    for _ in range(5):
        if way == "refused":
            peer.answers[spec.Connection.StartOk] = close_connection(403, "no")
            with pytest.raises(Denied):
                opened()
            continue
        connection = opened()
        connection.basic_ack(1)
        if way == "lost":
            peer.cut()
            until(lambda connection=connection: connection.lost)  # type: ignore[misc]
        elif way == "abort":
            connection.abort()
        else:
            connection.close()
