"""demo.py as a person runs it: its story on every RabbitMQ, its faults, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pika
import pytest

from demo import main
from tareas.lab.programs import Programs, find_programs
from tareas.rabbit import queues
from tareas.story import stage as stage_module
from tareas.story.signals import Interrupted, Signals
from tareas.story.stage import Actor, Missed, Stage
from tareas.story.timeline import KILLED, bars
from tareas.task import sample
from tests import node_keeper
from tests.support import OPEN, ROOT, Command, Run, raw_connection

LONG = 240.0  # seconds: 30 on a quiet machine
MARK = "TAREAS_TEST_DEMO"  # in the environment of the demo, and so of whatever it starts


class Demo:
    """A run of demo.py with a temporary folder of its own."""

    def __init__(self, run: Run, folder: Path, *arguments: str, programs: Programs | None = None, **options: Any):
        self.folder = folder
        self.mark = uuid.uuid4().hex
        bin_folder = str(programs.folder) if programs else None
        environment = {MARK: self.mark, "TMPDIR": str(folder), "RABBITMQ_BIN": bin_folder, "AMQP_URL": None}
        environment |= {"NO_COLOR": None, "TERM": "xterm-256color"}
        self.command: Command = run("demo.py", *arguments, env=environment, **options)

    @property
    def out(self) -> list[str]:
        return self.command.out.splitlines()

    @property
    def err(self) -> list[str]:
        return self.command.err.splitlines()

    def wait_for(self, text: str) -> None:
        self.command.wait_for(text, LONG)

    def end(self) -> int:
        return self.command.wait(LONG)

    def left(self) -> list[str]:
        """The processes that it started, or that they started, and that live now (known on Linux only)."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARK}={self.mark}".encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        return found

    def assert_nothing_left(self) -> None:
        until = time.monotonic() + 30
        while self.left() and time.monotonic() < until:
            time.sleep(0.1)
        assert self.left() == []
        assert list(self.folder.iterdir()) == []


@pytest.fixture
def demo(run: Run, tmp_path: Path) -> Iterator[Any]:
    """Starts demo.py with these arguments; asked to end after the test, so that it ends what it started."""
    runs: list[Demo] = []

    def start(*arguments: str, **options: Any) -> Demo:
        folder = tmp_path / f"tmp{len(runs)}"
        folder.mkdir()
        runs.append(Demo(run, folder, *arguments, **options))
        return runs[-1]

    yield start
    for one in runs:
        if one.command.running:
            one.command.signal(signal.SIGTERM)
            with contextlib.suppress(AssertionError):
                one.command.wait()


@pytest.fixture(scope="module")
def lasting(one_version: Programs) -> str:
    """The URL of a RabbitMQ that is not the demo's own. One version: the story itself is told on all of them."""
    return node_keeper.shared(one_version)


# -- the story


