"""What the tests run: commands as real processes whose output can be waited for, and the RabbitMQ versions."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pika

from tareas.lab.programs import Programs, find_programs

ROOT = Path(__file__).parents[1]
DEADLINE = 60.0  # seconds to wait for an event: how long a busy machine may take, never how long it should
OPEN = "open"  # as `stdin`: a pipe that stays open, for Command.send
SHOWN = 20_000  # characters of each stream that a failed test shows


def versions() -> list[Programs]:
    """Every RabbitMQ to test with: the folders in $RABBITMQ_BINS (colons between), and the installed one.

    With $RABBITMQ_NEWEST only the last of them.
    """
    named = [find_programs(folder) for folder in os.environ.get("RABBITMQ_BINS", "").split(":") if folder]
    found = {programs.name: programs for programs in [*named, find_programs()] if programs}
    return [found[name] for name in sorted(found)][-1 if os.environ.get("RABBITMQ_NEWEST") else 0 :]


def raw_connection(where: str | pika.connection.Parameters) -> pika.BlockingConnection:
    """A plain client beside ours. pika 1.5 warns that this class ends with 2.0: the tests may use it until then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return pika.BlockingConnection(pika.URLParameters(where) if isinstance(where, str) else where)


class Command:
    """A command of the project (`producer.py --count 3`) as a process of its own, in a process group of its own.

    stdin: None for an empty one, a text to be read, or OPEN. tty: on a terminal of its own (100 columns), where both
    streams are one, and `send("\\x03")` is Ctrl+C.
    """

    def __init__(
        self,
        *argv: object,
        env: Mapping[str, str | None] | None = None,
        cwd: Path = ROOT,
        stdin: str | bytes | None = None,
        tty: bool = False,
    ) -> None:
        self.argv = [sys.executable, *map(str, argv)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        self._changed = threading.Condition()
        self._events: list[dict[str, Any]] = []
        self._parsed = 0  # bytes of stdout that _events holds
        self._streams: dict[str, bytes] = {"stdout": b"", "stderr": b""}
        self._master = -1
        started: dict[str, Any] = {
            "env": {name: value for name, value in environment.items() if value is not None},
            "cwd": cwd,
            "start_new_session": True,
        }
        if tty:
            self._master, slave = os.openpty()
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
            settings = termios.tcgetattr(slave)
            settings[3] |= termios.NOFLSH  # else Ctrl+C drops what nobody has read yet, even what answers it
            termios.tcsetattr(slave, termios.TCSANOW, settings)
            self.process = subprocess.Popen(
                self.argv, stdin=slave, stdout=slave, stderr=slave, preexec_fn=_take_terminal, **started
            )
            os.close(slave)
            sources = {"stdout": self._master}
        else:
            has_input = subprocess.DEVNULL if stdin is None else subprocess.PIPE
            self.process = subprocess.Popen(
                self.argv, stdin=has_input, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **started
            )
            assert self.process.stdout and self.process.stderr
            sources = {"stdout": self.process.stdout.fileno(), "stderr": self.process.stderr.fileno()}
        self._readers = [threading.Thread(target=self._read, args=source, daemon=True) for source in sources.items()]
        if stdin is not None and stdin != OPEN:
            text = stdin.encode() if isinstance(stdin, str) else stdin
            threading.Thread(target=self._feed, args=(text,), daemon=True).start()
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, source: int) -> None:
        while True:
            try:
                piece = os.read(source, 65536)
            except OSError:  # a terminal whose last user is gone
                piece = b""
            with self._changed:
                self._streams[name] += piece
                self._changed.notify_all()
            if not piece:
                return

    def _feed(self, text: bytes) -> None:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(text)
            self.process.stdin.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def out(self) -> str:
        """Standard output so far (on a terminal: all output)."""
        return self._streams["stdout"].decode(errors="replace")

    @property
    def err(self) -> str:
        """Standard error so far."""
        return self._streams["stderr"].decode(errors="replace")

    @property
    def lines(self) -> list[str]:
        """The whole lines of both streams so far, standard output first."""
        return [line for text in (self.out, self.err) for line in text.split("\n")[:-1]]

    @property
    def events(self) -> list[dict[str, Any]]:
        """What --json printed so far: one dict a line. A line that was cut off (a killed process) is left out."""
        with self._changed:
            fresh = self._streams["stdout"][self._parsed :]
            whole = fresh[: fresh.rfind(b"\n") + 1]
            self._events += map(json.loads, whole.splitlines())
            self._parsed += len(whole)
            return self._events

    def event_list(self, word: str, **facts: object) -> list[dict[str, Any]]:
        """The events of this kind so far that carry these facts."""
        return [event for event in self.events if event["event"] == word and facts.items() <= event.items()]

    def wait_for(self, what: str | Callable[[str], object], deadline: float = DEADLINE, count: int = 1) -> str:
        """Wait for a line that contains the text, or that satisfies the predicate; the `count`th such line."""
        wanted: Callable[[str], object] = (lambda line: what in line) if isinstance(what, str) else what
        return str(self._until(lambda: [line for line in self.lines if wanted(line)], what, deadline, count))

    def wait_event(self, word: str, deadline: float = DEADLINE, count: int = 1, **facts: object) -> dict[str, Any]:
        """Wait for the `count`th event (of --json) of this kind that carries these facts."""
        event = self._until(lambda: self.event_list(word, **facts), f"{word} {facts or ''}", deadline, count)
        assert isinstance(event, dict)
        return event

    def _until(self, found: Callable[[], list[Any]], what: object, deadline: float, count: int) -> object:
        until = time.monotonic() + deadline
        with self._changed:
            while len(hits := found()) < count:
                if not any(reader.is_alive() for reader in self._readers):
                    raise AssertionError(f"{self} ended ({self.process.wait()}) without: {what}\n{self.report()}")
                if time.monotonic() > until:
                    raise AssertionError(f"{self}: within {deadline:.0f} s not: {what}\n{self.report()}")
                self._changed.wait(0.5)
        return hits[count - 1]

    def wait(self, deadline: float = DEADLINE) -> int:
        """Wait for its end: the exit status (-9 for SIGKILL), with all output read."""
        try:
            status = self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} still runs after {deadline:.0f} s\n{self.report()}") from None
        for reader in self._readers:
            reader.join(5)
        return status

    def signal(self, number: int = signal.SIGINT) -> None:
        """Send a signal to the process itself; nothing happens when it has ended."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.wait()

    def send(self, text: str) -> None:
        """Type on its terminal, or write to its standard input (stdin=OPEN)."""
        if self._master >= 0:
            os.write(self._master, text.encode())
        else:
            assert self.process.stdin
            self.process.stdin.write(text.encode())
            self.process.stdin.flush()

    def close_stdin(self) -> None:
        """End of its standard input (stdin=OPEN)."""
        assert self.process.stdin
        self.process.stdin.close()

    def close(self) -> None:
        """End it with everything it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for reader in self._readers:
            reader.join(5)
        if self._master >= 0:
            os.close(self._master)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def report(self) -> str:
        """Both streams, for a test that failed."""
        streams = [(name, text.decode(errors="replace")) for name, text in self._streams.items()]
        return "\n".join(f"--- {self}: {name}\n{text[-SHOWN:]}" for name, text in streams if text)

    def __str__(self) -> str:
        return " ".join(self.argv[1:])


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


Run = Callable[..., Command]  # what the fixture `run` gives
