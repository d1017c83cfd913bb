"""A handler that forks: its children share neither the worker's connection nor its signals."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_contract import declare, publish, until
from tests.support import ROOT, Run

HANDLERS = """
import multiprocessing, os, pathlib, signal, time

fork = multiprocessing.get_context("fork")

def square(number):
    return number * number

def pool(task):  # its end is a SIGTERM to each of its processes
    with fork.Pool(4) as pool:
        assert pool.map(square, range(10)) == [square(n) for n in range(10)]

def comes_back(task):
    if os.fork() == 0 and task["id"] == "raises":
        raise ValueError

def nested(task):  # the child's own handlers are its child's as well
    def check():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = "import signal, os; os._exit(signal.getsignal(signal.SIGINT) is not signal.SIG_IGN)"
        inner = fork.Process(target=lambda: exec(code))
        inner.start()
        inner.join()
        os._exit(inner.exitcode)
    outer = fork.Process(target=check)
    outer.start()
    outer.join()
    assert outer.exitcode == 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())

def child(task):
    here = pathlib.Path("child")
    if not here.exists():
        process = fork.Process(target=time.sleep, args=(600,))
        process.start()
        here.write_text(str(process.pid))
        process.join()
"""
AT_ONCE = 15  # seconds; without its end RabbitMQ notices a connection's silence after 40


@pytest.fixture
def there(channel: Any, queue: str, tmp_path: Path) -> dict[str, Any]:
    """Where the handlers are, and the queue."""
    (tmp_path / "forking.py").write_text(HANDLERS)
    declare(channel, queue)
    return {"cwd": tmp_path}


def test_a_pool_of_processes_ends_with_its_task(there: dict[str, Any], channel: Any, queue: str, run: Run) -> None:
    publish(channel, queue, *({"id": f"pool-{n}"} for n in range(12)))
    call = (ROOT / "worker.py", "--handler", "forking:pool", "--drain", "--json", "--queue", queue)
    worker = run(*call, **there)
    assert worker.wait() == 0, worker.report()
    assert len(worker.event_list("done")) == 12 and not worker.event_list("stopping")


def test_a_child_that_comes_back_is_no_second_worker(there: dict[str, Any], channel: Any, queue: str, run: Run) -> None:
    publish(channel, queue, *({"id": name} for name in ("returns", "raises", "last")))
    call = (ROOT / "worker.py", "--handler", "forking:comes_back", "--drain", "--json", "--queue", queue)
    worker = run(*call, **there)
    assert worker.wait() == 0, worker.report()
    assert [event["id"] for event in worker.event_list("done")] == ["returns", "raises", "last"]
    assert len(worker.event_list("connected")) == len(worker.event_list("stopped")) == 1
    assert not worker.event_list("failed")


def test_a_child_has_its_own_signals_and_so_have_its_children(
    there: dict[str, Any], channel: Any, queue: str, run: Run
) -> None:
    publish(channel, queue, {"id": "a"})
    call = (ROOT / "worker.py", "--handler", "forking:nested", "--drain", "--json", "--queue", queue)
    worker = run(*call, "--max-attempts", 1, **there)
    assert worker.wait() == 0, worker.report()


def test_a_killed_workers_task_goes_to_another_though_its_child_lives_on(
    there: dict[str, Any], channel: Any, queue: str, run: Run
) -> None:
    publish(channel, queue, {"id": "a"})
    call = (ROOT / "worker.py", "--handler", "forking:child", "--json", "--queue", queue)
    first = run(*call, **there)
    first.wait_event("started", id="a")
    child = there["cwd"] / "child"
    until(lambda: child.exists() and child.read_text())
    second = run(*call, **there)
    second.wait_event("connected")
    first.kill()
    os.kill(int(child.read_text()), 0)  # it lives
    assert second.wait_event("started", deadline=AT_ONCE, id="a")["redelivered"]
    second.wait_event("done", id="a")
