"""What a process that a handler forks (multiprocessing, os.fork) must not share with its worker.

The connection's socket: as long as the child has it, RabbitMQ does not see that the worker was killed, and keeps the
worker's task for two heartbeats. The signal handlers: they take a first SIGTERM for a wish, so whoever terminates a
pool of processes would wait for ever. The locks: the thread that holds one does not exist in the child.
What is started with `subprocess` inherits none of these.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

_duties: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


class _Forking(threading.local):
    def __init__(self) -> None:
        self.masks: list[Any] = []  # of this thread, before each fork that it is amid


_forking = _Forking()


def at_fork(owner: Any, duty: Callable[[Any], None]) -> None:
    """From now on each forked process calls this with the owner first, if that lives; one duty an owner."""
    _duties[owner] = duty


@contextlib.contextmanager
def parent_only() -> Iterator[None]:
    """Around a handler's call: a child that it forked and that comes back ends here, or it would be a second worker."""
    pid = os.getpid()
    status: object = 0
    try:
        yield
    except SystemExit as error:
        status = 0 if error.code is None else error.code
        raise
    except BaseException:
        status = 1
        raise
    finally:
        if os.getpid() != pid:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    stream.flush()
            os._exit(status if isinstance(status, int) else 1)


def _hold_signals() -> None:
    """What comes between the fork and the child's duties would be lost: it waits until the child can die of it."""
    if _duties and hasattr(signal, "pthread_sigmask"):
        _forking.masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        _mask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGALRM})


def _let_signals_in() -> None:
    if _forking.masks:
        _mask(signal.SIG_SETMASK, _forking.masks.pop())


def _mask(how: int, mask: Any) -> None:
    """Let in, a signal that has waited runs its handler in here, amid a fork, where Python drops what the handler
    raises. So a handler has to raise again: see Stopping."""
    with contextlib.suppress(BaseException):
        signal.pthread_sigmask(how, mask)


def _in_child() -> None:
    for owner, duty in list(_duties.items()):
        with contextlib.suppress(OSError):
            duty(owner)
    _duties.clear()  # its own children inherit nothing of it
    _let_signals_in()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals_in, after_in_child=_in_child)
