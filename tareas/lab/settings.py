"""What a private node's folder holds, and the environment that keeps RabbitMQ's programs to that node."""

import os
import secrets
from pathlib import Path

from tareas.lab.ports import HOST


def log(folder: Path) -> Path:
    """The folder of its logs."""
    return folder / "log"


def pid_file(folder: Path) -> Path:
    """Where RabbitMQ writes the process id of the Erlang VM."""
    return folder / "pid"


def environment(folder: Path, home: Path, name: str, dist_port: int, epmd: int) -> dict[str, str]:
    """What RabbitMQ's programs need to deal with this node and no other. Nothing of the user's own settings.

    home: the cookie's place. dist_port, epmd: the ports of Erlang's distribution and of its port mapper.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_", "NOTIFY_SOCKET"))}
    loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
    return kept | {
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",  # else rabbitmqctl warns
        "ERL_EPMD_ADDRESS": HOST,
        "ERL_EPMD_PORT": str(epmd),
        "RABBITMQ_NODENAME": name,
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONFIG_FILES": str(folder / "conf.d"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(log(folder)),
        "RABBITMQ_PID_FILE": str(pid_file(folder)),
        "RABBITMQ_DIST_PORT": str(dist_port),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": loopback,
        "RABBITMQ_CTL_ERL_ARGS": loopback,
    }


def write(folder: Path, home: Path, port: int, management_port: int | None, config: str) -> None:
    """Make the node's folders and files. config: further lines of rabbitmq.conf."""
    for each in (folder, home, log(folder), folder / "data", folder / "conf.d"):
        each.mkdir(parents=True, exist_ok=True)
    cookie = home / ".erlang.cookie"
    if not cookie.exists():
        cookie.touch(mode=0o600)
        cookie.write_text(secrets.token_hex(16))
    cookie.chmod(0o400)
    lines = [  # only keys that RabbitMQ 3.10 knows too: an unknown key stops the boot
        f"listeners.tcp.1 = {HOST}:{port}",
        "log.console = false",
        "disk_free_limit.absolute = 1MB",
        "vm_memory_high_watermark.relative = 0.6",
        "consumer_timeout = 90000000",  # ms: 25 hours, an hour more than the longest task; 30 minutes by itself
    ]
    if management_port:
        lines += [f"management.tcp.ip = {HOST}", f"management.tcp.port = {management_port}"]
    (folder / "rabbitmq.conf").write_text("\n".join([*lines, config]) + "\n")
    (folder / "advanced.config").write_text("[].\n")
    plugins = "rabbitmq_management" if management_port else ""
    (folder / "enabled_plugins").write_text(f"[{plugins}].\n")
