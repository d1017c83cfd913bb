"""The figures as text: on the terminal as they come, and the whole as bench/RESULTS.md."""

from __future__ import annotations

import platform
import statistics
import subprocess
from collections.abc import Sequence
from typing import Any

from bench.contenders import ALL, PYTHON, TAREAS
from bench.rows import Row

PACKAGES = ("pika", "aio-pika", "kombu", "amqp", "celery", "dramatiq")


def number(value: float) -> str:
    """Three digits that count: 12,345, 12.3, 0.123."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    return f"{number(min(values))}–{number(max(values))}"


def figure(values: Sequence[float], mark: str = "") -> str:
    """The median, marked, with the least and the most."""
    return f"{mark}{number(statistics.median(values))}{mark} ({spread(values)})" if values else "no figure"


def claims(row: Row) -> str:
    """For the terminal, as soon as a row is measured."""
    lines = [f"  {name:<22}{number(statistics.median(got)):>10}  ({spread(got)})" for name, got in row.values.items()]
    for claim in row.claims:
        lines.append(f"  {'yes' if claim.met else 'NO ':<4}{claim.text}: {figure(claim.got)}")
    return "\n".join(lines)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The whole of RESULTS.md."""
    parts = ["# Figures", "", "Made by `make bench`: medians, and in brackets the least and the most of all turns. A "
             "ratio is taken within each turn, so that what else the machine does touches both sides alike.", "",
             "| what | asked | got | |", "|---|---|---|---|"]
    for row in rows:
        for claim in row["claims"]:
            got = figure(claim["got"], "**")
            parts.append(f"| {row['title']} | {claim['text']} | {got} | {'✓' if claim['met'] else 'missed'} |")
    for row in rows:
        share = "" if row["share"] == 1 else f" with {row['share']:g} of the tasks"
        sign = "less" if row["less_is_better"] else "more"
        parts += ["", f"## {row['title']}", "", f"{row['turns']} turns{share}; in {row['unit']}, {sign} is better. "
                  f"Load of the machine before and after: {row['load'][0]:.1f}, {row['load'][1]:.1f}; RabbitMQ "
                  f"{row['rabbitmq']}.", "", f"| | {row['unit']} | {TAREAS.name} over it |", "|---|---|---|"]
        ours = row["values"].get(TAREAS.name)
        for name, got in row["values"].items():
            over = [a / b for a, b in zip(ours, got, strict=False) if b] if ours and got is not ours else None
            parts.append(f"| {name} | {figure(got)} | {figure(over) if over else ''} |")
    parts += ["", "## Who, and how configured", "", "All: the same durable quorum queue with the arguments of "
              "`tareas.rabbit.queues.declarations`, persistent, confirmed, manual ack, the same prefetch (1 where "
              "nothing else is said), the same tasks of 100 bytes (in their own envelopes with dramatiq and celery). "
              "Workers of empty tasks are measured while they run, on a queue that was filled before (with copies of "
              "one message, where the envelope is their own).", ""]
    parts += [f"- **{contender.name}**: {contender.how}" for contender in ALL]
    return "\n".join([*parts, "", f"{versions()}.", ""])


def versions() -> str:
    code = f"from importlib.metadata import version\nprint(', '.join(f'{{p}} {{version(p)}}' for p in {PACKAGES}))"
    packages = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return f"Python {platform.python_version()}, {platform.system()} {platform.machine()}; {packages}"
