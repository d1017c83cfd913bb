"""Heartbeats while a task runs: who touches the connection, and when."""

from __future__ import annotations

import signal
import ssl
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pika.exceptions import StreamLostError

from tareas.rabbit import keep_alive
from tareas.rabbit.keep_alive import KeepAlive

DEADLINE = 30.0  # seconds that no test comes near
OWNER = threading.current_thread().name


class Clock:
    """Stands for the module `time`: it stands still until a test lets it go on, and then waits for the other thread."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.turns: list[float] = []  # how long the other thread has slept each time
        self._until = 0.0
        self._changed = threading.Condition()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """The other thread's, between two services."""
        with self._changed:
            self.turns.append(seconds)
            self._until = self.now + seconds
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.now >= self._until)
            self._until = 0.0

    def go_on(self, seconds: float) -> None:
        """So much later, when the other thread has done what it does by then."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._until > self.now, DEADLINE)
            self.now += seconds
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._until > self.now, DEADLINE), "it does not sleep again"


class Connection:
    """Notes each service and who does it; a real one breaks when two threads use it at once."""

    def __init__(self, serve: Callable[[], object] = lambda: None) -> None:
        self.served: list[str] = []
        self._serve = serve

    def process_data_events(self, time_limit: float) -> None:
        self.served.append(threading.current_thread().name if time_limit == 0 else "it waits, and with it the owner")
        self._serve()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(keep_alive, "time", made)
    return made


def serving(connection: Any, heartbeat: float = 20.0) -> KeepAlive:
    made = KeepAlive()
    made.serve(connection, heartbeat)
    return made


def test_a_long_task_is_served_once_a_second_by_another_thread(clock: Clock) -> None:
    connection = Connection()
    with serving(connection):
        for second in range(1, 6):
            clock.go_on(1)
            assert connection.served == ["keep-alive"] * second


def test_outside_of_a_task_the_connection_is_its_owners_alone(clock: Clock) -> None:
    connection = Connection()
    alive = serving(connection)
    clock.go_on(5)
    assert connection.served == []
    with alive:
        clock.go_on(1)
    clock.go_on(5)
    assert connection.served == ["keep-alive"]


def test_a_task_that_holds_pythons_lock_gets_heartbeats_and_no_looks(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of a look's system calls would last as long as the task holds the lock, and no heartbeat be sent meanwhile,
    though the first was quick: a busy system may give the lock back to us once."""
    connection, beats = Connection(), []
    alive = serving(connection)
    monkeypatch.setattr(alive, "_beat", lambda: beats.append(clock.now))
    with alive:
        for number in range(1, 5):
            clock.go_on(2.2)  # the other thread wanted to wake after one second
            assert (len(beats), connection.served) == (number, [])
        clock.go_on(1)
        assert (len(beats), connection.served) == (5, ["keep-alive"])


def test_a_task_younger_than_a_turn_is_passed_by(clock: Clock) -> None:
    connection = Connection()
    alive = serving(connection)
    clock.go_on(0.5)
    with alive:
        clock.go_on(0.5)
        assert connection.served == []
        clock.go_on(1)
        assert connection.served == ["keep-alive"]


def test_short_tasks_cost_no_service_however_many_they_are(clock: Clock) -> None:
    connection = Connection()
    alive = serving(connection)
    for _ in range(100):
        with alive:
            clock.go_on(0.3)
    assert connection.served == []


def test_after_a_long_task_the_owner_looks_once_more(clock: Clock) -> None:
    """The machine may have stood still, the other thread with it: is the connection still there before the ack?"""
    connection = Connection()
    with serving(connection):
        clock.now += 60
    assert connection.served == [OWNER]


def test_a_loss_that_the_last_look_finds_is_remembered(clock: Clock) -> None:
    def serve() -> None:
        raise StreamLostError("the cable")

    with serving(Connection(serve)) as alive:
        clock.now += 60
    assert isinstance(alive.lost, StreamLostError)


def test_the_end_of_a_task_waits_for_a_service_that_is_under_way(clock: Clock) -> None:
    """Else the owner's ack and the service would write to one socket at once."""
    amid, free = threading.Event(), threading.Event()

    def serve() -> None:
        amid.set()
        free.wait(DEADLINE)

    alive = serving(Connection(serve))
    timer = threading.Timer(0.05, free.set)
    with alive:
        threading.Thread(target=clock.go_on, args=(1,), daemon=True).start()
        assert amid.wait(DEADLINE)
        timer.start()
    assert free.is_set()
    timer.join()


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_a_task_that_ends_with_an_error_is_ended_too(error: type[BaseException], clock: Clock) -> None:
    connection = Connection()
    alive = serving(connection)
    with pytest.raises(error), alive:
        raise error
    clock.go_on(5)
    assert connection.served == []


