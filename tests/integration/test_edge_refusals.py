"""The edge, where somebody refuses: RabbitMQ's own words stand in every line, and a hint only where it is true."""

from __future__ import annotations

import contextlib
import datetime
import re
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pika
import pytest
import trustme

from tests.edges import one_line, raw
from tests.integration.test_contract import work_arguments
from tests.node_keeper import SECRET
from tests.support import DEADLINE, Run

AT_ONCE = ("--connect-timeout", "0")
COMMANDS = {"producer": ("producer.py", "--count", "1", "--complexity", "0"), "worker": ("worker.py", "w", "--drain")}


# -- e: a limit of connections is no refusal for good


@pytest.mark.parametrize("whose", ["the vhost's", "the user's"])
def test_a_limit_of_connections_is_waited_for(whose: str, url: str, queue: str, run: Run) -> None:
    """With RabbitMQ's words; a slot frees itself. One test, not four: the limits are this node's only ones."""
    if whose == "the vhost's":
        narrow, words = url.replace("%2F", "one-connection"), "connection limit (1) is reached"
    else:
        narrow, words = url.replace("guest:guest", f"alone:{SECRET}"), "user connection limit (1) is reached"
    options = ("--json", "--queue", queue, "--url", narrow)
    for name, argv in COMMANDS.items():
        with slot(narrow):
            waits = run(*argv, *options)
            reason = waits.wait_event("waiting")["reason"]
            assert words in reason and "no such vhost" not in reason, reason
            status = run("admin.py", "status", "--queue", queue, "--url", narrow)
            said = one_line(status, 1)
            assert words in said and "no such vhost" not in said, said
            if name == "producer":  # who does not want to wait is told the same
                ended = run(*argv, *AT_ONCE, *options)
                assert words in one_line(ended, 1), ended.report()
            assert waits.running, waits.report()
        assert waits.wait() == 0 and waits.err == "", waits.report()
    assert waits.event_list("done"), waits.report()
    if whose == "the vhost's":
        with slot(narrow) as channel:
            channel.queue_delete(queue)
            channel.queue_delete(f"{queue}.dead")


@contextlib.contextmanager
def slot(url: str) -> Iterator[Any]:
    """The one connection that is allowed, as soon as RabbitMQ has forgotten the one before."""
    with contextlib.ExitStack() as stack:
        end = time.monotonic() + DEADLINE
        while True:
            try:
                channel = stack.enter_context(raw(url))
            except pika.exceptions.AMQPConnectionError:
                assert time.monotonic() < end, "the slot is not freed"
            else:
                break
        yield channel


# -- f: RabbitMQ's words


@pytest.mark.parametrize("command", COMMANDS)
def test_a_limit_of_queues_is_said_in_rabbitmqs_words(command: str, url: str, run: Run) -> None:
    narrow, queue = url.replace("%2F", "one-queue"), f"limited-{command}"
    with raw(narrow) as channel:
        channel.queue_declare("the-one", durable=True)
    said = one_line(run(*COMMANDS[command], *AT_ONCE, "--queue", queue, "--url", narrow), 1)
    assert re.search(r"queue limit in vhost 'one-queue' \(1\) is reached", said), said
    assert "other arguments" not in said and "delete it" not in said and "permission" not in said, said


@pytest.mark.parametrize("command", COMMANDS)
def test_a_permission_that_is_not_the_queues_is_said_in_rabbitmqs_words(
    command: str, url: str, queue: str, run: Run
) -> None:
    """The queue's own are all given; what dead-letters to amq.default wants to write there."""
    narrow = url.replace("guest:guest", f"unheard:{SECRET}")
    said = one_line(run(*COMMANDS[command], *AT_ONCE, "--queue", queue, "--url", narrow), 1)
    assert "ACCESS_REFUSED" in said and "amq.default" in said, said
    assert "configure, write and read on it" not in said, "what is wanted is not on the queue"


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "classic": ({}, "inequivalent arg"),
    "a stream": ({"x-queue-type": "stream"}, "inequivalent arg"),
    "another overflow": ({"x-overflow": "drop-head"}, "inequivalent arg 'x-overflow'"),
    "of ours but classic": ({"x-queue-type": "classic"}, "inequivalent arg"),
}


