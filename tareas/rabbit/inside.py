"""Send a frame, an acknowledgement or a heartbeat, in one system call, where pika takes four and more."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import pika

# OpenSSL keeps what it could not send, and wants the same bytes again: pika has them then, and gives it those.
FULL = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def send_at_once(transport: Any, data: bytes, later: Callable[[bytes], object]) -> None:
    """Send what the socket of pika's transport takes now; `later` gets the rest, and all of it while pika itself has
    something to send. Raises OSError when the connection is gone."""
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
