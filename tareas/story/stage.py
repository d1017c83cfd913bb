"""The stage of the demo: it starts real producer.py and worker.py processes, hears them, and ends them all.

It knows what a user can know of them: their command lines, and the events that they print with --json.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from tareas.errors import Trouble
from tareas.story.signals import Signals
from tareas.story.timeline import Event

HERE = Path(__file__).resolve().parents[2]  # where producer.py and worker.py are
DEADLINE = 90.0  # seconds for one thing to happen; on a quiet machine each takes a few
T = TypeVar("T")


class Missed(Trouble):
    """Something did not happen within its deadline, or a process ended by itself. words: its last lines."""

    def __init__(self, message: str, words: list[str]) -> None:
        super().__init__(message)
        self.words = words


class Actor:
    """One process.

    name: who it is in its events. words: the last lines of its stderr. ends: it ends by itself, with status 0.
    told_to_end: we ended it, so any status will do.
    """

    def __init__(self, name: str, process: subprocess.Popen[str], ends: bool) -> None:
        self.name = name
        self.process = process
        self.ends = ends
        self.told_to_end = False
        self.words: deque[str] = deque(maxlen=5)
        self.threads: list[threading.Thread] = []

    def silent(self) -> bool:
        """Whether it has ended, and all that it said is read."""
        return self.process.poll() is not None and not any(thread.is_alive() for thread in self.threads)

    def failed(self) -> bool:
        """Whether it has ended, and should not have."""
        return not self.told_to_end and self.silent() and not (self.ends and self.process.returncode == 0)


class Stage:
    """Starts actors, keeps what they say in `events`, waits for what should happen. On exit every actor is ended.

    show: called with each event, one at a time, from the thread that read it.
    environment: what the actors' environment has besides ours.
    """

    def __init__(
        self,
        signals: Signals,
        show: Callable[[Event], None] = lambda event: None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.events: list[Event] = []
        self.actors: list[Actor] = []
        self.signals = signals
        self._show = show
        # Unbuffered and in UTF-8: what a killed process has said is in the pipe, whatever the machine's settings.
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", **(environment or {})}
        self._unshown: OSError | None = None  # why our own output cannot be written any more
        self._news = threading.Condition()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for actor in self.actors:
            actor.told_to_end = True
            with contextlib.suppress(OSError):
                actor.process.kill()
        for actor in self.actors:
            actor.process.wait()
            for thread in actor.threads:
                thread.join(5)

    def start(self, name: str, script: str, *arguments: str, text: str | None = None, ends: bool = False) -> Actor:
        """Start `python SCRIPT ARGUMENTS --json`. text: what it reads from a pipe; ends: see Actor.

        It runs in a session of its own: Ctrl+C at the terminal reaches only the demo, which ends its actors itself.
        """
        process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments, "--json"],
            env=self._environment,
            stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=os.name != "nt",
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
        )
        actor = Actor(name, process, ends)
        self.actors.append(actor)
        assert process.stdout and process.stderr
        for read, stream in ((self._read_events, process.stdout), (self._read_words, process.stderr)):
            thread = threading.Thread(target=read, args=(actor, stream), daemon=True)
            actor.threads.append(thread)
            thread.start()
        if process.stdin and text is not None:
            with contextlib.suppress(OSError):  # it is gone already: wait_for says so
                process.stdin.write(text)
                process.stdin.close()
        return actor

    def kill(self, actor: Actor) -> None:
        """SIGKILL (on Windows TerminateProcess). Returns when it is gone and all that it said is read."""
        actor.told_to_end = True
        actor.process.kill()
        now = round(time.time(), 3)
        actor.process.wait()
        for thread in actor.threads:
            thread.join(DEADLINE)
        self.tell("killed", actor.name, time=now)

    def ask_to_stop(self, actor: Actor) -> None:
        """SIGTERM: it finishes what it has in hand and ends with status 0. (On Windows the same as kill.)"""
        actor.ends = True
        actor.told_to_end = os.name == "nt"
        actor.process.terminate()

    def tell(self, word: str, who: str, **facts: Any) -> None:
        """An event of the stage's own, among those of the actors."""
        self._add({"time": round(time.time(), 3), "event": word, "who": who} | facts)

    def wait_for(
        self, what: str, found: Callable[[], T | None], by: Actor | None = None, seconds: float = DEADLINE
    ) -> T:
        """Call `found` at each new event, and return its result once that is neither None nor False.

        what: for the message, after "did not see". by: whose last lines explain it best.
        Raises Missed after so many seconds or when an actor ends that should not, Interrupted after a signal.
        """
        until = time.monotonic() + seconds
        with self._news:
            while True:
                result = found()
                if result is not None and result is not False:
                    return result
                self.signals.check()
                if self._unshown:
                    raise self._unshown
                for actor in self.actors:
                    if actor.failed():
                        raise Missed(f"{actor.name} ended by itself with status {actor.process.returncode}"
                                     f" while the demo waited for {what}", list(actor.words))
                if time.monotonic() > until:
                    raise Missed(f"did not see {what} within {seconds:g} s", list(by.words) if by else [])
                self._news.wait(0.1)

    def wait_end(self, actor: Actor, seconds: float = DEADLINE) -> None:
        """Wait until the actor has ended. Raises what wait_for raises."""
        self.wait_for(f"the end of {actor.name}", actor.silent, actor, seconds)

    def sleep(self, seconds: float) -> None:
        """Let time pass, and listen. Raises what wait_for raises."""
        until = time.monotonic() + seconds
        self.wait_for("time to pass", lambda: time.monotonic() >= until, seconds=seconds + DEADLINE)

    def wait_for_enter(self) -> None:
        """Wait until a line is typed, or standard input ends, and listen meanwhile. Raises what wait_for raises."""
        # A thread: Windows cannot wait for a terminal and for events at once. os.read: a thread in sys.stdin.readline
        # is a fatal error when Python ends.
        def read() -> None:
            with contextlib.suppress(OSError):
                os.read(0, 4096)

        typist = threading.Thread(target=read, daemon=True)
        typist.start()
        self.wait_for("Enter", lambda: not typist.is_alive(), seconds=math.inf)

    def _add(self, event: Event) -> None:
        with self._news:
            self.events.append(event)
            try:
                self._show(event)
            except OSError as error:
                self._unshown = error
            self._news.notify_all()

    def _read_events(self, actor: Actor, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                try:
                    event = json.loads(line)
                    if not isinstance(event, dict) or not {"time", "event", "who"} <= event.keys():
                        raise ValueError
                except ValueError:  # the last line of a killed process may be cut off
                    actor.words.append(line.rstrip())
                    continue
                self._add(event)
        with self._news:
            self._news.notify_all()

    def _read_words(self, actor: Actor, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                actor.words.append(line.rstrip())
