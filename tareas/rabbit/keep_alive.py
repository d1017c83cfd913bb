"""Heartbeats while a task runs."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType

import pika

from tareas.rabbit.inside import send_at_once

HEARTBEAT = pika.frame.Heartbeat().marshal()
LATE = 0.1  # seconds after which a call that takes none was held up


class KeepAlive:
    """Serves a connection while the thread that owns it is busy with a task.

        with keep_alive:
            work()          # minutes, if need be

    A callback that works keeps pika from answering heartbeats, and RabbitMQ closes a connection that is silent for
    about two of them (https://www.rabbitmq.com/docs/heartbeats). pika is not thread-safe, so a lock makes sure that
    the connection is never used by two threads at once: the helper thread serves it only inside the `with` block,
    where its owner leaves it alone, and the end of the block waits for the lock. Short tasks never meet the helper:
    it looks once a turn, and passes by a block that is younger than that.

    on_lost: called once with what ended the connection, from either thread; an OSError of its own is dropped.
    """

    TURN = 1.0  # seconds between two services; a quarter of the heartbeat when that is less

    def __init__(self, on_lost: Callable[[Exception], None] = lambda error: None) -> None:
        self.lost: Exception | None = None
        self._on_lost = on_lost
        self._connection: pika.BlockingConnection | None = None
        self._turn = self.TURN
        self._since: float | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def serve(self, connection: pika.BlockingConnection, heartbeat: float) -> None:
        """From now on it is this connection; heartbeat in seconds, 0 for none."""
        with self._lock:
            self._connection, self.lost, self._since = connection, None, None
            self._turn = min(self.TURN, heartbeat / 4) if heartbeat else self.TURN
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="keep-alive", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Serve nothing any more; the helper ends at its next turn."""
        with self._lock:
            self._connection = self._since = self._thread = None

    def __enter__(self) -> KeepAlive:
        self._since = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            since, self._since = self._since, None
            # After a long block one more look: the machine may have stood still, and the helper with it.
            if since is not None and time.monotonic() - since > self._turn:
                self._look()

    def _run(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            # A signal must wake the main thread, where Python runs the handlers.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGALRM})
        prompt = True  # whether the task lets us run when we want to
        while self._thread is threading.current_thread():
            if prompt:
                began = time.monotonic()
                time.sleep(self._turn)
                prompt = time.monotonic() - began < self._turn + LATE
            with self._lock:
                if self._since is None or time.monotonic() - self._since < self._turn:
                    prompt = True
                    continue
                # The task may hold Python's lock for long stretches, and each system call of ours gives it away for one
                # of them: the heartbeat first, in one call, and the look, which takes several, only if nothing of that
                # shows. A task that holds it as long is looked after at its end.
                began = time.monotonic()
                self._beat()
                quick = time.monotonic() - began < LATE
                if prompt and quick:
                    self._look()
                prompt = quick

    def _beat(self) -> None:
        """Send a heartbeat in a single system call: pika's own way takes five of them."""
        transport = getattr(getattr(self._connection, "_impl", None), "_transport", None)
        if transport is None or self.lost is not None or transport.get_write_buffer_size():
            return  # gone, or amid another frame
        with contextlib.suppress(OSError):  # _look reads first what RabbitMQ has said before it went away
            send_at_once(transport, HEARTBEAT, transport.write)

    def _look(self) -> None:
        if self._connection is None or self.lost is not None:
            return
        try:
            self._connection.process_data_events(0)
        except Exception as error:  # whatever it is, it ends this connection, not the helper
            self.lost = error
            with contextlib.suppress(OSError):  # its next event will raise it where somebody hears it
                self._on_lost(error)
