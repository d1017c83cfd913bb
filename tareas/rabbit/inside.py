"""What reaches into pika, because pika has no public way to it.

Headers that pika cannot read; a frame in one system call, where pika takes four and more; a socket to let go of.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import Any

import pika

# OpenSSL keeps what it could not send, and wants the same bytes again: pika has them then, and gives it those.
FULL = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def send_at_once(transport: Any, data: bytes, later: Callable[[bytes], object]) -> None:
    """Send what the socket of pika's transport takes now; `later` gets the rest. While pika itself has something to
    send, `later` gets all of it. Raises OSError when the connection is gone."""
    sent = 0
    if transport._state == transport._STATE_ACTIVE and not transport.get_write_buffer_size():
        try:
            sent = transport._sock.send(data)
        except FULL:
            sent = 0
    if sent < len(data):
        later(data[sent:])


def spare_system_calls(connection: pika.BlockingConnection) -> None:
    """From now on this connection sends what it has to send when it has it, if the socket takes it.

    pika only buffers, has its poller watch the socket, waits, sends, and has the poller forget the socket again. (It
    also receives until the socket has nothing more, at the cost of one call in vain. That one stays: it finds the end
    of a connection that lies behind data.)

    Call it from the thread that owns the connection. TLS stays as it is; so does a pika whose inside is not that of
    1.3.
    """
    transport: Any = getattr(getattr(connection, "_impl", None), "_transport", None)
    if type(transport).__name__ != "_AsyncPlaintextTransport":
        return
    buffer = transport.write

    def write(data: bytes) -> None:
        try:
            send_at_once(transport, data, buffer)
        except OSError as error:  # as pika does. Nothing is sent twice, even if it was a signal handler that raised
            transport._initiate_abort(error)

    transport.write = write


def close_socket(connection: Any) -> None:
    """Let go of this pika connection without a word to RabbitMQ."""
    transport: Any = getattr(getattr(connection, "_impl", None), "_transport", None)
    socket = getattr(transport, "_sock", None)
    if socket is not None and socket.fileno() >= 0:
        os.close(socket.detach())


class UnreadableHeaders(dict[str, Any]):
    """Stands for headers that pika cannot decode; a class of its own, so that no publisher can write one."""


def read_any_headers() -> None:
    """Let a message through whose headers pika cannot decode.

    A timestamp header in milliseconds is enough: pika raises inside its frame decoder, the connection ends, RabbitMQ
    gives the message to the next worker, and so on for ever. pika has no hook for it, so we wrap its table decoder.
    Such headers then arrive as UnreadableHeaders, and the worker dead-letters the message.
    """
    import pika.data as data

    original = data.decode_table
    if getattr(original, "reads_any", False):
        return

    def decode_table(encoded: bytes, offset: int) -> tuple[dict[Any, Any], int]:
        try:
            table: tuple[dict[Any, Any], int] = original(encoded, offset)
            return table
        except Exception:  # pika raises many kinds: ValueError, OverflowError, struct.error, its own
            size = int.from_bytes(encoded[offset : offset + 4], "big")
            return UnreadableHeaders(), offset + 4 + size

    decode_table.reads_any = True  # type: ignore[attr-defined]
    data.decode_table = decode_table
