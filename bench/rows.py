"""The rows of the table: what is measured, in turns, and what is asked of the figures."""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

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
        """Who has no figure (it failed, which was said) has no place."""
        self.values = {name: got for name, got in self.values.items() if got}
        self.claims = [claim for claim in self.claims if claim.got]


@dataclass
class Size:
    """How much of it: turns, and the share of the tasks. Only with all of them is the title of a row the truth."""

    runs: int
    share: float

    def of(self, tasks: int) -> int:
        return max(10, int(tasks * self.share))


def in_turns(runs: int, contenders: Sequence[Contender], measure: Callable[[Contender], float]) -> Values:
    """Each contender once a turn, the first of a turn being another one each time. Who fails is left out, and said."""
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


def ratios(values: Values, over: str, under: str = TAREAS.name) -> list[float]:
    """Turn by turn: what the one got over what the other got."""
    return [one / other for one, other in zip(values.get(under, []), values.get(over, []), strict=False) if other]


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
    """Tasks/s of 20,000 from a file: their time less that of one task, as starting has a row of its own."""
    one = write_tasks(bench.folder / "one.jsonl", 1)
    many = size.of(20_000)
    few = many // 5  # for those that wait for each confirm: their rate is the same
    files = {count: write_tasks(bench.folder / f"{count}.jsonl", count) for count in (many, few)}

    counts = {contender.name: many if contender.pipelined else few for contender in ALL}
    starts: Values = {}

    def measure(contender: Contender) -> float:
        count = counts[contender.name]
        with bench.queue(contender) as queue:
            starts.setdefault(contender.name, []).append(bench.publish(contender, one, queue, 1))
            return bench.publish(contender, files[count], queue, count)

    contenders = present(TAREAS, TUTORIAL, AIO_PIKA, KOMBU, DRAMATIQ, CELERY, BOUND_C)
    values = in_turns(size.runs, contenders, measure)
    for name, times in values.items():
        start = min(statistics.median(starts[name]), 0.9 * min(times))
        values[name] = [(counts[name] - 1) / (took - start) for took in times]
    peer = best(values, (AIO_PIKA, KOMBU, DRAMATIQ, CELERY))
    claims = compare(values, {TUTORIAL: 20, peer: 3, BOUND_C: 0.6}, at_least=True)
    yield Row("Publishing 20,000 tasks from a file, confirmed", "tasks/s", values, claims)


def million(bench: Bench, size: Size) -> Iterator[Row]:
    """A million tasks from stdin beside a thousand: peak memory; and tasks/s, less the time of the thousand.

    The C bound does the same from a file: what RabbitMQ makes of a long queue shows there too.
    """
    few, some, many = 1_000, 20_000, 20_000 + size.of(980_000)
    names = [f"{count:,} tasks" for count in (few, some, many)]
    peaks: Values = {name: [] for name in names}
    contenders = present(TAREAS, BOUND_C)
    rates: Values = {f"{contender.name}, {name}": [] for contender in contenders for name in names[1:]}
    for _ in range(min(size.runs, 5)):
        starts: dict[Contender, float] = {}
        for name, count in zip(names, (few, some, many), strict=True):
            file = write_tasks(bench.folder / "stdin.jsonl", count)
            for contender in contenders:
                with bench.queue(contender) as queue:
                    if contender is TAREAS:
                        took, peak = bench.publish_from_stdin(file, queue, count)
                        peaks[name].append(peak)
                    else:
                        took = bench.publish(contender, file, queue, count)
                if count == few:
                    starts[contender] = took
                else:
                    rates[f"{contender.name}, {name}"].append((count - few) / (took - starts[contender]))
    claims = [
        Claim(f"at most 1.2 × that of {names[0]}", ratios(peaks, names[0], names[2]), 1.2, at_least=False),
        Claim("under 45 MiB", peaks[names[2]], 45, at_least=False, digits=1),
    ]
    yield Row("Peak memory of `producer.py -`", "MiB", peaks, claims, less_is_better=True)
    ours = [f"{TAREAS.name}, {name}" for name in names[1:]]
    claims = [Claim(f"not below that of {names[1]}", ratios(rates, *ours), 1.0, at_least=True)]
    if BOUND_C in contenders:
        bound = ratios(rates, f"{BOUND_C.name}, {names[2]}", ours[1])
        claims.append(Claim(f"at least 0.6 × {BOUND_C.name}, {names[2]}", bound, 0.6, at_least=True))
    yield Row("Publishing from stdin", "tasks/s", rates, claims)


def starting(bench: Bench, size: Size) -> Iterator[Row]:
    """Milliseconds of a whole process that publishes one task."""
    one = write_tasks(bench.folder / "one.jsonl", 1)

    def measure(contender: Contender) -> float:
        with bench.queue(contender) as queue:
            file = None if contender.one else one
            bench.publish(contender, file, queue, 1)  # what it declares beside the queue is there then, for all
            return 1000 * bench.publish(contender, file, queue, 1)

    contenders = present(TAREAS, BARE, AIO_PIKA, KOMBU, DRAMATIQ, CELERY, BOUND_C)
    values = in_turns(2 * size.runs, contenders, measure)
    claims = compare(values, {BARE: 1.25}, at_least=False)
    yield Row("`producer.py --count 1`, whole process", "ms", values, claims, less_is_better=True)


