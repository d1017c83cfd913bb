"""The fault matrix as a markdown table: every row that passed, one line for each version.

$FAULTS_TABLE names the file (none: nothing is written). A run merges its lines into what is there, under a lock, as
several pytest workers write at once; a row that did not run keeps its old line.
"""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

HEAD = ("row", "RabbitMQ", "tasks", "faults injected", "redelivered", "done twice", "dead", "lost", "seconds")


def record(
    row: str, version: str, *, tasks: int, faults: int, redelivered: int, twice: int, dead: int, lost: int,
    seconds: float,
) -> None:  # fmt: skip
    """Write one line of the table, in the place of an older one of the same row and version."""
    path = os.environ.get("FAULTS_TABLE")
    if path:
        cells = (row, version, *(f"{n:,}" for n in (tasks, faults, redelivered, twice, dead, lost)), f"{seconds:.0f}")
        merge(Path(path), cells)


def merge(path: Path, cells: tuple[str, ...]) -> None:
    """Put the line into the file's table, sorted by row and version."""
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = {found[:2]: found for found in _read(path)} | {cells[:2]: cells}
        order = sorted(lines.values(), key=lambda line: (line[0], [int(n) for n in re.findall(r"\d+", line[1])]))
        rule = ("---", "---", *("---:" for _ in HEAD[2:]))
        fresh = path.with_name(path.name + ".new")
        fresh.write_text("".join(f"| {' | '.join(line)} |\n" for line in (HEAD, rule, *order)))
        fresh.replace(path)


def _read(path: Path) -> list[tuple[str, ...]]:
    if not path.exists():
        return []
    lines = path.read_text().splitlines()[2:]
    return [tuple(cell.strip() for cell in line.strip("| ").split("|")) for line in lines]


def sums(path: Path) -> dict[str, list[int]]:
    """By fault, all its variants and versions together: tasks, faults injected, redelivered, done twice, dead, lost."""
    found: dict[str, list[int]] = {}
    for row, _, *figures, _ in _read(path):
        before = found.setdefault(row.partition(":")[0], [0] * len(figures))
        found[row.partition(":")[0]] = [a + int(b.replace(",", "")) for a, b in zip(before, figures, strict=True)]
    return found
