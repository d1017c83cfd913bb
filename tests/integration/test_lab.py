"""A private RabbitMQ: its life, its data, its neighbours, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest

from tareas.errors import NodeTrouble
from tareas.lab.node import Node
from tareas.lab.ports import Claim, free, greet
from tareas.lab.programs import Programs, find_programs
from tests.faults.harness import SETTLED
from tests.integration.test_contract import until
from tests.support import DEADLINE, ROOT, Run, raw_connection

QUORUM = {"x-queue-type": "quorum"}
PERSISTENT = pika.BasicProperties(delivery_mode=2)


@contextlib.contextmanager
def channel(url: str) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    with contextlib.closing(raw_connection(url)) as connection:
        opened = connection.channel()
        opened.confirm_delivery()
        yield opened


def left_behind(folder: Path) -> list[str]:
    """The processes that still run for a node in this folder: named in their arguments, or in epmd's environment."""
    found = []
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,stat=,args="], capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        pid, state, arguments = line.split(None, 2)
        environment = b""
        if "epmd" in arguments:
            with contextlib.suppress(OSError):
                environment = Path(f"/proc/{pid}/environ").read_bytes()
        if not state.startswith("Z") and (str(folder) in arguments or os.fsencode(folder) in environment):
            found.append(line.strip())
    return found


