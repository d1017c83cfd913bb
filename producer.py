#!/usr/bin/env python3
"""Publish tasks to the queue, and say so only when RabbitMQ has confirmed them.

Exit status: 0 every task is confirmed; 1 it could not go on; 2 a wrong call or
a bad line in the input; 130 or 143 stopped by a signal before the end.

    python producer.py --count 50 --complexity 0.5-3    # sample tasks
    python producer.py examples/tasks.jsonl             # a JSON object a line
    cat examples/tasks.jsonl | python producer.py -     # the same from a pipe
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import tareas.needed  # isort: skip  # noqa: F401 (it says so if pika is missing)
import pika

from tareas.cli import Parser, complexity_range, positive, run, seconds
from tareas.errors import Abandoned, BadLine, Denied, Refusing, Trouble
from tareas.rabbit import addresses, connection as broker, explain as reasons, inside, queues
from tareas.rabbit.backoff import Rests
from tareas.rabbit.outbox import Outbox
from tareas.task import QUEUE, SAMPLE_COMPLEXITY
from tareas.tell.events import Events
from tareas.work.signals import Stopping
from tareas.work.sources import Item, Sample, Source, open_source
from tareas.work.window import Window

TICK = 0.1  # seconds between two looks at signals
FULL_REST = (0.1, 2.0)  # seconds before what RabbitMQ refused is published again: the first rest and the longest
RENEWED = 5  # refusals in a row after which the channel is replaced: some 3 s, and then every 10 s
SILENCE = reasons.ANSWER_TIMEOUT  # seconds without a confirm after which the connection is replaced
SHOWN = 20  # tasks that a person sees confirmed one by one; after them, the progress


class Producer:
    """Publishes every task of a source, with a window of them unconfirmed.

    A task is safe once it is confirmed: RabbitMQ has it on disk. What was not confirmed when a connection breaks is
    published again, so a task may be there twice, but none is lost.

    pika's BlockingConnection would wait for each confirm before the next publish; its SelectConnection, whose calls
    come back as callbacks, keeps many on their way and is some twenty times as fast.
    """

    def __init__(
        self, source: Source, *, url: str | None = None, queue: str = QUEUE, events: Events | None = None,
        connect_timeout: float | None = None,
    ) -> None:
        self.source = source
        self.queue = queue
        self.addresses = addresses.parse(url or addresses.default_url())
        self.connect_timeout = connect_timeout
        self.events = events or Events("producer")
        self.tell = self.events.tell
        self.published = 0  # different tasks
        self.confirmed = 0
        self.stopping = Stopping(self._say_stopping)
        self.rests = Rests(self.tell)
        self._connection: Any = None
        self._channel: Any = None
        self._outbox: Any = None
        self._address = self.addresses[0]
        self._window = Window()
        self._declaring = ""
        self._refusals = 0
        self._ready = False  # the queues are declared and nothing holds us up
        self._full = 0.0  # the current rest of a full queue; 0 when it is not
        self._blocked = False
        self._reading = False  # waiting for the pipe
        self._properties = pika.BasicProperties(
            content_type="application/json", delivery_mode=pika.DeliveryMode.Persistent.value, app_id="producer.py"
        )
        self._error: BaseException | None = None  # why the connection ended
        self._ever = False
        self._bad_line: BadLine | None = None
        self._progress_due = 0.0
        self._answered = 0.0  # when RabbitMQ answered last, or was first asked
        self._began = time.monotonic()

    # -- the life of a producer

    def start(self) -> int:
        """Publish all, connecting again as often as needed. Returns the exit status.

        Raises Trouble when there is no way on, and BadLine after everything before the bad line is confirmed.
        """
        inside.read_any_headers()
        self._began = began = time.monotonic()
        with self.stopping:
            try:
                while not self._finished():
                    self._connect_and_publish()
                    if self._finished():
                        break
                    error = self._error or pika.exceptions.StreamLostError("the connection ended")
                    if isinstance(error, Trouble):
                        error.args = (f"{error}; {self._summary(left=True)}",)
                        raise error
                    reason = reasons.explain(error, self._address)
                    if self._ready:
                        self.tell("connection_lost", reason=reason)
                        began = time.monotonic()
                    elif reasons.is_denied(error) and not self._ever:
                        raise Denied(reason)
                    if self.stopping.requested and not self._window and not self._window.again:
                        break
                    if self.connect_timeout is not None and time.monotonic() - began > self.connect_timeout:
                        raise Trouble(f"no connection within {self.connect_timeout:g} s: {reason}; "
                                      f"{self._summary(left=True)}")
                    self._window.lost()
                    rest = self._next_rest(reason)
                    self.events.waiting()
                    self.stopping.rest(rest)
            except Abandoned:
                pass
        stopped = 0 if self._complete() else self.stopping.abandoned or self.stopping.requested
        left = self._left() if stopped or self._bad_line else ""
        self.tell("finished", published=self.published, confirmed=self.confirmed,
                  seconds=round(time.monotonic() - self._began, 3), **({"left": left} if left else {}))
        if self._bad_line is not None:
            raise BadLine(f"{self._bad_line}; {self._summary()}", status=self._bad_line.status)
        return 128 + stopped if stopped else 0

    def _connect_and_publish(self) -> None:
        """One connection, from connect to close."""
        self._ready = self._blocked = self._reading = False
        self._error = None
        self._full = 0.0
        try:
            self._connection = pika.SelectConnection(
                addresses.parameters(self._address, "producer"),
                on_open_callback=self._on_open, on_open_error_callback=self._on_closed,
                on_close_callback=self._on_closed,
            )
            self._connection.ioloop.call_later(TICK, self._tick)
            self._connection.ioloop.start()
        except reasons.LOST as error:
            if self.events.broken:  # an OSError too, but of our own output
                raise
            self._error = self._error or error

    # -- the steps of the protocol, each called back by the one before

    def _on_open(self, connection: Any) -> None:
        broker.tell_alarms(connection, self._on_alarm)
        connection.channel(on_open_callback=self._on_channel)

    def _on_channel(self, channel: Any) -> None:
        self._channel = channel
        self._outbox = Outbox(self._connection, channel, self.queue, self._properties)
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._declare(queues.declarations(self.queue)))

    def _declare(self, left: list[tuple[str, dict[str, Any]]]) -> None:
        """Declare the queues one after the other, then publish."""
        if not left:
            self._declaring = ""
            if not self._ready:
                self._ready = self._ever = True
                self.rests.reset()
                self.tell("connected", address=self._address.shown)
            return self._publish()
        (name, arguments), *rest = left
        timer = broker.give_up_after(reasons.ANSWER_TIMEOUT, self._connection)

        def declared(frame: Any) -> None:
            timer.cancel()
            self._declare(rest)

        self._declaring = name
        self._channel.queue_declare(name, durable=True, arguments=arguments, callback=declared)

    def _publish(self) -> None:
        """Publish until the window is full or the source has nothing more for now."""
        if not self._ready or self._blocked or self._full or self._declaring:
            return
        window, outbox = self._window, self._outbox
        while window.has_room() and not self.stopping.requested:
            again = bool(window.again)
            item = window.again.popleft() if again else self._take()
            if item is None:
                break
            if not window:
                self._answered = time.monotonic()
            window.published(item)
            if self.events.as_json:
                if again:
                    self.tell("published", id=item.id, again=True)
                else:
                    self.tell("published", id=item.id)
            outbox.publish(item.id, item.body)
        outbox.flush()
        if self._finished() and self._connection.is_open:
            self._close()

    def _take(self) -> Item | None:
        """The next new task, None if there is none now or for ever."""
        if self._bad_line or self.source.ended:
            return None
        try:
            item = self.source.take()
        except BadLine as error:
            self._bad_line = error
            return None
        if item is not None:
            self.published += 1
        elif not self.source.ended and not self._reading:
            fd = self.source.fileno()
            if fd is not None:  # let the loop wait for the pipe and for RabbitMQ at once: heartbeats go on
                self._reading = True
                self._connection.ioloop.add_handler(fd, self._on_input, self._connection.ioloop.READ)
        return item

    def _on_input(self, fd: int, events: int) -> None:
        self._connection.ioloop.remove_handler(fd)
        self._reading = False
        self._publish()

    def _on_confirm(self, frame: Any) -> None:
        """RabbitMQ answers for one task, or for all up to one: stored, or not."""
        self._answered = time.monotonic()
        method = frame.method
        stored = isinstance(method, pika.spec.Basic.Ack)
        for item, returned in self._window.settle(method.delivery_tag, method.multiple):
            if returned:
                self._window.again.append(item)
            elif stored:
                self._refusals = 0
                self.confirmed += 1
                if self.events.as_json or self.confirmed <= SHOWN:
                    self.tell("confirmed", id=item.id)
            else:
                self._window.again.append(item)
                self._on_refused(item)
        self._publish()

    def _on_refused(self, item: Item) -> None:
        """A nack: the task is not stored. Rest, then publish it again."""
        if self._full:
            return
        if self._refusals == 0:
            self.tell("refused", id=item.id, reason="RabbitMQ does not store it: the queue is full, or has lost "
                      "its leader; trying again")
        self._full = min(FULL_REST[0] * 2 ** min(self._refusals, 10), FULL_REST[1])
        self._refusals += 1
        self._connection.ioloop.call_later(self._full, self._on_rested)

    def _on_rested(self) -> None:
        self._full = 0.0
        if self._refusals and self._refusals % RENEWED == 0 and self._channel.is_open:
            # A channel of RabbitMQ 3.10 that met the queue while its leader was down refuses for ever (measured).
            if self._window:  # and while the leader's machine stands still, it takes seconds for each of a thousand
                self._error = Refusing()
                return self._close()
            self._declaring = self.queue  # nothing is published until the new channel has declared it
            self._channel.close()
            self._window.lost()
            self._connection.channel(on_open_callback=self._on_channel)
            return
        self._publish()

    def _on_return(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        """No queue took it: it was deleted. Declare it again; what came back is published again."""
        self._window.returned(Item(str(properties.message_id), body))
        if not self._declaring:
            self.tell("returned", id=properties.message_id, reason=f"there is no queue {self.queue}: declaring it anew")
            self._declare(queues.declarations(self.queue))

    def _on_alarm(self, word: str, **facts: Any) -> None:
        self.tell(word, **facts)
        self._blocked, self._answered = word == "blocked", time.monotonic()
        self._publish()

    def _on_channel_closed(self, channel: Any, reason: Any) -> None:
        """RabbitMQ closed the channel (a queue that differs, no permission): a new connection, or the end."""
        if isinstance(reason, pika.exceptions.ChannelClosedByBroker):
            if self._declaring:
                self._error = reasons.refused_declare(reason, self._declaring)
            elif reasons.is_denied(reason):
                self._error = Denied(reasons.explain(reason, self._address))
            else:
                self._error = reason
            if self._connection.is_open:
                self._close()

    def _on_closed(self, connection: Any, reason: BaseException) -> None:
        self._error = self._error or reason
        connection.ioloop.stop()

    def _tick(self) -> None:
        if self.stopping.requested and not self._window:
            if self._connection.is_open:
                self._close()
            elif not self._connection.is_closing:
                self._connection.ioloop.stop()
            return
        self._show_progress()
        silent = time.monotonic() - self._answered
        if self._window and self._connection.is_open and not self._blocked and silent > SILENCE:
            # RabbitMQ 4.3 left a thousand unconfirmed for ever after a node that stood still had come back (measured).
            self._error = self._error or broker.no_answer(SILENCE)
            self._close()
        self._connection.ioloop.call_later(TICK, self._tick)

    def _close(self) -> None:
        broker.give_up_after(5, self._connection)
        self._connection.close()

    # -- what is left to do

    def _finished(self) -> bool:
        """Whether nothing more will be published, and nothing waits for its confirm."""
        if self._window:
            return False
        return bool(self.stopping.requested) or (not self._window.again and (bool(self._bad_line) or self.source.ended))

    def _complete(self) -> bool:
        return self.source.ended and not self._window and not self._window.again and self._bad_line is None

    def _next_rest(self, reason: str) -> float:
        """Seconds before the next try: none while there are addresses that were not tried yet."""
        index = (self.addresses.index(self._address) + 1) % len(self.addresses)
        self._address = self.addresses[index]
        return self.rests.next(reason) if index == 0 else 0.0

    # -- what it says

    def _summary(self, left: bool = False) -> str:
        if not self.published:
            return "nothing is published"
        not_published = self._left() if left else ""
        return (f"{self.confirmed:,} of the {self.published:,} tasks read are confirmed"
                + (f"; not published: {not_published}" if not_published else ""))

    def _left(self) -> str:
        """What a stop has left unpublished, and that tasks before it may be so, too; empty if it has left nothing."""
        left, unsure = self.source.left(), self.published - self.confirmed
        return f"{left}; unconfirmed before it: {unsure:,}" if left and unsure else left

    def _say_stopping(self, signum: int) -> None:
        waiting = len(self._window)
        self.tell("stopping", reason=f"waiting for {waiting} confirms; once more stops at once" if waiting else "")

    def _show_progress(self) -> None:
        if not self.events.as_json and self.confirmed > SHOWN and time.monotonic() >= self._progress_due:
            self._progress_due = time.monotonic() + 1
            self.events.progress(self.confirmed, self.source.total, time.monotonic() - self._began)


def parse(argv: Sequence[str] | None) -> Any:
    parser = Parser("producer.py", __doc__)
    parser.add_argument("file", nargs="?", metavar="FILE", help="a JSON Lines file of tasks; - reads a pipe")
    parser.add_argument("--count", type=positive, metavar="N", help="sample tasks to make (12)")
    parser.add_argument("--complexity", type=complexity_range, metavar="MIN-MAX",
                        help="seconds of work of a sample task (0.5-3)")
    parser.add_argument("--seed", type=int, metavar="N", help="make the same sample tasks each time")
    parser.add_argument("--connect-timeout", type=seconds, metavar="SECONDS", help="give up without RabbitMQ")
    parser.add_queue_options()
    options = parser.parse_args(argv)
    if options.file is not None and (options.count, options.complexity, options.seed) != (None, None, None):
        parser.error("--count, --complexity and --seed make sample tasks: leave them out with FILE")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    if options.file is None:
        source: Source = Sample(options.count or 12, options.complexity or SAMPLE_COMPLEXITY, options.seed)
    else:
        source = open_source(options.file)
    events = Events("producer", as_json=options.json)
    try:
        return Producer(
            source, url=options.url, queue=options.queue, events=events, connect_timeout=options.connect_timeout
        ).start()
    finally:
        events.close()


if __name__ == "__main__":
    sys.exit(run(main))
