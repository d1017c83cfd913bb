"""The thread that keeps one connection to RabbitMQ alive: pika's loop, and what passes between it and the caller.

Errors of pika become errors of ours here and nowhere else. An error of our own stays what it is, in whichever thread it
comes up: the caller's next call raises it.
"""

from __future__ import annotations

import contextlib
import queue
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker, ConnectionClosedByBroker

from tareas.errors import ConsumerGone, Lost
from tareas.rabbit import explain, inside
from tareas.rabbit.addresses import Address, parameters
from tareas.rabbit.explain import ANSWER_TIMEOUT
from tareas.rabbit.handover import Answer, EarlyLoop
from tareas.text import quoted

TICK = 0.25  # seconds between two looks of a wait: Python handles signals when the main thread comes back from waiting
TURN = 1.0  # seconds between two turns of the loop at least; a quarter of the heartbeat when that is less


class Loop:
    """One connection with one channel, in a thread of its own. Connection says what may be used from outside."""

    def __init__(
        self, address: Address, name: str, on_alarm: Callable[..., None], on_lost: Callable[[Exception], None]
    ) -> None:
        self.address = address
        self.lost: Exception | None = None  # why the connection is over
        self._bug: BaseException | None = None  # an error of our own, from this thread
        self.version: tuple[int, ...] = (0,)
        self.blocked = False  # by an alarm: RabbitMQ takes no message
        # What RabbitMQ has sent: a function of the caller's and its arguments. None: nothing follows.
        self._inbox: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._declaring: str | None = None  # the queue that the caller declares now
        self._connection, self._channel = cast(Any, None), cast(Any, None)
        self._on_alarm, self._on_lost = on_alarm, on_lost
        self._ready = self._closing = False  # the connection is open, and the channel asked for; we end it
        self._answer: Answer | None = None  # what the caller waits for
        self._calls: deque[Callable[[], object]] = deque()
        self._woken = False  # for the calls
        self._moves = 0
        # When bytes waited to be sent last (or an alarm ended), when bytes moved last, when the caller asked last.
        self.sending = self._moved = self._asked = time.monotonic()
        self._turn = min(TURN, float(address.parameters.heartbeat or 4 * TURN) / 4)
        self._pika = EarlyLoop(self._turn, self._guard(lambda: inside.send_heartbeat(self._connection)))
        self._thread = threading.Thread(target=self._run, args=(name,), name="rabbitmq", daemon=True)

    # -- the caller's thread

    @property
    def silence(self) -> float:
        """Seconds since the caller asked, or bytes moved, heartbeats apart. 0 during an alarm."""
        return 0.0 if self.blocked else time.monotonic() - max(self._asked, self._moved)

    def _open(self) -> None:
        """Connect, and wait until the channel is open. pika bounds each step until the connection is open."""
        self._wait(lambda answer: self._thread.start())

    def _ask(self, question: Callable[[Callable[[Any], None]], object]) -> Any:
        """Have the thread ask RabbitMQ, and wait for the answer. question: gets what is to be called with it."""
        return self._wait(lambda answer: self._hand_over(lambda: question(answer.give)))

    def _wait(self, begin: Callable[[Answer], None]) -> Any:
        """Call this, and wait until the thread has given the answer. Raises what ended the connection meanwhile."""
        answer = self._answer = Answer()
        try:
            begin(answer)
            self._asked = time.monotonic()
            while not answer.wait(TICK):
                self._raise_the_end()
                if self._ready and self.silence > ANSWER_TIMEOUT:
                    self._pika.add_callback_threadsafe(lambda: self._end(explain.no_answer(self.address)))
        finally:
            self._answer = None
        if answer.error is not None:
            raise answer.error
        return answer.value

    def _hand_over(self, call: Callable[[], object]) -> None:
        """Have the thread do this, in the order of the calls."""
        self._raise_the_end()
        self._asked = time.monotonic()
        self._calls.append(call)
        if not self._woken:
            self._woken = True
            self._pika.add_callback_threadsafe(self._do_calls)

    def _send(self, frames: bytes) -> None:
        """Send frames that are ready: here and now, if nothing waits to be sent before them."""
        with self._pika.lock:
            self._raise_the_end()
            self._asked = time.monotonic()
            if self._calls:
                self._hand_over(lambda: inside.send_frames(self._connection, frames))
            elif inside.send_frames(self._connection, frames):
                self._pika.add_callback_threadsafe(lambda: None)  # the loop has to watch the socket now

    def _raise_the_end(self) -> None:
        """Raise what ended the connection, if it is over. An error of our own goes first."""
        error = self._bug or self.lost
        if error is not None:
            raise error

    def close(self, seconds: float) -> None:
        """Send what was handed over, and say goodbye to RabbitMQ if it still listens. Raises an error of our own that
        has come up meanwhile, nothing else."""
        self._closing = True
        if self._thread.is_alive():
            self._pika.add_callback_threadsafe(self._say_goodbye)
            until = time.monotonic() + seconds
            while self._thread.is_alive() and time.monotonic() < until:
                self._thread.join(TICK)
        self.abort()
        if self._bug is not None:
            raise self._bug

    def abort(self) -> None:
        """End the connection without a word."""
        self._closing = True
        self._pika.add_callback_threadsafe(self._pika.stop)

    # -- the thread, from here on

    def _run(self, name: str) -> None:
        if hasattr(signal, "pthread_sigmask"):
            # A signal must wake the main thread, where Python runs the handlers.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGALRM})
        try:
            self._connection = pika.SelectConnection(
                parameters(self.address, name), self._guard(self._on_open), self._guard(self._on_closed),
                self._guard(self._on_closed), custom_ioloop=self._pika,
            )  # fmt: skip
            # Amid the handshake pika tells guesses of its own instead of RabbitMQ's words: hear those first.
            self._connection.callbacks.add(0, pika.spec.Connection.Close, self._guard(self._on_refused), one_shot=False)
            self._guard(self._tick)()
            self._pika.start()
        except Exception as error:  # all of ours is guarded: this is pika's
            self._over(error)
        finally:
            self._end(Lost(f"the connection to {self.address.shown} was closed"))
            with contextlib.suppress(OSError):
                inside.close_socket(self._connection)
            self._pika.close()

    def _guard(self, ours: Callable[..., None]) -> Callable[..., None]:
        """pika takes whatever its callbacks raise for the end of the stream: an error of ours is kept from it."""

        def guarded(*arguments: Any) -> None:
            try:
                ours(*arguments)
            except BaseException as error:
                self._fail(error)

        return guarded

    def _on_open(self, connection: Any) -> None:
        inside.send_straight(connection)
        self._ready, self._asked = True, time.monotonic()
        connection.add_on_connection_blocked_callback(self._guard(self._on_blocked))
        connection.add_on_connection_unblocked_callback(self._guard(self._on_unblocked))
        told = str((connection.server_properties or {}).get("version", ""))
        self.version = tuple(int(n) for n in re.findall(r"\d+", told)[:3]) or (0,)
        self._open_channel()

    def _opened(self, channel: Any) -> None: ...

    def _open_channel(self) -> None:
        self._connection.channel(on_open_callback=self._guard(self._on_channel))

    def _on_channel(self, channel: Any) -> None:
        self._channel = channel
        self._pika.turned()  # not before: no heartbeat amid the handshake
        channel.add_on_close_callback(self._guard(self._on_channel_closed))
        channel.add_on_cancel_callback(self._guard(lambda frame: self._end(ConsumerGone(explain.CANCELLED))))
        self._opened(channel)
        if (answer := self._answer) is not None:
            answer.give()

    def _on_blocked(self, connection: Any, frame: Any) -> None:
        self.blocked = True
        self._on_alarm("blocked", reason=quoted(str(frame.method.reason), quotes=False))

    def _on_unblocked(self, connection: Any, frame: Any) -> None:
        self.blocked, self.sending = False, time.monotonic()
        self._moved = self.sending
        self._on_alarm("unblocked")

    def _on_refused(self, frame: Any) -> None:
        self._over(ConnectionClosedByBroker(frame.method.reply_code, frame.method.reply_text))

    def _on_channel_closed(self, channel: Any, reason: BaseException) -> None:
        if isinstance(reason, ChannelClosedByBroker):
            self._end(explain.channel_closed(reason, self.address, self._declaring))
        elif self._connection.is_open:  # we renew it. Its number is free once this callback has returned
            self._pika.add_callback_threadsafe(self._open_channel)

    def _on_closed(self, connection: Any, reason: BaseException) -> None:
        self._over(reason)
        self._pika.stop()

    def _over(self, error: BaseException) -> None:
        self._end(explain.meaning(error, self.address))

    def _fail(self, error: BaseException) -> None:
        self._bug = self._bug or error
        self._end(Lost("an error of our own"))

    def _end(self, reason: Exception) -> None:
        if self.lost is not None:  # only the first reason counts
            return
        self.lost = reason
        if self._channel is not None and not self._closing and self._bug is None:
            try:
                self._on_lost(reason)
            except BaseException as error:
                self._bug = error
        self._inbox.put(None)
        if (answer := self._answer) is not None:  # the caller may stop waiting at any moment
            answer.give(error=self._bug or reason)

    def _do_calls(self) -> None:
        self._woken = False  # first: a call that is handed over from now on wakes the loop again
        while self._calls:
            call = self._calls.popleft()
            try:
                call()
            except BaseException as error:
                if self.lost is not None:  # it was handed over a moment too late, and pika has nothing to send it with
                    return
                (self._over if isinstance(error, AMQPError) else self._fail)(error)

    def _say_goodbye(self) -> None:
        self._do_calls()
        with contextlib.suppress(AMQPError):  # it is closed, or closing
            self._connection.close()
        if self._connection.is_closed:
            self._pika.stop()

    def _tick(self) -> None:
        """One turn: note whether bytes have moved."""
        if self._channel is not None:
            self._pika.turned()
        moves, unsent = inside.moved(self._connection)
        if unsent:
            self.sending = time.monotonic()
        if moves > self._moves:
            self._moves, self._moved = moves, time.monotonic()
        self._pika.call_later(self._turn, self._guard(self._tick))
