"""Every wrong situation of the three commands: one line that says what, where and how to mend it; exit status 1.

Two tables: what is met on the way to RabbitMQ needs none, and is the same for every version; what RabbitMQ answers is
met on a node of each version. TLS has its own, in test_tls.py; wrong calls are in tests/unit/test_wrong_calls.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pika
import pytest

from tareas.lab.programs import Programs
from tests import node_keeper
from tests.faults.proxy import Proxy
from tests.integration.test_contract import consumers, declare, ready, until
from tests.node_keeper import SECRET
from tests.support import OPEN, Command, Run, raw_connection

NOT_IT = "s3cr3t-Pa66"  # near enough that a message with either would hold "s3cr3t"
COMMANDS = {
    "producer": ["producer.py", "--count", "1"],
    "worker": ["worker.py", "worker-1"],
    "status": ["admin.py", "status"],
    "dead": ["admin.py", "dead"],
    "replay": ["admin.py", "replay", "--all"],
    "discard": ["admin.py", "discard", "--all", "--yes"],
}
ONE_OF_EACH = ("producer", "worker", "status")


class Situation(NamedTuple):
    """commands: of COMMANDS. words: what the line must hold: what is wrong, where ({at}), how to mend it.

    url: with {at}, a host with its port. said: what may stand on stdout before.
    """

    commands: Sequence[str]
    argv: Sequence[str]
    environment: Mapping[str, str]
    status: int
    words: Sequence[str]
    said: Sequence[str] = ()


def rows(table: Mapping[str, Situation]) -> pytest.MarkDecorator:
    """A test for each command of each row."""
    each = [(name, command, row) for name, row in table.items() for command in row.commands]
    return pytest.mark.parametrize(
        ("command", "row"), [row[1:] for row in each], ids=[f"{name}, {command}" for name, command, _ in each]
    )


def meet(run: Run, command: str, row: Situation, **places: object) -> Command:
    """Run the command into the situation; it must end, and answer as the row says."""
    argv = [*COMMANDS[command], *row.argv]
    if "--connect-timeout" in argv and command not in ("producer", "worker"):  # admin.py tries once
        at = argv.index("--connect-timeout")
        del argv[at : at + 2]
    environment: dict[str, str | None] = {name: value.format(**places) for name, value in row.environment.items()}
    ended = run(*(part.format(**places) for part in argv), env=environment)
    check(ended, row.status, [words.format(**places) for words in row.words], row.said)
    return ended


def check(ended: Command, status: int, words: Sequence[str], said: Sequence[str] = ()) -> None:
    """It ends with this status; one line on stderr holds all these words; no password is anywhere."""
    assert ended.wait() == status, ended.report()
    assert ended.err.count("\n") == 1 and ended.err.endswith("\n"), ended.report()
    assert ended.err.startswith(f"{Path(ended.argv[1]).name}: ") and ended.err[:-1].isprintable(), ended.report()
    for each in words:
        assert each in ended.err
    lines = ended.out.splitlines()
    assert len(lines) == len(said) and all(part in line for part, line in zip(said, lines, strict=True)), ended.report()
    assert "s3cr3t" not in ended.out + ended.err


# -- on the way to RabbitMQ

AT_ONCE = ("--connect-timeout", "0")
SHORT = "socket_timeout=1&stack_timeout=1"
LOGIN = f"amqp://eva:{SECRET}@"
CLOSED = "{at} closed the connection before it spoke AMQP"
ON_THE_WAY = {
    "nobody listens": Situation(
        ONE_OF_EACH, ["--url", LOGIN + "127.0.0.1:1", *AT_ONCE], {}, 1,
        ["nobody listens at 127.0.0.1:1", "(start RabbitMQ: docker compose up -d rabbitmq, or make broker)"],
    ),
    "nobody listens, by the environment": Situation(
        ONE_OF_EACH, AT_ONCE, {"AMQP_URL": LOGIN + "127.0.0.1:1/a"}, 1,
        ["nobody listens at 127.0.0.1:1/a", "(start RabbitMQ: docker compose up -d rabbitmq, or make broker)"],
    ),
    "nobody listens for a second": Situation(
        ["producer"], ["--url", LOGIN + "127.0.0.1:1", "--connect-timeout", "1"], {}, 1,
        ["no connection within 1 s: nobody listens at 127.0.0.1:1", "nothing is published"],
        ["trying again in 0.25 s: nobody listens at 127.0.0.1:1"],
    ),
    "a worker waits for a second": Situation(
        ["worker"], ["--url", LOGIN + "127.0.0.1:1", "--connect-timeout", "1"], {}, 1,
        ["no connection within 1 s: nobody listens at 127.0.0.1:1"],
        ["trying again in 0.25 s: nobody listens at 127.0.0.1:1"],
    ),
    "nobody listens at any": Situation(
        ("worker", "status"), ["--url", f"{LOGIN}127.0.0.1:1,amqp://eva:{NOT_IT}@127.0.0.1:2", *AT_ONCE], {}, 1,
        ["nobody listens at 127.0.0.1:1 ", "; nobody listens at 127.0.0.1:2 "],
    ),
    "host unknown": Situation(
        ONE_OF_EACH, ["--url", LOGIN + "nowhere.invalid", *AT_ONCE], {}, 1,
        ["the host of nowhere.invalid:5672 is unknown", "(check the URL, or the network)"],
    ),
    "http": Situation(
        ONE_OF_EACH, ["--url", f"{LOGIN}{{at}}?{SHORT}", *AT_ONCE], {}, 1, [CLOSED, "no RabbitMQ"],
    ),
    "close": Situation(
        ONE_OF_EACH, ["--url", f"{LOGIN}{{at}}?{SHORT}", *AT_ONCE], {}, 1, [CLOSED, "still starting"],
    ),
    "mute": Situation(
        ONE_OF_EACH, ["--url", f"{LOGIN}{{at}}?{SHORT}", *AT_ONCE], {}, 1,
        ["no answer from {at} in time", "(is it RabbitMQ's AMQP port, 5672 as a rule? is a firewall between?)"],
    ),
    "mute to TLS": Situation(
        ONE_OF_EACH, ["--url", f"amqps://eva:{SECRET}@{{at}}?{SHORT}", *AT_ONCE], {}, 1,
        ["no answer from {at} in time"],
    ),
    "http to TLS": Situation(
        ONE_OF_EACH, ["--url", f"amqps://eva:{SECRET}@{{at}}?{SHORT}", *AT_ONCE], {}, 1,
        ["TLS with {at} failed", "amqps:// needs RabbitMQ's TLS port, 5671 as a rule"],
    ),
}


@pytest.fixture
def peer(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """What listens in the place of RabbitMQ: the first word of the row's name says how it behaves."""
    with Proxy("amqp://127.0.0.1:1") as proxy:
        mode = request.node.callspec.id.partition(",")[0].split()[0]
        if mode in proxy.met:
            proxy.be(mode)
        yield proxy


