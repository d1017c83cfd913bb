"""tell/events.py, tell/words.py and tell/terminal.py: what a pipe, a program and a person at a terminal get to see."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from tareas.tell.events import Events
from tareas.tell.words import WORDS, progress_text
from tareas.text import LONGEST_TEXT

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 60  # seconds
HOSTILE = "task\x1b[2J\n\x00\x07\x9b31m\u202e\u2028é"

# Every word with its facts as the commands give them, and how it reads.
EXAMPLES: list[tuple[str, dict[str, Any], str]] = [
    ("connected", {"address": "amqp://guest@localhost:5672/%2F"}, "connected to amqp://guest@localhost:5672/%2F"),
    ("connection_lost", {"reason": "RabbitMQ went away"}, "cut off   RabbitMQ went away"),
    ("waiting", {"seconds": 0.25, "reason": "nobody listens"}, "waiting   trying again in 0.25 s: nobody listens"),
    ("blocked", {"reason": "low on memory"}, "blocked   RabbitMQ takes nothing for now: low on memory"),
    ("unblocked", {}, "unblocked RabbitMQ takes tasks again"),
    ("stopping", {"reason": "Ctrl+C: nothing in hand"}, "stopping  Ctrl+C: nothing in hand"),
    ("stopping", {"reason": ""}, "stopping"),
    ("published", {"id": "task-0003"}, "published task-0003"),
    ("published", {"id": "task-0003", "again": True}, "published task-0003 again"),
    ("confirmed", {"id": "task-0003"}, "confirmed task-0003"),
    ("refused", {"id": "task-0003", "reason": "the queue is full"}, "refused   task-0003: the queue is full"),
    ("refused", {"reason": "the queue is full"}, "refused   a task without an id: the queue is full"),
    ("returned", {"id": "task-0003", "reason": "no queue"}, "returned  task-0003: no queue"),
    ("finished", {"published": 12, "confirmed": 11, "seconds": 0.5}, "finished  11 of 12 confirmed in 0.50 s"),
    ("started", {"id": "task-0003", "attempt": 1, "redelivered": False}, "started   task-0003"),
    ("started", {"id": "task-0003", "attempt": 2, "redelivered": True},
     "started   task-0003 REDELIVERED, attempt 2: not acknowledged before"),
    ("done", {"id": "task-0003", "attempt": 1, "seconds": 0.613}, "done      task-0003 in 0.61 s"),
    ("failed", {"id": "task-0003", "attempt": 2, "error": "ValueError: no", "seconds": 0.1},
     "failed    task-0003 in attempt 2, after 0.10 s: ValueError: no"),
    ("requeued", {"id": "task-0003", "attempt": 2, "rest": 2.0}, "requeued  task-0003 after attempt 2, rested 2.00 s"),
    ("dead_lettered", {"id": "task-0003", "attempt": 5, "reason": "it fails"},
     "dead      task-0003 after attempt 5: it fails"),
    ("dead_lettered", {"id": None, "attempt": 1, "reason": "not JSON"},
     "dead      a task without an id after attempt 1: not JSON"),
    ("dead_lettered", {"id": None, "message_id": "bad", "attempt": 1, "reason": "not JSON"},
     "dead      bad after attempt 1: not JSON"),
    ("discarded", {"id": "task-0003", "attempt": 1, "reason": "too late"},
     "discarded the result of task-0003: too late"),
    ("abandoned", {"id": "task-0003", "attempt": 1},
     "abandoned task-0003 in attempt 1: it goes back to the queue"),
    ("cancelled", {"reason": "the queue was deleted"}, "cancelled the queue was deleted"),
    ("stopped", {"processed": 12, "failed": 1, "dead_lettered": 0, "busy": 8.3},
     "stopped   12 done, 1 failed, 0 dead-lettered, busy 8.30 s"),
    ("replayed", {"id": "task-0003"}, "replayed  task-0003"),
]  # fmt: skip


class Counting(io.StringIO):
    """A stream that remembers each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def write(self, text: str) -> int:
        self.calls.append(text)
        return super().write(text)

    def flush(self) -> None:
        self.calls.append("flush")


