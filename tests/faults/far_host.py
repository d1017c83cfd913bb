"""A host of its own on this machine, at the end of a cable that can be pulled: a network namespace (Linux, root)."""

from __future__ import annotations

import functools
import os
import random
import shutil
import subprocess
from types import TracebackType


class FarHost:
    """Joined to this machine by a veth pair. As a context manager: made on entry, gone on exit.

    near: our address on the cable, where the far host finds us. prefix: what turns a command into one of the far host.
    """

    def __init__(self) -> None:
        number = random.randrange(1, 2**16)
        self.name = f"tareas{number:04x}"
        net = f"10.{number >> 8}.{number & 255}"
        self.near, self._far = f"{net}.1", f"{net}.2"
        self.prefix = ["ip", "netns", "exec", self.name]

    def __enter__(self) -> FarHost:
        ip("netns", "add", self.name)
        try:
            ip("link", "add", f"{self.name}n", "type", "veth", "peer", "name", f"{self.name}f", "netns", self.name)
            ip("addr", "add", f"{self.near}/30", "dev", f"{self.name}n")
            ip("-n", self.name, "addr", "add", f"{self._far}/30", "dev", f"{self.name}f")
            for link in ("lo", f"{self.name}f"):
                ip("-n", self.name, "link", "set", link, "up")
            self.plug()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        ip("netns", "del", self.name)  # its end of the cable goes with it, and so does ours

    def pull(self) -> None:
        """Pull the cable: nothing passes, and nobody is told (no FIN, no RST)."""
        ip("link", "set", f"{self.name}n", "down")

    def plug(self) -> None:
        """Plug it in again."""
        ip("link", "set", f"{self.name}n", "up")


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


@functools.cache
def possible() -> bool:
    """Whether such a host can be made here."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("ip"):
        return False
    try:
        with FarHost():
            return True
    except AssertionError:
        return False