@pytest.mark.timeout(300)
def test_the_whole_story_on_a_private_rabbitmq(demo: Any, programs: Programs, tmp_path: Path) -> None:
    picture = tmp_path / "timeline.svg"
    run = demo("--save", str(picture), programs=programs)

    assert run.end() == 0, run.command.report()
    assert run.err == []
    assert [line for line in run.out if len(line) > 80 or not line.isprintable()] == []
    assert re.fullmatch(
        r"published 13, confirmed 13, done 12( \(\d twice\))?, redelivered [1-9]\d*, dead 1, lost 0", run.out[-1]
    ), run.command.report()
    text = "\n".join(run.out)
    story = " ".join(text.split())
    assert text.index("producer  finished") < text.index("\n 3. A worker dies"), "a chapter's line after the next began"
    killed = re.search(r"=> (worker-\d) is gone, and (\S+) was never acknowledged", story)
    assert killed, text
    again = re.search(rf"=> REDELIVERED: RabbitMQ gives {killed[2]} to (worker-\d), .*?attempt 2\)", story)
    assert again, text
    assert again[1] != killed[1]
    assert "=> SHARED: worker-4 was given " in story
    assert "=> RETRIED: import-01 was delivered again, and done by worker-" in story
    assert "=> DEAD LETTER: poison lies in the dead-letter queue after 4 attempts, with its reason: " in story
    assert re.search(r"still there \(durable\), and so are the tasks .* \(persistent\): [1-9]\d*\. The", story), text
    for word in ("prefetch 1", "publisher confirm", "unacked", "connection closed", "requeued", "redelivered",
                 "basic_nack", "durable", "persistent", "dead-letter queue", "basic_ack"):  # fmt: skip
        assert word in story, f"what does it? {word} is not named"
    assert re.search(r"^worker-\d +\S.*X", text, re.M), "no kill in the timeline:\n" + text
    assert re.search(r"^RabbitMQ +X~+", text, re.M), "no broker's death in the timeline:\n" + text
    texts = ["".join(node.itertext()) for node in ElementTree.parse(picture).iter()]
    assert run.out[-1] in texts
    assert [text for text in texts if text.startswith("killed: ") and text.endswith(f" to {again[1]}")]
    assert "RabbitMQ killed, then started again" in texts
    run.assert_nothing_left()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("scenario", "said", "verdict"),
    [
        ("kill", " => REDELIVERED: ", r"done 11( \(\d twice\))?, redelivered [1-9]\d*, dead 0"),
        ("late", " => SHARED: worker-4 was given ", r"done 11, redelivered 0, dead 0"),
        ("retry", " => RETRIED: import-01 ", r"done 12, redelivered [1-9]\d*, dead 0"),
        ("poison", " => DEAD LETTER: poison ", r"done 11, redelivered 3, dead 1"),
        ("restart", " => Skipped: RabbitMQ is not killed", r"done 11, redelivered 0, dead 0"),
    ],
)
def test_one_chapter_on_a_rabbitmq_that_is_not_the_demos_own(
    demo: Any, lasting: str, scenario: str, said: str, verdict: str
) -> None:
    run = demo("--scenario", scenario, "--url", lasting)

    assert run.end() == 0, run.command.report()
    assert any(line.startswith(said) for line in run.out), run.command.report()
    tasks = 12 if scenario in ("poison", "retry") else 11  # the task that fails once belongs to its chapter
    assert re.fullmatch(f"published {tasks}, confirmed {tasks}, {verdict}, lost 0", run.out[-1]), run.command.report()
    run.assert_nothing_left()
    assert_no_queue(lasting, run)


@pytest.mark.timeout(300)
def test_with_pause_each_chapter_waits_for_enter(demo: Any, lasting: str) -> None:
    run = demo("--pause", "--scenario", "late", "--url", lasting, stdin=OPEN)
    for number, heading in enumerate(("A new worker joins late", "The workers finish what is left"), 1):
        run.command.wait_for("-- Enter goes on", count=number)
        run.command.wait_for(" done ", count=number)  # the workers go on meanwhile
        assert heading not in run.command.out
        run.command.send("\n")
        run.command.wait_for(heading)
    assert run.end() == 0, run.command.report()

    stopped = demo("--pause", "--scenario", "late", "--url", lasting, tty=True)
    stopped.command.wait_for("-- Enter goes on")
    stopped.command.send("\x03")
    assert stopped.end() == 130
    stopped.assert_nothing_left()


def assert_no_queue(url: str, run: Demo) -> None:
    """Both queues of that run are deleted."""
    said = re.search(r"The queue is (tareas_distribuidas\.demo-[0-9a-f]+) at", " ".join(run.out))
    assert said, run.command.report()
    for name in (said[1], queues.dead(said[1])):
        with contextlib.closing(raw_connection(url)) as connection:
            with pytest.raises(pika.exceptions.ChannelClosedByBroker) as error:
                connection.channel().queue_declare(name, passive=True)
            assert error.value.reply_code == 404


