"""How many tasks a worker may have at hand: one while it has to be careful, else as many as it was told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Delivery = tuple[Any, Any, bytes]  # method, properties, body, as pika gives them

WELL = 20  # first deliveries in a row that ended well, before a worker has more than one task at hand


class Prefetch:
    """The prefetch of one consumer. most: what the user asked for.

    When a worker dies, RabbitMQ gives all that it held to others, and counts an attempt for each, also for those that
    never began. A task that kills its worker each time would take its neighbours with it. So a worker that meets a
    redelivered task is careful: it has that task alone at hand, until enough first deliveries in a row have ended well.

    Acks go out together, at the latest when half of the prefetch waits for them.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = 1  # what RabbitMQ was told
        self._well = 0  # first deliveries in a row that ended well
        self._done = 0  # tasks that are done and not acknowledged
        self._last = 0  # the delivery tag of the last of them

    @property
    def wanted(self) -> int:
        """What RabbitMQ should be told."""
        return self.most if self._well >= WELL else 1

    @property
    def careful(self) -> bool:
        """Whether each ack goes out by itself. The worker may then do the tasks in another order than RabbitMQ sent
        them, and an ack for several would cover what is not done."""
        return self.now == 1

    def met(self, redelivered: bool) -> None:
        """A delivery is about to begin."""
        if redelivered:
            self._well = 0

    def ended(self, redelivered: bool, well: bool) -> None:
        """A task has ended; well: it is done."""
        self._well = self._well + 1 if well and not redelivered else 0

    def done(self, tag: int) -> bool:
        """The task of this delivery is done. True: acknowledge now, it and all before it."""
        self._done, self._last = self._done + 1, tag
        return self._done >= max(1, self.now // 2)

    def take(self) -> int:
        """The tag up to which all is to be acknowledged now; 0 if nothing is."""
        tag, self._last, self._done = self._last, 0, 0
        return tag


def in_order(deliveries: list[Delivery], attempt: Callable[[Delivery], int]) -> list[Delivery]:
    """What a worker that has become careful has at hand, in the order to do it: first deliveries before others.

    One of the others may kill this worker, and all that it has not done by then lose an attempt more. The order keeps
    them from losing one each time. A worker that dies with many at hand leaves its tasks in this order: done but not
    acknowledged, the killer, never begun. The next worker does them from the back, so the killer takes only the first
    group along; those then stand before it. So the attempt after that goes from the front: even attempts from the back,
    odd ones from the front.
    """

    def rank(delivery: Delivery) -> tuple[int, int]:
        number, tag = attempt(delivery), delivery[0].delivery_tag
        return (number, tag if number % 2 else -tag)

    return sorted(deliveries, key=rank)
