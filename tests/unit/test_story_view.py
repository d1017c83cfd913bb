"""What a person sees of the demo: lines without a terminal, a panel on one, at any width."""

from __future__ import annotations

import io
import re
import threading
import time
from typing import Any

import pytest
from rich.console import Console

from tareas.story.view import View
from tests.unit.test_timeline import KILLED_AND_REDELIVERED, done, event, started

LONG = "RabbitMQ sees the connection closed, and puts the task back into the queue (requeued). " * 3
VERDICT = "published 1000, confirmed 1000, done 999 (12 twice), redelivered 123, dead 1, lost 0"


class Sharing(io.StringIO):
    """Lets other threads come after each write."""

    def write(self, text: str) -> int:
        written = super().write(text)
        time.sleep(0)
        return written


def view_on(width: int | None) -> tuple[View, io.StringIO]:
    """width: of the terminal, None for none."""
    stream = Sharing()
    return View(Console(file=stream, width=width, force_terminal=width is not None, highlight=False)), stream


def plain(stream: io.StringIO) -> list[str]:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).splitlines()


@pytest.mark.parametrize("width", [None, 80, 40])
def test_no_line_is_wider_than_the_screen(width: int | None) -> None:
    view, stream = view_on(width)
    view.announce(LONG)
    view.note(LONG)
    view.event(started(0, "worker-1", "task-" + "x" * 200))
    view.event(event(1, "failed", "worker-1", id="a", attempt=1, seconds=1.0, error="long " * 60))
    view.timeline(KILLED_AND_REDELIVERED)
    if width:  # without a terminal the verdict is one line, however long
        view.verdict(VERDICT, [LONG])
    assert max(map(len, plain(stream))) <= (width or 80)


def test_advice_that_nobody_needs_in_the_demo_is_not_told() -> None:
    stream = io.StringIO()
    view = View(Console(file=stream, width=200), unsaid=" (start it)")
    view.event(event(1, "waiting", "worker-1", seconds=0.1, reason="nobody listens (start it)"))
    view.event(event(2, "waiting", "worker-1", seconds=0.1, reason="(start it) they say"))
    assert "nobody listens\n" in stream.getvalue() and "(start it) they say\n" in stream.getvalue()


def test_without_a_terminal_there_is_no_escape_and_the_verdict_is_one_last_line() -> None:
    view, stream = view_on(None)
    with view:
        view.announce("A worker dies.")
        view.event(event(1, "killed", "worker-2"))
        view.note("It is gone.")
        view.timeline(KILLED_AND_REDELIVERED)
        view.verdict(VERDICT, [])
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().startswith("\n 1. A worker dies.\n    worker-2  KILLED\n => It is gone.\n\n")
    assert stream.getvalue().endswith(f"\n\n{VERDICT}\n")


def test_what_broke_the_promise_stands_before_the_verdict() -> None:
    view, stream = view_on(None)
    view.verdict(VERDICT, ["lost: a", "dead without a reason: b"])
    assert plain(stream) == ["", "lost: a", "dead without a reason: b", VERDICT]


@pytest.mark.parametrize("before", range(20, 35))
def test_ids_are_not_broken_in_two(before: int) -> None:
    view, stream = view_on(40)
    view.note("x" * before + " thumb-nail is done")
    assert any("thumb-nail" in line for line in plain(stream))


def test_what_steers_a_terminal_is_escaped() -> None:
    view, stream = view_on(80)
    view.note("the reason: \x1b[2J\x07")
    view.event(event(0, "failed", "w", id="\x1b[31m", attempt=1, seconds=0.1, error="\x1b]0;title\x07"))
    assert not re.search(r"\x1b\[2J|\x1b\]|\x07", stream.getvalue())
    assert "\\x1b[2J" in stream.getvalue() and "\\x1b[31m" in stream.getvalue()


@pytest.mark.parametrize("width", [80, None])
def test_no_event_comes_between_the_lines_of_a_sentence(width: int | None) -> None:
    """Nor, where there is no terminal, between a line and its end."""
    view, stream = view_on(width)
    stop = threading.Event()

    def events() -> None:
        while not stop.is_set():
            view.event(started(0, "worker-1", "task-1"))

    thread = threading.Thread(target=events)
    thread.start()
    for _ in range(50):
        view.note(LONG)
    stop.set()
    thread.join()
    lines = plain(stream)
    assert not [line for line in lines if "task-1" in line and not line.startswith("    worker-1")]
    size = len(plain_lines_of(LONG))
    starts = [n for n, line in enumerate(lines) if line.startswith(" => ")]
    assert len(starts) == 50
    assert not [n for n in starts for line in lines[n : n + size] if "task-1" in line]


