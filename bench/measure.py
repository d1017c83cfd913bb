"""Run a contender's commands and measure them from outside, in the same way for all.

The progress of workers is read from marks: a worker of ours writes its events to a file, every other one counts in a
file of shared memory (peers/common.py). So the harness sees each start of a task, and ends all when the last is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contenders import ROOT, TAREAS, Contender
from tareas.lab.node import Node
from tareas.rabbit.addresses import parse
from tareas.rabbit.connect import connect
from tareas.rabbit.connection import Connection
from tareas.rabbit.queues import declarations

BODY = 100  # bytes of a task
DEADLINE = 600.0  # seconds for one measurement
LOOK = 0.01  # seconds between two looks at the marks
SLICE, SLICES = 0.1, 3  # seconds of one, and how many make a turn of running workers
SETTLE = 0.3  # seconds from the last start to the look whether all is done
WARM = 20  # tasks of each worker before it counts, and four windows of its prefetch
MARK = struct.Struct("<Qddd")


class Failed(Exception):
    """A contender did not do its work: its text says which and how."""


def write_tasks(path: Path, count: int, complexities: Sequence[float] = (0,)) -> Path:
    """A JSON Lines file of tasks of 100 bytes each."""
    with path.open("w") as lines:
        for number in range(count):
            head = f'{{"id":"task-{number:08d}","complexity":{complexities[number % len(complexities)]},"pad":"'
            lines.write(f'{head}{"x" * (BODY - len(head) - 2)}"}}\n')
    return path


@dataclass
class Progress:
    """Of one worker process, times in unix seconds."""

    count: int = 0  # tasks started
    first: float = 0.0  # the start of its first task
    last: float = 0.0  # the start of its last
    end: float = 0.0  # the end of its last


class Marks:
    """The progress of all workers of a run, from the files in their folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._events: dict[Path, tuple[Any, Progress, bytes]] = {}

    def read(self) -> dict[str, Progress]:
        """By worker, named by the harness (ours, the C program) or by its process id."""
        found = {path.stem: self._read(path) for path in self.folder.iterdir()}
        return {name: progress for name, progress in found.items() if progress.count}

    def _read(self, path: Path) -> Progress:
        if path.suffix == ".mark":
            data = path.read_bytes()
            return Progress(*MARK.unpack(data)) if len(data) == MARK.size else Progress()
        if path.suffix != ".events":
            return Progress()
        if path not in self._events:
            self._events[path] = path.open("rb"), Progress(), b""
        file, progress, rest = self._events[path]
        *lines, rest = (rest + file.read()).split(b"\n")  # the last one is not whole yet
        self._events[path] = file, progress, rest
        for line in lines:
            when = float(line[9 : line.index(b",")])  # {"time": 1764050000.123, "event": ...
            if b'"event": "started"' in line:
                progress.count += 1
                progress.first = progress.first or when
                progress.last = progress.end = when
            elif b'"event": "done"' in line:
                progress.end = when
        return progress


