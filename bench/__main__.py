"""Measure the project beside its peers on one private RabbitMQ: python -m bench [--only ROW] [--runs N] [--quick]

Each turn of a row measures all contenders, and the ratios within the turns are judged: what else the machine does
touches all alike. Writes bench/RESULTS.md and imagenes/bench.svg, from the rows measured now and those of before
(bench/results). Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from bench import report, rows
from bench.contenders import HERE, PYTHON, ROOT, prepare
from bench.measure import Bench
from tareas.errors import Trouble
from tareas.lab.node import Node
from tareas.lab.programs import find_programs

ROWS: dict[str, Callable[[Bench, rows.Size], Iterator[rows.Row]]] = {
    "publish": rows.publishing,
    "stdin": rows.million,
    "start": rows.starting,
    "work": partial(rows.working, workers=1),
    "work-4": partial(rows.working, workers=4),
    "work-50": partial(rows.working, workers=1, prefetch=50),
    "work-50-4": partial(rows.working, workers=4, prefetch=50),
    "idle": rows.idling,
    "makespan": rows.makespan,
    "kill": rows.killing,
    "growth": rows.growth,
    "length": rows.length,
}
RESULTS = HERE / "results"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="turns of each row (5)")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--share", type=float, default=1.0, help="of the tasks, for a slow or busy machine (1)")
    parser.add_argument("--quick", action="store_true", help="two small turns, to see that it works; nothing is kept")
    options = parser.parse_args(argv)
    programs = find_programs()
    if programs is None:
        raise Trouble("RabbitMQ is not installed: name the folder of its programs in RABBITMQ_BIN")
    prepare()
    size = rows.Size(2, 0.1) if options.quick else rows.Size(options.runs, options.share)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Node(Path(folder, "node"), programs) as node:
        print(f"RabbitMQ {node.version}, {os.cpu_count()} cores")
        for name in options.only:
            before = os.getloadavg()[0]
            found = []
            for row in ROWS[name](Bench(node, Path(folder)), size):
                print(f"{row.title}\n{report.claims(row)}", flush=True)
                claims = [asdict(claim) | {"met": claim.met} for claim in row.claims]
                turns = min(map(len, row.values.values()), default=0)
                about = {"claims": claims, "turns": turns, "share": size.share, "rabbitmq": node.version}
                found.append(asdict(row) | about | {"load": [before, os.getloadavg()[0]]})
            if not options.quick:
                RESULTS.mkdir(exist_ok=True)
                (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1))
    if not options.quick:
        kept = [RESULTS / f"{name}.json" for name in ROWS if (RESULTS / f"{name}.json").exists()]
        every = [row for path in kept for row in json.loads(path.read_text())]
        (HERE / "RESULTS.md").write_text(report.markdown(every))
        subprocess.run([PYTHON, HERE / "plot.py", ROOT / "imagenes" / "bench.svg", *kept], check=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Trouble as trouble:
        sys.exit(f"bench: {trouble}")
