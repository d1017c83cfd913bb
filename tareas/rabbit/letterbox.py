"""The dead letters of a queue, from RabbitMQ and back: looking at them, replaying and discarding them.

A look takes the letters and acknowledges none: RabbitMQ keeps each until it is replayed or discarded. The others go
back, in order. RabbitMQ counts each look as a delivery, hence the queue's enormous delivery limit.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pika

from tareas.errors import Nacked, NoSuchLetter, NotReplayed, Refused, Unroutable
from tareas.rabbit import queues
from tareas.rabbit.connection import Connection
from tareas.rabbit.letters import DeadLetter, read, revived
from tareas.text import quoted

HELD = 200  # letters that one consumer may hold unacknowledged: memory holds so many bodies
AHEAD = 50  # the same when each is settled before the next
PATIENCE = 10.0  # seconds to wait for a letter that RabbitMQ counted


def look(connection: Connection, queue: str, limit: int | None = None, settling: bool = False) -> Iterator[DeadLetter]:
    """Take the dead letters of this work queue, oldest first: at most `limit`, and none that arrives meanwhile.

    settling: each is replayed or discarded before the next; without it all are held, by one consumer after the other.
    Use a connection for one look, and give_back() after it. Raises Lost, and Refused when there is no such queue.
    """
    taken: deque[tuple[Any, pika.BasicProperties, bytes]] = deque()
    # Bounded by what is there now: a letter that is replayed and fails again comes back, for ever.
    number = queues.counts(connection, queues.dead(queue)).message_count
    number = number if limit is None else min(limit, number)
    window = AHEAD if settling else HELD
    connection.basic_qos(prefetch_count=window)
    for n in range(number):
        if n == 0 or (n % window == 0 and not settling):  # the consumer before this one holds all that it may
            name = f"admin-{n:09}"  # RabbitMQ takes back from its consumers in the order of their names (measured)
            connection.basic_consume(queues.dead(queue), lambda *it: taken.append(it[1:]), consumer_tag=name)
        while not taken:
            if not connection.process_data_events(PATIENCE):
                return  # someone else took the rest
        method, properties, body = taken.popleft()
        yield read(method.delivery_tag, properties, body)


def give_back(connection: Connection, queue: str, held: int) -> None:
    """Give back all that is held, and wait until RabbitMQ has put so many letters into their queue.

    RabbitMQ keeps what comes back in a line of its own, before the others, and adds to its end (measured on 3.10, 4.0
    and 4.3): whoever gives back only some of that line changes its order. So look at all, or settle all.
    """
    connection.renew()
    end = time.monotonic() + PATIENCE
    while queues.counts(connection, queues.dead(queue)).message_count < held and time.monotonic() < end:
        connection.process_data_events(0.01)


def chosen(connection: Connection, queue: str, ids: Collection[str], limit: int | None = None) -> Iterator[DeadLetter]:
    """The dead letters with one of these ids; without ids all, at most `limit`. Settle each before the next.

    Those that share an id are all meant. Afterwards the others go back. Raises NoSuchLetter at the end, when the rest
    is settled.
    """
    if not ids:
        yield from look(connection, queue, limit, settling=True)
        return
    found, others = [], 0
    for letter in look(connection, queue):
        if letter.id in ids:
            found.append(letter)
        else:
            others += 1
    yield from found
    give_back(connection, queue, others)
    missing = [name for name in dict.fromkeys(ids) if all(letter.id != name for letter in found)]
    if missing:
        names = ", ".join(quoted(name) for name in missing)
        raise NoSuchLetter(f"no dead letter {names} in queue {quoted(queue)} (admin.py dead lists them)")


def replay(connection: Connection, queue: str, letter: DeadLetter, tell: Callable[[list[str]], None]) -> None:
    """Publish the task to its queue again, wait for RabbitMQ's confirm, tell it, then remove the dead letter.

    Killed before the end, the task is in both queues: done twice perhaps, never lost, nor replayed untold. The channel
    must be in confirm mode. tell: gets what the task did not get back, see revived(). Raises NotReplayed, Lost, or what
    tell raises.
    """
    properties, without = revived(letter.properties, connection.frame_max)
    stays = f"{quoted(letter.id)} and those after it stay dead letters"
    try:
        connection.publish_and_confirm(queue, letter.body, properties)
    except Nacked:
        raise NotReplayed(f"queue {quoted(queue)} is full: {stays} (replay them when there is room)") from None
    except Unroutable:
        raise NotReplayed(f"there is no queue {quoted(queue)} (worker.py makes it): all dead letters stay") from None
    except Refused as error:
        raise NotReplayed(f"{error}: {stays}") from None
    tell(without)
    connection.basic_ack(letter.tag)


def discard(connection: Connection, letter: DeadLetter) -> None:
    """Remove the dead letter for good."""
    connection.basic_ack(letter.tag)
