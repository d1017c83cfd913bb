"""How each event reads: its label, its colour, its text, and the line of JSON."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Word(NamedTuple):
    """How an event reads: label, colour (a style of rich), the text (of the facts), whether the bar ends with it."""

    label: str
    style: str
    text: str
    ends: bool = False


WARNING = "black on yellow"  # seen on dark grounds and on light ones; yellow letters are not

WORDS = {
    # producer and worker
    "connected": Word("connected", "bold", "to {address}", ends=True),
    "connection_lost": Word("cut off", WARNING, "{reason}"),  # the task goes on
    "waiting": Word("waiting", "bold", "trying again in {seconds:.2f} s{because}", ends=True),
    "blocked": Word("blocked", WARNING, "RabbitMQ takes nothing for now: {reason}"),
    "unblocked": Word("unblocked", "bold", "RabbitMQ takes tasks again"),
    "stopping": Word("stopping", "bold", "{reason}"),
    # producer
    "published": Word("published", "cyan", "{id}{again}"),
    "confirmed": Word("confirmed", "green", "{id}"),
    "refused": Word("refused", WARNING, "{id}: {reason}"),
    "returned": Word("returned", WARNING, "{id}: {reason}"),
    "finished": Word("finished", "bold", "{confirmed} of {published} confirmed in {seconds:.2f} s{left}", ends=True),
    # worker
    "started": Word("started", "cyan", "{id}{loud}", ends=True),  # of the task before it
    "done": Word("done", "green", "{id} in {seconds:.2f} s", ends=True),
    "failed": Word("failed", "red", "{id} in attempt {attempt}, after {seconds:.2f} s: {error}", ends=True),
    "requeued": Word("requeued", "magenta", "{id} after attempt {attempt}, rested {rest:.2f} s", ends=True),
    "dead_lettered": Word("dead", "bold red", "{id} after attempt {attempt}: {reason}", ends=True),
    "discarded": Word("discarded", WARNING, "the result of {id}: {reason}", ends=True),
    "abandoned": Word("abandoned", "magenta", "{id} in attempt {attempt}: it goes back to the queue", ends=True),
    "cancelled": Word("cancelled", WARNING, "{reason}", ends=True),
    "stopped": Word("stopped", "bold", "{processed} done, {failed} failed, {dead_lettered} dead-lettered, "
                                       "busy {busy:.2f} s", ends=True),
    # admin.py
    "replayed": Word("replayed", "green", "{id}"),
}  # fmt: skip

# With --json into a file: what a person at the terminal is told all the same.
ASIDE = {
    "connected", "connection_lost", "waiting", "blocked", "unblocked", "cancelled", "stopping", "finished", "stopped"
}  # fmt: skip

LOSSES = {"connection_lost", "cancelled", "waiting"}  # often for one reason, which is said once


def in_words(word: str, facts: dict[str, Any], shown: Callable[[str], str], last_reason: object = None) -> str:
    """The text of an event: `task-0003 in 0.61 s`.

    shown: makes a text from outside safe to show. last_reason: of the loss before this one, not to be said again.
    """
    said: dict[str, Any] = {name: shown(it) if isinstance(it, str) else it for name, it in facts.items()}
    if said.get("id") is None:
        said["id"] = said.get("message_id") or "a task without an id"
    said["again"] = " again" if facts.get("again") else ""
    again = facts.get("redelivered")
    said["loud"] = f" REDELIVERED, attempt {facts['attempt']}: not acknowledged before" if again else ""
    said["left"] = f"; not published: {said['left']}" if "left" in facts else ""
    reason = facts.get("reason")
    said["because"] = f": {said['reason']}" if reason and reason != last_reason else ""  # once is enough
    return WORDS[word].text.format_map(said)


_JSON: dict[type, Any] = {  # how a fact of this type reads; every other one as json.dumps has it
    str: json.encoder.encode_basestring_ascii,
    int: int.__repr__,
    float: lambda number: repr(number) if math.isfinite(number) else json.dumps(number),
    bool: lambda yes: "true" if yes else "false",
}


def in_json(word: str, who_as_json: str, facts: dict[str, Any]) -> str:
    """`{"time": 1764050000.123, "event": "done", "who": "worker-1", "id": "task-0003", ...}` and a newline.

    A worker tells two of them a task: written by hand, it costs a third of json.dumps.
    """
    more = [f', "{name}": {_JSON.get(type(fact), json.dumps)(fact)}' for name, fact in facts.items()]
    return f'{{"time": {time.time():.3f}, "event": "{word}", "who": {who_as_json}{"".join(more)}}}\n'


def progress_text(confirmed: int, total: int | None, seconds: float) -> str:
    """`12,000 of 50,000 confirmed, 8,000/s, 5 s left`; without a total `12,000 confirmed, 8,000/s`."""
    rate = confirmed / seconds if seconds > 0 else 0.0
    text = f"{confirmed:,}{f' of {total:,}' if total is not None else ''} confirmed, {rate:,.0f}/s"
    if total is not None and rate > 0:
        text += f", {(total - confirmed) / rate:,.0f} s left"
    return text