@rows(ON_THE_WAY)
def test_a_situation_on_the_way_to_rabbitmq(command: str, row: Situation, peer: Proxy, run: Run) -> None:
    meet(run, command, row, at=peer.url.removeprefix("amqp://"))


# -- what RabbitMQ answers

SET = "rabbitmqctl set_permissions"
ANSWERS = {
    "a wrong password": Situation(
        (*ONE_OF_EACH, "discard"), ["--url", f"amqp://eva:{NOT_IT}@{{at}}"], {}, 1,
        ["RabbitMQ at {at} refuses the login of user 'eva'", "(check user and password in AMQP_URL or --url"],
    ),
    "a wrong password, by the environment": Situation(
        ("producer", "worker"), [], {"AMQP_URL": f"amqp://eva:{NOT_IT}@{{at}}"}, 1,
        ["RabbitMQ at {at} refuses the login of user 'eva'", "(check user and password in AMQP_URL or --url"],
    ),
    "an unknown user": Situation(
        ("producer", "worker"), ["--url", f"amqp://nobody:{SECRET}@{{at}}"], {}, 1,
        ["RabbitMQ at {at} refuses the login of user 'nobody'", "(check user and password in AMQP_URL or --url"],
    ),
    "no vhost": Situation(
        (*ONE_OF_EACH, "dead"), ["--url", f"amqp://eva:{SECRET}@{{at}}/nowhere"], {}, 1,
        ["RabbitMQ at {at}/nowhere has no such vhost, or user 'eva' may not use it", "rabbitmqctl list_vhosts"],
    ),
    "a vhost for others": Situation(
        ONE_OF_EACH, ["--url", f"amqp://outsider:{SECRET}@{{at}}"], {}, 1,
        ["RabbitMQ at {at} has no such vhost, or user 'outsider' may not use it", "rabbitmqctl list_vhosts"],
    ),
    "a classic queue": Situation(
        ("producer", "worker"), ["--queue", "classic"], {}, 1,
        ["queue 'classic' exists with other arguments (PRECONDITION_FAILED - inequivalent arg 'x-dead-letter-exchange'",
         "use --queue NAME, or empty the old queue and delete it"],
    ),
    "a classic dead-letter queue": Situation(
        ("producer", "worker"), ["--queue", "half"], {}, 1,
        ["queue 'half.dead' exists with other arguments (PRECONDITION_FAILED - inequivalent arg 'x-",
         "use --queue NAME, or empty the old queue and delete it"],
    ),
    "someone's own queue": Situation(
        ("producer", "worker"), ["--queue", "exclusive"], {}, 1,
        ["queue 'exclusive': RESOURCE_LOCKED - ", "(it belongs to another connection: use --queue NAME)"],
    ),
    "no permission to declare": Situation(
        ("producer", "worker"), ["--queue", "new", "--url", f"amqp://reader:{SECRET}@{{at}}"], {}, 1,
        ["RabbitMQ at {at} does not permit user 'reader' to declare queue 'new.dead': ACCESS_REFUSED - ", SET],
    ),
    "no permission to publish": Situation(
        ["producer"], ["--queue", "full", "--url", f"amqp://reader:{SECRET}@{{at}}"], {}, 1,
        ["RabbitMQ at {at}", "'reader'", "ACCESS_REFUSED", SET, "0 of the 1 tasks read are confirmed"],
        ["connected to {at}"],
    ),
    "no permission to consume": Situation(
        ["worker"], ["--queue", "full", "--url", f"amqp://writer:{SECRET}@{{at}}"], {}, 1,
        ["RabbitMQ at {at}", "'writer'", "ACCESS_REFUSED", "queue 'full'", SET], ["connected to {at}"],
    ),
    "no permission for dead letters": Situation(
        ["worker"], ["--queue", "full", "--url", f"amqp://reader:{SECRET}@{{at}}"], {}, 1,
        ["RabbitMQ at {at}", "'reader'", "ACCESS_REFUSED", SET], ["connected to {at}"],
    ),
    "no permission to look at dead letters": Situation(
        ("dead", "replay", "discard"), ["--queue", "full", "--url", f"amqp://writer:{SECRET}@{{at}}"], {}, 1,
        ["RabbitMQ at {at}", "'writer'", "ACCESS_REFUSED", "queue 'full.dead'", SET],
    ),
    "no permission to replay": Situation(
        ["replay"], ["--queue", "full", "--url", f"amqp://reader:{SECRET}@{{at}}"], {}, 1,
        ["RabbitMQ at {at}", "'reader'", "ACCESS_REFUSED", SET],
    ),
    "no queue": Situation(
        ("status", "dead", "replay", "discard"), ["--queue", "none"], {}, 1,
        ["there is no queue 'none'", "producer.py and worker.py make both"],
    ),
    "no management": Situation(
        ["status"], ["--queue", "full", "--management", f"http://eva:{SECRET}@127.0.0.1:1"], {}, 1,
        ["the management API at 127.0.0.1:1 cannot be reached", "rabbitmq-plugins enable rabbitmq_management"],
    ),
    "no URL for the management": Situation(
        ["status"], ["--queue", "full", "--management", f"eva:{SECRET}@h"], {}, 2,
        ["--management is not a URL like http://localhost:15672"],
    ),
    "no such dead letter": Situation(
        ["replay_one", "discard_one"], ["--queue", "full"], {}, 1,
        ["no dead letter 'task-9' in queue 'full'", "(admin.py dead lists them)"],
    ),
}
COMMANDS["replay_one"] = ["admin.py", "replay", "task-9"]
COMMANDS["discard_one"] = ["admin.py", "discard", "task-9", "--yes"]


