"""A stretch of network that the test can spoil: a TCP proxy between our processes and RabbitMQ, on loopback."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from urllib.parse import urlsplit

HOST = "127.0.0.1"
HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
# What a new connection meets. "cut": RabbitMQ's greeting, but only its first bytes.
MODES = ("forward", "close", "mute", "cut", "http")


class Proxy:
    """Forwards to the RabbitMQ of this URL; `url` is its own, at `host`. As a context manager: closed on exit.

    stall(): not a byte more passes in either direction, and nobody is told: no FIN, no RST. resume() lets all go on.
    be(mode): what new connections meet from now on. sever(): all connections end now. cut(): each ends in the middle of
    the next frame that RabbitMQ sends.
    """

    def __init__(self, url: str, host: str = HOST) -> None:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self._target = (parts.hostname, parts.port)
        self._listener = socket.create_server((host, 0))
        port = self._listener.getsockname()[1]
        self.url = url.replace(f"{parts.hostname}:{parts.port}", f"{host}:{port}")
        self._flowing = threading.Event()
        self._flowing.set()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._mode = "forward"
        self._old: set[socket.socket] = set()  # of RabbitMQ's side, to be cut
        self.cuts = 0
        self.met = dict.fromkeys(MODES, 0)  # new connections by mode
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() alone would not
        self._listener.close()
        self._flowing.set()
        self.sever()

    def stall(self) -> None:
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    def be(self, mode: str) -> None:
        assert mode in MODES
        self._mode = mode

    def sever(self) -> None:
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            end(one)

    def cut(self) -> None:
        with self._lock:
            self._old = set(self._sockets)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            mode = self._mode
            self.met[mode] += 1
            with self._lock:
                self._sockets.add(client)
            if mode == "close":
                end(client)
            elif mode == "mute":
                pass  # until it gives up, or is severed
            elif mode == "http":
                threading.Thread(target=answer_http, args=(client,), daemon=True).start()
            else:
                self._join(client, None if mode == "forward" else 100)

    def _join(self, client: socket.socket, most: int | None) -> None:
        """Forward both ways; at most so many bytes to the client, then the end."""
        try:
            server = socket.create_connection(self._target)
        except OSError:  # RabbitMQ is down
            return end(client)
        with self._lock:
            self._sockets.add(server)
        threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
        threading.Thread(target=self._pump, args=(server, client, True, most), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, to_client: bool, most: int | None = None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                if most is not None and len(data) >= most:
                    target.sendall(data[:most])
                    break
                if source in self._old and to_client:
                    target.sendall(data[:-1])  # every frame ends with one certain byte
                    self.cuts += 1
                    break
                target.sendall(data)
        self._flowing.wait()
        end(source)
        end(target)


def answer_http(client: socket.socket) -> None:
    """As a web server answers what is no HTTP to it."""
    with contextlib.suppress(OSError):
        client.recv(1024)
        client.sendall(HTTP)
    end(client)


def end(one: socket.socket) -> None:
    """Close it for everyone, also for a thread that waits for it."""
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
