"""A connection to RabbitMQ that keeps itself alive, and the calls of AMQP on it.

pika's SelectConnection runs in a thread of its own (see loop.py). So heartbeats go on, and a loss is noticed at once,
whatever the caller does meanwhile. The caller's thread is the main one, where signals arrive and handlers run. It calls
the methods of Connection, which have the names of pika's channel. A call that has an answer waits for it, with a bound.
What RabbitMQ sends by itself (deliveries, confirms, returns) waits until the caller asks for it.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable
from typing import Any

import pika

from tareas.errors import Lost, Nacked, Trouble, Unroutable
from tareas.rabbit import inside
from tareas.rabbit.addresses import Address
from tareas.rabbit.handover import Answer
from tareas.rabbit.loop import Loop
from tareas.rabbit.outbox import AT_ONCE, Outbox
from tareas.text import quoted

GOODBYE = 5.0  # seconds for RabbitMQ to say goodbye in

Delivered = Callable[["Connection", Any, Any, bytes], None]


class Connection(Loop):
    """One open connection with one channel. When it is lost it stays lost: connect anew.

    lost: what ended it, None as long as it lives. version: RabbitMQ's, (0,) if it does not say. blocked: RabbitMQ takes
    no message, because of an alarm. sending: when bytes of ours waited on this side last, or an alarm ended, on the
    clock of time.monotonic.

    name: what RabbitMQ's management page shows. on_alarm: called with "blocked" (and its `reason`) and "unblocked".
    on_lost: called with the Lost or Trouble that ended the connection, at once, unless we closed it. Both are called in
    the connection's own thread.

    The calls of AMQP raise Lost when the connection is over, or Trouble when trying again is of no use. The constructor
    raises them when there is no connection.
    """

    def __init__(
        self, address: Address, name: str, *, on_alarm: Callable[..., None] = lambda word, **facts: None,
        on_lost: Callable[[Exception], None] = lambda error: None,
    ) -> None:  # fmt: skip
        super().__init__(address, name, on_alarm, on_lost)
        self._confirm: tuple[int, Answer] | None = None  # of the one message that publish_and_confirm waits for
        self._returned = False  # that message
        self._published = 0  # messages on this channel
        self._watching = False  # a file descriptor
        self._outbox: Any = None
        try:
            self._open()
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def frame_max(self) -> int:
        """Bytes of the longest frame, as agreed with RabbitMQ."""
        return int(self._connection.params.frame_max)

    # -- calls with an answer: each waits for it

    def queue_declare(
        self, queue: str, *, passive: bool = False, durable: bool = False, arguments: dict[str, Any] | None = None
    ) -> Any:
        """RabbitMQ's answer: message_count (ready ones) and consumer_count. passive: only look.

        Raises QueueDiffers if the queue exists with other arguments.
        """
        self._declaring = None if passive else queue
        about = {"passive": passive, "durable": durable, "arguments": arguments}
        frame = self._ask(lambda give: self._channel.queue_declare(queue, callback=give, **about))
        self._declaring = None
        return frame.method

    def queue_delete(self, queue: str) -> None:
        """Delete a queue with all that is in it; none is no error."""
        self._ask(lambda give: self._channel.queue_delete(queue, callback=give))

    def basic_qos(self, prefetch_count: int) -> None:
        """How many deliveries the next consumer may hold unacknowledged."""
        self._ask(lambda give: self._channel.basic_qos(prefetch_count=prefetch_count, callback=give))

    def basic_consume(
        self, queue: str, on_message_callback: Delivered, *, auto_ack: bool = False, consumer_tag: str = "",
        arguments: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Have RabbitMQ send messages: process_data_events calls back with (connection, method, properties, body)."""

        def delivered(channel: Any, *delivery: Any) -> None:
            self._inbox.put((self._deliver, (on_message_callback, delivery)))

        about = {"auto_ack": auto_ack, "consumer_tag": consumer_tag, "arguments": arguments}
        self._ask(lambda give: self._channel.basic_consume(queue, delivered, callback=give, **about))

    def basic_cancel(self, consumer_tag: str) -> None:
        """Have RabbitMQ send no more. What has arrived stays, and so does what is on its way."""

        def cancel(give: Callable[[Any], None]) -> None:
            self._channel.basic_cancel(consumer_tag, callback=give)
            inside.keep_what_comes(self._channel, consumer_tag)

        self._ask(cancel)

    def confirm_delivery(
        self, ack_nack_callback: Callable[[Any], None] | None = None,
        on_return_callback: Callable[[Any, bytes], None] | None = None,
    ) -> None:  # fmt: skip
        """Have RabbitMQ confirm what is published from now on (https://www.rabbitmq.com/docs/confirms).

        process_data_events calls back with the frame of each ack or nack, and with (properties, body) of each return.
        Without callbacks, publish with publish_and_confirm only.
        """

        def confirmed(frame: Any) -> None:
            if ack_nack_callback is not None:
                self._inbox.put((ack_nack_callback, (frame,)))
            elif (expected := self._confirm) is not None and frame.method.delivery_tag >= expected[0]:
                expected[1].give(isinstance(frame.method, pika.spec.Basic.Ack))

        def returned(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            if on_return_callback is not None:
                self._inbox.put((on_return_callback, (properties, body)))
            self._returned = True

        def ask(give: Callable[[Any], None]) -> None:
            self._channel.add_on_return_callback(self._guard(returned))
            self._channel.confirm_delivery(self._guard(confirmed), callback=give)

        self._ask(ask)

    def publish_and_confirm(self, routing_key: str, body: bytes, properties: pika.BasicProperties) -> None:
        """Publish to this queue through the default exchange, mandatory, and wait for RabbitMQ's confirm.

        Raises Nacked (RabbitMQ does not store it: the queue is full, say) or Unroutable (there is no such queue). The
        channel must be in confirm mode, without callbacks.
        """

        def publish(answer: Answer) -> None:
            self._returned, self._confirm = False, (self._published + 1, answer)
            self.basic_publish("", routing_key, body, properties, mandatory=True)
            self.flush()

        try:
            stored = self._wait(publish)
        finally:
            self._confirm = None
        if self._returned:  # before its confirm, which comes all the same
            raise Unroutable(f"queue {quoted(routing_key)} does not exist")
        if not stored:
            raise Nacked(f"queue {quoted(routing_key)} is full, or has lost its leader")

    def renew(self) -> None:
        """Take another channel. RabbitMQ gives what was not settled on the old one to others. The new one confirms
        nothing yet, and consumes nothing."""
        self._wait(lambda answer: self._hand_over(self._channel.close))

    def look(self) -> None:
        """Wait until the thread has sent what was handed over and looked at the socket. Raises what has ended the
        connection: after a stretch in which the whole process stood still, the caller may be the first to go on."""
        self._wait(lambda answer: self._hand_over(answer.give))
        for _ in range(2):  # the present turn may have read the socket already
            self._wait(lambda answer: self._pika.add_callback_threadsafe(answer.give))

    # -- calls without an answer: handed over

    def basic_publish(
        self, exchange: str, routing_key: str, body: bytes, properties: pika.BasicProperties, mandatory: bool = False
    ) -> None:
        """Gather one message. It is sent when there is enough for one system call, or when the caller waits."""
        self._outbox.gather(exchange, routing_key, body, properties, mandatory)
        self._published += 1
        if self._outbox.size >= AT_ONCE:
            self.flush()

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """This delivery is settled; multiple: and all before it."""
        self._send(self._outbox.method(pika.spec.Basic.Ack(delivery_tag, multiple)))

    def basic_nack(self, delivery_tag: int, multiple: bool = False, requeue: bool = True) -> None:
        """Give this delivery back to its queue; without requeue, to the dead letters."""
        self._send(self._outbox.method(pika.spec.Basic.Nack(delivery_tag, multiple, requeue)))

    def flush(self) -> None:
        """Send what basic_publish has gathered."""
        if self._outbox is not None and self._outbox.size:
            self._send(self._outbox.take())

    # -- what RabbitMQ sends by itself

    def process_data_events(self, time_limit: float = 0.0) -> bool:
        """Handle one thing that RabbitMQ has sent, here in the caller's thread. False: there was none within so many
        seconds. After a loss, what came before it is handled first, but no delivery: RabbitMQ has given those to
        others."""
        if self.lost is None:
            self.flush()
        try:
            event = self._inbox.get(time_limit > 0, time_limit)
        except queue.Empty:
            return False
        if event is None:
            self._inbox.put(None)  # for whoever asks again
            self._raise_the_end()
        else:
            handle, arguments = event
            handle(*arguments)
        return True

    def waiting(self) -> list[tuple[Any, Any, bytes]]:
        """The deliveries that have arrived and were not handled: (method, properties, body) of each. They are the
        caller's now."""
        found = []
        with contextlib.suppress(queue.Empty):
            while (event := self._inbox.get_nowait()) is not None:
                found.append(event[1][1])
            self._inbox.put(None)
        return found

    def watch(self, fd: int) -> None:
        """Have process_data_events return when this file descriptor can be read; once."""

        def watch_no_more() -> None:
            self._watching = False

        def readable(fd: int, events: int) -> None:
            self._pika.remove_handler(fd)
            self._inbox.put((watch_no_more, ()))

        if not self._watching:
            self._watching = True
            self._hand_over(lambda: self._pika.add_handler(fd, self._guard(readable), self._pika.READ))

    def close(self, seconds: float = GOODBYE) -> None:
        """Send what was gathered and handed over, and say goodbye."""
        with contextlib.suppress(Lost, Trouble):
            self.flush()
        super().close(seconds)

    def forget(self) -> None:
        """In a forked process: let go of the socket, which is the parent's."""
        inside.close_socket(self._connection)

    def _deliver(self, callback: Delivered, delivery: tuple[Any, Any, bytes]) -> None:
        self._raise_the_end()  # RabbitMQ has given it to someone else
        callback(self, *delivery)

    def _opened(self, channel: Any) -> None:
        self._outbox, self._published = Outbox(channel.channel_number, self.frame_max), 0