@pytest.fixture(scope="module")
def answering(programs: Programs) -> Iterator[str]:
    """A RabbitMQ's host and port, with queues that are in the way.

    Its users (tests/node_keeper.py): eva may do all; outsider may not use the vhost; reader may not publish, nor
    declare other queues than "full"; writer may not consume. "full" is a pair of ours: no valid task is in the one,
    one in the other.
    """
    shared = pika.URLParameters(f"{node_keeper.shared(programs)}?heartbeat=0")  # nobody serves it while the tests run
    with contextlib.closing(raw_connection(shared)) as connection:
        channel = connection.channel()
        for name in ("classic", "half.dead"):
            channel.queue_declare(name, durable=True)
        channel.queue_declare("exclusive", durable=True, exclusive=True)
        declare(channel, "full")
        channel.confirm_delivery()
        for name in ("full", "full.dead"):
            channel.basic_publish("", name, b"no task", pika.BasicProperties(delivery_mode=2), mandatory=True)
        yield f"{shared.host}:{shared.port}"


@rows(ANSWERS)
def test_a_situation_that_rabbitmq_answers_with(command: str, row: Situation, answering: str, run: Run) -> None:
    places = {"at": answering}
    environment = {"AMQP_URL": f"amqp://eva:{SECRET}@{{at}}", **row.environment}
    said = [words.format(**places) for words in row.said]
    meet(run, command, row._replace(environment=environment, said=said), **places)