@pytest.mark.timeout(300)
def test_other_tasks_and_more_workers(demo: Any, lasting: str) -> None:
    run = demo("--tasks", "5", "--seed", "3", "--workers", "4", "--url", lasting)

    assert run.end() == 0, run.command.report()
    connected = [line for line in run.out if re.match(r" +worker-\d  connected", line)]
    assert len(connected) == 5, "four, and one that joins late"
    assert re.fullmatch(r"published (\d+), confirmed \1, done .*, redelivered [1-9]\d*, dead 1, lost 0", run.out[-1])
    for task in sample(5, seed=3):
        assert any(re.search(rf"  started   {task['id']}\b", line) for line in run.out), task


@pytest.mark.timeout(300)
def test_a_file_of_the_users(demo: Any, lasting: str, tmp_path: Path) -> None:
    """Of short tasks: the chapters bring along what they need."""
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"id": "poison", "complexity": 0.1}\n{"id": "ñandú", "complexity": 0}\n', encoding="utf-8")
    run = demo(str(path), "--workers", "2", "--url", lasting)

    assert run.end() == 0, run.command.report()
    assert any(re.search("done +ñandú in ", line) for line in run.out), run.command.report()
    assert any(line.startswith(" => DEAD LETTER: poison-2 ") for line in run.out), run.command.report()
    assert re.fullmatch(r"published (\d+), confirmed \1, done .*, redelivered [1-9]\d*, dead 1, lost 0", run.out[-1])


@pytest.mark.timeout(300)
def test_a_picture_that_cannot_be_written_in_the_end_is_no_success(demo: Any, lasting: str, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    run = demo("--scenario", "kill", "--save", str(folder / "a.svg"), "--url", lasting)
    run.wait_for("KILLED")
    assert list(folder.iterdir()) == [], "it is written in the end"
    folder.rmdir()

    assert run.end() == 1, run.command.report()
    assert re.match("published 11, confirmed 11, done 11.* lost 0$", run.out[-1]), run.command.report()
    assert len(run.err) == 1 and "a.svg' cannot be written: No such file" in run.err[0], run.command.report()


# -- how it ends when it is interrupted, or when it cannot go on


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("scenario", "moment", "number", "own"),
    [
        ("kill", "KILLED", signal.SIGTERM, True),
        ("poison", "poison in attempt 1", signal.SIGINT, False),
        ("restart", "RabbitMQ  KILLED", signal.SIGINT, True),
        ("restart", "  waiting   trying again", signal.SIGTERM, True),
        ("retry", "  requeued", signal.SIGHUP, False),
    ],
)
def test_a_signal_ends_it_and_leaves_nothing_behind(
    demo: Any, lasting: str, scenario: str, moment: str, number: int, own: bool
) -> None:
    """own: with a RabbitMQ of its own."""
    there = [] if own else ["--url", lasting]
    run = demo("--scenario", scenario, *there, programs=find_programs())
    run.wait_for(moment)

    run.command.signal(number)

    assert run.end() == 128 + number, run.command.report()
    assert [line.partition(":")[0] for line in run.err] == ["demo.py"], run.command.report()
    run.assert_nothing_left()


@pytest.mark.timeout(300)
def test_ctrl_c_while_rabbitmq_starts_leaves_nothing_behind(demo: Any, programs: Programs) -> None:
    run = demo(programs=programs)
    until = time.monotonic() + LONG
    while not any("rabbit" in command for command in run.left()) and time.monotonic() < until:
        time.sleep(0.05)

    run.command.signal(signal.SIGINT)

    assert run.end() == 130, run.command.report()
    assert len(run.err) == 1, run.command.report()
    run.assert_nothing_left()


@pytest.mark.timeout(300)
def test_a_storm_of_signals_does_not_cut_its_clean_up_short(demo: Any) -> None:
    run = demo(programs=find_programs())
    run.wait_for("KILLED")

    while run.command.running:
        run.command.signal(signal.SIGINT)
        time.sleep(0.002)  # one of them hits the last millisecond

    assert run.end() == 130, run.command.report()
    assert len(run.err) == 1, run.command.report()
    run.assert_nothing_left()


@pytest.mark.timeout(300)
def test_ctrl_c_on_a_rabbitmq_that_lives_on_deletes_the_queue(demo: Any, lasting: str) -> None:
    run = demo("--url", lasting)
    run.wait_for("KILLED")

    run.command.signal(signal.SIGINT)

    assert run.end() == 130, run.command.report()
    assert len(run.err) == 1, run.command.report()
    assert_no_queue(lasting, run)
    run.assert_nothing_left()


