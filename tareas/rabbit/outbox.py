"""Publish many small messages quickly: their frames are made from one pattern, and sent together.

pika builds the three frames of a message from scratch and hands each to the socket on its own, which is most of what a
publish costs. Here pika encodes the properties of one message. Those of the next are made from them: only the id
differs. An AMQP frame is type, channel, size, payload and an end mark (AMQP 0-9-1 specification, 2.3.5 and 4.2.6).
"""

from __future__ import annotations

import struct
from typing import Any

import pika

AT_ONCE = 64 * 1024  # bytes that are gathered before they go: RabbitMQ works on them while we gather the next ones
FRAME = struct.Struct(">BHI")  # type, channel, bytes of the payload
HEADER = struct.Struct(">HHQ")  # class, weight, bytes of the body
END = bytes([pika.spec.FRAME_END])
AROUND = FRAME.size + len(END)  # bytes of a frame that are not its payload
ID = "\x00id\x00"  # stands for the message_id in what pika encodes: nothing else there looks like it


class Outbox:
    """The frames of messages for one channel. frame_max: bytes of a frame, as agreed with RabbitMQ."""

    def __init__(self, channel_number: int, frame_max: int) -> None:
        self.size = 0  # bytes that are gathered
        self._number = channel_number
        self._longest = frame_max - AROUND
        self._parts: list[bytes] = []
        self._methods: dict[tuple[str, str, bool], bytes] = {}
        self._shape: dict[str, Any] = {}  # the properties that the pattern is of
        self._before = self._after = b""  # the encoded properties up to the message_id, and those after it

    def gather(
        self, exchange: str, routing_key: str, body: bytes, properties: pika.BasicProperties, mandatory: bool
    ) -> None:
        """Add one message. message_id: at most 255 bytes. Raises what pika raises for properties it cannot encode."""
        where = (exchange, routing_key, mandatory)
        method = self._methods.get(where) or self._publish(*where)
        encoded, number = self._encoded(properties), self._number
        parts = [method, FRAME.pack(pika.spec.FRAME_HEADER, number, HEADER.size + len(encoded)),
                 HEADER.pack(pika.spec.BasicProperties.INDEX, 0, len(body)), encoded, END]  # fmt: skip
        for start in range(0, len(body), self._longest):
            piece = body[start : start + self._longest]
            parts += (FRAME.pack(pika.spec.FRAME_BODY, number, len(piece)), piece, END)
        message = b"".join(parts)
        self._parts.append(message)
        self.size += len(message)

    def take(self) -> bytes:
        """What is gathered; it is gathered no more."""
        frames = b"".join(self._parts)
        self._parts.clear()
        self.size = 0
        return frames

    def method(self, method: Any) -> bytes:
        """The frame of a method that has no content."""
        frame: bytes = pika.frame.Method(self._number, method).marshal()
        return frame

    def _publish(self, exchange: str, routing_key: str, mandatory: bool) -> bytes:
        frame = self.method(pika.spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory))
        self._methods[exchange, routing_key, mandatory] = frame
        return frame

    def _encoded(self, properties: pika.BasicProperties) -> bytes:
        message_id = properties.message_id
        if message_id is None or properties.headers is not None or type(properties) is not pika.BasicProperties:
            return b"".join(properties.encode())
        shape = {**vars(properties), "message_id": ID}
        if shape != self._shape:
            pattern = b"".join(pika.BasicProperties(**shape).encode())
            self._before, self._after = pattern.split(b"%c%b" % (len(ID), ID.encode()))
            self._shape = shape
        name = message_id.encode()
        return b"%b%c%b%b" % (self._before, len(name), name, self._after)
