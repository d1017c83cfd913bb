"""worker.py, except that it stands still between a task's `done` (or `dead_lettered`) and its ack.

    python -m tests.faults.slow_ack_worker ID [worker.py's options]

It does so for tasks that carry "hold", on their first delivery: there it waits for its SIGKILL, which thus lands
between work and ack for certain. From outside, nobody could aim so well.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import worker
from tareas.cli import run


class Holding:
    """A channel whose basic_ack never comes back."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def basic_ack(self, delivery_tag: int) -> None:
        threading.Event().wait()


class SlowAckWorker(worker.Worker):
    """A worker that holds its acks."""

    def callback(self, ch: Any, method: Any, properties: Any, body: bytes) -> None:
        held = b'"hold"' in body and not method.redelivered
        super().callback(Holding(ch) if held else ch, method, properties, body)


if __name__ == "__main__":
    worker.Worker = SlowAckWorker  # type: ignore[misc]
    sys.exit(run(worker.main))
