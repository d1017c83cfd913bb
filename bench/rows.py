"""The rows of the table: what is measured, in turns, and what is asked of the figures."""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.contenders import (
    AIO_PIKA,
    ALL,
    BARE,
    BOUND_C,
    CELERY,
    DRAMATIQ,
    KOMBU,
    TAREAS,
    TASK_SYSTEMS,
    TUTORIAL,
    Contender,
    present,
)
from bench.measure import Bench, Failed, cpu, memory, shifted, span, write_tasks

MILLIONS = 3  # turns of the row that takes a minute for each
Values = dict[str, list[float]]  # by contender (or case), one figure a turn


@dataclass
class Claim:
    """A figure asked for: `got`, one value a turn, at least or at most `asked`."""

    text: str
    got: list[float]
    asked: float
    at_least: bool
    digits: int = 2

    @property
    def met(self) -> bool:
        if not self.got:  # ours has failed
            return False
        median = round(statistics.median(self.got), self.digits)
        return median >= self.asked if self.at_least else median <= self.asked


@dataclass
class Row:
    title: str
    unit: str
    values: Values
    claims: list[Claim] = field(default_factory=list)
    less_is_better: bool = False

    def __post_init__(self) -> None:
        """Leave out who has no figure: a contender that failed, which was reported."""
        self.values = {name: got for name, got in self.values.items() if got}


@dataclass
class Size:
    """Turns, and the share of the tasks. The titles of the rows say what a share of 1 is."""

    runs: int
    share: float

    def of(self, tasks: int) -> int:
        return max(10, int(tasks * self.share))


def in_turns(runs: int, contenders: Sequence[Contender], measure: Callable[[Contender], float]) -> Values:
    """Each contender once a turn; every turn begins with another one. Who fails is reported and left out."""
    values: Values = {contender.name: [] for contender in contenders}
    for turn in range(runs):
        for contender in shifted(contenders, turn):
            if contender.name in values:
                try:
                    values[contender.name].append(measure(contender))
                    print(f"    {contender.name:<18}{values[contender.name][-1]:12,.2f}", flush=True)
                except Failed as error:
                    print(f"    {error}", flush=True)
                    del values[contender.name]
    return values


def ratios(values: Values, divisor: str, dividend: str = TAREAS.name) -> list[float]:
    """What the dividend got divided by what the divisor got, turn by turn."""
    return [one / other for one, other in zip(values.get(dividend, []), values.get(divisor, []), strict=False) if other]


def compare(values: Values, asked: dict[Contender, float], *, at_least: bool) -> list[Claim]:
    sign = "at least" if at_least else "at most"
    return [
        Claim(f"{sign} {bound:g} × {contender.name}", ratios(values, contender.name), bound, at_least)
        for contender, bound in asked.items() if values.get(contender.name)
    ]  # fmt: skip


def best(values: Values, among: Sequence[Contender], *, most: bool = True) -> Contender:
    """The best of the peers by its median."""
    pick = max if most else min
    return pick((c for c in among if values.get(c.name)), key=lambda c: statistics.median(values[c.name]))


# -- publishing


def publishing(bench: Bench, size: Size) -> Iterator[Row]:
    """Tasks/s of 20,000 from a file: their time less that of one task. Starting has a row of its own."""
    one = write_tasks(bench.folder / "one.jsonl", 1)
    many = size.of(20_000)
    few = many // 10  # for those that wait for each confirm: their rate is the same
    files = {count: write_tasks(bench.folder / f"{count}.jsonl", count) for count in (many, few)}

    counts = {contender.name: many if contender.pipelined else few for contender in ALL}
    starts: Values = {}

    def measure(contender: Contender) -> float:
        count, took = counts[contender.name], []
        for _ in range(3 if contender in (TAREAS, BOUND_C) else 1):  # theirs takes half a second
            with bench.queue(contender) as queue:
                starts.setdefault(contender.name, []).append(bench.publish(contender, one, queue, 1))
                took.append(bench.publish(contender, files[count], queue, count))
        return statistics.median(took)

    contenders = present(TAREAS, TUTORIAL, AIO_PIKA, KOMBU, DRAMATIQ, CELERY, BOUND_C)
    values = in_turns(size.runs, contenders, measure)
    for name, times in values.items():
        start = min(statistics.median(starts[name]), 0.9 * min(times))
        values[name] = [(counts[name] - 1) / (took - start) for took in times]
    peer = best(values, (TUTORIAL, AIO_PIKA, KOMBU, DRAMATIQ, CELERY))
    claims = compare(values, {peer: 6, BOUND_C: 0.85}, at_least=True)
    yield Row("Publishing 20,000 tasks from a file, confirmed", "tasks/s", values, claims)