def test_the_examples_below_cover_every_word() -> None:
    assert {word for word, _, _ in EXAMPLES} == set(WORDS)


@pytest.mark.parametrize(("word", "facts", "line"), EXAMPLES)
def test_a_word_as_a_plain_line(word: str, facts: dict[str, Any], line: str) -> None:
    stream = Counting()

    Events("worker-1", stream=stream).tell(word, **facts)

    assert stream.calls == [f"worker-1  {line}\n", "flush"], "one write of one whole line, then a flush"


@pytest.mark.parametrize(("word", "facts", "line"), EXAMPLES)
def test_a_word_as_json(word: str, facts: dict[str, Any], line: str) -> None:
    stream = Counting()
    before = time.time()

    Events("worker-1", as_json=True, stream=stream).tell(word, **facts)

    [text, flush] = stream.calls
    event = json.loads(text)
    assert flush == "flush" and text.endswith("}\n") and text.count("\n") == 1
    assert list(event) == ["time", "event", "who", *facts], "the keys, in this order"
    assert (event["event"], event["who"]) == (word, "worker-1")
    assert {name: event[name] for name in facts} == facts
    assert before - 0.001 <= event["time"] <= time.time() + 0.001
    assert re.match(r'\{"time": \d+\.\d{1,3}, ', text), "to the millisecond"


@pytest.mark.parametrize("as_json", [True, False])
def test_an_unknown_word_is_a_programmers_error(as_json: bool) -> None:
    stream = Counting()

    with pytest.raises(KeyError):
        Events("worker-1", as_json, stream).tell("exploded", id="task-0003")

    assert stream.calls == []


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(("word", "facts", "line"), EXAMPLES)
def test_what_comes_from_outside_can_neither_steer_a_terminal_nor_end_a_line(
    word: str, facts: dict[str, Any], line: str, as_json: bool
) -> None:
    hostile = {name: HOSTILE if isinstance(value, str) else value for name, value in facts.items()}
    stream = Counting()

    Events("worker" + HOSTILE, as_json, stream).tell(word, **hostile)

    assert stream.getvalue().endswith("\n") and stream.getvalue()[:-1].isprintable()
    if not as_json and "id" in facts and facts["id"]:
        assert "task\\x1b[2J\\n\\x00\\x07\\x9b31m\\u202e\\u2028é" in stream.getvalue()
    if as_json:
        assert json.loads(stream.getvalue())["who"] == "worker" + HOSTILE


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(("word", "name"), [("failed", "error"), ("dead_lettered", "reason")])
def test_a_long_error_is_cut(word: str, name: str, as_json: bool) -> None:
    stream = Counting()
    facts = {"id": "a", "attempt": 1, "seconds": 0.1, "reason": ""} | {name: "\x1b" + "x" * 100_000}

    Events("w", as_json, stream).tell(word, **facts)

    assert LONGEST_TEXT <= len(stream.getvalue()) < LONGEST_TEXT + 200
    assert "xxx..." in stream.getvalue()


def test_a_stream_that_knows_few_characters_gets_escapes_for_the_others() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")

    Events("wörker", stream=stream).tell("confirmed", id="ñandú\ud800")

    assert raw.getvalue() == b"w\\xf6rker  confirmed \\xf1and\\xfa\\ud800\n"


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "gone"), OSError(errno.ENOSPC, "full")])
def test_a_stream_that_takes_no_more_is_the_callers_to_handle(error: OSError) -> None:
    class Bad(io.StringIO):
        def flush(self) -> None:
            raise error

    with pytest.raises(OSError) as caught:
        Events("w", stream=Bad()).tell("unblocked")
    assert caught.value is error


def test_after_a_failed_write_the_next_event_is_told_again() -> None:
    class FullOnce(Counting):
        full = True

        def flush(self) -> None:
            if self.full:
                self.full = False
                raise OSError(errno.ENOSPC, "full")

    stream = FullOnce()
    events = Events("w", stream=stream)
    with pytest.raises(OSError):
        events.tell("blocked", reason="x")

    events.tell("unblocked")

    assert stream.calls[-1] == "w  unblocked RabbitMQ takes tasks again\n"


