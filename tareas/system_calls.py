"""Receive a task and send its acknowledgement in one system call each, where pika takes some seven."""

from __future__ import annotations

from typing import Any

import pika

MOST = 64 * 1024  # bytes received at once


def spare_system_calls(connection: pika.BlockingConnection) -> None:
    """From now on this connection sends what it has to send when it has it, if the socket takes it.

    pika only buffers, has its poller watch the socket, waits, sends, and has the poller forget the socket again. What
    the socket does not take at once goes that way still, and so does every error. And pika receives until the socket
    has nothing more, at the cost of one call in vain; its poller would tell it anyway.

    Call it from the thread that owns the connection. TLS stays as it is; so does a pika whose inside is not that of
    1.3.
    """
    transport: Any = getattr(getattr(connection, "_impl", None), "_transport", None)
    if type(transport).__name__ != "_AsyncPlaintextTransport":
        return
    transport._MAX_RECV_BYTES, transport._MAX_CONSUME_BYTES = MOST, 1
    send, buffer = transport._sock.send, transport.write

    def write(data: bytes) -> None:
        sent = 0
        if transport._state == transport._STATE_ACTIVE and not transport.get_write_buffer_size():
            try:
                sent = send(data)
            except OSError:  # the socket is full, or gone: pika finds out which
                sent = 0
        if sent < len(data):
            buffer(data[sent:])

    transport.write = write
