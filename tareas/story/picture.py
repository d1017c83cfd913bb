"""The timeline as a picture: one row per worker, one bar per attempt, and what happened to them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tareas.story.svg import Page, width
from tareas.story.timeline import KILLED, Bar, Event, bars, labels, outages, span, step, workers
from tareas.text import printable

WIDTH = 800
LEFT, RIGHT = 92, 776  # where time begins and ends
EDGE = 16  # between the page's edge and what is written
TOP = 76  # of the first row
ROW = 40
BAR = 18
THIN = 2.5  # pixels of the shortest bar
MOST_NAMED = 60  # tasks that the key names; a browser names any of them when the pointer is on its bar

GROUND, RIM, GRID, GREY, INK, WHITE = "#fbfbf8", "#d0d0c8", "#e4e4dc", "#62626a", "#1e2024", "#ffffff"
FIRST, AGAIN, RED, GREEN = "#2f66b0", "#a86200", "#b3202a", "#16703c"
ENDED = {"": "done", "!": "failed", "?": "result not acknowledged", KILLED: "its worker was killed"}


def draw(events: Sequence[Event], verdict: str, fine: bool) -> str:
    """An SVG of 800 pixels. events: as timeline.draw takes them; verdict: the last line, fine: whether it is good."""
    page = Page(WIDTH, GROUND, RIM)
    page.text(EDGE, 28, "Which worker did which task, and when", INK, size=15, bold=True)
    if attempts := bars(events):
        chart = Chart(page, events, attempts)
        chart.draw()
        page.height = chart.bottom + 36
        _key(page, chart.labels)
    page.height += 30
    page.text(EDGE, page.height, verdict, GREEN if fine else RED, size=15, bold=True)
    page.height += EDGE
    return page.svg(f"What the demo's workers did. {verdict}")


def save(path: str, events: Sequence[Event], verdict: str, fine: bool) -> None:
    """Write what `draw` makes. Raises OSError."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(draw(events, verdict, fine))


def unwritable(path: str) -> str:
    """Why no picture can be saved there; "" if it can. Leaves no file where there was none."""
    if not path.endswith(".svg"):
        return "does not end with .svg, which is what it will be"
    there = os.path.lexists(path)
    if there and not os.path.isfile(path):
        return "is no file"
    try:
        with open(path, "ab"):
            pass
        if not there:
            os.unlink(path)
    except (OSError, ValueError) as error:  # ValueError: a null character
        return f"cannot be written: {error.strerror if isinstance(error, OSError) else error}"
    return ""