def test_a_signal_handler_that_tells_amid_a_write_neither_hangs_nor_mixes_lines() -> None:
    class Interrupted(Counting):
        def flush(self) -> None:
            super().flush()
            if len(self.calls) == 2:  # as Python does it: in the same thread, amid the flush
                events.tell("stopping", reason="Ctrl+C")
                assert len(self.calls) == 2, "the stream must not be entered twice"

    stream = Interrupted()
    events = Events("w", stream=stream)

    events.tell("unblocked")

    assert stream.calls == ["w  unblocked RabbitMQ takes tasks again\n", "flush", "w  stopping  Ctrl+C\n", "flush"]


def test_threads_tell_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as file:
        events = Events("w", as_json=True, stream=file)

        def tell(n: int) -> None:
            for i in range(300):
                events.tell("confirmed", id=f"{n}-{i}")

        threads = [threading.Thread(target=tell, args=[n]) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)

    ids = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    assert sorted(ids) == sorted(f"{n}-{i}" for n in range(4) for i in range(300))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((12_000, 50_000, 2.0), "12,000 of 50,000 confirmed, 6,000/s, 6 s left"),
        ((12_000, None, 2.0), "12,000 confirmed, 6,000/s"),
        ((0, 50, 0.0), "0 of 50 confirmed, 0/s"),
    ],
)
def test_progress_reads(arguments: tuple[int, int | None, float], text: str) -> None:
    assert progress_text(*arguments) == text


def test_progress_is_silent_in_json_and_rare_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("tareas.tell.events.time.monotonic", lambda: now)
    plain, as_json = Counting(), Counting()
    pipe, program = Events("producer", stream=plain), Events("producer", True, as_json)
    for _ in range(101):
        now += 0.25
        pipe.progress(100, 200, 1.0)
        program.progress(100, 200, 1.0)

    assert plain.calls == ["producer  progress  100 of 200 confirmed, 100/s, 1 s left\n", "flush"] * 2
    assert as_json.calls == []


def test_without_a_terminal_rich_is_not_even_imported() -> None:
    code = (
        "import sys; from tareas.tell.events import Events; Events('w').tell('unblocked'); print('rich' in sys.modules)"
    )
    forced = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm-256color"}

    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=forced, capture_output=True, timeout=DEADLINE)

    assert result.stdout.decode().splitlines() == ["w  unblocked RabbitMQ takes tasks again", "False"], result.stderr


def test_with_stdout_closed_nobody_listens_and_nothing_breaks() -> None:
    code = "from tareas.tell.events import Events; Events('w').tell('unblocked')"

    result = subprocess.run(["sh", "-c", f'exec "{sys.executable}" -c "{code}" >&-'], cwd=ROOT, capture_output=True,
                            timeout=DEADLINE)  # fmt: skip

    assert (result.returncode, result.stderr) == (0, b"")


# -- a terminal


class Terminal:
    """A pseudo-terminal, and what a person sees on it: just enough of one to know what terminal.py uses."""

    def __init__(self, columns: int = 80) -> None:
        self._master, slave = pty.openpty()
        self.columns = columns
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream: TextIO = os.fdopen(slave, "w", encoding="utf-8")
        self.raw = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._changed = threading.Condition()
        self._reader.start()

    def _read(self) -> None:
        data = b""
        while True:
            try:
                more = os.read(self._master, 65536)
            except OSError:  # every writer closed it
                return
            if not more:
                return
            data += more
            with self._changed:
                self.raw = data.decode("utf-8", "ignore")
                self._changed.notify_all()

    def wait(self, condition: Callable[[Terminal], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self), DEADLINE), f"on the screen: {self.rows()}"

    def end(self) -> None:
        """Close our side; from here on `raw` is all there was."""
        self.stream.close()
        self._reader.join(DEADLINE)
        assert not self._reader.is_alive()

    def rows(self) -> list[str]:
        rows, row, column = [""], 0, 0
        for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\s\S]", self.raw):
            if piece == "\n" or (column == self.columns and piece.isprintable()):
                row, column = row + 1, 0 if piece != "\n" else column
                rows += [""] * (row + 1 - len(rows))
            if piece == "\n":
                pass
            elif piece == "\r":
                column = 0
            elif piece == "\x1b[2K":
                rows[row] = ""
            elif piece == "\x1b[1A":
                row -= 1
            elif piece.startswith("\x1b["):
                assert piece.endswith("m"), f"unexpected {piece!r}"
            else:
                rows[row] = rows[row][:column].ljust(column) + piece + rows[row][column + 1 :]
                column += 1
        while len(rows) > row + 1 and not rows[-1]:
            rows.pop()
        return [text.rstrip() for text in rows]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    terminal = Terminal()
    yield terminal
    terminal.end()


