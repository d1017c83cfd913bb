"""Ctrl+C, SIGTERM and SIGKILL, once and twice, at every moment: the exit status, the summary, the queue afterwards."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pika
import pytest

from tareas.lab.node import Node
from tests.conftest import NOBODY
from tests.integration.test_contract import consumers, declare, ids, publish, ready, take, until
from tests.support import DEADLINE, OPEN, ROOT, Command, Run, raw_connection

REPEAT = 1.0  # seconds in which a second signal counts as the first
PTY, PIPE = "Ctrl+C on a terminal", "SIGTERM through pipes"
HOW = pytest.mark.parametrize("how", [PTY, PIPE])
KILLED_BY = {PTY: 130, PIPE: 143}  # the exit status after the second signal

HANDLERS = """
import pathlib, time

def held(task):
    while not pathlib.Path("release").exists():
        time.sleep(0.02)
    if "raises" in task:
        raise ValueError("as the task asks")

def swallows(task):
    try:
        held(task)
    except BaseException:
        pass

def insists(task):
    while True:
        try:
            held(task)
        except Exception:  # what a careful handler does; what ends the worker is no Exception
            pass
"""


class Stopped:
    """A command on a terminal or with plain pipes, what is sent to it, and what it says."""

    def __init__(self, run: Run, how: str, *argv: object, **options: Any) -> None:
        self.how = how
        self.command: Command = run(*argv, tty=how == PTY, **options)

    def says(self, what: str, count: int = 1) -> None:
        """Wait for a line with these words, colours aside."""

        def wanted(line: str) -> bool:
            return bool(re.search(what, plain(line)))

        wanted.__qualname__ = repr(what)  # what a failure shows
        self.command.wait_for(wanted, count=count)

    def stop(self) -> None:
        if self.how == PTY:
            self.command.send("\x03")
        else:
            self.command.signal(signal.SIGTERM)

    def stop_again(self) -> None:
        """Once the first signal has been heard, and its repetition would be ignored no more."""
        self.says("stopping")
        time.sleep(REPEAT + 0.05)
        self.stop()

    def ends(self, status: int, summary: str) -> None:
        """It ends so, says this last, and no traceback."""
        assert self.command.wait() == status, self.command.report()
        *_, last = plain(self.command.out).strip().splitlines()
        assert re.search(rf"(stopped|finished) +{summary}", last), self.command.report()
        assert "Traceback" not in self.command.out and "cut off" not in self.command.out
        assert self.command.err == ""


def plain(text: str) -> str:
    """Without a terminal's escapes."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text)


@pytest.fixture
def holding(run: Run, channel: Any, queue: str, tmp_path: Path) -> Any:
    """Starts a worker that holds the first of two tasks until release() is called."""
    (tmp_path / "mine.py").write_text(HANDLERS)
    declare(channel, queue)

    def start(how: str, *options: object, handler: str = "held", **task: object) -> Stopped:
        publish(channel, queue, {"id": "first", **task}, {"id": "second"})
        call = [ROOT / "worker.py", "w", "--queue", queue, "--handler", f"mine:{handler}", *options]
        worker = Stopped(run, how, *call, cwd=tmp_path)
        worker.says("started +first")
        return worker

    return start


@pytest.fixture
def release(tmp_path: Path) -> Any:
    return (tmp_path / "release").touch


def left(channel: Any, queue: str, *names: str) -> list[int]:
    """Exactly these tasks are in the queue, none of them held. How many attempts of each are used up."""
    got = take(channel, queue, len(names))
    assert ids(got) == list(names)
    for method, properties, _ in got:
        assert method.redelivered == (used_up(properties) > 0)
    return [used_up(properties) for _, properties, _ in got]


def used_up(properties: pika.BasicProperties) -> int:
    """How many attempts, as RabbitMQ counts them: since 4.3 in another header than before."""
    headers = properties.headers or {}
    return int(headers.get("x-acquired-count", headers.get("x-delivery-count", 0)))


# -- a worker


