"""TLS for real: amqps:// with certificates made for the test, and every way in which it is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tareas.lab.node import Node
from tareas.lab.ports import Claim
from tareas.lab.programs import Programs
from tests import certificates
from tests.certificates import Certificates
from tests.integration.test_situations import AT_ONCE, ONE_OF_EACH, SHORT, Situation, meet, rows
from tests.node_keeper import SECRET
from tests.support import DEADLINE, Run

BOOTS = 200  # seconds for a test that starts a node or two on a busy machine


class Secure:
    """A RabbitMQ with a TLS port beside the plain one. Only with `strict` does it want a client certificate."""

    def __init__(self, folder: Path, programs: Programs) -> None:
        folder.mkdir()
        self.files: Certificates = certificates.make(folder)
        self._claim = Claim()
        self.node = Node(folder / "node", programs)

    def be(self, strict: bool) -> None:
        """Running, with this setting: started again if it has the other."""
        certificate, key = self.files.server
        wanted = "\n".join([
            f"listeners.ssl.1 = 127.0.0.1:{self._claim.port}",
            f"ssl_options.cacertfile = {self.files.authority}",
            f"ssl_options.certfile = {certificate}",
            f"ssl_options.keyfile = {key}",
            f"ssl_options.verify = {'verify_peer' if strict else 'verify_none'}",
            f"ssl_options.fail_if_no_peer_cert = {str(strict).lower()}",
        ])
        if wanted != self.node.config:
            self.node.stop()
            self.node.config = wanted
        self.node.start()

    @property
    def plain_at(self) -> str:
        return f"127.0.0.1:{self.node.port}"

    @property
    def at(self) -> str:
        return f"127.0.0.1:{self._claim.port}"

    @property
    def by_name(self) -> str:
        """The TLS port, under a name that is not in the certificate."""
        return f"localhost:{self._claim.port}"

    def options(self, *names: str) -> str:
        """The files that a URL names: of "ca", "other", "client", "stranger"."""
        files: dict[str, Path] = {}
        for name in names:
            if name in ("ca", "other"):
                files["cafile"] = self.files.authority if name == "ca" else self.files.other_authority
            else:
                files["certfile"], files["keyfile"] = self.files.client if name == "client" else self.files.stranger
        return urlencode(files)

    def url(self, *names: str) -> str:
        return f"amqps://guest:guest@{self.at}/%2F?{self.options(*names)}"

    def close(self) -> None:
        self.node.kill()
        self.node.close()
        self._claim.release()


@pytest.fixture(scope="module")
def secure(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    node = Secure(tmp_path_factory.mktemp("tls") / "node", programs)
    try:
        yield node
    finally:
        node.close()


def publish_and_do(run: Run, url: str, queue: str) -> None:
    """Three tasks go in and are done, both over this URL; admin.py sees the queue over it, too."""
    options = ("--queue", queue, "--url", url)
    producer = run("producer.py", "--count", "3", "--complexity", "0", *options)
    assert producer.wait() == 0, producer.report()
    assert "3 of 3 confirmed" in producer.out
    worker = run("worker.py", "worker-1", "--drain", "--json", *options)
    assert worker.wait() == 0, worker.report()
    assert sorted(event["id"] for event in worker.event_list("done")) == ["task-0001", "task-0002", "task-0003"]
    admin = run("admin.py", "dead", *options)
    assert admin.wait() == 0, admin.report()
    assert [each.err for each in (producer, worker, admin)] == ["", "", ""]


# -- with client certificates


@pytest.mark.timeout(BOOTS)
def test_tasks_over_tls_with_a_client_certificate(secure: Secure, run: Run) -> None:
    secure.be(strict=True)
    publish_and_do(run, secure.url("ca", "client"), "mutual")


GUEST = f"amqps://guest:{SECRET}@"  # refused before RabbitMQ hears of any password
NOT_TRUSTED = "the certificate of {at} is not trusted"
WANTED = ["{at} closed the connection right after the TLS handshake", "client certificate", "?certfile=FILE&keyfile="]
REFUSED: Mapping[str, Situation] = {
    "a wrong authority": Situation(
        ONE_OF_EACH, ["--url", GUEST + "{at}?{other_client}"], {}, 1, [NOT_TRUSTED, "?cafile=FILE in the URL"]
    ),
    "no authority": Situation(
        ONE_OF_EACH, [], {"AMQP_URL": GUEST + "{at}?{client}"}, 1, [NOT_TRUSTED, "?cafile=FILE in the URL"]
    ),
    "a wrong host name": Situation(
        ONE_OF_EACH, ["--url", GUEST + "{by_name}?{ca_client}"], {}, 1,
        ["the certificate of {by_name} is for another host", "(write the host name that stands in it into the URL)"],
    ),
    "no client certificate": Situation(ONE_OF_EACH, ["--url", GUEST + "{at}?{ca}", *AT_ONCE], {}, 1, WANTED),
    "a stranger's certificate": Situation(
        ONE_OF_EACH, ["--url", GUEST + "{at}?{ca_stranger}", *AT_ONCE], {}, 1, WANTED
    ),
    "amqps:// to the plain port": Situation(
        ONE_OF_EACH, ["--url", GUEST + "{plain_at}?{ca_client}", *AT_ONCE], {}, 1,
        ["TLS with {plain_at} failed", "amqps:// needs RabbitMQ's TLS port, 5671 as a rule"],
    ),
    "amqp:// to the TLS port": Situation(
        ONE_OF_EACH, ["--url", f"amqp://guest:{SECRET}@{{at}}?{SHORT}", *AT_ONCE], {}, 1,
        ["{at} closed the connection before it spoke AMQP", "its TLS port, which wants amqps://"],
    ),
    "a wrong password": Situation(
        ONE_OF_EACH, ["--url", GUEST + "{at}?{ca_client}"], {}, 1,
        ["RabbitMQ at {at} refuses the login of user 'guest'"],
    ),
}


@pytest.mark.timeout(BOOTS)
@rows(REFUSED)
def test_a_connection_that_tls_does_not_allow(command: str, row: Situation, secure: Secure, run: Run) -> None:
    secure.be(strict=True)
    names = ("ca", "client", "ca_client", "ca_stranger", "other_client")
    files = {name: secure.options(*name.split("_")) for name in names}
    meet(run, command, row, at=secure.at, plain_at=secure.plain_at, by_name=secure.by_name, **files)


@pytest.mark.timeout(BOOTS)
def test_a_worker_waits_for_a_broker_that_wants_a_client_certificate_and_says_so_once(secure: Secure, run: Run) -> None:
    """It may be mended there, so the worker does not end of itself; with --connect-timeout it does."""
    secure.be(strict=True)
    worker = run("worker.py", "worker-1", "--json", "--queue", "tls", "--url", secure.url("ca"))
    waits = worker.wait_event("waiting")
    assert "client certificate" in waits["reason"]
    until = time.time() + 3 * waits["seconds"]
    while time.time() < until:
        assert len(worker.events) == 1, worker.report()
        time.sleep(0.05)
    worker.signal()
    assert worker.wait(DEADLINE) == 0, worker.report()
    assert worker.err == ""


# -- without: from here on it is another node, so these come last


@pytest.mark.timeout(BOOTS)
def test_a_worker_outlives_a_broker_behind_tls(secure: Secure, run: Run) -> None:
    secure.be(strict=True)
    worker = run("worker.py", "worker-1", "--json", "--queue", "tls", "--url", secure.url("ca", "client"))
    worker.wait_event("connected")
    secure.be(strict=False)
    worker.wait_event("connected", count=2)
    run("producer.py", "--count", "1", "--complexity", "0", "--queue", "tls", "--url", secure.url("ca"))
    worker.wait_event("done", id="task-0001")
    worker.signal()
    assert worker.wait() == 0, worker.report()
    assert len(worker.event_list("connection_lost")) == 1 and worker.err == "", worker.report()


@pytest.mark.timeout(BOOTS)
def test_tasks_over_tls_with_an_authority_of_ones_own(secure: Secure, run: Run) -> None:
    secure.be(strict=False)
    publish_and_do(run, secure.url("ca"), "tls")
