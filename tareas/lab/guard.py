"""The parent of a private RabbitMQ node: no node outlives the process that wanted it, however that process ends.

Usage: python guard.py PID_FILE EPMD_PORT COMMAND [ARGUMENT ...]

Runs COMMAND (rabbitmq-server, in the guard's own process group) until it ends, or until standard input closes. The
owner holds the other end of that pipe, so even `kill -9` of the owner stops the node: cleanly at first (SIGTERM), after
20 s by force. EPMD_PORT: the epmd to end with the node, 0 for none.
It is run by its path: standard library only, and no import from the package.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

GRACE = 20.0  # seconds a node has for a clean end once its owner is gone
UNREGISTERED = 5.0  # seconds until epmd has noticed the end of a node


def read_pid(pid_file: Path) -> int | None:
    """The process id of the node's Erlang VM, as RabbitMQ wrote it; None while there is none."""
    try:
        return int(pid_file.read_text())
    except (OSError, ValueError):
        return None


def stop_epmd(port: int) -> None:
    """End the epmd (Erlang's port mapper, which the first node starts) at this port, once no node is registered.

    Source: Erlang distribution protocol, KILL_REQ: length 1, then "k". The answer is NO while a node is registered. A
    killed node stays registered for a moment.
    """
    until = time.monotonic() + UNREGISTERED
    while time.monotonic() < until:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=UNREGISTERED) as epmd:
                epmd.sendall(b"\x00\x01k")
                if epmd.recv(16) == b"OK":
                    return
        except OSError:
            return  # nobody there: nothing to end
        time.sleep(0.02)


def main(argv: list[str]) -> int:
    pid_file, epmd_port, command = Path(argv[0]), int(argv[1]), argv[2:]
    node = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def when_the_owner_is_gone() -> None:
        while os.read(0, 4096):  # not sys.stdin: this thread would hold its lock when Python ends
            pass
        until = time.monotonic() + GRACE
        while (pid := read_pid(pid_file)) is None and node.poll() is None and time.monotonic() < until:
            time.sleep(0.05)  # RabbitMQ writes the file early in its boot
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if pid is not None:
                os.kill(pid, signal.SIGTERM)
                node.wait(GRACE)
        if pid is not None and node.poll() is None:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                node.wait(GRACE)
        if node.poll() is None:
            os.killpg(0, signal.SIGKILL)

    threading.Thread(target=when_the_owner_is_gone, daemon=True).start()
    status = node.wait()
    if epmd_port:
        stop_epmd(epmd_port)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
