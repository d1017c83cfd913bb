"""A RabbitMQ in a Docker container of its own, where no programs are installed."""

import secrets
import subprocess
import time

from tareas.errors import NodeTrouble
from tareas.lab.node import BOOT
from tareas.lab.ports import HOST, Claim, free, greet

IMAGE = "rabbitmq:4-management"
PORT = 5672


class DockerBroker:
    """RabbitMQ in a container, on the loopback interface only. Its image is downloaded the first time.

    volume: a named volume, for data that outlives the container; without it they end together.
    """

    def __init__(self, port: int | None = None, volume: str | None = None) -> None:
        self.container = f"tareas-{secrets.token_hex(4)}"
        self._claim = Claim() if port is None else None
        self.port = port or (self._claim.port if self._claim else PORT)
        self.volume = volume

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{HOST}:{self.port}/%2F"

    @property
    def running(self) -> bool:
        done = call("docker", "inspect", "--format", "{{.State.Running}}", self.container)
        return done is not None and done.stdout.strip() == "true"

    def create(self) -> None:
        """Make the container and wait for RabbitMQ in it. Raises NodeTrouble."""
        if not free(self.port):
            raise NodeTrouble(f"port {self.port} is taken: use what is there, stop it, or choose another "
                              "(make broker ARGS='--port N')")
        volume = [f"--volume={self.volume}:/var/lib/rabbitmq"] if self.volume else []
        # A fixed host name: the data belongs to the node's name, rabbit@HOSTNAME.
        options = ["--detach", f"--name={self.container}", "--hostname=tareas", f"--publish={HOST}:{self.port}:5672"]
        self._docker("run", *options, *volume, IMAGE, deadline=600)
        self._wait()

    def start(self) -> None:
        """Start the container again, and wait for RabbitMQ in it. Raises NodeTrouble."""
        self._docker("start", self.container)
        self._wait()

    def stop(self) -> None:
        """A clean stop."""
        self._docker("stop", "--time=30", self.container)

    def kill(self) -> None:
        """SIGKILL."""
        self._docker("kill", self.container)

    def close(self) -> None:
        """Remove the container; without a named volume, its data too."""
        call("docker", "rm", "--force", "--volumes", self.container)
        if self._claim:
            self._claim.release()

    def _wait(self) -> None:
        until = time.monotonic() + BOOT
        while greet(self.port) is None:
            if time.monotonic() > until or not self.running:
                raise NodeTrouble(f"RabbitMQ in Docker did not answer (docker logs {self.container})")
            time.sleep(0.2)

    def _docker(self, *arguments: str, deadline: float = 60.0) -> None:
        done = call("docker", *arguments, deadline=deadline)
        if done is None or done.returncode:
            words = " ".join(done.stderr.split()[-40:]) if done else "no answer"
            raise NodeTrouble(f"docker {arguments[0]}: {words}")


def docker_answers() -> bool:
    """Whether Docker is installed and its engine runs."""
    done = call("docker", "info", "--format", "{{.ServerVersion}}", deadline=15)
    return done is not None and done.returncode == 0 and bool(done.stdout.strip())


def call(
    *command: str, deadline: float = 60.0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str] | None:
    """Run a program of the system. None when it isn't there or does not end within `deadline` seconds."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=deadline, env=env
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
