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
# OpenSSL keeps what it could not send, and wants the same bytes again: pika has them then, and gives it those.
FULL = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


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


def send_frames(connection: Any, frames: bytes) -> None:
    """Send frames that are ready.

    Reason: pika builds the frames of each message from scratch and buffers each frame apart, which is most of what a
    publish costs (1.7 times, measured). It has no public way to send frames, nor several at once.
    """
    connection._output_marshaled_frames([frames])


def send_heartbeat(connection: Any) -> None:
    """Send a heartbeat in one system call, if the socket takes it now.

    Reason: a task that holds Python's lock lets the loop's thread run for one system call at a time. pika's own way
    takes five.
    """
    transport = getattr(connection, "_transport", None)
    # Between two frames only: pika's buffer may hold the rest of one. And nothing once pika is ending the connection.
    if transport is None or transport._state != transport._STATE_ACTIVE or transport.get_write_buffer_size():
        return
    sent = 0
    with contextlib.suppress(*FULL, OSError):  # pika finds the end of the connection when it reads
        sent = transport._sock.send(HEARTBEAT)
    if sent < len(HEARTBEAT):
        transport.write(HEARTBEAT[sent:])


def moved(connection: Any) -> int:
    """A number that grows whenever bytes of this connection move, heartbeats apart.

    Reason: a bound for an answer has to wait as long as a slow link carries the question. pika counts what it was
    given to send, not what it, or the system, still holds.
    """
    # A heartbeat is eight bytes, and every other frame is longer: eight less for each frame leaves heartbeats out.
    number: int = connection.bytes_received + connection.bytes_sent
    frames: int = connection.frames_received + connection.frames_sent
    return number - len(HEARTBEAT) * frames - unsent(connection)


def unsent(connection: Any) -> int:
    """Bytes that wait here: in pika's buffer, and in the system's (Linux) until the other side has acknowledged them.

    Reason: see moved.
    """
    transport = getattr(connection, "_transport", None)
    socket = getattr(transport, "_sock", None)
    if transport is None or socket is None:
        return 0
    return int(transport.get_write_buffer_size()) + _held_by_the_system(socket)


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
