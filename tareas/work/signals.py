"""Ctrl+C and SIGTERM: the first asks a command to finish what it holds, the second to let go of it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from tareas.errors import Abandoned, Interrupted
from tareas.work.forks import at_fork

TURN = 0.25  # seconds between two looks of a rest
REPEAT = 1.0  # seconds in which a second signal counts as the first: terminals and supervisors send it more than once


class Stopping:
    """A context in which SIGINT and SIGTERM ask for a stop.

    requested: the number of the first signal; None before it. abandoned: once Abandoned was raised, the number of the
    signal to exit by. on_request: called once, within the handler of the first signal. grace: seconds from the first
    signal to Abandoned; None for no bound.
    Signal handlers belong to the main thread: in another one the context changes nothing.
    """

    def __init__(self, on_request: Callable[[int], None] = lambda signum: None, grace: float | None = None) -> None:
        self.requested: int | None = None
        self.abandoned: int | None = None
        self._on_request = on_request
        self._grace = grace
        self._since = 0.0
        # Held until the first signal. Not an Event: to set one takes a lock, for which the handler would wait for ever
        # if it came while the rest below it, in the same thread, holds that lock.
        self._wake = threading.Lock()
        self._wake.acquire()
        self._interruptible = False
        self._before: dict[int, Any] = {}

    @property
    def age(self) -> float:
        """Seconds since the first signal; 0 before it."""
        return 0.0 if self.requested is None else time.monotonic() - self._since

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._handle)
            at_fork(self, Stopping._restore)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._alarm(0)
        self._restore()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()  # first of all: during a call Python may run the handler of a second signal
        if self.requested is None:
            self.requested, self._since = signum, now
            with contextlib.suppress(RuntimeError):  # released: before Python 3.11 that may be so between any two steps
                self._wake.release()
            if self._grace is not None:
                self._alarm(max(self._grace, 0.001))
            self._on_request(signum)
            if self._interruptible:
                raise Interrupted
        elif now - self._since >= REPEAT:
            self.abandoned = signum
            self._alarm(REPEAT)
            raise Abandoned(signum)

    def _alarm(self, seconds: float) -> None:
        """Raise Abandoned in so many seconds, and again every second: a handler of the user's may swallow it, and so
        does Python amid a fork. 0 seconds: no more of it."""
        if not hasattr(signal, "setitimer") or (not seconds and signal.SIGALRM not in self._before):
            return
        if signal.SIGALRM not in self._before:
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_alarm)
        signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT)

    def _on_alarm(self, signum: int, frame: FrameType | None) -> None:
        self.abandoned = self.abandoned or self.requested or signum
        raise Abandoned(self.abandoned)

    def _restore(self) -> None:
        """The signals as they were before."""
        for number in list(self._before):
            signal.signal(number, self._before.pop(number))

    def rest(self, seconds: float) -> None:
        """Wait so many seconds, or until the first signal.

        It waits in short turns. The system may give a signal to another thread, one that a handler of the user's
        started, say; Python then runs the signal's handler only when the main thread comes back from waiting.
        """
        until = time.monotonic() + seconds
        while self.requested is None and (left := until - time.monotonic()) > 0:
            self._wake.acquire(timeout=min(left, TURN))

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A stretch that the first signal ends at once, by raising Interrupted."""
        self._interruptible = True
        try:
            if self.requested is not None:
                raise Interrupted
            yield
        finally:
            self._interruptible = False
