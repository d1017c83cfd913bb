"""When to publish again what RabbitMQ did not store."""

from __future__ import annotations

import time

REST = (0.1, 2.0)  # seconds before a full queue is asked again: the first rest and the longest
RENEW_AFTER = 5  # refusals in a row after which the channel is replaced: some 3 s, and then every 10 s


class Refusals:
    """Counts the refusals in a row. A burst of them is one: what is on its way is refused together."""

    def __init__(self) -> None:
        self.number = 0
        self._until = 0.0

    @property
    def resting(self) -> bool:
        """Whether nothing is to be published for now."""
        return time.monotonic() < self._until

    @property
    def stuck(self) -> bool:
        """Whether it is time for another channel. One of RabbitMQ 3.10 that met the queue while its leader was down
        refuses for ever (measured)."""
        return self.number > 0 and self.number % RENEW_AFTER == 0 and not self.resting

    def add(self) -> bool:
        """RabbitMQ did not store a task. Whether that is news."""
        if self.resting:
            return False
        self._until = time.monotonic() + min(REST[0] * 2 ** min(self.number, 10), REST[1])
        self.number += 1
        return self.number == 1

    def renewed(self) -> None:
        """There is another channel; the rests go on growing."""
        self.number += 1
