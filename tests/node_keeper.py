"""The RabbitMQ nodes that all tests of a session share: one for each version, whichever pytest worker asks first.

Each lives in a process of its own, `python -m tests.node_keeper FOLDER PROGRAMS`, whose standard input is a FIFO that
only the session's controlling process holds open: when that ends, in order or not, so does the node.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tareas.errors import Trouble
from tareas.lab.node import BOOT, Node
from tareas.lab.programs import Programs

SECRET = "s3cr3t-Pa55"  # the password of all but guest
# What each may configure, write and read in vhost "/"; guest and eva may do all, outsider has no right to the vhost.
RIGHTS = {
    "guest": (".*", ".*", ".*"), "eva": (".*", ".*", ".*"), "outsider": None,
    "reader": ("^full.*", "^full.*", ".*"), "writer": (".*", ".*", ""), "unheard": (".*", "^test-.*", ".*"),
    "single": (".*", ".*", ".*"), "alone": (".*", ".*", ".*"),
}  # fmt: skip
LIMITS = {"single": {"max-channels": 1}, "alone": {"max-connections": 1}}
# Vhosts of guest's with a limit, and queues of "/" that are full with five messages.
VHOSTS = {"one-connection": {"max-connections": 1}, "one-queue": {"max-queues": 1}}
NARROW = "^test-narrow-"
FOLDER = "TAREAS_TEST_NODES"  # environment variable: from the controlling process to pytest-xdist's workers


@contextlib.contextmanager
def session() -> Iterator[None]:
    """In the controlling process: the time in which `shared` works. At its end no node is left."""
    folder = Path(tempfile.mkdtemp(prefix="tareas-tests-"))
    os.mkfifo(folder / "alive")
    alive = os.open(folder / "alive", os.O_RDWR)  # RDWR: to open it for writing alone would wait for a reader
    os.environ[FOLDER] = str(folder)
    try:
        yield
    finally:
        del os.environ[FOLDER]
        os.close(alive)
        until = time.monotonic() + 60
        while list(folder.glob("*.json")) and time.monotonic() < until:
            time.sleep(0.02)
        shutil.rmtree(folder, ignore_errors=True)


def shared(programs: Programs) -> str:
    """The URL of the session's node of this RabbitMQ, started now if nobody has asked before."""
    folder = Path(os.environ[FOLDER])
    told, log = folder / f"{programs.name}.json", folder / f"{programs.name}.log"
    with (folder / f"{programs.name}.lock").open("w") as lock, log.open("ab") as output:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not told.exists():
            root = Path(__file__).parents[1]
            command = [sys.executable, "-m", "tests.node_keeper", str(folder), str(programs.folder)]
            with (folder / "alive").open("rb") as alive:
                keeper = subprocess.Popen(
                    command,
                    stdin=alive,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    cwd=root,
                )
            until = time.monotonic() + BOOT + 30
            while not told.exists():
                if keeper.poll() is not None or time.monotonic() > until:
                    raise Trouble(f"no node of RabbitMQ {programs.name}: {log.read_text()[-2000:]}")
                time.sleep(0.05)
    return str(json.loads(told.read_text())["url"])


def definitions() -> dict[str, list[dict[str, object]]]:
    """The users, as RabbitMQ loads them when it boots: with rabbitmqctl each would be seconds of CPU."""
    return {
        "vhosts": [{"name": name} for name in ("/", *VHOSTS)],
        "users": [
            {"name": name, "password": "guest" if name == "guest" else SECRET, "tags": "",
             "limits": LIMITS.get(name, {})} for name in RIGHTS
        ],
        "permissions": [
            {"user": name, "vhost": vhost, **dict(zip(("configure", "write", "read"), rights, strict=True))}
            for name, rights in RIGHTS.items() if rights
            for vhost in ("/", *(VHOSTS if name == "guest" else ()))
        ],
        "parameters": [
            {"component": "vhost-limits", "name": "limits", "vhost": name, "value": limit}
            for name, limit in VHOSTS.items()
        ],
        "policies": [
            {"vhost": "/", "name": "narrow", "pattern": NARROW, "apply-to": "queues", "priority": 0,
             "definition": {"max-length": 5}}
        ],
    }  # fmt: skip


def main(folder: Path, programs: Programs) -> None:
    told, users = folder / f"{programs.name}.json", folder / f"{programs.name}-users"
    users.write_text(json.dumps(definitions()))
    node = Node(folder / programs.name, programs, config=f"load_definitions = {users}")
    try:
        node.start()
        fresh = told.with_suffix(".new")
        fresh.write_text(json.dumps({"url": node.url, "keeper": os.getpid(), "node": node.pid}))
        fresh.rename(told)
        sys.stdin.buffer.read()
    finally:
        node.kill()  # nobody wants its data
        node.close()
        told.unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Programs(Path(sys.argv[2])))