@pytest.mark.parametrize(("command", "how"), [*(("producer", how) for how in DIFFERENT), ("worker", "classic")])
def test_a_queue_that_differs_is_said_in_rabbitmqs_words(
    command: str, how: str, url: str, channel: Any, queue: str, run: Run
) -> None:
    arguments, words = DIFFERENT[how]
    if how not in ("classic", "a stream"):
        arguments = {**work_arguments(queue), **arguments}
    if arguments.get("x-queue-type") == "classic":  # it knows neither
        del arguments["x-dead-letter-strategy"], arguments["x-delivery-limit"]
    channel.queue_declare(queue, durable=True, arguments=arguments)
    said = one_line(run(*COMMANDS[command], *AT_ONCE, "--queue", queue, "--url", url), 1)
    assert words in said and "received" in said and f"queue '{queue}'" in said, said


# -- g: a certificate whose time is not now

DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.timezone.utc)


@pytest.fixture
def served(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a TLS port whose certificate, or whose authority, is as the test's `how` says; with the right cafile.

    No RabbitMQ is behind it: nobody gets as far.
    """
    how = request.getfixturevalue("how")
    first = {"expired": NOW - 9 * DAY, "not valid yet": NOW + DAY, "expired authority": None}[how]
    with monkeypatch.context() as patched:
        if how == "expired authority":
            patched.setattr(trustme, "DEFAULT_EXPIRY", NOW - DAY)
        authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", not_before=first, not_after=first and first + 8 * DAY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with contextlib.suppress(OSError), client, context.wrap_socket(client, server_side=True) as secured:
                    secured.recv(100)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"amqps://guest:guest@127.0.0.1:{listener.getsockname()[1]}/%2F?cafile={quote(str(tmp_path / 'ca.pem'))}"
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.parametrize("how", ["expired", "not valid yet", "expired authority"])
@pytest.mark.parametrize("command", [*COMMANDS, "status"])
def test_a_certificate_whose_time_is_not_now_is_said_to_be_so(command: str, how: str, served: str, run: Run) -> None:
    argv = (*COMMANDS[command], *AT_ONCE) if command in COMMANDS else ("admin.py", "status")
    said = one_line(run(*argv, "--url", served), 1)
    assert re.search("not valid (yet|before)|not yet valid" if how == "not valid yet" else "expired", said), said
    assert "127.0.0.1:" in said and "not trusted" not in said and "?cafile" not in said, said


# -- l: a pika that is too old, or that has an odd number


@pytest.fixture
def another_pika(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The folder of a pika that is the installed one but for its number (the test's `number`): for $PYTHONPATH."""
    number: str = request.getfixturevalue("number")
    installed = Path(pika.__file__).parent
    shutil.copytree(installed, tmp_path / "pika", ignore=shutil.ignore_patterns("__pycache__"))
    init = tmp_path / "pika" / "__init__.py"
    init.write_text(re.sub(r"(?m)^__version__ = .*$", f"__version__ = '{number}'", init.read_text()))
    about = tmp_path / f"pika-{number}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pika\nVersion: {number}\n")
    return str(tmp_path)


@pytest.mark.parametrize("number", ["1.2.0", "1.3.1", "0.13.1"])
def test_a_pika_that_is_too_old_is_said_at_the_start(number: str, another_pika: str, run: Run) -> None:
    """Not when the first letter dies."""
    for argv in (*((*each, *AT_ONCE) for each in COMMANDS.values()), ("admin.py", "status"), ("demo.py",)):
        said = one_line(run(*argv, env={"PYTHONPATH": another_pika}), 1)
        assert said.startswith(f"{argv[0]}: ") and f"pika {number}" in said, said
        assert "pip install" in said and "1.3.2" in said and "internal error" not in said, said


@pytest.mark.parametrize("number", ["1.3.2", "1.3.10", "1.4.0b1", "1.5.0rc1", "2.0.0.dev3", "10.0"])
def test_a_pika_that_is_new_enough_is_not_held_up(number: str, another_pika: str, run: Run) -> None:
    ended = run("producer.py", "--count", "1", *AT_ONCE, env={"PYTHONPATH": another_pika})
    assert "nobody listens at 127.0.0.1:1" in one_line(ended, 1)