def million(bench: Bench, size: Size) -> Iterator[Row]:
    """A million tasks from stdin: peak memory; and tasks/s beside those of 20,000, less the time of a thousand.

    The C bound does the same from a file: it shows what a long queue costs RabbitMQ.
    """
    few, some, many = (size.of(count) for count in (1_000, 20_000, 1_000_000))
    contenders = present(TAREAS, BOUND_C)
    names = {(by, count): f"{by.name}, {count:,} tasks" for by in contenders for count in (some, many)}
    rates: Values = {name: [] for name in names.values()}
    peaks: Values = {f"{count:,} tasks": [] for count in (few, some, many)}
    files = {count: write_tasks(bench.folder / f"stdin-{count}.jsonl", count) for count in (few, some, many)}

    def measure(by: Contender, count: int) -> float:
        with bench.queue(by) as queue:
            if by is not TAREAS:
                return bench.publish(by, files[count], queue, count)
            took, peak = bench.publish_from_stdin(files[count], queue, count)
            peaks[f"{count:,} tasks"].append(peak)
            return took

    for _ in range(min(size.runs, MILLIONS)):
        took = {
            (by, count): statistics.median(measure(by, count) for _ in range(1 if count == many else 3))
            for count in (few, some, many) for by in contenders
        }  # fmt: skip
        for (by, count), name in names.items():
            rates[name].append((count - few) / (took[by, count] - took[by, few]))
    claims = [Claim("under 32 MiB", peaks[f"{many:,} tasks"], 32, at_least=False, digits=1)]
    yield Row("Peak memory of `producer.py -`", "MiB", peaks, claims, less_is_better=True)
    ours, *bound = (ratios(rates, names[by, some], names[by, many]) for by in contenders)
    claims = [Claim("a million at least at 0.9 of 20,000's rate", ours, 0.9, at_least=True)]
    if bound:
        over = [one / other for one, other in zip(ours, *bound, strict=True)]
        claims.append(Claim(f"or at as much of it as {BOUND_C.name} keeps", over, 1, at_least=True))
    yield Row("Publishing from stdin", "tasks/s", rates, claims)


def starting(bench: Bench, size: Size) -> Iterator[Row]:
    """Milliseconds of a whole process that publishes one task."""
    one = write_tasks(bench.folder / "one.jsonl", 1)

    def measure(contender: Contender) -> float:
        with bench.queue(contender) as queue:
            file = None if contender.one else one
            bench.publish(contender, file, queue, 1)  # all that it declares beside the queue is there afterwards
            return 1000 * bench.publish(contender, file, queue, 1)

    contenders = present(TAREAS, BARE, AIO_PIKA, KOMBU, DRAMATIQ, CELERY, BOUND_C)
    values = in_turns(2 * size.runs, contenders, measure)
    claims = compare(values, {BARE: 1.2}, at_least=False)
    yield Row("`producer.py --count 1`, whole process", "ms", values, claims, less_is_better=True)


# -- working


