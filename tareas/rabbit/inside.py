"""Every touch of what pika keeps to itself, each with its reason. A unit test asks the real pika for each of them.

The functions that take a pika SelectConnection, or a channel of it, belong to the thread of its loop. What is not
there any more (the connection has ended) is no error.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import ssl
import sys
from typing import Any

import pika
from pika import data

HEARTBEAT = pika.frame.Heartbeat().marshal()


class Headers(dict[Any, Any]):
    """Headers that pika has decoded, and what they were decoded from."""

    def __init__(self, table: dict[Any, Any], encoded: bytes) -> None:
        super().__init__(table)
        self.encoded = encoded


class UnreadableHeaders(dict[str, Any]):
    """Stands for headers that pika cannot decode; a class of its own, so that no publisher can write one."""


def read_any_headers() -> None:
    """Let a message through whose headers pika cannot decode: they arrive as UnreadableHeaders, all others as Headers.

    Reason: up to pika 1.4 a timestamp header in milliseconds makes pika raise inside its frame decoder. The connection
    ends, RabbitMQ gives the message to the next worker, and so on for ever. And pika reads a float as a whole number.
    pika has no hook for either, so its table decoder is wrapped.
    """
    original = data.decode_table
    if getattr(original, "reads_any", False):
        return

    def decode_table(encoded: bytes, offset: int) -> tuple[dict[Any, Any], int]:
        try:
            table, end = original(encoded, offset)
            return Headers(table, bytes(encoded[offset + 4 : end])), end
        except Exception:  # pika raises many kinds: ValueError, OverflowError, struct.error, its own
            size = int.from_bytes(encoded[offset : offset + 4], "big")
            return UnreadableHeaders(), offset + 4 + size

    decode_table.reads_any = True  # type: ignore[attr-defined]
    data.decode_table = decode_table


def fields(headers: dict[Any, Any] | None) -> dict[Any, bytes]:
    """The values of these headers, encoded as they came. Without those of a dict of ours that pika cannot encode."""
    found: dict[Any, bytes] = {}
    if isinstance(headers, Headers):
        offset = 0
        while offset < len(headers.encoded):
            name, start = data.decode_short_string(headers.encoded, offset)
            _, offset = data.decode_value(headers.encoded, start)
            found[name] = headers.encoded[start:offset]
        return found
    for name, value in (headers or {}).items():
        with contextlib.suppress(Exception):  # pika raises many kinds
            found[name] = _table({name: value})[len(_short(name)) :]
    return found


class Copy(pika.BasicProperties):  # type: ignore[misc]
    """Properties with headers of ours, and `fields`: other headers, encoded as they came.

    Reason: pika reads values that it cannot write, and writes some (floats) as other values.
    """

    headers: Any

    def __init__(self, fields: dict[Any, bytes], **properties: Any) -> None:
        super().__init__(**properties)
        self.fields = fields

    def encode(self) -> list[bytes]:
        """As pika's own."""
        headers, self.headers = self.headers, {MARK: True}
        try:
            encoded = b"".join(super().encode())
        finally:
            self.headers = headers
        table = b"".join(_short(name) + value for name, value in self.fields.items()) + _table(headers or {})
        return [encoded.replace(_sized(_table({MARK: True})), _sized(table), 1)]


MARK = secrets.token_hex(8)  # stands for the headers in what pika encodes; no publisher can know it


def _table(headers: dict[Any, Any]) -> bytes:
    pieces: list[bytes] = []
    data.encode_table(pieces, headers)
    return b"".join(pieces)[4:]


def _sized(table: bytes) -> bytes:
    return len(table).to_bytes(4, "big") + table


def _short(name: str | bytes) -> bytes:
    encoded = name.encode() if isinstance(name, str) else name
    return bytes([len(encoded)]) + encoded


def send_straight(connection: Any) -> None:
    """From now on, whatever is written is sent at once, as far as the socket takes it and nothing waits before it.

    Reason: pika only buffers, has its poller watch the socket, sends, and has the poller forget the socket. A task that
    holds Python's lock lets the loop's thread run for one system call at a time, so a heartbeat has to be one. And
    an ack that goes by way of the loop's thread costs a change of threads and six system calls more.
    """
    transport = connection._transport
    buffer = transport.write

    def write(data: bytes) -> None:
        sent = 0
        # The state: nothing more is sent once pika ends the connection.
        if transport._state == transport._STATE_ACTIVE and not transport.get_write_buffer_size():
            with contextlib.suppress(OSError):  # the socket is full; or it is gone, which pika finds out
                sent = transport._sock.send(data)
        if sent < len(data):
            buffer(data[sent:])

    if not isinstance(transport._sock, ssl.SSLSocket):  # OpenSSL may want the same bytes again, before all others
        transport.write = write


def send_frames(connection: Any, frames: bytes) -> bool:
    """Send frames that are ready, in any thread that holds the loop's lock. Whether some wait for the loop.

    Reason: pika builds the frames of each message from scratch and writes each frame apart, which is most of what a
    publish costs (1.7 times, measured). It has no public way to send frames, nor several at once.
    """
    connection._output_marshaled_frames([frames])
    return bool(connection._transport.get_write_buffer_size())


def send_heartbeat(connection: Any) -> None:
    """Send a heartbeat now. Reason: pika sends one every half heartbeat, whether it was held up or not."""
    transport = getattr(connection, "_transport", None)
    if transport is not None and not transport.get_write_buffer_size():  # else other bytes tell RabbitMQ the same
        transport.write(HEARTBEAT)


def moved(connection: Any) -> tuple[int, int]:
    """A number that grows whenever bytes of this connection move, heartbeats apart; and how many of ours wait here: in
    pika's buffer, and in the system's (Linux) until the other side has acknowledged them.

    Reason: a bound for an answer has to wait as long as a slow link carries the question. pika counts what it was
    given to send, not what it, or the system, still holds.
    """
    transport = getattr(connection, "_transport", None)
    socket = getattr(transport, "_sock", None)
    unsent = 0
    if transport is not None and socket is not None:
        unsent = int(transport.get_write_buffer_size()) + _held_by_the_system(socket)
    # A heartbeat is eight bytes, and every other frame is longer: eight less for each frame leaves heartbeats out.
    number: int = connection.bytes_received + connection.bytes_sent
    frames: int = connection.frames_received + connection.frames_sent
    return number - len(HEARTBEAT) * frames - unsent, unsent


def _held_by_the_system(socket: Any) -> int:
    if not sys.platform.startswith("linux"):
        return 0
    import fcntl
    import termios

    try:
        return int.from_bytes(fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, b"\0" * 4), sys.byteorder)
    except (OSError, ValueError):
        return 0


def keep_what_comes(channel: Any, consumer_tag: str) -> None:
    """Have pika hand over what arrives for this consumer, which it has just been told to cancel, until RabbitMQ agrees.

    Reason: pika gives it back, and RabbitMQ counts that as an attempt of a task that nobody has tried.
    """
    channel._cancelled.discard(consumer_tag)


def close_socket(connection: Any) -> None:
    """Let go of the socket without a word to RabbitMQ.

    Reason: a process that a handler forks inherits the socket. As long as one copy is open, RabbitMQ does not see that
    the worker was killed. pika's own close would end the connection of the parent.
    """
    socket = getattr(getattr(connection, "_transport", None), "_sock", None)
    if socket is not None and socket.fileno() >= 0:
        os.close(socket.detach())