class Chart:
    """Rows, bars and marks. bottom: where it ends."""

    def __init__(self, page: Page, events: Sequence[Event], attempts: Sequence[Bar]) -> None:
        self.page = page
        self.events = events
        self.attempts = attempts
        self.names = workers(events)
        self.labels = labels(bar.id for bar in attempts)
        self.bottom = TOP + ROW * len(self.names)
        self.first, self.last = span(events)
        self._scale = (RIGHT - LEFT) / max(self.last - self.first, 1.0)  # pixels a second

    def draw(self) -> None:
        every = step(self._scale, 50)
        for second in range(0, int(self.last - self.first) + 1, every):
            at = self._x(self.first + second)
            self.page.line(at, TOP - 6, at, self.bottom, GRID)
            self.page.text(at, TOP - 12, f"{second} s", GREY, middle=True)
        self._outages()
        for name in self.names:
            self._life(name)
        before: dict[str, Bar] = {}
        for bar in self.attempts:
            if bar.again and (lost := before.get(bar.id)):
                self.page.arrow(self._x(lost.end), self._y(lost.who), self._x(bar.start), self._y(bar.who), AGAIN)
            before[bar.id] = bar
        for name in self.names:
            self._bars(name)

    def _x(self, time: float | None) -> float:
        """Where this moment is; None: it has not come yet."""
        seconds = (self.last if time is None else time) - self.first
        return round(min(max(LEFT + seconds * self._scale, LEFT), RIGHT), 1)

    def _y(self, name: str) -> float:
        return TOP + ROW * self.names.index(name) + ROW / 2

    def _outages(self) -> None:
        for down, up in outages(self.events):
            start, end = self._x(down), self._x(up)
            took = f"RabbitMQ was down for {(up or self.last) - down:.1f} s"
            self.page.rect(start, TOP - 6, max(end - start, THIN), self.bottom - TOP + 6, RED, took, opacity=0.12)
            self.page.line(start, TOP - 6, start, self.bottom, RED, 1.5)
            text = "RabbitMQ killed" + ", then started again" * (up is not None)
            self.page.text(min(start, RIGHT - width(text)), self.bottom + 14, text, RED, bold=True)

    def _life(self, name: str) -> None:
        """A thin line, from the first connection of a worker to its end."""
        own = [event for event in self.events if event["who"] == name]
        began = next((event["time"] for event in own if event["event"] in ("connected", "started")), self.first)
        ended = next((event["time"] for event in own if event["event"] in ("killed", "stopped")), None)
        y = self._y(name)
        self.page.text(EDGE, y + 4, name[:12], INK, size=12)
        self.page.line(self._x(began), y, self._x(ended), y, RIM, 2)

    def _bars(self, name: str) -> None:
        """The bars of one worker. The name of the task stands in its bar, above or below, where there is room."""
        y = self._y(name)
        above = below = 0.0  # where the last label ends
        for bar in (bar for bar in self.attempts if bar.who == name):
            start = self._x(bar.start)
            wide = max(self._x(bar.end) - start, THIN)
            seconds = f"{(bar.end or self.last) - bar.start:.2f} s"
            again = ", delivered again" * bar.again
            title = f"{printable(bar.id)}: {seconds}, {ENDED[bar.mark] if bar.end else 'running'}{again}"
            self.page.rect(start, y - BAR / 2, wide, BAR, AGAIN if bar.again else FIRST, title)
            label = self.labels[bar.id]
            room = wide - 4 - (8 if bar.mark else 0)
            inside = next((text for text in (printable(bar.id), label) if width(text) <= room), None)
            if inside:
                self.page.text(start + 3, y + 4, inside, WHITE)
            elif start >= above:
                self.page.text(start, y - BAR / 2 - 2, label, INK, size=9)
                above = start + width(label, 9) + 3
            elif start >= below:
                self.page.text(start, y + BAR / 2 + 9, label, INK, size=9)
                below = start + width(label, 9) + 3
            if bar.mark == KILLED:
                self._kill(bar, start + wide, y)
            elif bar.mark:
                self.page.rect(start + wide - 3, y - BAR / 2 - 3, 3, BAR + 6, RED if bar.mark == "!" else GREY)

    def _kill(self, bar: Bar, x: float, y: float) -> None:
        """A cross, and what came of the task. The rest of the row is free for these words."""
        for slope in (7, -7):
            self.page.line(x - 7, y - slope, x + 7, y + slope, RED, 3)
        again = next((other for other in self.attempts if other.id == bar.id and other.start > bar.start), None)
        text = "killed"
        if again:
            named = [f"killed: {name} is delivered again, to {again.who}"
                     for name in (printable(bar.id), self.labels[bar.id])]
            text = next((each for each in named if x + 10 + width(each) <= RIGHT), named[-1])
        self.page.text(min(x + 10, RIGHT - width(text)), y + 4, text, RED, bold=True)


def _key(page: Page, short: dict[str, str]) -> None:
    """What the colours and marks mean, and which task has which number."""
    x, y = float(EDGE), page.height
    for colour, wide, text in ((FIRST, 14, "a task at work"), (AGAIN, 14, "delivered again (redelivered)"),
                               (RED, 3, "failed"), (GREY, 3, "result not acknowledged")):  # fmt: skip
        page.rect(x, y - 9, wide, 11, colour)
        page.text(x + wide + 5, y, text, GREY)
        x += wide + 21 + width(text)
    names = [f"{label} {printable(task_id)}" for task_id, label in short.items() if label != task_id]
    if len(names) > MOST_NAMED or all(label in task_id.upper() for task_id, label in short.items()):
        names = []
    x, y = float(EDGE), y + 22
    for name in names:
        if x > EDGE and x + width(name) > RIGHT:
            x, y = float(EDGE), y + 16
        page.text(x, y, name, GREY)
        x += width(name) + 12
    page.height = y if names else y - 16