@HOW
def test_an_idle_worker_ends_at_once(how: str, channel: Any, queue: str, run: Run) -> None:
    worker = Stopped(run, how, "worker.py", "w", "--queue", queue)
    worker.says("connected")
    worker.stop()
    worker.says(f"stopping +{'Ctrl.C' if how == PTY else 'SIGTERM'}: nothing in hand")
    worker.ends(0, "0 done, 0 failed, 0 dead-lettered, busy 0.00 s")
    left(channel, queue)


@HOW
def test_the_task_in_hand_is_finished_and_acknowledged(
    how: str, holding: Any, release: Any, channel: Any, queue: str
) -> None:
    worker = holding(how)
    worker.stop()
    worker.says("stopping .*: finishing the task in hand; once more after a second gives it back")
    release()
    worker.says("done +first")
    worker.ends(0, "1 done, 0 failed, 0 dead-lettered")
    assert left(channel, queue, "second") == [0]


@HOW
@pytest.mark.parametrize("handler", ["held", "swallows", "insists"])
def test_a_second_signal_gives_the_task_back_at_once(
    how: str, handler: str, holding: Any, channel: Any, queue: str
) -> None:
    worker = holding(how, handler=handler)
    worker.stop()
    worker.stop_again()
    worker.says("abandoned +first in attempt 1: it goes back to the queue")
    worker.ends(KILLED_BY[how], "0 done, 0 failed, 0 dead-lettered")
    assert left(channel, queue, "first", "second") == [1, 0]


@HOW
def test_signals_within_a_second_count_as_one(how: str, holding: Any, release: Any, channel: Any, queue: str) -> None:
    worker = holding(how)
    worker.stop()
    worker.command.signal(signal.SIGINT)  # another kind may follow close behind, too
    worker.command.signal(signal.SIGTERM)
    worker.says("stopping")
    release()
    worker.ends(0, "1 done, 0 failed, 0 dead-lettered")
    assert left(channel, queue, "second") == [0]


@HOW
def test_grace_ends_the_wait_for_a_task(how: str, holding: Any, channel: Any, queue: str) -> None:
    worker = holding(how, "--grace", 0.5)
    began = time.monotonic()
    worker.stop()
    worker.says("abandoned +first")
    assert time.monotonic() - began >= 0.5
    worker.ends(KILLED_BY[how], "0 done, 0 failed, 0 dead-lettered")
    assert left(channel, queue, "first", "second") == [1, 0]


def test_a_task_that_ends_within_the_grace_is_done(holding: Any, release: Any, channel: Any, queue: str) -> None:
    worker = holding(PIPE, "--grace", 600)
    worker.stop()
    worker.says("stopping")
    release()
    worker.ends(0, "1 done, 0 failed, 0 dead-lettered")
    assert left(channel, queue, "second") == [0]


@HOW
def test_a_second_signal_does_not_wait_for_the_grace_to_end(how: str, holding: Any, channel: Any, queue: str) -> None:
    worker = holding(how, "--grace", 600)
    worker.stop()
    worker.stop_again()
    worker.ends(KILLED_BY[how], "0 done, 0 failed, 0 dead-lettered")
    assert left(channel, queue, "first", "second") == [1, 0]


@pytest.mark.parametrize(("bound", "summary", "back"), [(5, "0 dead", ["first"]), (1, "1 dead", [])])
def test_a_task_that_fails_after_the_signal_goes_back_without_a_rest_or_dies(
    bound: int, summary: str, back: list[str], holding: Any, release: Any, channel: Any, queue: str
) -> None:
    worker = holding(PIPE, "--retry-delay", 600, "--max-attempts", bound, raises=True)
    worker.stop()
    worker.says("stopping")
    release()
    worker.says("requeued +first" if back else "dead +first")
    worker.ends(0, f"0 done, 1 failed, {summary}-lettered")
    assert left(channel, queue, *back, "second") == [1, 0][-len(back) - 1 :]
    assert ids(take(channel, f"{queue}.dead", 1 - len(back))) == ["first"][len(back) :]


