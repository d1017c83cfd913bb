"""Publish many small messages quickly: their frames are made from one pattern, and sent together.

pika builds the three frames of a message from scratch and hands each to the socket on its own, which is most of what
a publish costs. Here pika builds those of one message, and all others are made from them: only the id and the lengths
differ. An AMQP frame is type, channel, size, payload and an end mark (AMQP 0-9-1 specification, 2.3.5 and 4.2.6).
"""

from __future__ import annotations

import struct
import time
from typing import Any

import pika

AT_ONCE = 64 * 1024  # bytes that are gathered before they go: RabbitMQ works on them while we gather the next ones
FRAME = struct.Struct(">BHI")  # type, channel, bytes of the payload
HEADER = struct.Struct(">HHQ")  # class, weight, bytes of the body
END = bytes([pika.spec.FRAME_END])
ID = "\x00id\x00"  # stands for the message_id in what pika builds: nothing else there looks like it


class Outbox:
    """Publishes through the default exchange to one queue, mandatory, on one open channel.

    properties are those of every message, but for its message_id and timestamp. What publish gathers is on its way
    after flush; neither waits: the confirms come to the channel's callback.
    """

    def __init__(self, connection: Any, channel: Any, queue: str, properties: pika.BasicProperties) -> None:
        self._connection, self._channel, self._queue, self._properties = connection, channel, queue, properties
        self._number: int = channel.channel_number
        self._longest = connection.params.frame_max - FRAME.size - len(END)  # bytes of a body in one frame, as agreed
        method = pika.spec.Basic.Publish(exchange="", routing_key=queue, mandatory=True)
        self._method: bytes = pika.frame.Method(self._number, method).marshal()
        self._second = 0  # the timestamp of the pattern
        self._before = self._after = b""  # the encoded properties up to the message_id, and those after it
        self._parts: list[bytes] = []
        self._bytes = 0

    def publish(self, message_id: str, body: bytes) -> None:
        """Gather one message. message_id: at most 255 bytes."""
        now = int(time.time())
        if now != self._second:
            self._make_pattern(now)
        if not 0 < len(body) <= self._longest:
            self.flush()
            self._properties.message_id = message_id
            if self._channel.is_open:
                self._channel.basic_publish("", self._queue, body, self._properties, mandatory=True)
            return
        name, number = message_id.encode(), self._number
        properties = b"%b%c%b%b" % (self._before, len(name), name, self._after)
        message = b"".join((
            self._method,
            FRAME.pack(pika.spec.FRAME_HEADER, number, HEADER.size + len(properties)),
            HEADER.pack(pika.spec.BasicProperties.INDEX, 0, len(body)), properties, END,
            FRAME.pack(pika.spec.FRAME_BODY, number, len(body)), body, END,
        ))  # fmt: skip
        self._parts.append(message)
        self._bytes += len(message)
        if self._bytes >= AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Send what is gathered, with one call for all of it."""
        if self._parts and self._channel.is_open:
            # pika has no public way to send frames that are ready, nor several at once.
            self._connection._output_marshaled_frames([b"".join(self._parts)])
        self._parts.clear()
        self._bytes = 0

    def _make_pattern(self, second: int) -> None:
        self._properties.timestamp = self._second = second
        self._properties.message_id = ID
        encoded = b"".join(self._properties.encode())
        self._before, self._after = encoded.split(b"%c%b" % (len(ID), ID.encode()))
