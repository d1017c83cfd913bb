"""Bars per contender: plot.py PICTURE RESULTS.json ... (in bench/.venv, where matplotlib is)."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # after the choice of a backend that needs no screen

PANELS = {  # by the titles of the rows
    "Publishing 20,000 tasks from a file, confirmed": "Publishing, confirmed (tasks/s)",
    "`producer.py --count 1`, whole process": "Publishing one task (ms)",
    "Empty tasks, one worker": "1 worker, prefetch 1 (tasks/s)",
    "Empty tasks, one worker, prefetch 50": "1 worker, prefetch 50 (tasks/s)",
    "Empty tasks, 4 workers": "4 workers, prefetch 1 (tasks/s)",
    "Empty tasks, 4 workers, prefetch 50": "4 workers, prefetch 50 (tasks/s)",
    "CPU per 10,000 empty tasks, one worker": "CPU per 10,000 empty tasks (s)",
    "Memory of an idle worker": "Memory of an idle worker (MiB)",
}
OURS, BOUND, PEER = "#d9622b", "#b8b8b8", "#4a7fa7"


def panel(axes: Any, title: str, row: dict[str, Any]) -> None:
    medians = {name: statistics.median(got) for name, got in row["values"].items()}
    names = sorted(medians, key=lambda name: medians[name], reverse=row["less_is_better"])
    colours = [OURS if name == "tareas" else BOUND if "bound" in name or "bare" in name else PEER for name in names]
    values = [medians[name] for name in names]
    low = [medians[name] - min(row["values"][name]) for name in names]
    high = [max(row["values"][name]) - medians[name] for name in names]
    axes.barh(names, values, color=colours, xerr=[low, high], error_kw={"ecolor": "#555555", "elinewidth": 0.8})
    top = max(max(row["values"][name]) for name in names)
    for place, name in enumerate(names):
        axes.text(max(row["values"][name]) + 0.02 * top, place, f"{medians[name]:,.{0 if top >= 100 else 1}f}",
                  va="center", fontsize=9)
    axes.set_title(f"{title}: {'less' if row['less_is_better'] else 'more'} is better", fontsize=9, loc="left")
    axes.set_xlim(0, 1.22 * top)
    axes.tick_params(labelsize=9, length=0)
    axes.set_xticks([])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def main(picture: str, *files: str) -> None:
    rows = {row["title"]: row for name in files for row in json.loads(Path(name).read_text())}
    found = [(title, rows[name]) for name, title in PANELS.items() if name in rows]
    if found:
        lines = (len(found) + 1) // 2
        figure, grid = pyplot.subplots(lines, 2, figsize=(8.5, 2.3 * lines), squeeze=False)
        for axes, (title, row) in zip(grid.flat, found, strict=False):
            panel(axes, title, row)
        for axes in grid.flat[len(found):]:
            axes.set_visible(False)
        figure.tight_layout()
        figure.savefig(picture, facecolor="white")


main(*sys.argv[1:])
