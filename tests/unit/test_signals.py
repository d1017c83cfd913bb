"""Ctrl+C and SIGTERM: what the first one asks for, what the second one does, and where each of them is felt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tareas.errors import Abandoned, Interrupted
from tareas.work import signals
from tareas.work.signals import Stopping

ROOT = Path(__file__).parents[2]
DEADLINE = 30.0  # seconds that no test comes near
BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Whatever a test does, the handlers from before are back after it."""
    before = [signal.getsignal(signum) for signum in BOTH]
    yield
    assert [signal.getsignal(signum) for signum in BOTH] == before


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal counts at once."""
    monkeypatch.setattr(signals, "REPEAT", 0.0)


@pytest.mark.parametrize("signum", BOTH)
def test_the_first_signal_asks_and_interrupts_nothing(signum: int) -> None:
    told: list[int] = []
    with Stopping(told.append) as stop:
        assert (stop.requested, stop.abandoned) == (None, None)
        os.kill(os.getpid(), signum)
        assert (stop.requested, stop.abandoned, told) == (signum, None, [signum])


@pytest.mark.parametrize("second", BOTH)
@pytest.mark.parametrize("first", BOTH)
def test_the_second_signal_abandons_and_its_number_counts(first: int, second: int, impatient: None) -> None:
    told: list[int] = []
    with Stopping(told.append) as stop:
        signal.raise_signal(first)
        with pytest.raises(Abandoned):
            signal.raise_signal(second)
        assert (stop.requested, stop.abandoned, told) == (first, second, [first])


def test_a_signal_that_is_repeated_within_a_second_is_the_first_one_still() -> None:
    """A terminal sends Ctrl+C to every process of the group, and its shell or `timeout` may send it on."""
    told: list[int] = []
    with Stopping(told.append) as stop:
        for _ in range(20):
            signal.raise_signal(signal.SIGINT)
        assert (stop.requested, stop.abandoned, told) == (signal.SIGINT, None, [signal.SIGINT])


def test_what_counts_as_a_repetition_is_measured_from_the_first_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1000.0, 1000.5, 1000.99, 1001.0])
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with Stopping() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Abandoned):
            signal.raise_signal(signal.SIGINT)
        assert stop.abandoned == signal.SIGINT


def test_a_signal_within_the_handler_of_the_first_counts_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    sent: list[int] = []

    def monotonic() -> float:
        if not sent:
            sent.append(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        return 1000.0

    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=monotonic))
    with Stopping(told.append) as stop:
        signal.raise_signal(signal.SIGINT)
        assert (stop.requested, stop.abandoned, told) == (signal.SIGTERM, None, [signal.SIGTERM])


def test_abandoned_and_interrupted_pass_by_who_catches_exceptions() -> None:
    assert not issubclass(Abandoned, Exception) and not issubclass(Interrupted, Exception)


# -- resting


def test_a_rest_lasts_as_long_as_it_should_without_a_signal() -> None:
    with Stopping() as stop:
        began = time.monotonic()
        stop.rest(0.05)
        assert time.monotonic() - began >= 0.05


def test_the_first_signal_ends_a_rest_and_there_is_none_after_it() -> None:
    with Stopping() as stop:
        resting = threading.Event()

        def kill() -> None:
            resting.wait(DEADLINE)
            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=kill)
        thread.start()
        began = time.monotonic()
        resting.set()
        stop.rest(DEADLINE)
        stop.rest(DEADLINE)
        assert time.monotonic() - began < DEADLINE
        assert stop.requested == signal.SIGTERM
        thread.join()


EVERYWHERE = """
import itertools, signal, sys
from tareas.work.signals import Stopping

def trace(frame, event, argument):  # a signal at the nth step of a rest, in whatever it calls
    global left
    frame.f_trace_opcodes = True
    if event == "opcode" and stop.requested is None:
        left -= 1
        if left == 0:
            signal.raise_signal(signal.SIGTERM)
    return trace

for number in itertools.count(1):
    left = number
    with Stopping() as stop:
        sys.settrace(trace)
        stop.rest(0.01)
        sys.settrace(None)
    if left > 0:
        break
print("lived through", number)
"""


def test_a_signal_at_any_moment_of_a_rest_is_heard() -> None:
    """What rests must not hold a lock that the signal's handler, in the same thread, would wait for."""
    ended = subprocess.run(
        [sys.executable, "-c", EVERYWHERE], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE
    )
    assert ended.returncode == 0 and int(ended.stdout.split()[-1]) > 20, ended.stdout + ended.stderr


