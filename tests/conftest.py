"""Fixtures: a real RabbitMQ of each version, fresh queues, the project's commands as processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import uuid
from collections.abc import Iterator
from typing import Any

import pika
import pytest
import yaml

from tareas.lab.node import Node
from tareas.lab.programs import Programs
from tests import node_keeper
from tests.support import ROOT, Command, Run, raw_connection, versions

NOBODY = "amqp://guest:guest@127.0.0.1:1/%2F"  # nothing listens at port 1: no test reaches the machine's own RabbitMQ
VERSIONS = versions()
LASTING = {"lasting_node", "answering", "secure", "clusters"}  # fixtures that several tests share
PARAMS: list[Programs | None] = list(VERSIONS) or [None]  # None: not installed, and a test that needs it says so


# Deprecations are errors in every process that the tests start (in their own: pyproject.toml). Only what pika 1.3.2
# calls of Python's, and Python 3.12 deprecates, is not ours to mend.
WARNINGS = "error::DeprecationWarning,ignore:datetime.datetime.utcfromtimestamp:DeprecationWarning"


def pytest_configure(config: pytest.Config) -> None:
    expected = os.environ.get("PIKA_EXPECTED", pika.__version__)  # `make pikas` runs the tests on several
    if pika.__version__ != expected:
        raise pytest.UsageError(f"this is pika {pika.__version__} from {pika.__file__}, not {expected}")
    os.environ["AMQP_URL"] = NOBODY
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # `make test &`: the commands would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):  # else a worker of pytest-xdist: the session is its controller's
        nodes = contextlib.ExitStack()
        nodes.enter_context(node_keeper.session())
        config.add_cleanup(nodes.close)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist's, which reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With --dist loadgroup, tests that share a node run in one process, so that it is started once a version. First
    those that want it stopped: a boot less."""
    items.sort(key=lambda item: "killable" in getattr(item, "fixturenames", ()))
    for item in items:
        if shared := LASTING & set(getattr(item, "fixturenames", ())):
            version = getattr(getattr(item, "callspec", None), "params", {}).get("programs")
            item.add_marker(pytest.mark.xdist_group(f"{min(shared)}-{version and version.name}"))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Without the groups all would pass, on three times the nodes: pytest 9.2 and pytest-xdist 3.8 together do so."""
    lost = [each for each in session.items if each.get_closest_marker("xdist_group") and "@" not in each.nodeid]
    if getattr(session.config.option, "loadgroup", False) and lost:
        raise pytest.UsageError(f"pytest-xdist does not see the group of {lost[0].nodeid}: see requirements-dev.txt")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Which pika it was; why a test failed that passed when it was run again: pytest-rerunfailures only names it."""
    terminalreporter.write_line(f"pika {pika.__version__}")
    ends = [report for report in terminalreporter.stats.get("", []) if report.when == "teardown"]
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"run again: {report.nodeid} ({report.when})")
        terminalreporter.write_line(report.longreprtext)
        # What its commands said: the fixture `run` prints it at the end, of which there are two now.
        end: list[tuple[str, str]] = next((end.sections for end in ends if end.nodeid == report.nodeid), [])
        for title, text in dict.fromkeys([*report.sections, *end]):
            terminalreporter.write_line(f"--- {title}\n{text[-5000:]}")


@pytest.fixture(scope="session", autouse=True)
def deprecations_are_errors() -> Iterator[None]:
    """Not set earlier: pytest's own processes have plugins, whose deprecations are theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", WARNINGS)
        yield


@pytest.fixture(scope="session", params=PARAMS, ids=lambda programs: programs.name if programs else "none")
def programs(request: pytest.FixtureRequest) -> Programs:
    """RabbitMQ's programs, each version in turn."""
    return installed(request.param)


@pytest.fixture(scope="session")
def one_version() -> Programs:
    """RabbitMQ's programs, for what does not depend on the version."""
    return installed(PARAMS[-1])  # the newest boots fastest


def compose_settings(programs: Programs) -> list[str]:
    """The lines of rabbitmq.conf in the compose files, but for what makes a cluster: others test that."""
    single, cluster = (
        re.sub(r"\$\{\w+:\+.*?\}", "", yaml.safe_load((ROOT / file).read_text())["configs"]["rabbitmq"]["content"])
        .splitlines()
        for file in ("docker-compose.yml", "compose.cluster.yml")
    )
    settings = [line for line in cluster if not line.startswith("cluster_formation")]
    assert {line for line in single if not line.startswith("#")} <= set(settings)
    # The cluster is made of version 4: older ones refuse what they don't know.
    return single if programs.name.startswith("3.") else settings


def installed(found: Programs | None) -> Programs:
    """These programs; without any the test is skipped, in CI it fails."""
    if found is None:
        message = "RabbitMQ is not installed: python -m tareas.lab.provide --install"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


@pytest.fixture
def url(programs: Programs) -> str:
    """A node that all tests share: don't stop it, don't raise its alarms."""
    return node_keeper.shared(programs)


@pytest.fixture(scope="session")
def lasting_node(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node to stop, kill and start again, which tests share one after the other: a boot is 5 seconds of CPU. It need
    not run; what a test sets (a policy, an alarm) it takes back. Its settings are those of the compose files."""
    node = Node(tmp_path_factory.mktemp("node"), programs, config="\n".join(compose_settings(programs)))
    try:
        yield node
    finally:
        node.kill()  # quicker than in order, and nobody wants its data
        node.close()


@pytest.fixture
def killable(lasting_node: Node) -> Node:
    """The same, running."""
    lasting_node.start()
    return lasting_node


@pytest.fixture
def connection(url: str) -> Iterator[pika.BlockingConnection]:
    """A raw pika connection to the shared node."""
    with contextlib.closing(raw_connection(url)) as opened:
        yield opened


@pytest.fixture
def channel(connection: pika.BlockingConnection) -> Any:
    """A raw pika channel on the shared node."""
    return connection.channel()


@pytest.fixture
def queue(url: str) -> Iterator[str]:
    """A name for a queue that nobody has declared yet; it and its dead-letter queue are deleted afterwards."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    delete_queues(url, name)


def delete_queues(url: str, name: str) -> None:
    """The queue and its dead letters."""
    with contextlib.closing(raw_connection(url)) as connection:
        channel = connection.channel()
        channel.queue_delete(name)
        channel.queue_delete(f"{name}.dead")


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """`run("worker.py", "worker-1", "--json")` starts a command; whatever still runs is killed afterwards.

    $AMQP_URL is that of the test's RabbitMQ: killable or url, whichever the test asks for.
    """
    broker = NOBODY
    for fixture in ("url", "killable"):
        if fixture in request.fixturenames:
            found = request.getfixturevalue(fixture)
            broker = found if isinstance(found, str) else found.url
    commands: list[Command] = []

    def start(*argv: object, env: dict[str, str | None] | None = None, **options: Any) -> Command:
        commands.append(Command(*argv, env={"AMQP_URL": broker, **(env or {})}, **options))
        return commands[-1]

    try:
        yield start
    finally:
        for command in commands:
            command.close()
            print(command.report())  # pytest shows it when the test failed
