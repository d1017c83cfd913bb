"""What the caller's thread and the loop's thread need between them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

from pika.adapters.select_connection import IOLoop

LATE = 0.1  # seconds after which a turn that should have come was held up
PAUSE = 0.02  # seconds


def quick(call: Callable[[], object]) -> bool:
    """Whether this thread, which lets others run amid the call, may go on in time."""
    began = time.monotonic()
    call()
    return time.monotonic() - began < PAUSE + LATE


class Answer:
    """What one call waits for. The loop's thread gives it; what is given later counts no more."""

    def __init__(self) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self._given = False
        self._lock = threading.Lock()  # an Event costs three times as much
        self._lock.acquire()

    def give(self, value: Any = None, error: BaseException | None = None) -> None:
        """Here it is."""
        if not self._given:
            self._given, self.value, self.error = True, value, error
            self._lock.release()

    def wait(self, seconds: float) -> bool:
        """Whether it is there within so many seconds."""
        return self._lock.acquire(timeout=seconds)


class EarlyLoop(IOLoop):  # type: ignore[misc]
    """pika's loop, which notices when it was held up: by a task that holds Python's lock, or with the whole machine.

    Such a task lets the loop's thread run for one system call at a time, and a look at the socket takes several. So as
    long as it lasts the loop only sends heartbeats: `beat` sends one. Then it reads what lies in the socket, before a
    timer says that nothing came.

    lock: held while pika works; whoever else holds it may send. turn: seconds in which the owner calls turned again and
    again, from the first call on.
    """

    def __init__(self, turn: float, beat: Callable[[], None]) -> None:
        super().__init__()
        self._turn, self._beat = turn, beat
        self._due = math.inf
        self.lock = threading.Lock()

    def turned(self) -> None:
        """A turn has begun in time."""
        self._due = time.monotonic() + self._turn

    def keep_up(self) -> bool:
        """Send heartbeats until this thread may run as it likes. Whether it was held up."""
        if time.monotonic() <= self._due + LATE:
            return False
        while time.monotonic() > self._due + LATE:
            with self.lock:
                prompt = quick(self._beat)
            # Between two stretches the task lets us run for a moment: is it for longer?
            if prompt and quick(lambda: time.sleep(PAUSE)):
                self.turned()
        return True

    def process_timeouts(self) -> None:
        """Call what is due."""
        if self.keep_up():
            self.add_callback_threadsafe(lambda: None)  # the next line waits for nothing
            self.poll()
        with self.lock:
            super().process_timeouts()
        self.keep_up()

    def add_handler(self, fd: int, handler: Callable[[int, int], None], events: int) -> None:
        """Watch this file descriptor."""

        def handle(fd: int, events: int) -> None:
            self.keep_up()
            with self.lock:
                handler(fd, events)
            self.keep_up()

        super().add_handler(fd, handle, events)
