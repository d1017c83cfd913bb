"""From events to a verdict: what was confirmed, done, dead, lost, done twice.

The promise is kept if every confirmed task is done, or in the dead-letter queue with a reason, or still in the queue.
Logs do not show the queue. If nobody looked into it, more tasks seem lost than are. A dead letter that was replayed is
a task again. So a task is dead if it died more often than it was replayed.

A task may be done twice (at-least-once), but only if RabbitMQ announced it. RabbitMQ delivers each message once without
the flag `redelivered` (https://www.rabbitmq.com/docs/consumers). Each publish is an event: `published` of a producer,
`replayed` of admin.py. A task may be done that many times without the flag, and no more.

These rules count, and compare no times: the clocks of several machines may differ. Only the order of one worker's own
lines matters. One exception: an end that is minutes older than the first publish does not count. It belongs to another
task of that id, of the night before, say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tareas.text import printable

SHOWN = 10  # ids that a line names
EARLIER = 600.0  # seconds: more than clocks differ, less than lies between two runs
UNENDED = "its log does not end with `finished`: it was killed, runs still, or not all of the log is here"
BY_ID = ("lost", "twice", "unannounced", "done_and_dead", "unconfirmed", "pending", "repeated", "earlier")
ENDS_OF_A_START = {"failed", "discarded", "abandoned"}


@dataclass(frozen=True)
class Verdict:
    """What the events say. Numbers count different ids; dead letters whose body had no id count one by one.

    redelivered counts deliveries; lost and the lists after it name ids.
    """

    published: int
    confirmed: int
    done: int
    redelivered: int
    dead: int
    replayed: int  # of those that died
    lost: list[str]  # confirmed more often than done, dead or left in the queue, as far as that is known
    twice: list[str]  # done more than once
    unannounced: list[str]  # those of `twice` that no redelivery explains
    reasonless: list[str]  # dead letters that do not say why
    unstarted: list[str]  # done by a worker that had not started it
    done_and_dead: list[str]  # worker or broker died between done and ack in the last attempt, or a replay
    unconfirmed: list[str]  # done or dead: a producer died before it read the confirm, or its log is not here
    pending: list[str]  # published, without a confirm, and neither done nor dead
    repeated: list[str]  # published as several tasks with one id: one that is done twice may hide one that is lost
    earlier: list[str]  # ended before they were published: see EARLIER
    unfinished: list[str]  # producers, and what they left
    heard: list[str]  # whose logs these are
    truncated: list[str]  # lines cut short ("worker.log line 7"): a process was killed, or a disk was full
    queue_known: bool  # whether somebody looked into the queue

    @property
    def fine(self) -> bool:
        """Whether the promise was kept."""
        return not self.problems()

    def line(self) -> str:
        """`published 12, confirmed 12, done 12 (1 twice), redelivered 3, dead 0, lost 0`"""
        twice = f" ({len(self.twice)} twice)" if self.twice else ""
        replayed = f" ({self.replayed} replayed)" if self.replayed else ""
        at_most = "at most " if self.lost and not self.queue_known else ""
        return (
            f"published {self.published}, confirmed {self.confirmed}, done {self.done}{twice}, "
            f"redelivered {self.redelivered}, dead {self.dead}{replayed}, lost {at_most}{len(self.lost)}"
        )

    def problems(self) -> list[str]:
        """What broke the promise, a line each."""
        lost = "lost: confirmed, but neither done nor dead nor left in the queue"
        if not self.queue_known:
            cut = ", or in a line that was cut short" if self.truncated else ""
            lost = "confirmed, but neither done nor dead in these logs (lost, or still in the queue, or in a log that "
            lost += f"is not here{cut})"
        return [
            *_named(lost, self.lost),
            *_named("done twice, and not announced as redelivered", self.unannounced),
            *_named("dead without a reason", self.reasonless),
            *_named("done by a worker that had not started it", self.unstarted),
        ]

    def notes(self) -> list[str]:
        """What a reader should know though it breaks nothing, a line each."""
        return [
            *_named("done and dead", self.done_and_dead),
            *_named("published as several tasks with one id", self.repeated),
            *_named("done or dead long before it was published, which does not count (an earlier run's log, or a wrong "
                    "clock)", self.earlier),
            *_named("done or dead without a confirm (a producer was killed, or not all of its log is here)",
                    self.unconfirmed),
            *_named("published without a confirm, and neither done nor dead", self.pending),
            *_named("not finished", self.unfinished),
            *_named("cut short (a process was killed while it wrote, or its disk was full)", self.truncated),
            *_named("these logs are of", self.heard),
        ]


class _Task:
    """What is known of one id: little, so that a million of them fit in memory."""

    __slots__ = ("again", "began", "confirms", "ends", "published")

    def __init__(self) -> None:
        self.published = self.again = self.confirms = 0
        self.began = math.inf  # unix seconds: first published
        self.ends: tuple[Any, ...] = ()  # time, how it ended or was replayed, the next time, and so on

    def judge(self) -> _Judged:
        times, kinds = self.ends[::2], self.ends[1::2]
        fresh = kinds
        if math.isfinite(self.began):
            fresh = tuple(kind for time, kind in zip(times, kinds, strict=True) if time >= self.began - EARLIER)
        plain, announced = fresh.count("done"), fresh.count("done again")
        deaths, replayed = fresh.count("dead_lettered"), fresh.count("replayed")
        return _Judged(
            done=plain + announced,
            dead=max(deaths - replayed, 0),
            replayed=replayed > 0,
            unannounced=plain > max(self.published, 1) + replayed,
            wanted=min(max(self.published - self.again, 1), self.confirms),
            earlier=len(fresh) < len(kinds),
        )


class _Judged(NamedTuple):
    """What became of the tasks of one id, without those of earlier runs. wanted: how many must have ended."""

    done: int
    dead: int
    replayed: bool
    unannounced: bool
    wanted: int
    earlier: bool


def audit(events: Iterable[dict[str, Any]], left: Collection[str] | None = None) -> Verdict:
    """The verdict on events. left: ids that are still in the queue, None if nobody looked.

    The events of one worker have to come in their order. Those of several may be mixed, or follow each other.
    """
    tasks: dict[str, _Task] = {}
    open_starts: dict[tuple[str, str], bool] = {}  # (worker, id): redelivered
    redelivered = nameless = 0
    heard: dict[str, None] = {}
    truncated: list[str] = []
    reasonless: dict[str, None] = {}
    unstarted: dict[str, None] = {}
    unfinished: dict[tuple[str, str], str] = {}  # (log, producer): what it left
    for event in events:
        word, task_id, who = event["event"], event.get("id"), event.get("who", "")
        if who:
            heard[who] = None
        if word == "truncated":
            truncated.append(f"{event['log']} line {event['line']}")
        if word == "dead_lettered":
            if not str(event.get("reason") or "").strip():
                reasonless["(no id)" if task_id is None else task_id] = None
            nameless += task_id is None
        elif word == "replayed":
            nameless -= task_id is None
        elif word in ("published", "confirmed"):
            unfinished[event.get("log", ""), who] = UNENDED
        elif word == "finished":
            unconfirmed = "" if event.get("confirmed") == event.get("published") else "not all is confirmed"
            left_out = f"not published: {event['left']}" if event.get("left") else unconfirmed
            unfinished[event.get("log", ""), who] = left_out
        if task_id is None:
            continue
        if word == "started":
            open_starts[who, task_id] = event.get("redelivered") is True
            redelivered += open_starts[who, task_id]
        elif word in ENDS_OF_A_START:
            open_starts.pop((who, task_id), None)
        elif word in ("published", "confirmed", "done", "dead_lettered", "replayed"):
            task = tasks.setdefault(task_id, _Task())
            if word == "published":
                task.published += 1
                task.again += bool(event.get("again"))
                task.began = min(task.began, _time(event, math.inf))
            elif word == "confirmed":
                task.confirms += 1
            else:
                if word == "done":
                    announced = open_starts.pop((who, task_id), None)
                    if announced is None:
                        unstarted[task_id] = None
                    word = "done again" if announced else "done"
                task.ends += (_time(event, math.inf), word)

    in_queue = Counter(left or ())
    counts: Counter[str] = Counter()
    named: dict[str, list[str]] = {name: [] for name in BY_ID}
    for i, task in tasks.items():
        it = task.judge()
        ended = it.done or it.dead
        for name, holds in (
            ("published", task.published),
            ("confirmed", task.confirms),
            ("done", it.done),
            ("dead", it.dead),
            ("replayed", it.replayed),
        ):
            counts[name] += bool(holds)
        for name, found in (
            ("lost", it.done + it.dead + in_queue[i] < it.wanted),
            ("twice", it.done > 1),
            ("unannounced", it.unannounced),
            ("done_and_dead", it.done and it.dead),
            ("unconfirmed", ended and not task.confirms),
            ("pending", task.published and not task.confirms and not ended),
            ("repeated", task.published - task.again > 1),
            ("earlier", it.earlier),
        ):
            if found:
                named[name].append(i)
    return Verdict(
        published=counts["published"],
        confirmed=counts["confirmed"],
        done=counts["done"],
        redelivered=redelivered,
        dead=max(nameless, 0) + counts["dead"],
        replayed=counts["replayed"],
        reasonless=list(reasonless),
        unstarted=list(unstarted),
        unfinished=[f"{who}{f' in {log}' if log else ''} ({why})" for (log, who), why in unfinished.items()
                    if why],
        heard=list(heard),
        truncated=truncated,
        queue_known=left is not None,
        **named,
    )


def _time(event: dict[str, Any], otherwise: float) -> float:
    time = event.get("time")
    return time if isinstance(time, (int, float)) else otherwise


def _named(what: str, ids: list[str]) -> list[str]:
    """`what: id, id and 3 more`, or nothing without ids."""
    if not ids:
        return []
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return [f"{what}: {', '.join(printable(i) for i in ids[:SHOWN])}{more}"]
