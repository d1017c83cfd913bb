"""Send an acknowledgement in one system call, where pika takes four."""

from __future__ import annotations

from typing import Any

import pika


def spare_system_calls(connection: pika.BlockingConnection) -> None:
    """From now on this connection sends what it has to send when it has it, if the socket takes it.

    pika only buffers, has its poller watch the socket, waits, sends, and has the poller forget the socket again. What
    the socket does not take at once goes that way still. (It also receives until the socket has nothing more, at the
    cost of one call in vain. That one stays: it finds the end of a connection that lies behind data.)

    Call it from the thread that owns the connection. TLS stays as it is; so does a pika whose inside is not that of
    1.3.
    """
    transport: Any = getattr(getattr(connection, "_impl", None), "_transport", None)
    if type(transport).__name__ != "_AsyncPlaintextTransport":
        return
    send, buffer = transport._sock.send, transport.write

    def write(data: bytes) -> None:
        sent = 0
        if transport._state == transport._STATE_ACTIVE and not transport.get_write_buffer_size():
            try:
                sent = send(data)
            except BlockingIOError:  # the socket is full
                sent = 0
            except OSError as error:  # as pika does. Nothing is sent twice, even if a signal handler raised it
                transport._initiate_abort(error)
                return
        if sent < len(data):
            buffer(data[sent:])

    transport.write = write
