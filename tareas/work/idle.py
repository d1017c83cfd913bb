"""The looks of a worker between two tasks: is the queue drained, is the consumer starved?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tareas.errors import ConsumerGone

if TYPE_CHECKING:
    from tareas.rabbit.connection import Connection

TICK = 0.25  # seconds between two looks of an idle worker at the signals
DRAIN_TICK = 0.1  # the same when draining, and at the queue
STARVED = 2.0  # seconds between two looks of an idle worker at the queue


class Idle:
    """What a worker without a delivery makes of its queue. drain: the worker ends when nothing is ready."""

    def __init__(self, queue: str, drain: bool) -> None:
        self.tick = DRAIN_TICK if drain else TICK  # seconds to wait for a delivery
        self._queue, self._drain = queue, drain
        self._between = DRAIN_TICK if drain else STARVED
        self.busy()

    def busy(self) -> None:
        """A delivery has come."""
        self._empty = self._starved = 0
        self._next_look = time.monotonic() + (0 if self._drain else STARVED)

    def drained(self, connection: Connection) -> bool:
        """No delivery has come. Whether the worker should end. Raises ConsumerGone if tasks are ready all the time.

        Two looks in a row must find nothing: a task that the first does not count may be on its way to us.
        """
        if time.monotonic() < self._next_look:
            return False
        told = connection.queue_declare(self._queue, passive=True)
        # We consume, so RabbitMQ counts one consumer at least. It says 0 of both when the queue does not answer it in
        # time, as while it recovers from a restart: that is not drained.
        if told.message_count == 0 and (told.consumer_count or not self._drain):
            self._empty, self._starved = self._empty + 1, 0
        else:
            self._empty, self._starved = 0, self._starved + 1
        self._next_look = time.monotonic() + self._between
        if self._starved * self._between >= 2 * STARVED:
            # RabbitMQ 3.10 does not tell consumers of a queue that is deleted and declared again at once.
            raise ConsumerGone("tasks are ready and none comes (was the queue deleted and declared again?)")
        return self._drain and self._empty >= 2