def test_a_terminal_shows_every_word_in_the_colour_of_its_kind(terminal: Terminal) -> None:
    events = Events("worker-1", stream=terminal.stream)
    for word, facts, _ in EXAMPLES:
        events.tell(word, **facts)
    events.close()
    terminal.end()

    colours: dict[str, set[str]] = {}
    for found in re.finditer(r"worker-1  (\x1b\[[0-9;]+m)(.{9})", terminal.raw):
        colours.setdefault(found[2].strip("\x1b "), set()).add(found[1])
    assert len(colours) == len(WORDS) and all(len(styles) == 1 for styles in colours.values()), "steady"
    assert colours["done"] == {"\x1b[32m"} and colours["failed"] == {"\x1b[31m"}
    assert re.search(r"\x1b\[[0-9;]*7[0-9;]*mREDELIVERED, attempt 2\x1b\[0m", terminal.raw), "loud"
    whole = "\n".join(terminal.rows()).replace("\n" + 20 * " ", " ")
    for _, _, line in EXAMPLES:
        assert f"worker-1  {line}\n" in whole


def plain_screen(monkeypatch: pytest.MonkeyPatch, columns: int) -> tuple[Any, io.StringIO]:
    """A screen of this width without colours, and what it prints."""
    from tareas.tell.terminal import Screen

    stream = io.StringIO()
    screen = Screen(stream, "worker-1")
    monkeypatch.setattr(screen, "_columns", lambda: columns)
    monkeypatch.setattr(screen, "_styles", lambda style: "")
    return screen, stream


LONG = "login refused: check the user and the password in the address (guest may log in from localhost only)"


@pytest.mark.parametrize(("columns", "rows"), [
    (200, [LONG]),
    (80, ["login refused: check the user and the password in the", "address (guest may log in from localhost only)"]),
    (41, ["login refused: check", "the user and the", "password in the", "address (guest may", "log in from",
          "localhost only)"]),
])  # fmt: skip
def test_a_long_line_is_wrapped_between_words_below_its_beginning(
    monkeypatch: pytest.MonkeyPatch, columns: int, rows: list[str]
) -> None:
    screen, stream = plain_screen(monkeypatch, columns)
    screen.show(WORDS["cancelled"], LONG)
    first, *rest = stream.getvalue().splitlines()
    assert [first, *rest] == ["worker-1  cancelled " + rows[0], *(20 * " " + row for row in rows[1:])]


def test_where_there_is_no_room_behind_the_label_the_text_goes_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, stream = plain_screen(monkeypatch, 36)
    screen.show(WORDS["cancelled"], LONG)
    screen.show(WORDS["published"], "task-0001")
    assert stream.getvalue().splitlines() == [
        "worker-1  cancelled",
        "  login refused: check the user and",
        "  the password in the address",
        "  (guest may log in from localhost",
        "  only)",
        "worker-1  published task-0001",
    ]


def test_the_reason_of_a_lost_connection_is_not_said_again_while_waiting() -> None:
    stream = io.StringIO()
    events = Events("worker-1", stream=stream)
    events.tell("connection_lost", reason="nobody listens")
    events.tell("discarded", id="a", attempt=1, reason="too late")
    events.tell("waiting", seconds=0.25, reason="nobody listens")
    events.tell("waiting", seconds=0.5, reason="login refused")
    assert stream.getvalue().splitlines() == [
        "worker-1  cut off   nobody listens",
        "worker-1  discarded the result of a: too late",
        "worker-1  waiting   trying again in 0.25 s",
        "worker-1  waiting   trying again in 0.50 s: login refused",
    ]


