"""What a producer has published and RabbitMQ has not confirmed yet."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable

from tareas.task import SMALL_BYTES
from tareas.work.sources import Item

MOST = 1000  # tasks: enough to keep RabbitMQ busy, little enough to publish again
MOST_BYTES = 8 * 2**20


class Window:
    """The unconfirmed tasks of one channel, in the order of their publishing.

    again: those to be published once more. held: a new one that has to wait. missing: the id of one that reached no
    queue, until somebody has seen to it. blamed: the one that RabbitMQ refuses for good. since: when RabbitMQ answered
    last, or had nothing to answer.

    RabbitMQ numbers what is published on a channel in confirm mode from 1 on, and answers by that number, for one task
    or for all up to one (https://www.rabbitmq.com/docs/confirms). A task that reached no queue is returned first, and
    confirmed all the same.

    When RabbitMQ takes a task for too large it closes the channel, without a word on which task it was and with none on
    those before it. So a task that is larger than what was stored until now travels alone.
    """

    def __init__(self) -> None:
        self.again: deque[Item] = deque()
        self.held: Item | None = None
        self.missing: str | None = None
        self.blamed: Item | None = None
        self.since = 0.0
        self._sent: dict[int, Item] = {}  # by delivery tag, oldest first
        self._bytes = 0
        self._tag = 0
        self._returned: Counter[tuple[str, bytes]] = Counter()
        self._proven = SMALL_BYTES  # bytes of a body that RabbitMQ has stored, to the next power of two
        self._alone = False  # the one task that is sent is larger
        self._careful = 0  # tasks to be sent one at a time

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def waiting(self) -> bool:
        """Whether tasks wait to be published."""
        return bool(self.again) or self.held is not None

    def next(self, take: Callable[[], Item | None]) -> Item | None:
        """The task to publish now: one to be published once more, else a new one. None: there is none, or no room."""
        full = bool(self._sent) if self._alone or self._careful else (
            len(self._sent) >= MOST or self._bytes >= MOST_BYTES)
        if full:
            return None
        if not self.again and self.held is None:
            self.held = take()
        item = self.again[0] if self.again else self.held
        if item is None or (self._sent and len(item.body) > self._proven):
            return None
        if self.again:
            return self.again.popleft()
        self.held = None
        return item

    def published(self, item: Item) -> None:
        """This one is on its way."""
        if not self._sent:
            self.since = time.monotonic()
        self._tag += 1
        self._sent[self._tag] = item
        self._bytes += len(item.body)
        self._alone = len(item.body) > self._proven
        self._careful = max(0, self._careful - 1)

    def returned(self, message_id: str, body: bytes) -> None:
        """This one reached no queue. Its confirm, which is still to come, must not count."""
        self._returned[message_id, body] += 1
        self.missing = message_id

    def settle(self, tag: int, multiple: bool) -> list[tuple[Item, bool]]:
        """The tasks that this answer is about, and whether each of them was returned before."""
        self.since = time.monotonic()
        tags = [tag]
        if multiple:
            tags = []
            for sent in self._sent:
                if sent > tag:
                    break
                tags.append(sent)
        return [self._settle(tag) for tag in tags]

    def _settle(self, tag: int) -> tuple[Item, bool]:
        item = self._sent.pop(tag)
        self._bytes -= len(item.body)
        if len(item.body) > self._proven:
            self._proven = 1 << (len(item.body) - 1).bit_length()
        self._alone = False
        if not self._returned or not self._returned[item.id, item.body]:
            return item, False
        self._returned -= Counter([(item.id, item.body)])
        return item, True

    def blame(self) -> Item | None:
        """RabbitMQ has refused one of the tasks that are sent: which one, if that is certain. Else they are sent one at
        a time, which will show it."""
        if len(self._sent) == 1:
            self.blamed = next(iter(self._sent.values()))
        self._careful = len(self._sent)
        return self.blamed

    def lost(self) -> None:
        """The channel is gone, and with it the answers: publish first what it had not confirmed."""
        self.again.extendleft(reversed(self._sent.values()))
        self._sent.clear()
        self._returned.clear()
        self._bytes = self._tag = 0
        self._alone, self.missing = False, None