@pytest.mark.timeout(300)
def test_a_reader_that_goes_away_ends_it_without_a_word(lasting: str) -> None:
    command = f'set -o pipefail; "{sys.executable}" demo.py --url "{lasting}" | head -n 3'
    ended = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=LONG)

    assert (ended.returncode, ended.stderr) == (1, "")
    assert len(ended.stdout.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--url", "amqp://guest:s3cret@127.0.0.1:1"], 1, "nobody listens at 127.0.0.1:1"),
        (["--url", "http://guest:s3cret@127.0.0.1"], 2, "amqp://"),
        (["--scenario", "comedy"], 2, "comedy"),
        (["--colour"], 2, "--colour"),
        (["--workers", "1"], 2, "--workers: 1 is not from 2 to 16"),
        (["--workers", "17"], 2, "--workers: 17 is not from 2 to 16"),
        (["--workers", "many"], 2, "--workers: 'many'"),
        (["--tasks", "0"], 2, "--tasks: '0'"),
        (["--tasks", "1001"], 2, "--tasks: 1001 are too many"),
        (["--seed", "x"], 2, "--seed: "),
        (["--save", "/nowhere/a.svg"], 2, "--save: '/nowhere/a.svg' cannot be written: No such file or directory"),
        (["--save", "a.png"], 2, "--save: 'a.png' does not end with .svg"),
        (["--seed", "3", "examples/tasks.jsonl"], 2, "leave them out with FILE"),
        (["no-such-file"], 2, "cannot open 'no-such-file'"),
        (["README.md"], 2, "README.md, line 1: not JSON"),
    ],
)
def test_what_cannot_be_is_one_line(demo: Any, arguments: list[str], status: int, says: str) -> None:
    run = demo(*arguments)

    assert run.end() == status, run.command.report()
    assert len(run.err) == 1, run.command.report()
    assert says in run.err[0]
    assert "s3cret" not in run.command.out + run.command.err
    assert run.out == []


@pytest.mark.timeout(300)
def test_on_a_terminal_there_is_a_panel_and_its_ctrl_c_key_works(demo: Any, lasting: str) -> None:
    run = demo("--url", lasting, tty=True)
    run.wait_for("REDELIVERED: ")

    run.command.send("\x03")

    assert run.end() == 130, run.command.report()
    output = run.command.out
    assert re.search(r"waiting \d, in hand [23], done \d, dead 0", output)
    assert run.out[-1].endswith("demo.py: ended by Ctrl+C: its workers and queue are gone, nothing is left behind")
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l"), "the cursor is still hidden"
    run.assert_nothing_left()


def test_a_worker_that_fails_ends_the_demo_with_its_last_words(
    lasting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "worker.py").write_text("import sys; sys.exit('no more coffee')")
    monkeypatch.setattr(stage_module, "HERE", tmp_path)

    with pytest.raises(Missed, match=r"^worker-\d ended by itself with status 1 while the demo waited for worker-\d"):
        main(["--url", lasting])

    assert capsys.readouterr().err == "  no more coffee\n"


# -- the stage, with actors that are no workers


ACTOR = '''
import json, sys, time
def tell(word, **facts):
    print(json.dumps({"time": round(time.time(), 3), "event": word, "who": "worker-1", **facts}), flush=True)
'''


@pytest.fixture
def signals() -> Iterator[Signals]:
    with Signals() as signals:
        yield signals
    signals.restore()


@pytest.fixture
def stage(signals: Signals) -> Iterator[Stage]:
    with Stage(signals) as stage:
        yield stage


def act(stage: Stage, folder: Path, code: str, ends: bool = False) -> Actor:
    script = folder / "actor.py"
    script.write_text(ACTOR + textwrap.dedent(code))
    return stage.start("worker-1", str(script), ends=ends)


def has(stage: Stage, word: str) -> bool:
    return any(event["event"] == word for event in stage.events)


