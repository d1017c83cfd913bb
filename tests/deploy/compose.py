"""A compose file of the project, running on a Docker engine under a name, ports and data of its own."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

from tareas.lab.ports import Claim
from tests.support import ROOT, raw_connection

DEADLINE = 300.0  # seconds: for a busy machine that starts three nodes
LOGIN = {"RABBITMQ_USER": "student", "RABBITMQ_PASSWORD": "s3cret"}
QUEUE = "tareas_distribuidas"
PORTS = ("RABBITMQ_PORT", "RABBITMQ_PORT_1", "RABBITMQ_PORT_2", "RABBITMQ_PORT_3", "MANAGEMENT_PORT")

T = TypeVar("T")


def until(found: Callable[[], T], what: str, deadline: float = DEADLINE) -> T:
    """Look again and again until there is something; fail after the deadline."""
    end = time.monotonic() + deadline
    while not (value := found()):
        assert time.monotonic() < end, f"within {deadline:.0f} s not: {what}"
        time.sleep(0.2)
    return value


def docker(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """What `docker ...` prints; fails with what it complains about."""
    try:
        done = subprocess.run(
            ["docker", *arguments], cwd=ROOT, env={**os.environ, **(environment or {})}, capture_output=True,
            text=True, timeout=DEADLINE * 2,
        )  # fmt: skip
    except FileNotFoundError:
        raise AssertionError("docker is not installed") from None
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr[-4000:]}"
    return done.stdout


class Project:
    """`docker compose -f FILE`, with users, ports and workers' options by the variables that the file names."""

    def __init__(self, file: str) -> None:
        self.name = f"tareas-test-{secrets.token_hex(3)}"
        self._file = file
        self._claims = {name: Claim() for name in PORTS}
        self.ports = {name: claim.port for name, claim in self._claims.items()}
        self.environment = {
            **LOGIN, **{name: str(port) for name, port in self.ports.items()}, "WORKER_OPTIONS": "--grace 50 --json"
        }  # fmt: skip
        self._ended: dict[str, list[dict[str, Any]]] = {}  # events of containers that are gone

    def compose(self, *arguments: str) -> str:
        return docker("compose", "-p", self.name, "-f", self._file, *arguments, environment=self.environment)

    def close(self) -> None:
        self.compose("down", "--volumes", "--timeout", "5")
        for claim in self._claims.values():
            claim.release()

    def containers(self, service: str) -> list[str]:
        """Their ids, those that have ended too."""
        return self.compose("ps", "--all", "--quiet", service).split()

    def inspect(self, service: str) -> list[dict[str, Any]]:
        ids = self.containers(service)
        found: list[dict[str, Any]] = json.loads(docker("inspect", *ids)) if ids else []
        return found

    def states(self, service: str) -> list[str]:
        """`running healthy`, `exited`, ..."""
        states = [each["State"] for each in self.inspect(service)]
        return [" ".join([state["Status"], state.get("Health", {}).get("Status", "")]).strip() for state in states]

    def events(self, container: str) -> list[dict[str, Any]]:
        """What a worker has told so far, without a last line that was cut short."""
        lines = docker("logs", container).split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def worker_events(self) -> dict[str, list[dict[str, Any]]]:
        """By container; those that are gone keep what was told when this was last called."""
        self._ended.update({container: self.events(container) for container in self.containers("worker")})
        return self._ended

    def count(self, word: str, **facts: object) -> int:
        """How often workers have told this."""
        events = [event for told in self.worker_events().values() for event in told]
        return sum(event["event"] == word and facts.items() <= event.items() for event in events)

    def holders(self, task_id: str) -> list[str]:
        """The containers whose worker has started this task and not ended it."""

        def last(events: list[dict[str, Any]]) -> str:
            return next((event["event"] for event in reversed(events) if event.get("id") == task_id), "")

        return [container for container, events in self.worker_events().items() if last(events) == "started"]

    def url(self, port: str, user: str = "", password: str = "") -> str:
        """Where the host reaches a node: `port` is the variable that gives its port."""
        login = f"{user or LOGIN['RABBITMQ_USER']}:{password or LOGIN['RABBITMQ_PASSWORD']}"
        return f"amqp://{login}@127.0.0.1:{self.ports[port]}/%2F"

    def ready(self, port: str, queue: str = QUEUE) -> int:
        """Tasks that wait in the queue."""
        connection = raw_connection(self.url(port))
        try:
            return int(connection.channel().queue_declare(queue, passive=True).method.message_count)
        finally:
            connection.close()
