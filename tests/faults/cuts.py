"""A proxy that knows AMQP's frames: it counts what is said on each connection, and cuts the first after a given frame.

It parses AMQP 0-9-1 in both directions, passes whole frames on, and listens on loopback only.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple
from urllib.parse import urlsplit

from pika import spec

from tests.faults.proxy import HOST, end

CLIENT, RABBITMQ = "client", "RabbitMQ"  # who sends
GREETING = "greeting"  # eight bytes without a frame, the client's first; RabbitMQ sends them only to one it refuses
HEARTBEAT = "heartbeat"
KINDS = {spec.FRAME_HEADER: "header", spec.FRAME_BODY: "body", spec.FRAME_HEARTBEAT: HEARTBEAT}


class Frame(NamedTuple):
    """A frame that was seen. name: "Queue.Declare", "header", "body", GREETING."""

    sender: str
    name: str


class Place(NamedTuple):
    """Where a connection is cut: after the `number`th frame (from 1) of this sender, or amid it."""

    sender: str
    number: int
    amid: bool

    def __str__(self) -> str:
        return f"{'amid' if self.amid else 'after'} frame {self.number} of {self.sender}"


class CuttingProxy:
    """Forwards to the RabbitMQ of this URL; `url` is its own. As a context manager: closed on exit.

    place: where the first connection is cut, in both directions at once; all later ones pass untouched. None: no cut.
    Either side sees an ordinary end behind what had passed. Heartbeats come when they come: they are not counted.
    address: as the commands name it. was_cut: whether it came to that. frames: of each connection, in their order.
    """

    def __init__(self, url: str, place: Place | None = None) -> None:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self._target = (parts.hostname, parts.port)
        self._place = place
        self._listener = socket.create_server((HOST, 0))
        self.address = f"{HOST}:{self._listener.getsockname()[1]}"
        self.url = url.replace(f"{parts.hostname}:{parts.port}", self.address)
        self.was_cut = False
        self.frames: list[list[Frame]] = []
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        end(self._listener)  # wakes accept()
        with self._lock:
            sockets = list(self._sockets)
        for one in sockets:
            end(one)

    def said(self, sender: str) -> Counter[str]:
        """How often this sender sent each kind of frame, on all connections together."""
        with self._lock:
            return Counter(frame.name for frames in self.frames for frame in frames if frame.sender == sender)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:  # RabbitMQ is down
                end(client)
                continue
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                talk = _Talk(None if self.frames else self._place)
                self.frames.append(talk.frames)
                self._sockets |= {client, server}
            for sender, source, target in ((CLIENT, client, server), (RABBITMQ, server, client)):
                threading.Thread(target=self._pump, args=(talk, sender, source, target), daemon=True).start()

    def _pump(self, talk: _Talk, sender: str, source: socket.socket, target: socket.socket) -> None:
        """Pass on what one side sends, until it ends; after the cut only read it, so that no reset overtakes what had
        passed before."""
        waiting = bytearray()
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                waiting += data
                with self._lock:
                    passing = talk.passes(sender, split(waiting))
                    if passing:
                        target.sendall(passing)
                    if talk.over and not talk.told:
                        talk.told = self.was_cut = True
                        for one in (source, target):
                            one.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
        with self._lock:
            talk.ended += 1
            if talk.ended == 2:
                self._sockets -= {source, target}
                source.close()
                target.close()


class _Talk:
    """One connection: what was said on it, and whether it is cut already."""

    def __init__(self, place: Place | None) -> None:
        self.frames: list[Frame] = []
        self.over = self.told = False
        self.ended = 0  # directions
        self._place = place
        self._counts = {CLIENT: 0, RABBITMQ: 0}

    def passes(self, sender: str, frames: Iterator[tuple[str, bytes]]) -> bytes:
        """What may pass of these frames, in bytes."""
        passing = bytearray()
        for name, frame in frames:
            if self.over:
                continue
            if name == HEARTBEAT:
                passing += frame
                continue
            self.frames.append(Frame(sender, name))
            self._counts[sender] += 1
            number = self._counts[sender]
            if self._place == (sender, number, True):
                passing += frame[: len(frame) // 2]
                self.over = True
            else:
                passing += frame
                self.over = self._place == (sender, number, False)
        return bytes(passing)


def split(waiting: bytearray) -> Iterator[tuple[str, bytes]]:
    """Take the whole frames out of what has arrived: the name and the bytes of each."""
    while len(waiting) >= 8:
        greeting = waiting.startswith(b"AMQP")
        size = 8 if greeting else 7 + struct.unpack_from(">L", waiting, 3)[0] + 1
        if len(waiting) < size:
            return
        frame = bytes(waiting[:size])
        del waiting[:size]
        assert greeting or frame[-1] == spec.FRAME_END, "no AMQP"
        yield (GREETING if greeting else _name(frame)), frame


def _name(frame: bytes) -> str:
    if frame[0] != spec.FRAME_METHOD:
        return KINDS[frame[0]]
    (method,) = struct.unpack_from(">L", frame, 7)
    return str(spec.methods[method].NAME)


def places(frames: list[Frame]) -> list[tuple[Place, str]]:
    """Every place of this conversation, and the name of its frame."""
    counts = {CLIENT: 0, RABBITMQ: 0}
    found = []
    for sender, name in frames:
        counts[sender] += 1
        found += [(Place(sender, counts[sender], amid), name) for amid in (True, False)]
    return found
