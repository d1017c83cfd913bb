"""A connection to RabbitMQ: making it, bounding its calls, ending it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pika
from pika.exceptions import StreamLostError

from tareas.errors import Denied, Unreachable
from tareas.rabbit.addresses import Address, parameters
from tareas.rabbit.explain import ANSWER_TIMEOUT, LOST, explain, is_denied
from tareas.text import quoted


def connect(nodes: Sequence[Address], name: str) -> tuple[pika.BlockingConnection, Address]:
    """A connection to the first of the nodes that answers, each tried once.

    Raises Denied if all that answer refuse us, else Unreachable; the message has one clause per address.
    pika could try a list itself, but an unknown host name aborts its whole list.
    """
    reasons, denied = [], []
    for address in nodes:
        try:
            return pika.BlockingConnection(parameters(address, name)), address
        except LOST as error:
            reasons.append(explain(error, address))
            denied.append(is_denied(error))
    raise (Denied if all(denied) else Unreachable)("; ".join(reasons))


@contextlib.contextmanager
def deadline(
    connection: pika.BlockingConnection, seconds: float = ANSWER_TIMEOUT, unless: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """End the connection if a call to RabbitMQ gets no answer within so many seconds; unless: not as long as this.

    A queue without its majority never answers a declare, while heartbeats go on: pika would wait for ever. It has no
    public way to bound one call; its own inner connection has timers that run while it waits.
    """
    timer = give_up_after(seconds, connection, unless)
    try:
        yield
    finally:
        timer.cancel()


def give_up_after(seconds: float, connection: Any, unless: Callable[[], bool] = lambda: False) -> GivingUp:
    """End the connection in so many seconds, or whenever this holds no longer, if what is returned is not cancelled
    before."""
    return GivingUp(seconds, getattr(connection, "_impl", connection), unless)


class GivingUp:
    """See give_up_after."""

    def __init__(self, seconds: float, inner: Any, unless: Callable[[], bool]) -> None:
        self._seconds, self._inner, self._unless = seconds, inner, unless
        self._again()

    def _again(self) -> None:
        self._timer = self._inner._adapter_call_later(self._seconds, self._fire)

    def _fire(self) -> None:
        if self._unless():
            self._again()
        elif not self._inner.is_closed:
            self._inner._terminate_stream(no_answer(self._seconds))

    def cancel(self) -> None:
        self._timer.cancel()


def no_answer(seconds: float) -> StreamLostError:
    """Why we end a connection that gives none."""
    return StreamLostError(f"no answer within {seconds:g} s")


def close(connection: pika.BlockingConnection | None) -> None:
    """Say goodbye to RabbitMQ if it still listens."""
    try:
        if connection is not None and connection.is_open:
            with deadline(connection, 5):
                connection.close()
    except LOST:
        pass


def version(connection: pika.BlockingConnection) -> tuple[int, ...]:
    """RabbitMQ's version, (0,) if it does not say."""
    told = (getattr(connection._impl, "server_properties", None) or {}).get("version", "")
    return tuple(int(n) for n in re.findall(r"\d+", str(told))[:3]) or (0,)


def tell_alarms(connection: Any, tell: Callable[..., None]) -> None:
    """Tell `blocked` and `unblocked` when RabbitMQ stops and resumes taking messages (memory or disk alarm).

    On the inner connection: the blocking one calls back only from process_data_events(), so a publish that waits for
    its confirm, which is what an alarm holds up, would wait in silence.
    """
    inner: Any = getattr(connection, "_impl", connection)
    inner.add_on_connection_blocked_callback(
        lambda _, frame: tell("blocked", reason=quoted(str(frame.method.reason), quotes=False))
    )
    inner.add_on_connection_unblocked_callback(lambda _, frame: tell("unblocked"))


def consumer_ended(channel: Any, consumer_tag: str) -> bool:
    """Whether RabbitMQ has cancelled this consumer. BlockingChannel tells only after its callback has returned."""
    return consumer_tag not in channel._impl.consumer_tags
