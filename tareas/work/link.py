"""What a worker holds on one connection. It dies with the connection."""

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

LONG = 1.0  # seconds between two acks after which the connection is looked at first


class Hand(Enum):
    """What a worker has in hand; in words: what the first signal finds, and what becomes of it."""

    NOTHING = "nothing in hand"
    WORKING = "finishing the task in hand; once more after a second gives it back"
    RESTING = "the task that rests goes back at once"
    BURYING = "waiting until the dead letter is confirmed; once more after a second gives the task back"


class Link:
    """One connection of a worker: whether it consumes, how much it may have at hand, and what it has.

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
        self.hand: deque[Delivery] = deque()  # deliveries that wait here, in the order to do them
        self.in_order = False  # the delivery that is done now comes from `hand`
        self.refused = 0  # dead letters in a row
        self.settled = time.monotonic()  # when

    @property
    def version(self) -> tuple[int, ...]:
        """RabbitMQ's."""
        return self.connection.version if self.connection else (0,)

    def do_next(self, do: Callable[..., None]) -> bool:
        """Do one of the tasks that are at hand. False: there is none, and all that is done is acknowledged."""
        assert self.connection is not None
        if self.hand:
            if self.hand[0][0].redelivered:  # it may kill this worker: first the acks of those before it have to be out
                self.connection.look()
            if self.connection.lost is not None:
                raise self.connection.lost
            self.in_order = True
            do(self.connection, *self.hand.popleft())
            self.in_order = False
        elif not self.connection.process_data_events():
            self.ack_done(self.connection)
            return False
        return True

    def settle(self) -> None:
        """Be ready for an ack or nack: call this before each of them.

        RabbitMQ sends the next task upon an ack. So take no more first if a stop was asked for, or if the prefetch
        grows.
        Raises what ended the connection: the delivery is not ours any more then.
        """
        if self.stopping.requested or self.prefetch.wanted > self.prefetch.now:
            self.take_no_more()
        if self.connection is None:
            return
        last, self.settled = self.settled, time.monotonic()
        if self.settled - last > LONG:
            self.connection.look()
        if self.connection.lost is not None:
            raise self.connection.lost

    def take_no_more(self) -> None:
        """Have RabbitMQ send nothing from now on."""
        if self.consuming and self.connection is not None:
            self.consuming = False
            if not (self.stopping.requested and self.connection.blocked):  # it would not even hear us
                self.connection.basic_cancel(self.name)

    def renew(self) -> None:
        """Take another channel. All that is at hand goes back to RabbitMQ with the old one."""
        assert self.connection is not None
        self.connection.renew()
        self.connection.waiting()
        self.hand.clear()
        self.consuming = False
        self.connection.confirm_delivery()

    def ack_done(self, channel: Any) -> None:
        """Acknowledge together what is done and waits for its ack."""
        if tag := self.prefetch.take():
            channel.basic_ack(delivery_tag=tag, multiple=True)

    def alone(self, delivery: Delivery) -> bool:
        """Whether a delivery may begin. One that came back may have killed a worker: it waits, in `hand`, until nothing
        else is at hand that could be lost with it."""
        alone = self.prefetch.most == 1 or self.in_order or (self.consuming and self.prefetch.now == 1)
        if not delivery[0].redelivered or alone or self.connection is None:
            return True
        self.take_no_more()
        self.prefetch.met(redelivered=True)
        self.ack_done(self.connection)
        self.prefetch.now = 1  # from here on the order is ours: an ack must not cover what has not begun
        version = self.version
        self.hand.extend(in_order(
            [delivery, *self.connection.waiting()],
            lambda it: verdict.attempt(it[0].redelivered, it[1].headers, version),
        ))  # fmt: skip
        return False
