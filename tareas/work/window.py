"""What a producer has published and RabbitMQ has not confirmed yet."""

from __future__ import annotations

from collections import Counter, deque

from tareas.work.sources import Item

MOST = 1000  # tasks: enough to keep RabbitMQ busy, little enough to publish again
MOST_BYTES = 8 * 2**20


class Window:
    """The unconfirmed tasks of one channel, in the order of their publishing. again: those to be published once more.

    On a channel in confirm mode RabbitMQ numbers what is published, from 1 on. Its answer names a number, and is for
    that task alone or for all up to it (https://www.rabbitmq.com/docs/confirms). A task that reached no queue is
    returned first, and confirmed all the same.
    """

    def __init__(self) -> None:
        self.again: deque[Item] = deque()
        self._sent: dict[int, Item] = {}  # by delivery tag, oldest first
        self._bytes = 0
        self._tag = 0
        self._returned: Counter[Item] = Counter()

    def __len__(self) -> int:
        return len(self._sent)

    def has_room(self) -> bool:
        """Whether one more task may be published now."""
        return len(self._sent) < MOST and self._bytes < MOST_BYTES

    def published(self, item: Item) -> None:
        """This one is on its way."""
        self._tag += 1
        self._sent[self._tag] = item
        self._bytes += len(item.body)

    def returned(self, item: Item) -> None:
        """It reached no queue; its confirm, which is still to come, must not count."""
        self._returned[item] += 1

    def settle(self, tag: int, multiple: bool) -> list[tuple[Item, bool]]:
        """The tasks that this answer is about, and whether each of them was returned before."""
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
        if not self._returned or not self._returned[item]:
            return item, False
        self._returned -= Counter([item])
        return item, True

    def lost(self) -> None:
        """The channel is gone, and with it the answers: publish first what it had not confirmed."""
        self.again.extendleft(reversed(self._sent.values()))
        self._sent.clear()
        self._returned.clear()
        self._bytes = self._tag = 0
