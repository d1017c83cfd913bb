"""What a person sees of the demo: the narration, the events as they come, and on a terminal a panel that lives."""

from __future__ import annotations

import contextlib
import io
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tareas.story.timeline import AGAIN, KEY, Event, bars, by_number, draw
from tareas.tell.events import Events
from tareas.tell.words import WORDS
from tareas.text import printable, quoted

WIDTH = 80
MARGIN = 4  # columns before the narration, for its number
BELOW = MARGIN + 20  # and before the second line of an event, which stands under what the first one says
OWN_WORDS = {"killed": ("KILLED", "bold red"), "down": ("KILLED", "bold red"), "up": ("started again", "bold green")}
UNSHOWN = ("published", "confirmed")  # the panel counts them


class Telling:
    """Turns events into the lines that the commands print without --json. unsaid: an end of reasons, left out."""

    def __init__(self, unsaid: str) -> None:
        self._unsaid = unsaid
        self._tellers: dict[str, Events] = {}  # each remembers its last reason, and does not repeat it
        self._text = io.StringIO()

    def line(self, event: Event) -> str:
        """The event in words; "" for one that would only fill the screen."""
        facts = dict(event)
        del facts["time"]
        word, who = facts.pop("event"), facts.pop("who")
        if word in OWN_WORDS:
            return f"{who}  {OWN_WORDS[word][0]}"
        if word in UNSHOWN or word not in WORDS:
            return ""
        self._text.seek(0)
        self._text.truncate()
        if who not in self._tellers:
            self._tellers[who] = Events(who, stream=self._text)
        if "reason" in facts:
            facts["reason"] = str(facts["reason"]).removesuffix(self._unsaid)
        self._tellers[who].tell(word, **facts)
        return self._text.getvalue().rstrip("\n")


