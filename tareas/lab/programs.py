"""RabbitMQ's programs: where they are."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tareas.errors import Trouble


@dataclass(frozen=True)
class Programs:
    """RabbitMQ's programs: the folder that holds rabbitmq-server, rabbitmqctl and rabbitmq-plugins."""

    folder: Path

    @property
    def server(self) -> Path:
        return self.folder / "rabbitmq-server"

    @property
    def name(self) -> str:
        """The version where the path tells it (.../rabbitmq_server-3.10.8/sbin), else the folder's name."""
        found = re.search(r"rabbitmq_server-(\d+\.\d+)", str(self.server.resolve()))
        return found[1] if found else self.folder.resolve().name

    def has(self, plugin: str) -> bool:
        """Whether this plugin is there, as every package lays it down: plugins/ beside the real programs' folder."""
        return any((self.server.resolve().parent.parent / "plugins").glob(f"{plugin}-*"))


def find_programs(folder: str | Path | None = None) -> Programs | None:
    """RabbitMQ's programs in `folder`, else in $RABBITMQ_BIN, else where packages put them. None: not installed.

    Raises Trouble if the named folder holds none: no other RabbitMQ is taken instead.
    On Debian /usr/sbin/rabbitmq-server insists on root or the user rabbitmq; the one in /usr/lib/rabbitmq does not.
    """
    named = folder or os.environ.get("RABBITMQ_BIN")
    if named:
        programs = Programs(Path(named).absolute())
        if not os.access(programs.server, os.X_OK):
            raise Trouble(f"no rabbitmq-server in {named}: name the folder of RabbitMQ's programs (RABBITMQ_BIN)")
        return programs
    installed = ["/usr/lib/rabbitmq/bin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin"]
    on_path = shutil.which("rabbitmq-server")
    if on_path:
        installed.append(str(Path(on_path).resolve().parent))
    for candidate in installed:
        if os.access(Path(candidate, "rabbitmq-server"), os.X_OK):
            return Programs(Path(candidate))
    return None
