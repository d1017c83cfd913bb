"""A connection that spares system calls sends the same bytes in the same order, whatever the socket takes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport

from tareas.rabbit.inside import spare_system_calls


class Poller:
    """What pika's transport asks its poller to watch for."""

    def __init__(self) -> None:
        self.writer: Any = None

    def set_reader(self, fd: int, callback: Any) -> None:
        self.reader = callback

    def set_writer(self, fd: int, callback: Any) -> None:
        self.writer = callback

    def remove_writer(self, fd: int) -> None:
        self.writer = None

    def remove_reader(self, fd: int) -> None:
        self.reader = None

    def add_callback_threadsafe(self, callback: Any) -> None:
        self.later = callback


class Wire:
    """pika's own transport between two sockets, as the worker's connection has it."""

    def __init__(self) -> None:
        near, self.far = socket.socketpair()
        near.setblocking(False)
        self.far.settimeout(10)
        self.near = near
        self.poller = Poller()
        self.received: list[bytes] = []
        self.errors: list[Any] = []
        protocol = SimpleNamespace(data_received=self.received.append, eof_received=lambda: False,
                                   connection_lost=self.errors.append)
        self.transport = _AsyncPlaintextTransport(near, protocol, self.poller)
        spare_system_calls(SimpleNamespace(_impl=SimpleNamespace(_transport=self.transport)))

    def arrived(self, size: int) -> bytes:
        """The next so many bytes at the far end, the poller doing its work meanwhile."""
        data = b""
        while len(data) < size:
            if self.poller.writer:
                self.poller.writer()
            data += self.far.recv(65536)
        return data

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


def test_what_the_socket_takes_is_sent_before_the_call_returns(wire: Wire) -> None:
    wire.transport.write(b"ack")
    assert wire.poller.writer is None and wire.transport.get_write_buffer_size() == 0
    assert wire.far.recv(10) == b"ack"


def test_what_it_does_not_take_follows_in_order(wire: Wire) -> None:
    wire.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    parts = [bytes([n]) * 300_000 for n in range(4)]
    for part in parts:
        wire.transport.write(part)
    assert wire.poller.writer and wire.transport.get_write_buffer_size() > 0
    assert wire.arrived(1_200_000) == b"".join(parts)
    wire.transport.write(b"and at once again")
    assert wire.poller.writer is None
    assert wire.far.recv(100) == b"and at once again"


def test_an_error_ends_the_connection_as_pikas_own_would_and_sends_nothing_twice(wire: Wire) -> None:
    wire.far.close()
    wire.transport.write(b"ack")
    assert wire.transport.get_write_buffer_size() == 0
    wire.poller.later()
    ((error,),) = [wire.errors]
    assert isinstance(error, BrokenPipeError)


def test_an_ended_connection_sends_nothing(wire: Wire) -> None:
    wire.transport.abort()
    wire.transport.write(b"ack")
    assert wire.transport.get_write_buffer_size() == 0


def test_one_look_at_the_socket_finds_the_end_that_lies_behind_data(wire: Wire) -> None:
    """A worker that stood still has heartbeats to read, and behind them that RabbitMQ has closed the connection."""
    wire.far.sendall(b"heartbeats")
    wire.far.close()
    wire.poller.reader()
    assert wire.received == [b"heartbeats"]
    wire.poller.later()
    assert wire.errors == [None]


@pytest.mark.parametrize("connection", [object(), SimpleNamespace(_impl=None), SimpleNamespace(_impl=object())])
def test_a_connection_that_pika_makes_otherwise_is_left_alone(connection: Any) -> None:
    spare_system_calls(connection)


def test_tls_is_left_alone() -> None:
    transport = type("_AsyncSSLTransport", (), {"write": None})()
    spare_system_calls(SimpleNamespace(_impl=SimpleNamespace(_transport=transport)))
    assert vars(transport) == {}