class View:
    """Prints lines; on a terminal, within the context, with a live panel below them.

    work: the seconds that each task takes, for its bar. unsaid: advice at the end of a reason that nobody needs here.
    All methods may be called from any thread.
    """

    def __init__(self, console: Console | None = None, unsaid: str = "") -> None:
        self.work: dict[str, float] = {}
        self._console = console or Console(highlight=False)
        self._lively = self._console.is_terminal and not self._console.is_dumb_terminal
        self._telling = Telling(unsaid)
        self._events: list[Event] = []
        self._lock = threading.Lock()
        self._sentences = 0
        self._live: Live | None = None

    @property
    def _width(self) -> int:
        """Columns, now: a terminal may be made narrower, and a panel wider than it would leave pieces behind."""
        return min(WIDTH, self._console.width) if self._lively else WIDTH

    def __enter__(self) -> View:
        if self._lively:
            self._live = Live(get_renderable=self._panel, console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A pause until a person wants to go on. The panel is off meanwhile: what they type would spoil it."""
        self._say("")
        self._paragraph("", "-- Enter goes on", "bold reverse")
        if self._live:
            self._live.stop()
        try:
            yield
        finally:
            if self._live:
                self._live.start()

    def announce(self, sentence: str) -> None:
        """A new step of the story."""
        self._sentences += 1
        self._say("")
        self._paragraph(f"{self._sentences:2}. ", sentence, "bold")

    def note(self, sentence: str) -> None:
        """What came of the step."""
        self._paragraph(" => ", sentence, "bold magenta")

    def remark(self, sentence: str) -> None:
        """What belongs to no step."""
        self._paragraph("", sentence, "")

    def event(self, event: Event) -> None:
        """Show one event, if it is worth a line."""
        with self._lock:
            self._events.append(event)
            text = self._telling.line(event)
        if text:
            text, below = " " * MARGIN + text, " " * BELOW
            text = textwrap.fill(text, self._width, subsequent_indent=below, break_on_hyphens=False)
            own = OWN_WORDS.get(event["event"])
            self._say(text, own[1] if own else WORDS[event["event"]].style)

    def timeline(self, events: Iterable[Event]) -> None:
        """The picture of who did which task when."""
        rows = draw(list(events), self._width)
        if rows:
            self._say("")
            self._paragraph("", f"Who did which task, when ({KEY}):", "bold")
        for row in rows:
            text = Text(row)
            text.highlight_regex(r"X|!|~+", "bold red")
            text.highlight_regex(AGAIN, "bold magenta")
            self._say(text)

    def verdict(self, text: str, problems: Sequence[str]) -> None:
        """The last line; before it, what broke the promise."""
        self._say("")
        for problem in problems:
            self._paragraph("", problem, "bold red")
        style = "bold red" if problems else "bold green"
        if self._lively:
            self._paragraph("", text, style)
        else:  # one line, however long: a program may read it
            self._say(text, style)

    def _paragraph(self, lead: str, sentence: str, style: str) -> None:
        """All its lines at once: the events come from other threads."""
        text = lead + printable(sentence)
        self._say(textwrap.fill(text, self._width, subsequent_indent=" " * len(lead), break_on_hyphens=False), style)

    def _say(self, text: str | Text, style: str = "") -> None:
        if self._lively:
            self._console.print(Text(text, style) if isinstance(text, str) else text, soft_wrap=True)
        else:  # rich would end the process by itself when a pipe is closed
            self._console.file.write(f"{text}\n")  # print() would write twice, with another thread's line between
            self._console.file.flush()

    def _panel(self) -> Panel:
        with self._lock:
            events = list(self._events)
        now = time.time()
        in_hand = {bar.who: bar for bar in bars(events) if bar.end is None}
        table = Table.grid(padding=(0, 1), expand=True)
        for width in (10, 12):
            table.add_column(width=width, no_wrap=True)
        table.add_column(ratio=1)
        for name, state in _states(events).items():
            bar = in_hand.get(name)
            if bar is None or state:
                table.add_row(name, "", Text(state or "free", "bold red" if state == "killed" else "dim"))
                continue
            total = self.work.get(bar.id) or 1.0
            style = "magenta" if bar.again else "cyan"
            progress = ProgressBar(
                total=total, completed=min(now - bar.start, total), complete_style=style, finished_style="green"
            )
            table.add_row(name, Text(bar.id, style), progress)
        return Panel(Group(Text(_counts(events), "bold"), table), width=self._width, border_style="bright_black")


def _states(events: Iterable[Event]) -> dict[str, str]:
    """The state of each worker; "" if it works or waits for a task."""
    states: dict[str, str] = {}
    words = {"killed": "killed", "connection_lost": "no RabbitMQ", "waiting": "no RabbitMQ",
             "stopped": "stopped", "stopping": "stopping", "failed": "resting"}  # fmt: skip
    for event in events:
        if event["who"] in ("producer", "RabbitMQ"):
            continue
        if event["event"] in words:
            states[event["who"]] = words[event["event"]]
        elif states.get(event["who"]) not in ("killed", "stopped"):
            states[event["who"]] = ""
    return {name: states[name] for name in sorted(states, key=by_number)}


def _counts(events: Iterable[Event]) -> str:
    def ids(*words: str) -> set[Any]:
        return {event.get("id") for event in events if event["event"] in words}

    confirmed, done, dead = ids("confirmed"), ids("done"), ids("dead_lettered")
    last = {event["who"]: event for event in events}
    resting = {event["id"] for event in last.values() if event["event"] == "failed"}
    in_hand = {bar.id for bar in bars(events) if bar.end is None} | resting
    waiting = len(confirmed - done - dead - in_hand)
    return f"waiting {waiting}, in hand {len(in_hand)}, done {len(done)}, dead {len(dead)}"


def complain(words: Iterable[str]) -> None:
    """Show on stderr the last lines of a process that failed."""
    for word in words:
        print(f"  {quoted(word, quotes=False)}", file=sys.stderr)