@HOW
def test_the_rest_before_a_retry_ends_with_the_signal(how: str, channel: Any, queue: str, run: Run) -> None:
    declare(channel, queue)
    publish(channel, queue, {"id": "first", "complexity": 0, "fail_attempts": 9}, {"id": "second", "complexity": 0})
    worker = Stopped(run, how, "worker.py", "w", "--retry-delay", 600, "--queue", queue)
    worker.says("failed +first")
    worker.stop()
    worker.says("requeued +first after attempt 1")
    worker.ends(0, "0 done, 1 failed, 0 dead-lettered")
    assert left(channel, queue, "first", "second") == [1, 0]


def test_a_stop_amid_short_tasks_uses_up_no_attempts(channel: Any, queue: str, run: Run) -> None:
    """Whenever the signal comes, between two tasks too: at most one task was on its way and goes back, once."""
    assert run("producer.py", "--count", 3000, "--complexity", 0, "--queue", queue).wait() == 0
    for number in range(3):
        worker = Stopped(run, PIPE, "worker.py", "w", "--queue", queue)
        worker.says(" done ", count=20 + 7 * number)
        worker.stop()
        worker.ends(0, r"\d+ done, 0 failed, 0 dead-lettered")
        assert max(map(int, re.findall(r"REDELIVERED, attempt (\d+)", worker.command.out)), default=1) <= 2
    until(lambda: consumers(channel, queue) == 0)
    method, properties, _ = channel.basic_get(queue)
    assert method and used_up(properties) <= 1


def test_a_killed_workers_task_goes_to_another_and_says_so(holding: Any, channel: Any, queue: str, run: Run) -> None:
    worker = holding(PIPE)
    worker.command.kill()
    assert worker.command.wait() == -signal.SIGKILL
    until(lambda: ready(channel, queue) == 2)
    other = run("worker.py", "w-2", "--drain", "--json", "--queue", queue, "--handler", "builtins:len")
    assert other.wait() == 0
    started = [(event["id"], event["attempt"], event["redelivered"]) for event in other.event_list("started")]
    assert started == [("first", 2, True), ("second", 1, False)]
    left(channel, queue)


# -- no RabbitMQ


@HOW
@pytest.mark.parametrize("script", ["worker.py", "producer.py"])
def test_waiting_for_a_rabbitmq_that_is_not_there_ends_at_once(how: str, script: str, run: Run) -> None:
    waiting = Stopped(run, how, script, "--url", NOBODY)
    waiting.says("waiting .*nobody listens at 127.0.0.1:1")
    waiting.stop()
    ended_without_rabbitmq(waiting, script)