def plain_lines_of(sentence: str) -> list[str]:
    view, stream = view_on(80)
    view.note(sentence)
    return plain(stream)


def panel(width: int, *events: dict[str, Any], work: dict[str, float] | None = None) -> list[str]:
    view, _ = view_on(width)
    view.work = work or {}
    for one in events:
        view.event(one)
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=True).print(view._panel())
    return plain(stream)


@pytest.mark.parametrize("width", [80, 40])
def test_the_panel_has_the_counts_and_a_line_per_worker(width: int) -> None:
    lines = panel(
        width,
        *(event(0, "connected", f"worker-{n}", address="x") for n in (1, 2, 3, 10)),
        *(event(0, "confirmed", "producer", id=f"task-{n}") for n in range(1, 6)),
        started(1, "worker-1", "task-1"), done(2, "worker-1", "task-1"),
        started(1, "worker-2", "task-2"), event(2, "killed", "worker-2"),
        started(2, "worker-3", "task-3"),
        event(3, "connection_lost", "worker-10", reason="x"),
    )  # fmt: skip
    assert len(lines) == 2 + 1 + 4, "nothing wraps"
    assert "waiting 3, in hand 1, done 1, dead 0" in lines[1]
    assert [line.split()[1] for line in lines[2:-1]] == ["worker-1", "worker-2", "worker-3", "worker-10"]
    assert [re.search(r"free|killed|task-3 +\S|no RabbitMQ", line) is not None for line in lines[2:-1]] == [True] * 4
    assert all(len(line) <= width for line in lines)


def test_the_bar_of_a_running_task_grows_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def filled(now: float) -> int:
        monkeypatch.setattr("tareas.story.view.time.time", lambda: 1000 + now)
        view, _ = view_on(80)
        view.work = {"task-1": 4.0}
        view.event(started(0, "worker-1", "task-1"))
        stream = io.StringIO()
        Console(file=stream, width=80, force_terminal=True, color_system="standard").print(view._panel())
        bar = re.search(r"\x1b\[3[26]m(━+)", stream.getvalue())  # cyan, or green when it is full
        return len(bar[1]) if bar else 0

    assert filled(0.1) < filled(2) < filled(3.5) <= filled(9)


def test_a_long_event_is_wrapped_under_what_its_first_line_says() -> None:
    stream = io.StringIO()
    view = View(Console(file=stream, width=80))
    reason = "the connection was lost while it ran: RabbitMQ gives the task to whoever is free"
    view.event(event(1, "discarded", "worker-1", id="report-01", attempt=1, reason=reason))
    first, *rest = stream.getvalue().splitlines()
    assert first.startswith("    worker-1  discarded the result of report-01: the connection was")
    assert rest and all(line.startswith(24 * " ") and line[24] != " " for line in rest)
    assert " ".join([first.strip(), *map(str.strip, rest)]).endswith(reason)
    assert max(map(len, [first, *rest])) <= 80


def test_a_reason_that_stays_is_told_once_to_each_worker() -> None:
    stream = io.StringIO()
    view = View(Console(file=stream, width=80))
    gone = "the connection is gone"
    for number in (1, 2):
        view.event(event(number, "connection_lost", f"worker-{number}", reason=gone))
    for number in (1, 2):
        view.event(event(3, "waiting", f"worker-{number}", seconds=0.25, reason=gone))
    view.event(event(4, "waiting", "worker-1", seconds=0.5, reason="nobody listens"))
    assert plain(stream) == [
        "    worker-1  cut off   the connection is gone",
        "    worker-2  cut off   the connection is gone",
        "    worker-1  waiting   trying again in 0.25 s",
        "    worker-2  waiting   trying again in 0.25 s",
        "    worker-1  waiting   trying again in 0.50 s: nobody listens",
    ]


def test_the_panel_and_the_words_follow_a_terminal_that_is_made_narrower() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    view = View(console)
    view.event(started(1, "worker-1", "task-1"))
    console.width = 50
    console.file = stream = io.StringIO()
    console.print(view._panel())
    view.note(LONG)
    assert 40 < max(map(len, plain(stream))) <= 50


def test_a_task_that_rests_is_in_hand_still() -> None:
    stream = io.StringIO()
    view = View(Console(file=stream, width=80, force_terminal=True))
    for happened in (event(0, "confirmed", "producer", id="a"), started(1, "worker-1", "a"),
                     event(2, "failed", "worker-1", id="a", attempt=1, seconds=1.0, error="no")):  # fmt: skip
        view.event(happened)
    view._console.print(view._panel())
    assert "waiting 0, in hand 1" in stream.getvalue()
    assert "resting" in stream.getvalue()
