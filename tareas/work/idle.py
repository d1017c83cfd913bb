"""The looks of a worker between two tasks: is a stop asked for, is the queue drained, is the consumer starved?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tareas.errors import ConsumerGone

TICK = 0.25  # seconds between two looks of an idle worker at the signals
DRAIN_TICK = 0.1  # the same when draining, and at the queue
STARVED = 2.0  # seconds between two looks of an idle worker at the queue


class Idle:
    """Ends start_consuming of this channel when it is time.

    count: RabbitMQ's answer with the queue's message_count and consumer_count. drain: end when the queue has nothing
    ready. stop_requested, deliveries: asked at every look; deliveries is how many have come so far.
    stopped: it was we who ended the consuming. Raises ConsumerGone out of start_consuming.
    """

    def __init__(
        self, connection: Any, channel: Any, count: Callable[[], Any], drain: bool,
        stop_requested: Callable[[], object], deliveries: Callable[[], int],
    ) -> None:  # fmt: skip
        self.stopped = False
        self._connection, self._channel, self._count, self._drain = connection, channel, count, drain
        self._stop_requested, self._deliveries = stop_requested, deliveries
        self._seen, self._empty, self._starved = 0, 0, 0
        self._next_look = time.monotonic() + (0 if drain else STARVED)
        self._between = DRAIN_TICK if drain else STARVED
        self._tick_again()

    def _tick_again(self) -> None:
        self._connection.call_later(DRAIN_TICK if self._drain else TICK, self._tick)

    def _tick(self) -> None:
        if self._stop_requested():
            return self._stop()
        if self._deliveries() != self._seen:
            self._seen, self._empty, self._starved = self._deliveries(), 0, 0
            self._next_look = time.monotonic() + (0 if self._drain else STARVED)
        elif time.monotonic() >= self._next_look:
            self._look()
        if not self.stopped:
            self._tick_again()

    def _look(self) -> None:
        """Two looks in a row, as what the first one does not count may be on its way to us."""
        told = self._count()
        # We consume, so RabbitMQ counts one consumer at least. It says 0 of both when the queue does not answer it in
        # time, as while it recovers from a restart: that is not drained.
        if told.message_count == 0 and (told.consumer_count or not self._drain):
            self._empty, self._starved = self._empty + 1, 0
        else:
            self._empty, self._starved = 0, self._starved + 1
        if self._drain and self._empty >= 2:
            return self._stop()
        self._next_look = time.monotonic() + self._between
        if self._starved * self._between >= 2 * STARVED:
            # RabbitMQ 3.10 does not tell consumers of a queue that is deleted and declared again at once.
            raise ConsumerGone("tasks are ready and none comes (was the queue deleted and declared again?)")

    def _stop(self) -> None:
        self.stopped = True
        self._channel.stop_consuming()
