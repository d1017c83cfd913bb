"""What a worker knows of one connection, and holds on it. All of it ends with the connection."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

from tareas.work import verdict
from tareas.work.idle import Idle
from tareas.work.prefetch import Delivery, Prefetch, in_order
from tareas.work.signals import Stopping

if TYPE_CHECKING:
    from tareas.rabbit.connection import Connection

LONG = 1.0  # seconds since the last ack or nack; after more, the connection is looked at before the next one


class Hand(Enum):
    """What a worker does with its task; in words: what a first signal finds, and what comes of it."""

    NOTHING = "nothing in hand"
    WORKING = "finishing the task in hand; once more after a second gives it back"
    RESTING = "the task that rests goes back at once"
    BURYING = "waiting until the dead letter is confirmed; once more after a second gives the task back"


class Link:
    """One connection of a worker: whether it consumes, and which deliveries wait in this process.

    connection: None before the first one. name: the consumer tag. stopping: asked before each ack and nack. drain: see
    Idle. prefetch: see Prefetch.
    """

    def __init__(
        self, connection: Connection | None, name: str, stopping: Stopping, queue: str, drain: bool, prefetch: int
    ) -> None:
        self.connection, self.name, self.stopping = connection, name, stopping
        self.prefetch = Prefetch(prefetch)
        self.idle = Idle(queue, drain)
        self.consuming = False
        self.refused = 0  # dead letters in a row that RabbitMQ did not store
        self._aside: deque[Delivery] = deque()  # deliveries put aside, in the order to do them
        self._from_aside = False  # the delivery in hand was one of them
        self._settled = time.monotonic()  # when the last ack or nack was due

    @property
    def version(self) -> tuple[int, ...]:
        """RabbitMQ's version; (0,) if it is not known."""
        return self.connection.version if self.connection else (0,)

    def do_next(self, do: Callable[..., None]) -> bool:
        """Do one delivery that is here already, without a wait. False: there is none, and what is done is acknowledged.

        do: called with (connection, method, properties, body); the same function as for basic_consume.
        """
        assert self.connection is not None
        if self._aside:
            if self._aside[0][0].redelivered:  # it may kill this worker: the acks before it have to be out first
                self.connection.look()
            if self.connection.lost is not None:
                raise self.connection.lost
            self._from_aside = True
            do(self.connection, *self._aside.popleft())
            self._from_aside = False
        elif not self.connection.process_data_events():
            self.ack_done(self.connection)
            return False
        return True

    def before_settling(self) -> None:
        """Call this before each ack and nack.

        RabbitMQ sends the next task upon an ack. So the consumer is cancelled first when a stop was asked for, or when
        the prefetch is about to grow.
        Raises what ended the connection, if it is over: RabbitMQ has given the delivery to someone else.
        """
        if self.stopping.requested or self.prefetch.wanted > self.prefetch.now:
            self.take_no_more()
        if self.connection is None:
            return
        last, self._settled = self._settled, time.monotonic()
        if self._settled - last > LONG:
            self.connection.look()
        if self.connection.lost is not None:
            raise self.connection.lost

    def take_no_more(self) -> None:
        """Cancel the consumer, so that RabbitMQ sends nothing more."""
        if self.consuming and self.connection is not None:
            self.consuming = False
            if not (self.stopping.requested and self.connection.blocked):  # it would not even hear us
                self.connection.basic_cancel(self.name)

    def renew(self) -> None:
        """Take another channel. With the old one, all deliveries that are here go back to RabbitMQ."""
        assert self.connection is not None
        self.connection.renew()
        self.connection.waiting()  # dropped: they came on the old channel
        self._aside.clear()
        self.consuming = False
        self.connection.confirm_delivery()

    def ack_done(self, channel: Any) -> None:
        """Acknowledge, with one ack, all tasks that are done and not acknowledged."""
        if tag := self.prefetch.take():
            channel.basic_ack(delivery_tag=tag, multiple=True)

    def may_begin(self, delivery: Delivery) -> bool:
        """Whether this delivery may begin now. False: it is put aside, and do_next brings it again.

        A redelivered task may have killed a worker. Before it begins, the consumer is cancelled, what is done is
        acknowledged, and all deliveries that are here are put in order (see in_order).
        """
        alone = self.prefetch.most == 1 or self._from_aside or (self.consuming and self.prefetch.now == 1)
        if not delivery[0].redelivered or alone or self.connection is None:
            return True
        self.take_no_more()
        self.prefetch.met(redelivered=True)
        self.ack_done(self.connection)
        self.prefetch.now = 1  # an ack each from here on: in our order, one for several would cover what has not begun
        version = self.version
        self._aside.extend(in_order(
            [delivery, *self.connection.waiting()],
            lambda it: verdict.attempt(it[0].redelivered, it[1].headers, version),
        ))  # fmt: skip
        return False