# -- where nothing is to be finished


def test_the_first_signal_ends_an_interruptible_stretch() -> None:
    with Stopping() as stop:
        with pytest.raises(Interrupted), stop.interruptible():
            signal.raise_signal(signal.SIGINT)
            pytest.fail("it goes on")
        assert (stop.requested, stop.abandoned) == (signal.SIGINT, None)


def test_a_stretch_that_begins_after_the_signal_does_not_begin() -> None:
    with Stopping() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted), stop.interruptible():
            pytest.fail("it begins")


def test_after_a_stretch_a_signal_interrupts_nothing() -> None:
    with Stopping() as stop:
        with stop.interruptible():
            pass
        with pytest.raises(ZeroDivisionError), stop.interruptible():
            raise ZeroDivisionError
        signal.raise_signal(signal.SIGINT)
        assert stop.requested == signal.SIGINT


# -- the grace time


def test_the_grace_time_runs_from_the_first_signal() -> None:
    with Stopping(grace=0.02) as stop:
        began = time.monotonic()
        with pytest.raises(Abandoned):
            signal.raise_signal(signal.SIGTERM)
            threading.Event().wait(DEADLINE)
        assert 0.01 < time.monotonic() - began < DEADLINE
        assert (stop.requested, stop.abandoned) == (signal.SIGTERM, signal.SIGTERM)


def test_a_grace_time_of_0_is_no_unlimited_one() -> None:
    with Stopping(grace=0) as stop:
        with pytest.raises(Abandoned):
            signal.raise_signal(signal.SIGINT)
            threading.Event().wait(DEADLINE)
        assert stop.abandoned == signal.SIGINT


def test_without_a_signal_the_grace_time_never_begins() -> None:
    with Stopping(grace=0.001) as stop:
        threading.Event().wait(0.05)
        assert (stop.requested, stop.abandoned) == (None, None)


def test_after_the_context_no_timer_is_left() -> None:
    with Stopping(grace=DEADLINE):
        signal.raise_signal(signal.SIGINT)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= DEADLINE
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_second_signal_that_is_swallowed_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a handler of the user's, or by Python amid a fork."""
    monkeypatch.setattr("tareas.work.signals.REPEAT", 0.01)
    before = signal.getsignal(signal.SIGALRM)
    with Stopping() as stop:
        signal.raise_signal(signal.SIGTERM)
        until = time.monotonic() + 0.02
        while time.monotonic() < until:
            pass
        with pytest.raises(Abandoned):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Abandoned):
            threading.Event().wait(DEADLINE)
        assert stop.abandoned == signal.SIGTERM
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) == before


def test_a_handler_that_swallows_the_end_of_the_grace_time_is_told_again() -> None:
    with Stopping(grace=0.001) as stop:
        signal.raise_signal(signal.SIGINT)
        assert signal.getitimer(signal.ITIMER_REAL)[1] == 1.0  # seconds until the next time
        assert stop.requested == signal.SIGINT


# -- whose handlers they are


def test_the_handlers_from_before_are_back_after_an_error_too() -> None:
    def mine(signum: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGINT, mine)
    try:
        with pytest.raises(ZeroDivisionError), Stopping():
            assert signal.getsignal(signal.SIGINT) is not mine
            raise ZeroDivisionError
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_it_changes_nothing() -> None:
    """Only the main thread may set handlers: a worker in a thread of somebody's program runs without them."""
    seen: list[object] = []
    before = [signal.getsignal(signum) for signum in BOTH]

    def work() -> None:
        with Stopping(grace=1) as stop, stop.interruptible():
            seen.append([signal.getsignal(signum) for signum in BOTH])
            stop.rest(0)
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(DEADLINE)
    assert seen == [before, None]


# -- as a process of its own

PROGRAM = """
import sys, time
from tareas.errors import Abandoned
from tareas.work import signals
signals.REPEAT = 0
with signals.Stopping() as stop:
    try:
        print("ready", flush=True)
        stop.rest(30)
        print("asked", flush=True)
        while True:
            time.sleep(30)
    except Abandoned:
        print("abandoned", flush=True)
        sys.exit(128 + stop.abandoned)
"""


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_process_at_rest_hears_the_first_signal_and_ends_at_the_second(signum: int, status: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signum)
            assert process.stdout.readline() == "asked\n"
            process.send_signal(signum)
            assert process.stdout.readline() == "abandoned\n"
            assert process.wait(DEADLINE) == status
        finally:
            process.kill()