class Workers:
    """The running workers of one contender, and how far they are."""

    def __init__(self, processes: Sequence[Any], folder: Path) -> None:
        self.processes = processes
        self.marks = Marks(folder)

    @property
    def ended(self) -> bool:
        return all(process.poll() is not None for process in self.processes)

    def wait(self, starts: int, workers: int = 1) -> dict[str, Progress]:
        """Until so many tasks have started, at least one at each of so many workers. Returns the marks."""
        until = time.monotonic() + DEADLINE
        while True:
            seen = self.marks.read()
            started = total(seen)
            if started >= starts and len(seen) >= workers:
                return seen
            if time.monotonic() > until or self.ended:
                raise Failed(f"{started} of {starts} tasks were started, by {len(seen)} of {workers} workers")
            time.sleep(LOOK)

    def signal(self, number: int) -> None:
        for process in self.processes:
            for pid in list(tree(process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def slice(self, seconds: float) -> tuple[int, float, float]:
        """Let paused workers run for this time. Returns the tasks that they started, the real time, their CPU time."""
        before, used, began = total(self.marks.read()), cpu(self.processes), time.perf_counter()
        self.signal(signal.SIGCONT)
        time.sleep(seconds)
        self.signal(signal.SIGSTOP)
        took = time.perf_counter() - began
        return total(self.marks.read()) - before, took, cpu(self.processes) - used


class Bench:
    """One node, and the runs against it. folder: for the tasks and the marks."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node, self.folder = node, folder

    @contextlib.contextmanager
    def queue(self, contender: Contender) -> Iterator[str]:
        """A fresh queue with our arguments; deleted afterwards, with what the contender declared beside it."""
        name = f"bench-{contender.name.split()[0].strip(',')}-{uuid.uuid4().hex[:8]}"
        with self.connection() as connection:
            for declared, arguments in declarations(name):
                connection.queue_declare(declared, durable=True, arguments=arguments)
        try:
            yield name
        finally:
            with self.connection() as connection:
                for suffix in ("", ".dead", ".DQ", ".XQ"):
                    connection.queue_delete(name + suffix)

    def connection(self) -> Connection:
        return connect(parse(self.node.url), "bench")

    def state(self, queue: str) -> Any:
        """message_count (ready ones) and consumer_count."""
        with self.connection() as connection:
            return connection.queue_declare(queue, passive=True)

    def start(
        self, contender: Contender, template: str, queue: str, stdin: Any = None, output: Any = None, **values: object
    ) -> Any:
        """One process of a contender, in a process group of its own."""
        arguments = dict(declarations(queue))[queue]
        environment = {**os.environ, "AMQP_URL": self.node.url, "BENCH_QUEUE": queue,
                       "BENCH_PREFETCH": str(contender.prefetch), "dramatiq_queue_prefetch": str(contender.prefetch),
                       "BENCH_ARGUMENTS": json.dumps(arguments), "BENCH_MARKS": str(values.get("mark", ""))}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else ours alone would be compiled at each start
        command = contender.command(template, queue=queue, port=self.node.port, **values)
        return subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=stdin or subprocess.DEVNULL,
            stdout=output or subprocess.DEVNULL,
            stderr=self.stderr(contender).open("a"), start_new_session=True,
        )  # fmt: skip

    def publish(self, contender: Contender, file: Path | None, queue: str, count: int) -> float:
        """Seconds of a whole process that publishes `count` tasks from this file; without one, one task its own way."""
        arguments = dict(declarations(queue))[queue]
        words = " ".join(f"{name}={value}" for name, value in arguments.items())
        before = self.state(queue).message_count
        template = contender.one.replace("{arguments}", words) if file is None else contender.publish
        began = time.perf_counter()
        process = self.start(contender, template, queue, file=file)
        status = ended(process)
        took = time.perf_counter() - began
        if status or self.state(queue).message_count != before + count:
            raise Failed(f"{contender.name}: publishing ended with {status}: {self.said(contender)}")
        return took

    def publish_from_stdin(self, file: Path, queue: str, count: int) -> tuple[float, float]:
        """`cat FILE | producer.py -`: its seconds, and its peak memory in MiB."""
        peak, began = 0.0, time.perf_counter()
        with subprocess.Popen(["cat", file], stdout=subprocess.PIPE) as cat:
            process = self.start(TAREAS, TAREAS.publish, queue, stdin=cat.stdout, file="-")
            assert cat.stdout
            cat.stdout.close()  # the producer has it: if the producer dies, cat ends too
            while process.poll() is None:
                peak = max(peak, memory([process], "VmHWM"))
                time.sleep(LOOK)
        took = time.perf_counter() - began
        if process.returncode or self.state(queue).message_count != count:
            raise Failed(f"producer.py - ended with {process.returncode}: {self.said(TAREAS)}")
        return took, peak

    def fill(self, contender: Contender, queue: str, count: int) -> None:
        """Put `count` empty tasks into the queue; for a contender with an envelope, copies of one that it published.

        To publish all of them itself would take it longer than all that is measured afterwards.
        """
        first = 1 if contender.envelope else count
        by = contender if contender.envelope else TAREAS
        self.publish(by, write_tasks(self.folder / "fill.jsonl", first), queue, first)
        if count > first:
            taken: list[Any] = []
            with self.connection() as connection:
                connection.basic_consume(queue, lambda *it: taken.extend(it), auto_ack=True, consumer_tag="bench")
                while not taken:
                    connection.process_data_events(DEADLINE)
                connection.basic_cancel("bench")
                for _ in range(count):
                    connection.basic_publish("", queue, taken[3], taken[2])
                connection.flush()
                self.wait_until(queue, lambda state: state.message_count == count)  # unconfirmed: a close may lose some

    def slices(self, tasks: dict[Contender, int], workers: int, turns: int) -> Any:
        """Tasks/s, and seconds of CPU per 10,000 tasks, by contender, a value for each turn.

        tasks: how many there are for each. All have their workers started, on full queues of their own, and paused
        (SIGSTOP). A turn gives each of them SLICES short slices, one after the other. So what else the machine does,
        which changes from second to second, touches all alike. A contender with an empty queue has finished. One that
        does not work is reported and left out.
        """
        rates: dict[str, list[float]] = {contender.name: [] for contender in tasks}
        costs: dict[str, list[float]] = {contender.name: [] for contender in tasks}
        with contextlib.ExitStack() as stack:
            filled = {contender: stack.enter_context(self.queue(contender)) for contender in tasks}
            for contender, queue in filled.items():
                self.fill(contender, queue, tasks[contender])
            running: dict[Contender, Workers] = {}
            for contender in reversed(tasks):  # ours, the first, has the shortest heartbeat: it is paused last
                it = stack.enter_context(self.workers(contender, filled[contender], workers, drain=True))
                try:
                    it.wait((WARM + 4 * contender.prefetch) * workers, workers)
                except Failed as error:
                    print(f"    {contender.name}: {error}: {self.said(contender)}", flush=True)
                    continue
                it.signal(signal.SIGSTOP)
                running[contender] = it
            for turn in range(turns):
                sums = {contender: [0.0, 0.0, 0.0] for contender in running}
                for number in range(SLICES):
                    for contender in shifted(list(running), turn + number):
                        got = running[contender].slice(SLICE)
                        sums[contender] = [one + more for one, more in zip(sums[contender], got, strict=True)]
                for contender, (done, seconds, used) in sums.items():
                    if self.state(filled[contender]).message_count == 0:
                        print(f"    {contender.name}: all done after {turn} turns", flush=True)
                        del running[contender]
                        continue
                    rates[contender.name].append(done / seconds)
                    costs[contender.name].append(used / max(done, 1) * 10_000)
            for contender, it in running.items():
                it.signal(signal.SIGKILL)
                left = tasks[contender] - total(it.marks.read())
                window = contender.prefetch * workers
                # All that was started is acknowledged, except what was at hand.
                self.wait_until(filled[contender], lambda s, n=left, w=window: n <= s.message_count <= n + w)
        return rates, costs

    def run(self, contender: Contender, file: Path, count: int, workers: int) -> dict[str, Progress]:
        """Start the workers, then have the contender publish the tasks. Returns the marks when all are done."""
        with self.queue(contender) as queue, self.workers(contender, queue, workers) as running:
            self.wait_for_consumers(contender, queue, running, workers)
            publisher = self.start(contender, contender.publish, queue, file=file)
            running.wait(count)
            publisher.wait()
            time.sleep(SETTLE)
            seen = running.marks.read()
            if total(seen) != count or len(seen) != workers or self.state(queue).message_count:
                raise Failed(f"{contender.name}: {total(seen)} starts of {count} tasks by {len(seen)} workers")
            return seen

    @contextlib.contextmanager
    def workers(self, contender: Contender, queue: str, count: int, drain: bool = False) -> Iterator[Workers]:
        """`count` running workers; killed afterwards, with all their processes."""
        processes: list[Any] = []
        with tempfile.TemporaryDirectory(dir=self.folder) as marks:
            try:
                for number in range(1 if contender.pool else count):
                    name = f"worker-{number}"
                    with Path(marks, f"{name}.events" if contender.events else "output").open("w") as output:
                        processes.append(self.start(
                            contender, contender.work, queue, output=output, workers=count, name=name, mark=marks,
                            drain="--drain" if drain else "",
                        ))  # fmt: skip
                yield Workers(processes, Path(marks))
            finally:
                Workers(processes, Path(marks)).signal(signal.SIGKILL)
                for process in processes:
                    process.wait()

    def wait_for_consumers(self, contender: Contender, queue: str, running: Workers, workers: int) -> None:
        """Until they all consume."""
        count = contender.consumers or workers
        self.wait_until(queue, lambda state: state.consumer_count >= count or running.ended)
        if running.ended:
            raise Failed(f"{contender.name}: its workers ended: {self.said(contender)}")

    def wait_until(self, queue: str, good: Callable[[Any], object], seconds: float = 60) -> None:
        """Until the state of the queue is a good one."""
        until = time.monotonic() + seconds
        while not good(state := self.state(queue)):
            if time.monotonic() > until:
                raise Failed(f"{queue} is still {state}")
            time.sleep(0.05)

    def stderr(self, contender: Contender) -> Path:
        return self.folder / f"{contender.name}.stderr"

    def said(self, contender: Contender) -> str:
        """The end of what its processes wrote to stderr."""
        return self.stderr(contender).read_text()[-1000:].strip()


def ended(process: Any) -> int:
    """Wait for its end, for DEADLINE at most. Returns its exit status. wait(timeout) would look only every 50 ms."""
    watchdog = threading.Timer(DEADLINE, process.kill)
    watchdog.start()
    try:
        return int(process.wait())
    finally:
        watchdog.cancel()


def shifted(order: Sequence[Any], places: int) -> Sequence[Any]:
    """The same order from another place on: nobody is always the first."""
    places %= max(len(order), 1)
    return [*order[places:], *order[:places]]


def total(seen: dict[str, Progress]) -> int:
    """Tasks started."""
    return sum(progress.count for progress in seen.values())


def span(seen: dict[str, Progress]) -> float:
    """Seconds from the start of the first task to the end of the last."""
    return max(worker.end for worker in seen.values()) - min(worker.first for worker in seen.values())


def tree(pid: int) -> Iterator[int]:
    """The process and all below it (Linux)."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from tree(int(child))


def cpu(processes: Sequence[Any]) -> float:
    """Seconds of CPU that they and their children have used, to the nanosecond (Linux)."""
    return sum(
        int(thread.read_text().split()[0]) / 1e9
        for process in processes for pid in tree(process.pid)
        for thread in Path(f"/proc/{pid}/task").glob("*/schedstat")
    )  # fmt: skip


def memory(processes: Sequence[Any], field: str = "VmRSS") -> float:
    """MiB in memory, of them and their children together; VmHWM: the peak (Linux)."""
    return sum(
        int(line.split()[1]) / 1024
        for process in processes for pid in tree(process.pid)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{field}:")
    )  # fmt: skip