# -- what stands in the queue afterwards

LINE = '{{"id": "task-{}", "complexity": 0}}\n'


@pytest.mark.parametrize("how", ["a file", "a file as stdin"])
def test_a_bad_line_17_of_a_file_publishes_nothing(
    how: str, channel: Any, queue: str, run: Run, tmp_path: Path
) -> None:
    declare(channel, queue)
    lines = [LINE.format(number) for number in range(1, 41)]
    lines[16] = '{"id": "task-17", "complexity": seventeen}\n'
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(lines))
    if how == "a file":
        ended = run("producer.py", tasks, "--queue", queue)
    else:
        ended = run("-c", REDIRECTED, tasks, "--queue", queue)
    words = ["line 17: not JSON", "at character 33", 'write {"id": "...", ...}', "(nothing is published)"]
    assert ended.wait() == 2, ended.report()
    assert ended.err.count("\n") == 1 and all(each in ended.err for each in words), ended.report()
    assert ended.out == ""
    assert ready(channel, queue) == 0


REDIRECTED = """
import os, sys
os.dup2(os.open(sys.argv[1], os.O_RDONLY), 0)
os.execv(sys.executable, [sys.executable, "producer.py", "-", *sys.argv[2:]])
"""


def test_a_bad_line_17_of_a_pipe_comes_after_16_confirmed_tasks(channel: Any, queue: str, run: Run) -> None:
    declare(channel, queue)
    producer = run("producer.py", "-", "--json", "--queue", queue, stdin=OPEN)
    producer.send("".join(LINE.format(number) for number in range(1, 17)) + "seventeen\n" + LINE.format(18))
    assert producer.wait() == 2, producer.report()  # with the pipe still open
    assert producer.err.count("\n") == 1, producer.report()
    for words in ("producer.py: stdin, line 17: not JSON", "16 of the 16 tasks read are confirmed"):
        assert words in producer.err
    assert len(producer.event_list("confirmed")) == 16
    until(lambda: ready(channel, queue) == 16)  # RabbitMQ counts a little late


def test_a_queue_that_becomes_another_ends_a_worker(channel: Any, queue: str, run: Run) -> None:
    """Someone deletes the queue and declares a classic one of that name, while a worker consumes it."""
    worker = run("worker.py", "worker-1", "--queue", queue)
    worker.wait_for("connected")  # and then it consumes: before that, it would take the other queue for its own
    until(lambda: consumers(channel, queue) == 1)
    replace(channel, queue)
    words = [f"queue '{queue}' exists with other arguments", "use --queue NAME"]
    assert worker.wait() == 1 and worker.err.count("\n") == 1, worker.report()
    assert all(each in worker.err for each in words), worker.err


def replace(channel: Any, queue: str) -> None:
    """By a classic queue with a message: RabbitMQ 3.10 does not tell consumers, who see that none comes."""
    while True:
        channel.queue_delete(queue)
        try:
            channel.queue_declare(queue, durable=True)
        except pika.exceptions.ChannelClosedByBroker:  # the worker was quicker, and has declared it anew
            channel = channel.connection.channel()
        else:
            channel.basic_publish("", queue, LINE.format(1).encode())
            return


def test_a_name_that_another_worker_has_is_no_hindrance(channel: Any, queue: str, run: Run) -> None:
    """A consumer tag belongs to its channel."""
    first, second = (run("worker.py", "worker-1", "--queue", queue) for _ in range(2))
    for each in (first, second):
        each.wait_for("connected")
    until(lambda: consumers(channel, queue) == 2)
    for each in (first, second):
        each.signal()
        assert each.wait() == 0 and each.err == "", each.report()
