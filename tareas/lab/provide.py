"""Who provides a RabbitMQ: the one that is named, the installed programs, Docker, or the system's package.

Usage: python -m tareas.lab.provide [--port N] [--folder DIR]
       python -m tareas.lab.provide --install

A RabbitMQ of your own at localhost:5672, in the foreground, its data kept in .broker/; Ctrl+C stops it cleanly.
With --install only makes sure that RabbitMQ's programs are there (as root, with apt).

Exit status: 0 stopped by Ctrl+C or SIGTERM, or installed; 1 a situation (the port is taken); 2 wrong call.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tareas.cli import Parser, positive, run
from tareas.errors import Trouble
from tareas.lab.container import IMAGE, PORT, DockerBroker, call, docker_answers
from tareas.lab.node import MANAGEMENT, Node
from tareas.lab.ports import greet
from tareas.lab.programs import Programs, find_programs

FOLDER = Path(__file__).parents[2] / ".broker"
NOT_HERE = (
    "RabbitMQ is not installed, and Docker's engine does not answer. Install it (Debian, Ubuntu: sudo apt install "
    "rabbitmq-server; macOS: brew install rabbitmq), or start Docker, or name one that runs (--url or AMQP_URL)"
)

def say(text: str) -> None:
    """Say on stderr what takes so long: on stdout, a program may read it."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Provided:
    """A RabbitMQ to use. node: to kill and to start again, None when it isn't ours."""

    url: str
    node: Node | DockerBroker | None = None


def can_install() -> bool:
    """Whether this process may install the system's package."""
    return hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get") is not None


def install() -> Programs:
    """Install Debian's or Ubuntu's rabbitmq-server, for its programs. Raises Trouble when that fails."""
    say("RabbitMQ is not installed: installing the package rabbitmq-server (apt-get, about a minute) ...")
    # RUNLEVEL=1: invoke-rc.d starts no service, which would listen on every interface of this machine.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    apt = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300")
    call(*apt, "update", deadline=600, env=environment)  # may fail for a source that we don't need
    done = call(*apt, "install", "--no-install-recommends", "rabbitmq-server", deadline=1200, env=environment)
    programs = find_programs() if done is not None and done.returncode == 0 else None
    if programs is None:
        words = (done.stderr or done.stdout).strip().splitlines()[-1:] if done else ["no answer"]
        raise Trouble(f"apt-get install rabbitmq-server failed: {' '.join(words)[:300]}")
    return programs


def ensure_programs() -> Programs:
    """RabbitMQ's programs, installed if they are not there and we may. Raises Trouble with the commands to type."""
    programs = find_programs()
    if programs is None and not can_install():
        raise Trouble(NOT_HERE.replace(", and Docker's engine does not answer", "").replace(", or start Docker", ""))
    return programs or install()


@contextlib.contextmanager
def provide(url: str | None = None) -> Iterator[Provided]:
    """A RabbitMQ for the time of the block: `url`, else $AMQP_URL, else a private one with nothing in it.

    Raises Trouble when there is none, with the commands that install one. Afterwards nothing of a private one is left.
    """
    named = url or os.environ.get("AMQP_URL")
    if named:
        yield Provided(named)
        return
    programs = find_programs()
    if programs is None and docker_answers():
        with _container() as container:
            yield Provided(container.url, container)
        return
    if programs is None:
        if not can_install():
            raise Trouble(NOT_HERE)
        programs = install()
    with tempfile.TemporaryDirectory(prefix="tareas-", ignore_cleanup_errors=True) as folder:
        node = Node(Path(folder) / "node", programs)
        try:
            node.start()
            yield Provided(node.url, node)
        finally:
            node.kill()  # quicker than a clean stop, and its data goes anyway
            node.close()


@contextlib.contextmanager
def _container(port: int | None = None, volume: str | None = None) -> Iterator[DockerBroker]:
    say(f"RabbitMQ is not installed: using Docker ({IMAGE}; the first time that is a download) ...")
    with contextlib.closing(DockerBroker(port, volume)) as container:
        container.create()
        yield container


@contextlib.contextmanager
def _kept(port: int, folder: Path) -> Iterator[Node | DockerBroker]:
    """For `make broker`: a RabbitMQ at this port whose data stays, stopped in order."""
    programs = find_programs()
    if programs is None and docker_answers():
        with _container(port, volume="tareas-broker") as container:
            yield container
            container.stop()
        return
    programs = programs or ensure_programs()
    with Node(folder, programs, port=port, management=programs.has("rabbitmq_management")) as node:
        yield node


def serve(port: int, folder: Path) -> int:
    """Run a RabbitMQ in the foreground until SIGINT or SIGTERM. The exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with _kept(port, folder) as broker:
            print(f"RabbitMQ {greet(port) or ''} is ready at localhost:{port} (RabbitMQ's default user).")
            if isinstance(broker, Node):
                if broker.management_url:
                    moved = broker.management_port != port + MANAGEMENT
                    note = f" ({port + MANAGEMENT} is taken)" if moved else ""
                    print(f"Its management page: {broker.management_url}{note}")
                print(f"Its data stays in {os.path.relpath(folder)}, its log is in {os.path.relpath(broker.log)}.")
            print("Ctrl+C stops it.", flush=True)
            try:
                while broker.running:
                    time.sleep(1)
            except KeyboardInterrupt:
                print("Stopping, in order ...", flush=True)
                raise
            finally:
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)  # from here on it stops cleanly
            raise Trouble("RabbitMQ has ended by itself: its log says why")
    except KeyboardInterrupt:
        print("Stopped.")
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status. Raises Trouble with what went wrong."""
    parser = Parser("python -m tareas.lab.provide", __doc__)
    parser.add_argument("--port", type=positive, default=PORT, metavar="N", help="where it listens (%(default)s)")
    parser.add_argument("--folder", type=Path, default=FOLDER, metavar="DIR", help="its data and log (.broker)")
    parser.add_argument("--install", action="store_true", help="only make sure that RabbitMQ's programs are there")
    options = parser.parse_args(argv)
    if options.port > 65535:
        parser.error(f"argument --port: {options.port} is no port: 1 to 65535")
    if options.install:
        programs = ensure_programs()
        print(f"RabbitMQ's programs: {programs.folder}")
        return 0
    return serve(options.port, options.folder)


if __name__ == "__main__":
    sys.exit(run(main))
