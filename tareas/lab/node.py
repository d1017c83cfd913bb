"""A private RabbitMQ, as a child process with its data in a folder of its own: to start, kill and start again.

    programs = find_programs()
    with Node(folder, programs) as node:    # started, on a free port of the loopback interface
        connect(node.url)
        node.kill(); node.start()           # the data is still there

It never touches a RabbitMQ that runs on this machine already: own ports, own cookie, own epmd (Erlang's port mapper),
own configuration. POSIX only, as RabbitMQ's own scripts are.
"""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from tareas.lab import guard as node_guard
from tareas.lab.ports import HOST, Claim, NodeTrouble, free, greet
from tareas.lab.programs import Programs, ctl

BOOT = 120.0  # seconds: 3 on an idle machine, 15 and more on a busy one
MANAGEMENT = 10_000  # from RabbitMQ's port to that of its management page: 5672, 15672


class Node:
    """One RabbitMQ node. As a context manager: started on entry, stopped on exit.

    folder: everything it writes (data, log, cookie); made if missing. port: 0 or None for a free one.
    name: the data belongs to it. config: further lines of rabbitmq.conf. management: with the management plugin.
    home, epmd: a cluster's nodes share the cookie's folder and the port mapper.
    """

    def __init__(
        self,
        folder: str | Path,
        programs: Programs,
        name: str | None = None,
        port: int | None = None,
        config: str = "",
        *,
        management: bool = False,
        home: Path | None = None,
        epmd: int | None = None,
    ) -> None:
        self.folder = Path(folder).absolute()
        self.programs = programs
        self.name = f"{name or 'tareas'}@localhost"
        self.config = config
        self.home = home or self.folder
        self._claims: list[Claim] = []
        self.port = port or self._claim()
        self.dist_port = self._claim()
        self.own_epmd = epmd is None
        self.epmd = epmd or self._claim()
        self.management_port = self._management_port(port) if management else None
        self._guard: subprocess.Popen[bytes] | None = None
        self._version = ""
        self._logged: dict[Path, int] = {}  # how long its logs were at its launch

    def _claim(self, port: int | None = None) -> int:
        claim = Claim(port)
        self._claims.append(claim)
        return claim.port

    def _management_port(self, port: int | None) -> int:
        """15672 beside 5672, as RabbitMQ has them, 15673 beside 5673, and so on; any where that one is taken."""
        beside = (port or 0) + MANAGEMENT
        if port and beside <= 65535 and free(beside):
            with contextlib.suppress(NodeTrouble):  # another node of ours that is about to have it
                return self._claim(beside)
        return self._claim()

    def __enter__(self) -> "Node":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{HOST}:{self.port}/%2F"

    @property
    def management_url(self) -> str | None:
        return f"http://{HOST}:{self.management_port}/" if self.management_port else None

    @property
    def pid(self) -> int | None:
        """The process id of the Erlang VM (beam.smp); None while it doesn't run."""
        return node_guard.read_pid(self._pid_file) if self.running else None

    @property
    def running(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    @property
    def version(self) -> str:
        """RabbitMQ's version, as the node told it at its start: "3.10.8"."""
        return self._version

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def has_data(self) -> bool:
        """Whether it has been started before."""
        return any((self.folder / "data").glob("*"))

    @property
    def _pid_file(self) -> Path:
        return self.folder / "pid"

    def start(self, deadline: float = BOOT) -> None:
        """Start the node and wait until it answers a client. Raises NodeTrouble after `deadline` seconds."""
        self.launch()
        self.wait(deadline)

    def launch(self) -> None:
        """Start the node without waiting for it (a cluster's nodes wait for each other)."""
        if self.running:
            return
        if not free(self.port):
            version = greet(self.port)
            owner = "another program" if version is None else f"another RabbitMQ ({version or 'or its like'})"
            raise NodeTrouble(f"port {self.port} is taken by {owner}: use that one, stop it, or choose another "
                              "(make broker ARGS='--port N')")
        other = node_guard.read_pid(self._pid_file)
        if other is not None and is_erlang(other):
            raise NodeTrouble(f"a RabbitMQ (process {other}) runs on the data in {self.folder} already: stop it first")
        self._pid_file.unlink(missing_ok=True)
        self._write_settings()
        self._logged = {file: file.stat().st_size for file in self.log.glob("*.log")}
        with (self.log / "console.log").open("ab") as console:
            self._guard = subprocess.Popen(
                [
                    *(sys.executable, "-I", node_guard.__file__, str(self._pid_file)),
                    *(str(self.epmd if self.own_epmd else 0), str(self.programs.server)),
                ],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=console,
                start_new_session=True,  # a Ctrl+C at the terminal is the owner's, who stops the node in order
            )

    def wait(self, deadline: float = BOOT) -> None:
        """Wait until the launched node answers a client. Raises NodeTrouble after `deadline` seconds."""
        until = time.monotonic() + deadline
        while True:
            if not self.running:
                raise NodeTrouble(f"RabbitMQ ({self.programs.folder}) did not start: {self._last_words()}")
            version = greet(self.port)
            if version is not None:
                self._version = version
                return
            if time.monotonic() > until:
                raise NodeTrouble(f"RabbitMQ did not answer within {deadline:.0f} s: {self._last_words()}")
            time.sleep(0.05)

    def stop(self, deadline: float = 60.0) -> None:
        """Stop the node cleanly (SIGTERM); by force after `deadline` seconds. A stopped node: nothing happens."""
        if self._guard is None:
            return
        pid = self.pid
        try:
            if pid is None:  # still booting
                raise ProcessLookupError
            os.kill(pid, signal.SIGTERM)
            self._guard.wait(deadline)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
        self.kill()

    def kill(self) -> None:
        """SIGKILL the node with everything that belongs to it: no goodbye to clients, nothing written any more."""
        if self._guard is None:
            return
        if self.running:
            os.killpg(self._guard.pid, signal.SIGKILL)
        self._guard.wait()
        until = time.monotonic() + 10
        while not (free(self.port) and free(self.dist_port)) and time.monotonic() < until:
            time.sleep(0.01)  # the Erlang VM is not our child: its end shows in what it no longer holds
        if self._guard.stdin:
            self._guard.stdin.close()
        self._guard = None
        self._pid_file.unlink(missing_ok=True)
        if self.own_epmd:
            node_guard.stop_epmd(self.epmd)

    def restart(self, deadline: float = BOOT) -> None:
        """A clean stop, and a start."""
        self.stop()
        self.start(deadline)

    def close(self) -> None:
        """Stop the node and give its ports back. The folder stays."""
        self.stop()
        for claim in self._claims:
            claim.release()

    def ctl(self, *arguments: str, deadline: float = 60.0) -> str:
        """What `rabbitmqctl ARGUMENTS` prints. Raises NodeTrouble when it fails or takes more than `deadline` s."""
        if not self.running:
            raise NodeTrouble(f"rabbitmqctl {arguments[0]}: the node {self.name} is not running")
        return ctl(self.programs, "rabbitmqctl", *arguments, environment=self.environment, deadline=deadline)

    @property
    def environment(self) -> dict[str, str]:
        """What RabbitMQ's programs need to deal with this node and no other (of the user's own settings: nothing)."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_", "NOTIFY_SOCKET"))}
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        return kept | {
            "HOME": str(self.home),  # the cookie's place
            "LC_ALL": "C.UTF-8",  # else rabbitmqctl warns
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(self.epmd),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(self.folder / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.log),
            "RABBITMQ_PID_FILE": str(self._pid_file),
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": loopback,
            "RABBITMQ_CTL_ERL_ARGS": loopback,
        }

    def _write_settings(self) -> None:
        for folder in (self.folder, self.home, self.log, self.folder / "data", self.folder / "conf.d"):
            folder.mkdir(parents=True, exist_ok=True)
        cookie = self.home / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        settings = [  # only keys that RabbitMQ 3.10 knows too: an unknown key stops the boot
            f"listeners.tcp.1 = {HOST}:{self.port}",
            "log.console = false",
            "disk_free_limit.absolute = 1MB",
            "vm_memory_high_watermark.relative = 0.6",
            "consumer_timeout = 90000000",  # ms: 25 hours, an hour more than the longest task; 30 minutes by itself
        ]
        if self.management_port:
            settings += [f"management.tcp.ip = {HOST}", f"management.tcp.port = {self.management_port}"]
        (self.folder / "rabbitmq.conf").write_text("\n".join([*settings, self.config]) + "\n")
        (self.folder / "advanced.config").write_text("[].\n")
        plugins = "rabbitmq_management" if self.management_port else ""
        (self.folder / "enabled_plugins").write_text(f"[{plugins}].\n")

    def _last_words(self) -> str:
        """Why it did not start, as far as its logs tell, and where they are.

        The first errors since the launch: what follows them is the Erlang VM going down over them, at length.
        """
        lines: list[str] = []
        for file in sorted(self.log.glob("*.log"), key=lambda file: file.stat().st_mtime):
            with file.open("rb") as log:
                log.seek(self._logged.get(file, 0))
                lines += log.read().decode(errors="replace").splitlines()
        errors = [found[1].strip() for found in map(re.compile(r"\[error\] <[\d.]+> +(.*)").search, lines) if found]
        words = list(filter(None, errors))[:2] or [line.strip() for line in lines if line.strip()][-1:]
        return f"{'; '.join(words)[:300]} (log: {self.log})"


def is_erlang(pid: int) -> bool:
    """Whether this process is an Erlang VM: a file may hold the id of a process that ended long ago."""
    said = subprocess.run(["ps", "-o", "stat=,comm=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return "beam" in said and not said.startswith("Z")  # a zombie runs no more