@pytest.mark.parametrize("error", [StreamLostError("x"), OSError("x"), ValueError("x"), AssertionError("x"),
                                   KeyError("x")])
def test_a_lost_connection_is_remembered_and_not_touched_again_and_the_next_one_is_served(
    error: Exception, clock: Clock
) -> None:
    """Whatever pika raises; from a second service of a dead connection it raises ValueError."""

    def serve() -> None:
        raise error

    first, second = Connection(serve), Connection()
    alive = serving(first)
    with alive:
        clock.go_on(1)
        clock.go_on(1)
    assert alive.lost is error
    assert first.served == ["keep-alive"]

    alive.serve(second, 20.0)
    assert alive.lost is None
    with alive:
        clock.go_on(1)
    assert (first.served, second.served) == (["keep-alive"], ["keep-alive"])


def test_a_loss_is_told_once_at_once_and_outlives_an_output_that_takes_nothing(clock: Clock) -> None:
    cable, told = ConnectionResetError("the cable"), list[Exception]()

    def broken() -> None:
        raise cable

    def tell(error: Exception) -> None:
        told.append(error)
        raise BrokenPipeError

    alive = KeepAlive(tell)
    alive.serve(Connection(broken), 20.0)
    with alive:
        clock.go_on(1)
        assert told == [cable]
        clock.go_on(3)
    assert told == [cable] and alive.lost is cable
    healthy = Connection()
    alive.serve(healthy, 20.0)
    with alive:
        clock.go_on(1)
    assert healthy.served == ["keep-alive"]


def test_a_task_that_runs_while_its_connection_is_replaced_is_none_of_the_next_ones(clock: Clock) -> None:
    connection = Connection()
    alive = serving(Connection())
    with alive:
        alive.serve(connection, 20.0)
        clock.go_on(5)
    assert connection.served == []


def test_one_thread_serves_all_connections(clock: Clock) -> None:
    before = threading.active_count()
    alive = KeepAlive()
    for _ in range(5):
        alive.serve(Connection(), 20.0)
    assert threading.active_count() == before + 1


@pytest.mark.parametrize(("heartbeat", "turn"), [(0.0, 1.0), (20.0, 1.0), (4.0, 1.0), (2.0, 0.5), (1.0, 0.25)])
def test_a_turn_is_a_second_or_a_quarter_of_a_short_heartbeat(heartbeat: float, turn: float, clock: Clock) -> None:
    """RabbitMQ gives up after about two heartbeats of silence."""
    connection = Connection()
    with serving(connection, heartbeat):
        clock.go_on(turn)
        clock.go_on(turn)
        assert clock.turns[:2] == [turn, turn]
        assert connection.served == ["keep-alive"] * 2


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks on this system")
def test_the_thread_that_serves_takes_no_signals(clock: Clock) -> None:
    """Python runs handlers in the main thread: a signal that the kernel gives to another one would not wake it."""
    blocked: set[int] = set()
    with serving(Connection(lambda: blocked.update(signal.pthread_sigmask(signal.SIG_BLOCK, ())))):
        clock.go_on(1)
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGALRM} <= blocked


def test_with_the_true_clock_a_task_longer_than_a_turn_is_served() -> None:
    """All the others stop the clock: this one does not."""
    served = threading.Event()
    began = time.monotonic()
    with serving(Connection(served.set), heartbeat=0.2):
        assert served.wait(DEADLINE)
        assert time.monotonic() - began >= 0.05


def beat(error: OSError) -> list[bytes]:
    """What is left to pika of a heartbeat whose sending raises this."""

    def send(data: bytes) -> int:
        raise error

    written: list[bytes] = []
    transport = SimpleNamespace(_sock=SimpleNamespace(send=send), write=written.append, get_write_buffer_size=lambda: 0,
                                _state=1, _STATE_ACTIVE=1)
    alive = KeepAlive()
    alive._connection = SimpleNamespace(_impl=SimpleNamespace(_transport=transport))
    alive._beat()
    return written


def test_a_heartbeat_that_tls_has_no_room_for_is_left_to_pika() -> None:
    """OpenSSL has taken the bytes and wants the same again: another frame in their place would spoil all."""
    assert beat(ssl.SSLWantWriteError()) == [keep_alive.HEARTBEAT]


def test_a_heartbeat_that_finds_the_connection_gone_leaves_it_to_the_look() -> None:
    """What RabbitMQ said before it went away is yet to be read: an abort here would lose the reason."""
    assert beat(BrokenPipeError()) == []
