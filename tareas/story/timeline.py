"""Who did which task when: from events to bars, from bars to a picture of plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]

OWN = ("killed", "down", "up")  # the demo's own events; `who` is a worker, RabbitMQ, RabbitMQ

# How an attempt ends, and the mark its bar ends with.
ENDS = {"done": "", "failed": "!", "dead_lettered": "!", "discarded": "?", "abandoned": "?"}
KILLED = "X"
AGAIN = ">"  # how the bar of a redelivered task begins
KEY = f"= doing it, {AGAIN} delivered again, ! failed, ? result not acknowledged, {KILLED} killed, ~ RabbitMQ down"
LONGEST_NAME = 12


@dataclass
class Bar:
    """One attempt: `who` had task `id` in hand from `start` to `end` (unix seconds; None: still).

    mark: the character that the bar ends with. again: the task was redelivered.
    """

    who: str
    id: str
    start: float
    again: bool = False
    end: float | None = None
    mark: str = ""


def bars(events: Iterable[Event]) -> list[Bar]:
    """All attempts in these events, in the order of their start. `killed` ends the attempt of that worker."""
    found: list[Bar] = []
    open_bars: dict[str, Bar] = {}
    for event in sorted(events, key=lambda event: event["time"]):
        word, who = event["event"], event["who"]
        running = open_bars.get(who)
        if word == "started":
            bar = Bar(who, event["id"], event["time"], bool(event.get("redelivered")))
            found.append(bar)
            if running:  # its end was never told
                running.end, running.mark = bar.start, ENDS["abandoned"]
            open_bars[who] = bar
        elif running and (word == "killed" or (word in ENDS and event.get("id") == running.id)):
            running.end = event["time"]
            running.mark = KILLED if word == "killed" else ENDS[word]
            del open_bars[who]
    return found


def labels(ids: Iterable[str]) -> dict[str, str]:
    """A short name for each task: the number its id ends in ("task-0007": "7"), else its first letters.

    If two of them are the same, all are numbered from 1 in the order given.
    """
    unique = list(dict.fromkeys(ids))
    short = {}
    for task_id in unique:
        number = re.search(r"([0-9]{1,4})$", task_id)
        short[task_id] = str(int(number[1])) if number else task_id[:2].upper()
    if len(set(short.values())) < len(unique):
        short = {task_id: str(n) for n, task_id in enumerate(unique, 1)}
    return short


def by_number(name: str) -> tuple[int, str]:
    """To sort names by: worker-2 before worker-10."""
    return len(name), name


def workers(events: Iterable[Event]) -> list[str]:
    """The names of all workers that were there, in order."""
    found = {e["who"] for e in events if e["event"] in ("connected", "started") and e["who"] != "producer"}
    return sorted(found, key=by_number)


def span(events: Sequence[Event]) -> tuple[float, float]:
    """From the first start of a task to the last thing that a picture shows. There has to be an attempt."""
    first = min(event["time"] for event in events if event["event"] == "started")
    last = max(event["time"] for event in events if event["event"] in ("killed", "up", "started", *ENDS))
    return first, last


def outages(events: Sequence[Event]) -> list[tuple[float, float | None]]:
    """When RabbitMQ was down: from, and until (None: to the end)."""
    ups = iter([event["time"] for event in events if event["event"] == "up"])
    return [(event["time"], next(ups, None)) for event in events if event["event"] == "down"]


def draw(events: Sequence[Event], width: int = 80) -> list[str]:
    """One row per worker, one bar per attempt, a row for RabbitMQ if it was down.

    events: those of producers and workers, and the demo's OWN.
    Returns lines of at most `width` columns, plain ASCII, none if there was no attempt.
    """
    attempts = bars(events)
    if not attempts:
        return []
    first, last = span(events)
    names = workers(events)
    margin = min(max(len(name) for name in [*names, "RabbitMQ"]), LONGEST_NAME) + 1
    columns = max(width - margin, 20)
    scale = (columns - 1) / max(last - first, 1.0)  # columns a second
    short = labels(bar.id for bar in attempts)

    lines = [" " * margin + _ruler(last - first, scale, columns)]
    for name in names:
        row = Row(columns)
        for bar in (bar for bar in attempts if bar.who == name):
            end = last if bar.end is None else bar.end
            start_text = (AGAIN if bar.again else "") + short[bar.id]
            row.bar(int((bar.start - first) * scale), int((end - first) * scale), start_text, bar.mark)
        lines.append(f"{name[:LONGEST_NAME]:{margin}}{row}")
    if downs := outages(events):
        row = Row(columns)
        for down, up in downs:
            row.bar(int(max(down - first, 0) * scale), int(((up or last) - first) * scale), KILLED, "", fill="~")
        lines.append(f"{'RabbitMQ':{margin}}{row}")
    if any(label not in task_id.upper() for task_id, label in short.items()):
        lines += _wrap([f"{label} {task_id}" for task_id, label in short.items()], width)
    return [line.rstrip()[:width] for line in lines]


class Row:
    """Characters of one row. Bars come in order of time; one that has no room moves to the right, or is cut."""

    def __init__(self, columns: int) -> None:
        self._cells = [" "] * columns
        self._free = 0

    def __str__(self) -> str:
        return "".join(self._cells)

    def bar(self, start: int, end: int, label: str, mark: str, fill: str = "=") -> None:
        start = max(min(start, len(self._cells) - len(label) - len(mark)), self._free, 0)
        room = start + len(label) + len(mark) < len(self._cells)
        if room and 0 < start == self._free and (self._cells[start - 1] + label[:1]).isalnum():
            start += 1  # tasks 5 and 7 are not 57
        length = max(end - start, len(label) + len(mark))
        text = label + fill * (length - len(label) - len(mark)) + mark
        for offset, character in enumerate(text[: len(self._cells) - start]):
            self._cells[start + offset] = character
        self._free = min(start + length, len(self._cells))


def step(scale: float, room: float) -> int:
    """Seconds between two marks of a ruler that has `scale` columns (or pixels) a second, each with so much room."""
    return next((seconds for seconds in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600) if seconds * scale >= room), 1200)


def _ruler(seconds: float, scale: float, columns: int) -> str:
    cells = [" "] * columns
    for second in range(0, int(seconds) + 1, step(scale, 8)):
        text = f"{second}" if second else "0 s"
        at = int(second * scale)
        if at + len(text) <= columns:
            cells[at : at + len(text)] = text
    return "".join(cells)


def _wrap(words: list[str], width: int) -> list[str]:
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 2 + len(word) > width:
            lines.append("")
        lines[-1] += f"  {word}" if lines[-1] else word
    return lines
