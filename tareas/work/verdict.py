"""What to do with a delivery, and with its task when the handler has ended. worker.py carries these decisions out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tareas.errors import InvalidTask, Reject
from tareas.task import decode
from tareas.work.handlers import describe

MAX_REST = 30.0  # seconds between two attempts


@dataclass(frozen=True)
class Do:
    """Do this task. attempt: from 1 on."""

    task: dict[str, Any]
    attempt: int


@dataclass(frozen=True)
class Ack:
    """The task is done."""


@dataclass(frozen=True)
class GiveBack:
    """Give the task back to its queue, after a rest of so many seconds."""

    rest: float


@dataclass(frozen=True)
class Bury:
    """Dead-letter the message for this reason. attempts: that it had. task_id: None if it has none that can be used."""

    reason: str
    attempts: int
    task_id: str | None


def attempt(redelivered: bool, headers: dict[str, Any] | None, rabbitmq: tuple[int, ...]) -> int:
    """Which attempt this delivery is, from 1 on. rabbitmq: its version.

    Only a redelivery carries counts that RabbitMQ wrote. On a first delivery a publisher may have forged them.
    Since 4.3 x-delivery-count no longer counts a nack, x-acquired-count does. Older versions leave an x-acquired-count
    of the publisher's alone.
    """
    if not redelivered:
        return 1
    count = (headers or {}).get("x-acquired-count" if rabbitmq >= (4, 3) else "x-delivery-count")
    return 1 + count if isinstance(count, int) and count > 0 else 2


def on_delivery(
    body: bytes, attempt: int, max_attempts: int, *, simulated: bool, readable: bool = True,
    cut: tuple[str, str] | None = None,
) -> Do | Bury:
    """What to do with a message that has arrived.

    simulated: this worker has no handler. readable: its headers can be read. cut: the id of the task that lost its
    connection to RabbitMQ last in this worker, and why.
    """
    try:
        task = decode(body, simulated=simulated)
        if not readable:
            raise InvalidTask("its headers cannot be read (a timestamp out of range?)", task["id"])
    except InvalidTask as error:
        return Bury(f"invalid task: {error}", attempt, error.task_id)
    if attempt > max_attempts:
        why = cut[1] if cut and cut[0] == task["id"] else (
            "the worker died, lost its connection, took longer than RabbitMQ's consumer_timeout, or was stopped and "
            "gave the task back")
        return Bury(f"{attempt - 1} attempts used up, the last without an answer: {why}", attempt - 1, task["id"])
    return Do(task, attempt)


def on_end(failure: BaseException | None, do: Do, max_attempts: int, retry_delay: float) -> Ack | GiveBack | Bury:
    """What to do with a task whose handler has ended. failure: what it raised.

    retry_delay: seconds of the rest before attempt 2; it doubles before each attempt after that.
    """
    if failure is None:
        return Ack()
    if isinstance(failure, Reject):
        return Bury(f"rejected: {describe(failure)}", do.attempt, do.task["id"])
    if do.attempt >= max_attempts:
        return Bury(describe(failure, place=True), do.attempt, do.task["id"])
    return GiveBack(min(retry_delay * 2 ** min(do.attempt - 1, 30), MAX_REST))
