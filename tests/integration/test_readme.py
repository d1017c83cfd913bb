"""What README.md shows is what its commands print, and what --help and the compose files say works on a real RabbitMQ.

The commands are those of the page, with a queue of the test's own, and small inputs where it would take long.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tareas.lab.node import Node
from tests.conftest import delete_queues
from tests.readme import ENGLISH, blocks, commands, masked, shown
from tests.support import ROOT, Run
from tests.unit.test_help import call, examples

SMALL = ("--count", "6", "--complexity", "0.3-0.6")


def shapes(lines: list[str]) -> set[str]:
    return {masked(line) for line in lines if line != "..."}


def typed(command: str) -> list[str]:
    """The words of a command of the page, without its `python`."""
    assert command in commands(ENGLISH), f"the page no longer says {command}"
    return shlex.split(command)[1:]


@pytest.fixture
def shell(url: str, tmp_path: Path) -> dict[str, str]:
    """An environment in which `python` is this one, as in an activated .venv, and AMQP_URL the test's RabbitMQ."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "AMQP_URL": url}


def pasted(command: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A line as a person pastes it into a shell."""
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=100
    )


def test_the_walk_through_prints_what_the_page_shows(queue: str, run: Run) -> None:
    first = run(*typed("python worker.py worker-1"), "--queue", queue)
    second = run(*typed("python worker.py worker-2"), "--queue", queue)
    for worker in (first, second):
        worker.wait_for("connected")
    producer = run(*typed("python producer.py"), *SMALL, "--queue", queue)
    first.wait_for("started")
    first.kill()  # what closing its terminal comes to
    assert producer.wait() == 0
    assert shapes(producer.lines) == shapes(shown(ENGLISH, "producer  connected"))

    second.wait_for("REDELIVERED, attempt 2")
    left = 6 - sum(" done " in line for line in first.lines)
    second.wait_for(" done ", count=left)
    second.signal(signal.SIGINT)
    assert second.wait() == 0
    assert shapes(second.lines) == shapes(shown(ENGLISH, "worker-2  connected"))


def test_dead_letters_are_listed_replayed_and_discarded_as_the_page_says(
    queue: str, run: Run, shell: dict[str, str]
) -> None:
    (publish,) = (command for command in commands(ENGLISH) if command.startswith("echo"))
    for name in ("bad", "import-01"):
        done = pasted(f"{publish} --queue {queue}".replace('"bad"', f'"{name}"'), ROOT, shell)
        assert done.returncode == 0 and "1 of 1 confirmed" in done.stdout, done.stderr
    drained = run("worker.py", "worker-1", "--drain", "--retry-delay", 0, "--queue", queue)
    assert drained.wait() == 3

    assert run(*typed("python admin.py status"), "--queue", queue).wait() == 0
    listed = run(*typed("python admin.py dead"), "--queue", queue)
    assert listed.wait() == 0
    assert shapes(shown(ENGLISH, "bad  dead")) <= shapes(listed.lines)
    assert " after 5 attempts, 53 bytes" in listed.out and " 53 bytes" in shown(ENGLISH, "bad  dead")[0]
    replayed = run(*typed("python admin.py replay bad"), "--queue", queue)
    assert replayed.wait() == 0 and "bad  replayed" in replayed.out
    discarded = run(*typed("python admin.py discard --all"), "--queue", queue, tty=True)
    discarded.send("y\n")
    assert discarded.wait() == 0 and "discarded import-01" in discarded.out
    status = run("admin.py", "status", "--queue", queue)
    assert status.wait() == 0 and "1 ready, 0 consumers, 0 dead" in status.out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The project's, with the handler of the page in it and nothing else."""
    made = tmp_path / "project"
    made.mkdir()
    for script in ("producer.py", "worker.py", "admin.py"):
        (made / script).symlink_to(ROOT / script)
    (source,) = blocks(ENGLISH, "python")
    (made / "jobs.py").write_text(source)
    return made


def test_the_handler_of_the_page_does_its_tasks(queue: str, shell: dict[str, str], folder: Path) -> None:
    for name, text in {"a.md": "one two", "b.md": "one two three"}.items():
        (folder / name).write_text(text)
    first = commands(ENGLISH).index("python worker.py --handler jobs:count_words --queue words --drain")
    for command in commands(ENGLISH)[first - 2 : first + 1]:
        done = pasted(command.replace("--queue words", f"--queue {queue}"), folder, shell)
        assert done.returncode == 0, done.stderr + done.stdout
    written = {each.name: each.read_text() for each in folder.glob("*.words")}
    assert written == {"a.md.words": "2\n", "b.md.words": "3\n"}
    assert not list(folder.glob("*.words.*"))


def test_several_machines_work_as_the_page_says(
    killable: Node, shell: dict[str, str], folder: Path, request: pytest.FixtureRequest
) -> None:
    """Its commands one after the other; the node stands for rabbit-1, a shell for all machines."""
    start = commands(ENGLISH).index("sudo rabbitmqctl add_user tareas SECRET")
    add_user, permit, export, produce, work, status, audit, replay = commands(ENGLISH)[start : start + 8]
    request.addfinalizer(lambda: killable.ctl("delete_user", "tareas"))
    request.addfinalizer(lambda: delete_queues(killable.url, "words"))
    for command in (add_user, permit):
        killable.ctl(*shlex.split(command)[2:])
    (folder / "a.md").write_text("one two")
    (folder / "tasks.jsonl").write_text('{"id": "a.md", "file": "a.md"}\n{"id": "none.md", "file": "none.md"}\n')

    assert "@rabbit-1/" in export and f"127.0.0.1:{killable.port}" in killable.url
    there = export.replace("rabbit-1", f"127.0.0.1:{killable.port}")

    def typed_there(command: str, status: int) -> subprocess.CompletedProcess[str]:
        done = pasted(f"{there}; {command}", folder, shell)
        assert done.returncode == status, done.stderr + done.stdout
        return done

    typed_there(produce, 0)
    assert typed_there(status, 0).stdout.startswith("words: 2 ready")
    assert typed_there(audit.replace("*.log", "producer.log"), 1).stdout.splitlines()[0].endswith("lost at most 2")
    drain = work.replace(" >>", " --drain --retry-delay 0.1 >>")
    typed_there(drain, 3)
    assert typed_there(audit, 0).stdout.splitlines()[0].endswith("done 1, redelivered 4, dead 1, lost 0")
    typed_there(replay, 0)
    assert typed_there(audit, 1).stdout.splitlines()[0].endswith("dead 0 (1 replayed), lost at most 1")
    (folder / "none.md").write_text("three")
    typed_there(drain, 0)
    assert typed_there(audit, 0).stdout.splitlines()[0].endswith("done 2, redelivered 4, dead 0 (1 replayed), lost 0")


def test_the_examples_of_help_work_when_pasted(queue: str, run: Run, shell: dict[str, str]) -> None:
    def words(command: str, number: int) -> list[str]:
        example = examples(call(command, "--help").stdout)[number]
        return [*shlex.split(example, comments=True)[1:], "--queue", queue]

    named = run(*words("worker.py", 0))
    named.wait_for("connected")
    named.signal(signal.SIGINT)
    assert named.wait() == 0
    assert run(*words("worker.py", 1)).wait() == 0  # --drain, and the queue is empty

    confirmed = 0
    for number, count in enumerate((50, 12, 12)):
        example = examples(call("producer.py", "--help").stdout)[number].partition("#")[0].strip()
        done = pasted(f"{example} --queue {queue}", ROOT, shell)
        assert done.returncode == 0 and f"{count} of {count} confirmed" in done.stdout, done.stderr
        confirmed += count
    printing = run(*words("worker.py", 2))
    printing.wait_for(" done ", count=confirmed)
    printing.signal(signal.SIGINT)
    assert printing.wait() == 0 and "'id': 'thumbnail-01'" in printing.out

    watch = run(*words("admin.py", 0))
    watch.wait_for("0 ready", count=2)
    watch.signal(signal.SIGINT)
    assert watch.wait() == 0
    for number in (1, 2):
        assert run(*words("admin.py", number)).wait() == 0


def test_rabbitmq_takes_the_settings_of_the_compose_files_and_the_rights_that_the_page_names(
    killable: Node, run: Run, request: pytest.FixtureRequest
) -> None:
    """The node that may be killed has those settings."""
    node = killable
    told = node.ctl("eval", "[application:get_env(rabbit, Key) || Key <- [consumer_timeout, loopback_users]].")
    assert "".join(told.split()) == "[{ok,90000000},{ok,[]}]"

    node.ctl("add_user", "worker", "w-secret")
    request.addfinalizer(lambda: node.ctl("delete_user", "worker"))
    request.addfinalizer(lambda: delete_queues(node.url, "tareas_distribuidas"))
    names = r"tareas_distribuidas(\.dead)?"
    node.ctl("set_permissions", "worker", f"^{names}$", rf"^({names}|amq\.default)$", f"^{names}$")
    there = {"AMQP_URL": node.url.replace("guest:guest", "worker:w-secret")}
    body = '{"id": "a", "complexity": 0, "fail_attempts": 9}\n{"id": "b", "complexity": 0}\n'
    assert run("producer.py", "-", stdin=body, env=there).wait() == 0
    worker = run("worker.py", "--drain", "--max-attempts", 2, "--retry-delay", 0, env=there)
    assert worker.wait() == 3 and "1 done, 2 failed, 1 dead-lettered" in worker.out
    assert run("admin.py", "replay", "--all", env=there).wait() == 0
