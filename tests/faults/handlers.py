"""What the workers of some rows call: worker.py --handler tests.faults.handlers:NAME."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tareas import Reject


def work(task: dict[str, Any]) -> None:
    """Sleep `complexity` seconds; reject a task that carries "reject"."""
    time.sleep(task["complexity"])
    if "reject" in task:
        raise Reject("the task asks for it")


def reject(task: dict[str, Any]) -> None:
    """Reject every task."""
    raise Reject(f"{task['id']} is not wanted")


def hold(task: dict[str, Any]) -> None:
    """Wait for the file that the task names in "until", if it names one; then the same as work()."""
    while not Path(task.get("until", "/")).exists():
        time.sleep(0.02)
    work(task)