def test_no_color_is_honoured(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    events = Events("worker-1", stream=terminal.stream)
    events.tell("started", id="task-1", attempt=2, redelivered=True, complexity=30.0)
    terminal.wait(lambda t: "running" in t.raw)
    for word, facts, _ in EXAMPLES:
        events.tell(word, **facts)
    events.close()
    terminal.end()

    assert not re.search(r"\x1b\[[0-9;]*m", terminal.raw)


def test_a_dumb_terminal_gets_plain_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    events = Events("worker-1", stream=terminal.stream)
    events.tell("started", id="task-1", attempt=2, redelivered=True)
    events.close()
    terminal.end()

    assert terminal.raw == "worker-1  started   task-1 REDELIVERED, attempt 2: not acknowledged before\r\n"
    assert events._screen is None, "nothing that would redraw a line later"


def test_json_on_a_terminal_is_json(terminal: Terminal) -> None:
    Events("w", as_json=True, stream=terminal.stream).tell("confirmed", id="a")
    terminal.end()

    assert json.loads(terminal.raw)["id"] == "a"


def test_a_running_task_has_a_bar_and_leaves_nothing_behind(terminal: Terminal) -> None:
    events = Events("worker-1", stream=terminal.stream)
    events.tell("started", id="task-1", attempt=1, redelivered=False, complexity=60.0)
    terminal.wait(lambda t: bool(re.fullmatch(r"worker-1  running   task-1  \d\.\d of 60\.0 s  ━*─+", t.rows()[-1])))
    events.tell("stopping", reason="Ctrl+C")
    terminal.wait(lambda t: t.rows()[-2:-1] == ["worker-1  stopping  Ctrl+C"] and "running" in t.rows()[-1])

    events.tell("done", id="task-1", attempt=1, seconds=0.7)
    events.close()
    terminal.end()

    assert terminal.rows() == [
        "worker-1  started   task-1",
        "worker-1  stopping  Ctrl+C",
        "worker-1  done      task-1 in 0.70 s",
        "",
    ]


def test_what_a_handler_prints_stands_above_the_bar(terminal: Terminal) -> None:
    events = Events("worker-1", stream=terminal.stream)
    others = events.for_others()
    assert others is not None and others.isatty()
    events.tell("started", id="task-1", attempt=1, redelivered=False)
    terminal.wait(lambda t: "running" in t.rows()[-1])
    print("step 1", file=others)
    terminal.wait(lambda t: t.rows()[1] == "step 1" and "running" in t.rows()[-1])
    others.write("half a ")
    print("line", file=others, end="", flush=True)
    assert others.buffer is terminal.stream.buffer
    terminal.wait(lambda t: t.rows()[-1] == "half a line")
    events.tell("done", id="task-1", seconds=1.0)
    terminal.wait(lambda t: t.rows()[2:4] == ["half a line", "worker-1  done      task-1 in 1.00 s"])
    assert Events("worker-1", stream=io.StringIO()).for_others() is None


def test_a_forked_child_can_print_whoever_held_the_lock(terminal: Terminal) -> None:
    """Its parent's other threads are not there to let go of it."""
    events = Events("worker-1", stream=terminal.stream)
    others = events.for_others()
    held = threading.Event()

    def hold() -> None:
        assert events._screen is not None
        with events._lock, events._screen._lock:
            held.set()
            time.sleep(1000)

    threading.Thread(target=hold, daemon=True).start()
    assert held.wait(DEADLINE)
    child = os.fork()
    if child == 0:
        print("hello", file=others)
        os._exit(0)
    until = time.monotonic() + DEADLINE
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    assert ended == (child, 0)
    terminal.wait(lambda t: t.rows() == ["hello", ""])


def test_with_json_into_a_file_a_person_at_the_terminal_sees_the_changes_of_state(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", terminal.stream)
    log = io.StringIO()
    events = Events("worker-1", as_json=True, stream=log)
    events.tell("started", id="task-1", attempt=1, redelivered=False)
    events.tell("stopping", reason="Ctrl+C: nothing in hand")
    events.close()
    terminal.end()
    assert re.sub(r"\x1b\[[0-9;]*m", "", terminal.raw) == "worker-1  stopping  Ctrl+C: nothing in hand\r\n"
    assert [json.loads(line)["event"] for line in log.getvalue().splitlines()] == ["started", "stopping"]


def test_a_terminal_shows_how_long_there_is_no_connection(terminal: Terminal) -> None:
    events = Events("worker-1", stream=terminal.stream)
    events.tell("waiting", seconds=0.25, reason="nobody listens")
    events.waiting()
    terminal.wait(lambda t: bool(re.fullmatch(r"worker-1  waiting +\d+\.\d s", t.rows()[-1])))
    events.tell("connected", address="localhost")
    terminal.wait(lambda t: t.rows()[-2:] == ["worker-1  connected to localhost", ""])


@pytest.mark.parametrize("word", ["done", "failed", "dead_lettered", "discarded", "abandoned", "waiting"])
def test_the_bar_ends_with_the_task(terminal: Terminal, word: str) -> None:
    events = Events("worker-1", stream=terminal.stream)
    events.tell("started", id="task-1", attempt=1, redelivered=False)
    terminal.wait(lambda t: "running" in t.rows()[-1])

    events.tell(word, **next(facts for name, facts, _ in EXAMPLES if name == word))

    terminal.wait(lambda t: WORDS[word].label in t.raw and "running" not in "".join(t.rows()))
    events.close()


def test_a_task_that_rests_is_shown_until_it_is_given_back(terminal: Terminal) -> None:
    events = Events("worker-1", stream=terminal.stream)
    events.tell("failed", id="task-1", attempt=3, seconds=0.1, error="no")
    events.resting("task-1", 4.0)
    terminal.wait(lambda t: bool(re.fullmatch(r"worker-1  resting   task-1  \d\.\d of 4\.0 s  ━*─+", t.rows()[-1])))
    events.tell("requeued", id="task-1", attempt=3, rest=4.0)
    events.close()
    terminal.end()
    assert "resting" not in "".join(terminal.rows())


def test_without_a_terminal_a_rest_is_no_event() -> None:
    stream = io.StringIO()
    Events("w", stream=stream).resting("a", 4.0)
    assert stream.getvalue() == ""


def test_close_takes_the_bar_away_and_may_be_called_twice(terminal: Terminal) -> None:
    events = Events("worker-1", stream=terminal.stream)
    events.tell("started", id="task-1", attempt=1, redelivered=False)
    terminal.wait(lambda t: "running" in t.rows()[-1])

    events.close()
    events.close()
    terminal.end()

    assert terminal.rows() == ["worker-1  started   task-1", ""]


@pytest.mark.parametrize("columns", [2, 20, 40, 80, 200])
@pytest.mark.parametrize("task", ["t", "x" * 255, "任務" * 40])
def test_the_bar_fits_any_width(monkeypatch: pytest.MonkeyPatch, columns: int, task: str) -> None:
    from tareas.tell.terminal import Screen

    screen = Screen(io.StringIO(), "worker-1")
    monkeypatch.setattr(screen, "_columns", lambda: columns)
    for part in (None, 0.0, 0.5, 1.0, 7.0):
        line = screen._line("running", "cyan", task, "0.5 of 3.0 s", part)
        assert line.cell_len <= columns - 1
        assert columns < 40 or "0.5 of 3.0 s" in line.plain, "a long id is cut, not the seconds"
        assert part is None or columns < 60 or len(task) > 1 or "━" in line.plain or "─" in line.plain


@pytest.mark.parametrize(("columns", "shown"), [
    (80, "worker-1  running   task-0003  12.3 of 30.0 s  ━━━━━━━━━━━━──────────────────"),
    (50, "worker-1  running   task-0003  12.3 of 30.0 s"),
    (40, "worker-1  task-0003  12.3 of 30.0 s"),
])  # fmt: skip
def test_a_narrow_terminal_shows_the_task_before_the_label(
    monkeypatch: pytest.MonkeyPatch, columns: int, shown: str
) -> None:
    from tareas.tell.terminal import Screen

    screen = Screen(io.StringIO(), "worker-1")
    monkeypatch.setattr(screen, "_columns", lambda: columns)
    monkeypatch.setattr(screen, "_bar", "━─")
    assert screen._line("running", "cyan", "task-0003", "12.3 of 30.0 s", 0.41).plain == shown


def test_a_long_input_shows_its_progress_below_the_events(terminal: Terminal) -> None:
    events = Events("producer", stream=terminal.stream)
    events.progress(50, 200, 1.0)
    terminal.wait(lambda t: t.rows()[-1].startswith("producer  progress  50 of 200 confirmed, 50/s, 3 s left  ━"))
    events.tell("unblocked")
    events.progress(100, None, 1.0)
    terminal.wait(lambda t: t.rows()[-1] == "producer  progress  100 confirmed, 100/s")
    events.tell("finished", published=200, confirmed=200, seconds=4.0)
    events.close()
    terminal.end()

    assert terminal.rows() == [
        "producer  unblocked RabbitMQ takes tasks again",
        "producer  finished  200 of 200 confirmed in 4.00 s",
        "",
    ]


def test_a_bar_that_wraps_as_the_terminal_is_made_narrower_is_erased_whole(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tareas.tell.terminal import Screen

    columns = 200
    monkeypatch.setattr(Screen, "_columns", lambda self: columns)
    events = Events("producer", stream=terminal.stream)
    events.tell("unblocked")
    events.progress(50, None, 1.0)
    events.progress(50, 10**50, 1.0)  # over two rows of the terminal's 80 columns
    terminal.wait(lambda t: len(t.rows()) > 3)
    columns = 80
    events.tell("finished", published=200, confirmed=200, seconds=4.0)
    events.close()
    terminal.end()

    assert terminal.rows() == [
        "producer  unblocked RabbitMQ takes tasks again",
        "producer  finished  200 of 200 confirmed in 4.00 s",
        "",
    ]


def test_a_hostile_id_is_as_harmless_on_a_terminal(terminal: Terminal) -> None:
    events = Events("worker-1", stream=terminal.stream)
    events.tell("started", id=HOSTILE + "[bold]:smile:", attempt=1, redelivered=False)
    terminal.wait(lambda t: "running" in t.rows()[-1])
    events.close()
    terminal.end()

    shown = "task\\x1b[2J\\n\\x00\\x07\\x9b31m\\u202e\\u2028é[bold]:smile:"
    assert terminal.raw.count(shown[:40]) >= 2, "in the event and in the bar"
    assert terminal.rows() == [f"worker-1  started   {shown}", ""]


def test_ctrl_c_amid_a_bar_leaves_the_terminal_clean(terminal: Terminal) -> None:
    code = """if True:
        import time
        from tareas.tell.events import Events
        events = Events("worker-1")
        try:
            events.tell("started", id="task-1", attempt=1, redelivered=False, complexity=60.0)
            time.sleep(60)
        except KeyboardInterrupt:
            events.tell("abandoned", id="task-1", attempt=1)
        finally:
            events.close()
    """
    before = termios.tcgetattr(terminal.stream)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=terminal.stream, stderr=terminal.stream)
    try:
        terminal.wait(lambda t: "running" in t.rows()[-1] and "of 60.0 s" in t.rows()[-1])
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()

    assert termios.tcgetattr(terminal.stream) == before
    terminal.end()
    assert "\x1b[?25l" not in terminal.raw, "the cursor was never hidden"
    assert terminal.rows() == [
        "worker-1  started   task-1",
        "worker-1  abandoned task-1 in attempt 1: it goes back to the queue",
        "",
    ]


def test_a_terminal_that_is_gone_is_an_error_for_tell_and_none_for_close() -> None:
    master, slave = pty.openpty()
    stream = os.fdopen(slave, "w", encoding="utf-8")
    events = Events("worker-1", stream=stream)
    os.close(master)

    with pytest.raises(OSError):
        events.tell("unblocked")
    events.close()