# -- working


def working(bench: Bench, size: Size, workers: int) -> Iterator[Row]:
    """Tasks/s, and CPU, of workers on a queue of empty tasks."""
    count = size.of(5_000 if workers == 1 else 10_000)
    files = [(write_tasks(bench.folder / f"{n}.jsonl", n), n) for n in (count, 2 * count)]
    contenders = present(TAREAS, TUTORIAL, KOMBU, *TASK_SYSTEMS, BOUND_C)
    tasks = {contender: files[contender.pipelined] for contender in contenders}  # more where publishing them is fast
    values, used = bench.slices(tasks, workers, size.runs)
    asked = {TUTORIAL: 0.95, best(values, TASK_SYSTEMS): 1.0} | ({BOUND_C: 0.68} if workers == 1 else {})
    many = "one worker" if workers == 1 else f"{workers} workers"
    yield Row(f"Empty tasks, {many}", "tasks/s", values, compare(values, asked, at_least=True))
    if workers == 1:
        claims = compare(used, {TUTORIAL: 1.3}, at_least=False)
        yield Row("CPU per 10,000 empty tasks", "s", used, claims, less_is_better=True)


def idling(bench: Bench, size: Size) -> Iterator[Row]:
    """CPU and memory of one worker that waits at an empty queue, its output to a file."""
    seconds = 10 if size.share == 1 else 2
    sizes: Values = {}

    def measure(contender: Contender) -> float:
        with bench.queue(contender) as queue, bench.workers(contender, queue, 1) as running:
            bench.wait_for_consumers(queue, 1)
            time.sleep(2)  # what starting leaves to do
            before = cpu(running.processes)
            time.sleep(seconds)
            sizes.setdefault(contender.name, []).append(memory(running.processes))
            return 100 * (cpu(running.processes) - before) / seconds

    contenders = present(TAREAS, TUTORIAL, KOMBU, *TASK_SYSTEMS)
    used = in_turns(min(size.runs, 5), contenders, measure)
    claims = [Claim("under 0.2 %", used.get(TAREAS.name, []), 0.2, at_least=False)]
    yield Row("CPU of an idle worker", "% of a core", used, claims, less_is_better=True)
    claims = [Claim("under 35 MiB", sizes.get(TAREAS.name, []), 35, at_least=False, digits=1)]
    yield Row("Memory of an idle worker", "MiB", sizes, claims, less_is_better=True)


def makespan(bench: Bench, size: Size) -> Iterator[Row]:
    """200 tasks of 0 to 50 ms by four waiting workers, over the best schedule that is possible."""
    workers, dice = 4, random.Random(1)
    complexities = [round(dice.uniform(0, 0.05), 4) for _ in range(200)]
    file = write_tasks(bench.folder / "mixed.jsonl", len(complexities), complexities)
    ideal = sum(complexities) / workers

    def measure(contender: Contender) -> float:
        return span(bench.run(contender, file, len(complexities), workers)) / ideal

    peers = (TUTORIAL, AIO_PIKA, KOMBU, DRAMATIQ, CELERY)
    values = in_turns(size.runs, (TAREAS, *peers), measure)
    claims = [Claim("at most 1.05", values.get(TAREAS.name, []), 1.05, at_least=False)]
    claims += compare(values, {best(values, peers, most=False): 1.0}, at_least=False)
    yield Row("Four workers, 200 tasks of 0–50 ms: makespan", "× the best", values, claims, less_is_better=True)


def killing(bench: Bench, size: Size) -> Iterator[Row]:
    """Milliseconds from the SIGKILL of a worker to the start of its task at another, which waits."""
    file = write_tasks(bench.folder / "long.jsonl", 1, [60])

    def measure(contender: Contender) -> float:
        with bench.queue(contender) as queue, bench.workers(contender, queue, 2) as running:
            bench.wait_for_consumers(queue, 2)
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

    Beside them the tutorial's loop: with prefetch 1, whoever has acknowledged waits for the next task to come.
    """
    values: Values = {}
    for _ in range(min(size.runs, 5)):
        for workers in (1, 2, 4, 8, 16):
            count = workers * size.of(100)
            file = write_tasks(bench.folder / "steady.jsonl", count, [0.02])
            for contender in (TAREAS, TUTORIAL):
                took = span(bench.run(contender, file, count, workers))
                values.setdefault(f"{contender.name}, {workers}", []).append(count * 0.02 / workers / took)
    ours = {name: got for name, got in values.items() if name.startswith(TAREAS.name)}
    claims = [Claim(f"{name} workers: at least 0.9", got, 0.9, at_least=True) for name, got in ours.items()]
    for name in ours:
        over = ratios(values, name.replace(TAREAS.name, TUTORIAL.name), name)
        claims.append(Claim(f"{name} workers: at least 0.95 × {TUTORIAL.name}", over, 0.95, at_least=True))
    yield Row("Growth with workers, tasks of 20 ms", "of the ideal", values, claims)


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
