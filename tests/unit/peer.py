"""The other end of a connection: it speaks AMQP as far as a script says, over a socket of this machine."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pika
from pika import spec

from tareas.rabbit import addresses
from tareas.rabbit.addresses import Address

DEADLINE = 30.0  # seconds that no test comes near
HEADER = pika.frame.ProtocolHeader
Answer = Callable[["Peer", Any], object]


def cut(peer: Peer, frame: Any) -> None:
    """End the connection without a word."""
    peer.cut()


def ignore(peer: Peer, frame: Any) -> None:
    """No answer."""


def say(*methods: Any) -> Answer:
    """Answer with these, on the channel that asked."""

    def answer(peer: Peer, frame: Any) -> None:
        for method in methods:
            peer.send(method, getattr(frame, "channel_number", 0))

    return answer


def close_connection(code: int, text: str) -> Answer:
    """RabbitMQ's own word that the connection is over."""
    return lambda peer, frame: peer.send(spec.Connection.Close(code, text, 0, 0), 0)


def close_channel(code: int, text: str) -> Answer:
    return say(spec.Channel.Close(code, text, 0, 0))


START = spec.Connection.Start(
    server_properties={"version": "4.3.6", "capabilities": {"publisher_confirms": True, "basic.nack": True}},
    mechanisms="PLAIN", locales="en_US",
)  # fmt: skip
ANSWERS: dict[type, Answer] = {
    HEADER: say(START),
    spec.Connection.StartOk: say(spec.Connection.Tune(channel_max=2047, frame_max=131_072, heartbeat=60)),
    spec.Connection.TuneOk: ignore,
    spec.Connection.Open: say(spec.Connection.OpenOk()),
    spec.Connection.Close: say(spec.Connection.CloseOk()),
    spec.Connection.CloseOk: cut,
    spec.Channel.Open: say(spec.Channel.OpenOk()),
    spec.Channel.Close: say(spec.Channel.CloseOk()),
    spec.Queue.Declare: lambda peer, frame: peer.send(spec.Queue.DeclareOk(frame.method.queue, 7, 2)),
    spec.Queue.Delete: say(spec.Queue.DeleteOk(0)),
    spec.Basic.Qos: say(spec.Basic.QosOk()),
    spec.Basic.Consume: lambda peer, frame: peer.send(spec.Basic.ConsumeOk(frame.method.consumer_tag)),
    spec.Basic.Cancel: lambda peer, frame: peer.send(spec.Basic.CancelOk(frame.method.consumer_tag)),
    spec.Confirm.Select: say(spec.Confirm.SelectOk()),
}


class Peer:
    """Takes one connection after the other, in a thread. answers: instead of those above, by what is heard."""

    def __init__(self, answers: dict[Any, Answer] | None = None) -> None:
        self.answers = {**ANSWERS, **(answers or {})}
        self.heard: list[Any] = []  # methods, headers, bodies, heartbeats
        self.reading = threading.Event()  # it reads what comes while this is set
        self.reading.set()
        self.server = socket.create_server(("127.0.0.1", 0))
        self._socket: socket.socket | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def address(self, options: str = "") -> Address:
        return addresses.parse(f"amqp://eva:secret@127.0.0.1:{self.server.getsockname()[1]}/%2F?{options}")[0]

    def _serve(self) -> None:
        while True:
            try:
                self._socket, _ = self.server.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):
                self._listen(self._socket)
            self._socket.close()

    def _listen(self, near: socket.socket) -> None:
        data = b""
        while self.reading.wait(DEADLINE) and (piece := near.recv(65536)):
            data += piece
            while data:
                consumed, frame = pika.frame.decode_frame(data)
                if frame is None:
                    break
                data = data[consumed:]
                heard = getattr(frame, "method", frame)
                self._note(heard)
                self.answers.get(type(heard), ignore)(self, frame)
        self._note(None)

    def _note(self, heard: Any) -> None:
        with self._changed:
            self.heard.append(heard)
            self._changed.notify_all()

    # -- what a test has it do

    def send(self, method: Any, channel: int = 1) -> None:
        self.send_bytes(pika.frame.Method(channel, method).marshal())

    def send_bytes(self, data: bytes) -> None:
        assert self._socket is not None
        with contextlib.suppress(OSError):
            self._socket.sendall(data)

    def send_content(self, method: Any, body: bytes, **properties: Any) -> None:
        self.send_bytes(
            pika.frame.Method(1, method).marshal()
            + pika.frame.Header(1, len(body), pika.BasicProperties(**properties)).marshal()
            + pika.frame.Body(1, body).marshal()
        )

    def deliver(self, tag: int, body: bytes = b"x", redelivered: bool = False) -> None:
        self.send_content(spec.Basic.Deliver("w", tag, redelivered, "", "q"), body, message_id=f"m{tag}")

    def bring_back(self) -> None:
        self.send_content(spec.Basic.Return(312, "NO_ROUTE", "", "q"), b"x", message_id="m")

    def cut(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def wait_for(self, kind: Any, count: int = 1) -> Any:
        """Wait until so many of this kind were heard (None: the end of a connection); the last of them."""
        with self._changed:
            found = self._changed.wait_for(lambda: len(self.of(kind)) >= count, DEADLINE)
            assert found, f"not heard: {kind}, only {self.heard}"
            return self.of(kind)[count - 1]

    def of(self, kind: Any) -> list[Any]:
        return [each for each in self.heard if (each is None if kind is None else isinstance(each, kind))]

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        if self._socket is not None:
            self.cut()
        self._thread.join(DEADLINE)


def until(found: Callable[[], object], what: str = "it") -> None:
    """Wait for what no event tells."""
    end = time.monotonic() + DEADLINE
    while not found():
        assert time.monotonic() < end, f"not within {DEADLINE:g} s: {what}"
        time.sleep(0.005)