def test_an_actor_that_ends_by_itself_is_a_failure_with_its_last_words(stage: Stage, tmp_path: Path) -> None:
    act(stage, tmp_path, "sys.exit('no more coffee')")
    with pytest.raises(Missed, match="worker-1 ended by itself with status 1 while") as missed:
        stage.wait_for("a task", lambda: has(stage, "started"), seconds=60)
    assert missed.value.words == ["no more coffee"]


def test_an_actor_that_ends_as_it_should_is_none(stage: Stage, tmp_path: Path) -> None:
    actor = act(stage, tmp_path, "tell('done', id='a')", ends=True)
    stage.wait_end(actor, seconds=60)
    assert has(stage, "done")


def test_an_actor_that_ends_as_it_should_but_with_another_status_is_a_failure(stage: Stage, tmp_path: Path) -> None:
    actor = act(stage, tmp_path, "sys.exit(3)", ends=True)
    with pytest.raises(Missed, match="status 3"):
        stage.wait_for("nothing", lambda: None, seconds=60)
    assert actor.failed()


def test_what_does_not_happen_within_its_deadline_is_a_failure(stage: Stage, tmp_path: Path) -> None:
    actor = act(stage, tmp_path, "print('still here', file=sys.stderr, flush=True); tell('here'); time.sleep(600)")
    stage.wait_for("it to be here", lambda: has(stage, "here") and len(actor.words) > 0, seconds=60)
    with pytest.raises(Missed, match=r"did not see a task within 0\.1 s") as missed:
        stage.wait_for("a task", lambda: has(stage, "started"), actor, seconds=0.1)
    assert missed.value.words == ["still here"]


def test_lines_that_are_no_events_do_not_stop_it(stage: Stage, tmp_path: Path) -> None:
    actor = act(stage, tmp_path, """
        for line in ("{", "[1]", '{"time": 1}', "", "\\\\x1b[31m"):
            print(line, flush=True)
        tell("done", id="a")
    """, ends=True)
    stage.wait_end(actor, seconds=60)
    assert [event["event"] for event in stage.events] == ["done"]


def test_what_a_killed_actor_said_is_read_to_its_end_before_the_kill_is_told(stage: Stage, tmp_path: Path) -> None:
    actor = act(stage, tmp_path, """
        for n in range(2000):
            tell("started", id=str(n), attempt=1, redelivered=False)
        time.sleep(600)
    """)
    stage.wait_for("all of it", lambda: len(stage.events) >= 1000, seconds=60)
    stage.kill(actor)
    assert stage.events[-1]["event"] == "killed"
    assert bars(stage.events)[-1].mark == KILLED
    stage.wait_for("nothing more", lambda: True)  # its end was ours: no failure
    assert actor.silent()


@pytest.mark.skipif(os.name == "nt", reason="SIGTERM is a kill there")
def test_a_signal_interrupts_a_wait_and_every_actor_is_ended(signals: Signals, tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as interrupted, Stage(signals) as stage:
        actor = act(stage, tmp_path, """
            import signal
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            tell("started", id="a", attempt=1, redelivered=False)
            time.sleep(600)
        """)
        stage.wait_for("its start", lambda: has(stage, "started"), seconds=60)
        os.kill(os.getpid(), signal.SIGTERM)
        stage.wait_for("nothing", lambda: None, seconds=60)
    assert interrupted.value.signum == signal.SIGTERM
    assert actor.process.returncode == -signal.SIGKILL


def test_a_signal_waits_while_nothing_waits_for_it(signals: Signals) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)  # the first one counts
    assert signals.received == signal.SIGINT
    with pytest.raises(Interrupted), signals.interruptible():
        pytest.fail("not reached")


def test_within_somebody_elses_code_a_signal_interrupts_at_once_and_only_once(signals: Signals) -> None:
    with pytest.raises(Interrupted) as interrupted, signals.interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("not reached")
    assert interrupted.value.signum == signal.SIGTERM
    os.kill(os.getpid(), signal.SIGINT)  # no second Interrupted: clean-up goes on
    assert signals.received == signal.SIGTERM