def working(bench: Bench, size: Size, workers: int, prefetch: int = 1) -> Iterator[Row]:
    """Tasks/s, and CPU, of workers on a queue of empty tasks; all with the same prefetch."""
    few, many = (5_000, 10_000) if prefetch == 1 else (20_000, 60_000 + 10_000 * workers)
    contenders = [each.at(prefetch) for each in present(TAREAS, TUTORIAL, KOMBU, *TASK_SYSTEMS, BOUND_C)]
    tasks = {each: (few if each.envelope else many) * size.runs // 5 for each in contenders}
    values, used = bench.slices(tasks, workers, size.runs)
    system = best(values, TASK_SYSTEMS)
    asked = {
        (1, 1): {TUTORIAL: 0.95},
        (4, 1): {TUTORIAL: 0.95},
        (1, 50): {BOUND_C: 0.7, KOMBU: 1.5, system: 4},
        (4, 50): {KOMBU: 1.3, system: 3},
    }[workers, prefetch]
    how = ("one worker" if workers == 1 else f"{workers} workers") + (f", prefetch {prefetch}" if prefetch > 1 else "")
    yield Row(f"Empty tasks, {how}", "tasks/s", values, compare(values, asked, at_least=True))
    claims = compare(used, {TUTORIAL: 1.3}, at_least=False) if prefetch == 1 else []
    yield Row(f"CPU per 10,000 empty tasks, {how}", "s", used, claims, less_is_better=True)


def idling(bench: Bench, size: Size) -> Iterator[Row]:
    """CPU and memory of one worker that waits at an empty queue, its output to a file: all of them side by side."""
    seconds = 10 if size.share == 1 else 2
    contenders = present(TAREAS, TUTORIAL, KOMBU, *TASK_SYSTEMS)
    used: Values = {contender.name: [] for contender in contenders}
    sizes: Values = {contender.name: [] for contender in contenders}
    with contextlib.ExitStack() as stack:
        running = {}
        for contender in contenders:
            queue = stack.enter_context(bench.queue(contender))
            workers = stack.enter_context(bench.workers(contender, queue, 1))
            bench.wait_for_consumers(contender, queue, workers, 1)
            running[contender.name] = workers.processes
        time.sleep(2)  # what starting leaves to do
        for _ in range(size.runs):
            before = {name: cpu(processes) for name, processes in running.items()}
            time.sleep(seconds)
            for name, processes in running.items():
                used[name].append(100 * (cpu(processes) - before[name]) / seconds)
                sizes[name].append(memory(processes))
    claims = [Claim("under 0.2 %", used[TAREAS.name], 0.2, at_least=False)]
    yield Row("CPU of an idle worker", "% of a core", used, claims, less_is_better=True)
    claims = [Claim("under 32 MiB", sizes[TAREAS.name], 32, at_least=False, digits=1)]
    yield Row("Memory of an idle worker", "MiB", sizes, claims, less_is_better=True)


def makespan(bench: Bench, size: Size) -> Iterator[Row]:
    """200 tasks of 0 to 50 ms by four waiting workers, over the best schedule that is possible.

    Ours with prefetch 2; each peer with the one that suits it best, found in a turn of its own.
    """
    workers, dice = 4, random.Random(1)
    complexities = [round(dice.uniform(0, 0.05), 4) for _ in range(200)]
    file = write_tasks(bench.folder / "mixed.jsonl", len(complexities), complexities)
    ideal = sum(complexities) / workers

    def measure(contender: Contender) -> float:
        return span(bench.run(contender, file, len(complexities), workers)) / ideal

    peers = [[peer.at(n, named=True) for n in (1, 2, 10)] for peer in (TUTORIAL, KOMBU, *TASK_SYSTEMS)]
    tried = in_turns(1, [case for cases in peers for case in cases], measure)
    suited = [best(tried, cases, most=False) for cases in peers if any(case.name in tried for case in cases)]
    single = TAREAS.at(1, named=True)
    values = in_turns(size.runs, (TAREAS.at(2), single, *suited), measure)
    claims = [Claim("at most 1.06", values.get(TAREAS.name, []), 1.06, at_least=False)]
    claims += compare(values, {best(values, suited, most=False): 1.0}, at_least=False)
    claims.append(Claim(f"{single.name}: at most 1.12", values.get(single.name, []), 1.12, at_least=False))
    yield Row("Four workers, 200 tasks of 0–50 ms: makespan", "× the best", values, claims, less_is_better=True)


def killing(bench: Bench, size: Size) -> Iterator[Row]:
    """Milliseconds from the SIGKILL of a worker to the start of its task at another, which waits."""
    file = write_tasks(bench.folder / "long.jsonl", 1, [60])

    def measure(contender: Contender) -> float:
        with bench.queue(contender) as queue, bench.workers(contender, queue, 2) as running:
            bench.wait_for_consumers(contender, queue, running, 2)
            bench.start(contender, contender.publish, queue, file=file).wait()
            (name,) = running.wait(1)
            holder = next(p for n, p in enumerate(running.processes) if name in (f"worker-{n}", str(p.pid)))
            killed = time.time()
            holder.kill()
            again = max(worker.first for worker in running.wait(2).values())
            return 1000 * float(again - killed)

    values = in_turns(2 * size.runs, (TAREAS, TUTORIAL), measure)
    claims = [Claim("under 10 ms", values.get(TAREAS.name, []), 10, at_least=False, digits=1)]
    yield Row("SIGKILL of a worker to redelivery", "ms", values, claims, less_is_better=True)


def growth(bench: Bench, size: Size) -> Iterator[Row]:
    """Tasks/s of 1 to 16 workers with tasks of 20 ms, over the ideal of 50 tasks/s each.

    kombu's loop runs with the least and with the most workers: what the machine can do.
    """
    values: Values = {}
    for workers in (1, 2, 4, 8, 16):
        count = workers * size.of(100)
        file = write_tasks(bench.folder / "steady.jsonl", count, [0.02])

        def measure(contender: Contender, file: Path = file, count: int = count, workers: int = workers) -> float:
            return count * 0.02 / workers / span(bench.run(contender, file, count, workers))

        print(f"    {workers} workers", flush=True)
        contenders = [TAREAS.at(2), KOMBU.at(2)] if workers in (1, 16) else [TAREAS.at(2)]
        for name, got in in_turns(size.runs, contenders, measure).items():
            values[f"{name}, {workers}"] = got
    claims = [Claim(f"{name} workers: at least 0.97", got, 0.97, at_least=True)
              for name, got in values.items() if name.startswith(TAREAS.name)]  # fmt: skip
    yield Row("Growth with workers, tasks of 20 ms, prefetch 2", "of the ideal", values, claims)


def length(bench: Bench, size: Size) -> Iterator[Row]:
    """Tasks/s of the first thousand tasks from queues of 1,000 to 1,000,000."""
    lengths = (1_000, 10_000, 100_000, size.of(1_000_000))
    values: Values = {f"{count:,}": [] for count in lengths}
    with contextlib.ExitStack() as stack:
        queues = {count: stack.enter_context(bench.queue(TAREAS)) for count in lengths}
        for turn in range(size.runs):
            for count in shifted(lengths, turn):
                queue = queues[count]
                missing = count - bench.state(queue).message_count
                file = write_tasks(bench.folder / "length.jsonl", missing)
                bench.publish(TAREAS, file, queue, missing)
                with bench.workers(TAREAS, queue, 1) as running:
                    (worker,) = running.wait(1_000).values()
                    values[f"{count:,}"].append((worker.count - 1) / (worker.last - worker.first))
    short, *longer = values
    claims = [Claim(f"{name}: at least 0.85 × that of {short}", ratios(values, short, name), 0.85, at_least=True)
              for name in longer]  # fmt: skip
    yield Row("One worker, empty tasks, by the length of the queue", "tasks/s", values, claims)