@HOW
@pytest.mark.parametrize("script", ["worker.py", "producer.py"])
def test_waiting_for_an_answer_that_does_not_come_ends_at_once(how: str, script: str, run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"amqp://guest:guest@127.0.0.1:{mute.getsockname()[1]}/%2F?socket_timeout=600&stack_timeout=600"
        waiting = Stopped(run, how, script, "--url", url)
        mute.settimeout(DEADLINE)
        peer, _ = mute.accept()
        with peer:
            peer.settimeout(DEADLINE)
            assert peer.recv(8) == b"AMQP\0\0\x09\x01"
            waiting.stop()
            ended_without_rabbitmq(waiting, script)


def ended_without_rabbitmq(waiting: Stopped, script: str) -> None:
    if script == "worker.py":
        waiting.ends(0, "0 done, 0 failed, 0 dead-lettered, busy 0.00 s")
    else:
        waiting.ends(KILLED_BY[waiting.how], "0 of 0 confirmed")


# -- a producer


@HOW
def test_a_producer_that_waits_for_its_pipe_ends_at_once(how: str, channel: Any, queue: str, run: Run) -> None:
    """Nobody told it that this was all: that is no success."""
    producer = Stopped(run, how, "producer.py", "-", "--queue", queue, **({} if how == PTY else {"stdin": OPEN}))
    producer.says("connected")
    for name in ("a", "b"):
        producer.command.send(f'{{"id":"{name}"}}\n')
        producer.says(f"confirmed +{name}")
    producer.stop()
    producer.ends(KILLED_BY[how], r"2 of 2 confirmed in .* s; not published: line 3 and on of\s+stdin\s+\(tail")
    assert left(channel, queue, "a", "b") == [0, 0]


def test_a_producer_that_is_stopped_amid_many_tasks_waits_for_what_it_has_published(
    channel: Any, queue: str, run: Run
) -> None:
    producer = Stopped(run, PIPE, "producer.py", "--count", 1_000_000, "--queue", queue)
    producer.says("confirmed +task-0020")
    producer.stop()
    assert producer.command.wait() == KILLED_BY[PIPE]
    (summary,) = (line for line in producer.command.lines if " finished " in line)
    confirmed, published = map(int, re.findall(r"(\d+) of (\d+) confirmed", summary)[0])
    assert 20 <= confirmed == published < 1_000_000
    assert summary.endswith(f"; not published: {1_000_000 - published:,} sample tasks")
    until(lambda: ready(channel, queue) == confirmed)


def test_a_file_whose_producer_was_stopped_is_gone_on_with_as_it_says(
    channel: Any, queue: str, run: Run, tmp_path: Path
) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("\n".join(f'{{"id": "{number}"}}\n' for number in range(100_000)))  # and blank lines
    producer = Stopped(run, PIPE, "producer.py", tasks, "--queue", queue)
    producer.says("confirmed +19")
    producer.stop()
    assert producer.command.wait() == KILLED_BY[PIPE]
    (how,) = re.findall(r"\(tail -n (\+\d+)\)", producer.command.out)
    rest = subprocess.run(["tail", "-n", how, tasks], capture_output=True, text=True, check=True).stdout
    assert 0 < rest.count("{") < 99_980
    assert run("producer.py", "-", "--queue", queue, stdin=rest).wait() == 0
    until(lambda: ready(channel, queue) == 100_000)


def test_who_waits_for_a_rabbitmq_that_takes_nothing(killable: Node, run: Run, tmp_path: Path) -> None:
    """An alarm holds up the confirms: of three tasks, and of a dead letter. The first signal waits for them, the second
    doesn't; what is not confirmed is not claimed, and what is not acknowledged goes back."""
    with raw_connection(killable.url) as connection:
        channel = connection.channel()
        declare(channel, "bad")
        publish(channel, "bad", b"no task")
        try:
            killable.ctl("set_vm_memory_high_watermark", "0")
            patient = Stopped(run, PIPE, "producer.py", "--count", 3, "--queue", "patient")
            impatient = [Stopped(run, how, "producer.py", "--count", 3, "--queue", how[:4]) for how in (PTY, PIPE)]
            worker = Stopped(run, PIPE, "worker.py", "w", "--queue", "bad")
            for each in (patient, *impatient, worker):
                each.says("blocked +RabbitMQ takes nothing for now: low on memory")
            for each in (*impatient, worker):
                each.stop()
            for producer in impatient:
                producer.says("waiting for 3 confirms, 10 s at most; once more stops at once")
            for each in (*impatient, worker):
                each.stop_again()
            for producer in impatient:
                producer.ends(KILLED_BY[producer.how], "0 of 3 confirmed")
            worker.ends(KILLED_BY[PIPE], "0 done, 0 failed, 0 dead-lettered")
            patient.stop()  # last: its wait is bounded
            patient.says("waiting for 3 confirms, 10 s at most; once more stops at once")
            assert patient.command.running
        finally:
            killable.ctl("set_vm_memory_high_watermark", "0.6")
        patient.says("unblocked")
        patient.ends(0, "3 of 3 confirmed")
        assert left(channel, "patient", "task-0001", "task-0002", "task-0003") == [0] * 3
        ((method, _, body),) = take(channel, "bad", 1)
        assert (method.redelivered, body) == (True, b"no task")
