"""What a process that a handler forks (multiprocessing, os.fork) must not share with its worker.

It inherits the connection's socket: as long as it lives, RabbitMQ would not see that the worker was killed, and keep
its task for two heartbeats. And it inherits the signal handlers, which take a first SIGTERM for a wish: terminating a
pool of processes would wait for ever. What is started with `subprocess` inherits neither.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import weakref
from collections.abc import Callable
from typing import Any

_forking = threading.local()
_duties: weakref.WeakKeyDictionary[Any, Callable[[], None]] = weakref.WeakKeyDictionary()


def at_fork(owner: object, duty: Callable[[], None]) -> None:
    """From now on each forked process calls this first, as long as the owner lives; one duty an owner."""
    _duties[owner] = duty


def close_socket(connection: Any) -> Callable[[], None]:
    """The duty to let go of this pika connection without a word to RabbitMQ."""
    transport: Any = getattr(getattr(connection, "_impl", None), "_transport", None)
    socket = getattr(transport, "_sock", None)

    def close() -> None:
        if socket is not None and socket.fileno() >= 0:
            os.close(socket.detach())

    return close


def _hold_signals() -> None:
    """What comes between the fork and the child's duties would be lost: it waits until the child can die of it."""
    if _duties and hasattr(signal, "pthread_sigmask"):
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGALRM})


def _let_signals_in() -> None:
    if (mask := _forking.__dict__.pop("mask", None)) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _in_child() -> None:
    for duty in list(_duties.values()):
        with contextlib.suppress(OSError):
            duty()
    _let_signals_in()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals_in, after_in_child=_in_child)
