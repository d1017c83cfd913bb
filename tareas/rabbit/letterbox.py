"""The dead letters of a queue, from RabbitMQ and back: looking at them, replaying and discarding them.

A look takes the letters and acknowledges none: RabbitMQ keeps each until it is replayed or discarded. The others go
back, in order. RabbitMQ counts each look as a delivery, hence the queue's enormous delivery limit.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pika
from pika.exceptions import NackError, UnroutableError

from tareas.errors import NoSuchLetter, NotReplayed
from tareas.rabbit import queues
from tareas.rabbit.connection import deadline
from tareas.rabbit.letters import DeadLetter, read, revived
from tareas.text import quoted

HELD = 50_000  # letters that one consumer may hold unacknowledged (AMQP's most is 65,535)
AHEAD = 50  # letters that RabbitMQ sends ahead when each is settled: memory holds so many bodies
PATIENCE = 10.0  # seconds to wait for a letter that RabbitMQ counted


def look(channel: Any, queue: str, limit: int | None = None, settling: bool = False) -> Iterator[DeadLetter]:
    """Take the dead letters of this work queue, oldest first: at most `limit`, and none that arrives meanwhile.

    settling: the caller replays or discards each letter before it takes the next. Otherwise RabbitMQ holds all of them
    for us, and our memory holds one. A channel is good for one look; give_back() closes it.
    Raises what pika raises, as when there is no such queue.
    """
    taken: deque[tuple[Any, pika.BasicProperties, bytes]] = deque()
    # Bounded by what is there now: a letter that is replayed and fails again comes back, for ever.
    number = queues.counts(channel, queues.dead(queue)).message_count
    number = number if limit is None else min(limit, number)
    window = AHEAD if settling else HELD
    channel.basic_qos(prefetch_count=window)
    for n in range(number):
        if n == 0 or (n % window == 0 and not settling):  # the consumer before this one holds all that it may
            name = f"admin-{n:09}"  # RabbitMQ takes back from its consumers in the order of their names (measured)
            with deadline(channel.connection):
                channel.basic_consume(queues.dead(queue), lambda *it: taken.append(it[1:]), consumer_tag=name)
        since = time.monotonic()
        while not taken:
            channel.connection.process_data_events(time_limit=PATIENCE)
            if not taken and time.monotonic() - since >= PATIENCE:
                return  # someone else took the rest
        method, properties, body = taken.popleft()
        yield read(method.delivery_tag, properties, body)


def give_back(channel: Any, queue: str, held: int) -> None:
    """Close the channel, and wait until the so many letters that it held are in their queue again.

    RabbitMQ keeps what comes back in a line of its own, before the others, and adds to its end (measured on 3.10, 4.0
    and 4.3): whoever gives back only some of that line changes its order. So look at all, or settle all.
    """
    connection = channel.connection
    channel.close()
    end = time.monotonic() + PATIENCE
    with contextlib.closing(connection.channel()) as fresh:
        while queues.counts(fresh, queues.dead(queue)).message_count < held and time.monotonic() < end:
            connection.sleep(0.01)


def chosen(channel: Any, queue: str, ids: Collection[str], limit: int | None = None) -> Iterator[DeadLetter]:
    """The dead letters with one of these ids; without ids all, at most `limit`. Settle each before the next.

    Those that share an id are all meant. Afterwards the others go back. Raises NoSuchLetter at the end, when the rest
    is settled.
    """
    if not ids:
        yield from look(channel, queue, limit, settling=True)
        return
    found, others = [], 0
    for letter in look(channel, queue):
        if letter.id in ids:
            found.append(letter)
        else:
            others += 1
    yield from found
    give_back(channel, queue, others)
    missing = [name for name in dict.fromkeys(ids) if all(letter.id != name for letter in found)]
    if missing:
        names = ", ".join(quoted(name) for name in missing)
        raise NoSuchLetter(f"no dead letter {names} in queue {quoted(queue)} (admin.py dead lists them)")


def replay(channel: Any, queue: str, letter: DeadLetter, tell: Callable[[list[str]], None]) -> None:
    """Publish the task to its queue again, wait for RabbitMQ's confirm, tell it, then remove the dead letter.

    A process that is killed before the end leaves the task in both queues: it may be done twice, but it is not lost,
    and no replay goes untold. The channel must be in confirm mode. tell: called with what the task did not get back
    (see revived). Raises NotReplayed, or what pika and tell raise.
    """
    properties, without = revived(letter.properties)
    try:
        with deadline(channel.connection):
            channel.basic_publish("", queue, letter.body, properties, mandatory=True)
    except NackError:
        what = f"{quoted(letter.id)} and those after it stay dead letters"
        raise NotReplayed(f"queue {quoted(queue)} is full: {what} (replay them when there is room)") from None
    except UnroutableError:
        raise NotReplayed(f"there is no queue {quoted(queue)} (worker.py makes it): all dead letters stay") from None
    tell(without)
    channel.basic_ack(letter.tag)


def discard(channel: Any, letter: DeadLetter) -> None:
    """Remove the dead letter for good."""
    channel.basic_ack(letter.tag)
