"""A queue's figures for a person, and how fast they change."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from tareas.text import quoted


def pace(seen: Sequence[tuple[float, int]]) -> dict[str, float | None]:
    """rate: by how many tasks a second the queue shrinks. left: the seconds until it is empty, at that rate.

    seen: (seconds of a steady clock, tasks ready), oldest first. None: not known yet, or the queue does not shrink.
    """
    (began, before), (now, ready) = seen[0], seen[-1]
    if now <= began:
        return {"rate": None, "left": None}
    rate = (before - ready) / (now - began)
    return {"rate": round(rate, 2), "left": round(ready / rate, 1) if rate > 0 else None}


def in_words(facts: dict[str, Any]) -> str:
    """The figures for a person, in one line."""
    parts = [f"{facts['ready']:,} ready"]
    if facts["unacknowledged"] is not None:
        parts.append(f"{facts['unacknowledged']:,} unacknowledged")
    names = f" ({quoted(', '.join(facts['workers']), quotes=False)})" if facts.get("workers") else ""
    parts.append(f"{facts['consumers']:,} consumer{'s' * (facts['consumers'] != 1)}{names}")
    parts.append(f"{facts['dead']:,} dead")
    if facts.get("rate"):
        parts.append(f"{abs(facts['rate']):,.1f} {'fewer' if facts['rate'] > 0 else 'more'} a second")
    if facts.get("left"):
        parts.append(f"about {timedelta(seconds=round(facts['left']))} left")
    return f"{quoted(facts['queue'], quotes=False)}: {', '.join(parts)}"