def nothing_left_behind(folder: Path) -> bool:
    until = time.monotonic() + DEADLINE
    while (left := left_behind(folder)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left
    return True


def test_left_behind_finds_a_node_and_its_epmd(killable: Node) -> None:
    found = "\n".join(left_behind(killable.folder))
    assert "guard.py" in found
    assert "beam" in found
    if Path("/proc/self/environ").exists():
        assert "epmd -daemon" in found


def test_a_killed_node_leaves_nothing_but_its_data(killable: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node, first = killable, killable.pid
    assert node.version.startswith(node.programs.name)
    with channel(node.url) as opened:
        opened.queue_declare("kept", durable=True, arguments=QUORUM)
        opened.basic_publish("", "kept", b"first", PERSISTENT)
    declared = time.monotonic()
    until(lambda: time.monotonic() > declared + SETTLED)  # younger, the queue may lose what it has confirmed

    node.kill()
    assert not node.running
    assert free(node.port)
    assert nothing_left_behind(node.folder)
    monkeypatch.setenv("RABBITMQ_NODE_PORT", "5672")  # the user's settings for another RabbitMQ are not ours
    monkeypatch.setenv("RABBITMQ_NODENAME", "rabbit")
    (node.folder / "pid").write_text(str(os.getpid()))  # of another time: no hindrance
    node.start()
    assert node.pid not in (first, os.getpid())
    with channel(node.url) as opened:
        assert opened.basic_get("kept", auto_ack=True)[2] == b"first"
    assert "kept" in node.ctl("list_queues", "name")


OWNER = """
import json, sys, time
from pathlib import Path
from tareas.lab.node import Node
from tareas.lab.programs import Programs
node = Node(sys.argv[1], Programs(Path(sys.argv[2])))
getattr(node, sys.argv[3])()
print(json.dumps([node.port, node.dist_port, node.epmd]), flush=True)
time.sleep(1000)
"""


def test_two_nodes_know_nothing_of_each_other_and_one_does_not_outlive_its_killed_owner(
    killable: Node, url: str, tmp_path: Path, run: Run
) -> None:
    owner = run("-c", OWNER, tmp_path / "other", killable.programs.folder, "start")
    theirs = json.loads(owner.wait_for("[", deadline=150))
    ports = [killable.port, killable.dist_port, killable.epmd, *theirs]
    assert len(set(ports)) == 6
    assert not {4369, 5672, 25672} & set(ports)  # what the machine's own RabbitMQ uses
    with channel(killable.url) as opened:
        opened.queue_declare("mine", durable=True)
    with (
        pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"),
        channel(f"amqp://guest:guest@127.0.0.1:{theirs[0]}/%2F") as opened,
    ):
        opened.queue_declare("mine", passive=True)
    assert (killable.folder / ".erlang.cookie").read_text() != (tmp_path / "other" / ".erlang.cookie").read_text()
    for port in ports:
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", port), timeout=5).close()
    assert left_behind(tmp_path)
    owner.kill()
    assert nothing_left_behind(tmp_path)
    with channel(killable.url) as opened:
        opened.queue_declare("mine", passive=True)
    assert greet(killable.port) == killable.version
    assert greet(pika.URLParameters(url).port)


def test_a_node_that_is_still_booting_does_not_outlive_its_killed_owner(
    programs: Programs, tmp_path: Path, run: Run
) -> None:
    owner = run("-c", OWNER, tmp_path / "node", programs.folder, "launch")
    owner.wait_for("[")
    owner.kill()
    assert nothing_left_behind(tmp_path)


def test_the_broker_in_the_foreground_stops_cleanly(programs: Programs, tmp_path: Path, run: Run) -> None:
    foreground(programs, tmp_path, run, "Ctrl+C")


def test_so_it_does_at_a_supervisors_signal(one_version: Programs, tmp_path: Path, run: Run) -> None:
    """One version: the signal is ours to hear, not RabbitMQ's."""
    foreground(one_version, tmp_path, run, "SIGTERM")


def foreground(programs: Programs, folder: Path, run: Run, how: str) -> None:
    """What `make broker` runs starts, is used, and stops in this way."""
    claim = Claim()
    call = ["-m", "tareas.lab.provide", "--port", claim.port, "--folder", folder / "data"]
    broker = run(*call, tty=how == "Ctrl+C", env={"RABBITMQ_BIN": str(programs.folder)})
    broker.wait_for("Ctrl+C stops it", deadline=150)
    assert f"localhost:{claim.port}" in broker.out
    assert "guest:guest" not in broker.out
    with channel(f"amqp://guest:guest@127.0.0.1:{claim.port}/%2F") as opened:
        opened.queue_declare("kept", durable=True)
    if how == "Ctrl+C":
        broker.send("\x03")
    else:
        broker.signal(signal.SIGTERM)
    broker.wait_for("Stopping, in order")
    assert broker.wait() == 0
    broker.wait_for("Stopped.")
    assert nothing_left_behind(folder)
    claim.release()


def test_the_broker_in_the_foreground_says_that_its_port_is_taken(
    programs: Programs, url: str, tmp_path: Path, run: Run
) -> None:
    port = pika.URLParameters(url).port
    broker = run(
        *("-m", "tareas.lab.provide", "--port", port, "--folder", tmp_path / "data"),
        env={"RABBITMQ_BIN": str(programs.folder)},
    )
    assert broker.wait() == 1
    assert f"port {port} is taken by another RabbitMQ ({programs.name}" in broker.err
    assert broker.err.count("\n") == 1
    assert not broker.out


def test_a_taken_port_is_said_to_be_so_when_no_rabbitmq_has_it(programs: Programs, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        node = Node(tmp_path / "node", programs, port=server.getsockname()[1])
        server.settimeout(0)  # it never answers: its backlog accepts
        with pytest.raises(NodeTrouble, match="is taken by another program"):
            node.start()
        node.close()


def test_a_folder_has_one_node_at_a_time(killable: Node) -> None:
    second = Node(killable.folder, killable.programs)
    with pytest.raises(NodeTrouble, match=r"runs on the data in .* already"):
        second.start()
    second.close()
    assert greet(killable.port) == killable.version


def test_a_node_that_cannot_start_says_why_and_leaves_nothing(programs: Programs, tmp_path: Path) -> None:
    with (
        pytest.raises(NodeTrouble, match="did not start") as caught,
        Node(tmp_path / "node", programs, config="no_such_key = 1"),
    ):
        pass
    assert "no_such_key" in str(caught.value)
    assert str(tmp_path / "node" / "log") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert nothing_left_behind(tmp_path)


def test_rabbitmqctl_that_fails_says_what_and_why(killable: Node, tmp_path: Path) -> None:
    with pytest.raises(NodeTrouble, match="delete_queue nonesuch"):
        killable.ctl("delete_queue", "nonesuch")
    with pytest.raises(NodeTrouble, match="not running"):
        Node(tmp_path / "node", killable.programs).ctl("list_queues")


def test_the_sessions_node_ends_with_the_session_even_when_that_is_killed(
    one_version: Programs, tmp_path: Path, run: Run
) -> None:
    """One version: it is the tests' own doing."""
    test = tmp_path / "test_forever.py"
    test.write_text(
        "import time\ndef test_forever(url):\n    print(f'\\nup {url}', flush=True)\n    time.sleep(1000)\n"
    )
    session = run(
        *("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-p", "tests.conftest", test, f"--rootdir={ROOT}"),
        *("-c", ROOT / "pyproject.toml", "-k", one_version.name),
        env={"TMPDIR": str(tmp_path)},
    )
    session.wait_for("up amqp", deadline=150)
    assert left_behind(tmp_path)
    session.kill()
    assert nothing_left_behind(tmp_path)


def test_find_programs_refuses_a_folder_without_rabbitmq(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no rabbitmq-server in"):
        find_programs(tmp_path)
