"""What people deploy with: the compose files, the image, the systemd unit. That RabbitMQ takes their settings is tested
with one: tests/integration/test_readme.py. On a real Docker engine they are tried in tests/deploy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tareas.rabbit import addresses
from tareas.task import MAX_COMPLEXITY
from tests.support import ROOT

FILES = ("docker-compose.yml", "compose.cluster.yml")
EACH = pytest.mark.parametrize("file", FILES)
UNIT = ROOT / "deploy" / "tareas-worker@.service"
SECONDS = {"s": 1, "m": 60}


def load(file: str, **environment: str) -> Any:
    """The file as Compose reads it: ${NAME:-default} filled in, then YAML."""

    def fill(found: re.Match[str]) -> str:
        given = environment.get(found[1])
        return given or found[3] if found[2] == "-" else found[3] if given else ""

    return yaml.safe_load(re.sub(r"\$\{(\w+):([-+])([^}]*)\}", fill, (ROOT / file).read_text()))


def nodes(config: Any) -> dict[str, Any]:
    return {name: service for name, service in config["services"].items() if name != "worker"}


def duration(text: str) -> int:
    return int(text[:-1]) * SECONDS[text[-1]]


@EACH
def test_a_node_keeps_its_data_and_its_name(file: str) -> None:
    config = load(file)
    for name, node in nodes(config).items():
        assert node["hostname"] == name  # rabbit@HOSTNAME owns the data
        ((volume, target),) = [each.split(":") for each in node["volumes"]]
        assert volume in config["volumes"] and target == "/var/lib/rabbitmq"
        assert node["image"] == "rabbitmq:4-management"
    assert len(nodes(config)) == (3 if "cluster" in file else 1)
    volumes = [node["volumes"][0] for node in nodes(config).values()]
    assert len(set(volumes)) == len(volumes) == len(config["volumes"])


@EACH
def test_ports_are_open_on_the_loopback_only(file: str) -> None:
    ports = [port for service in load(file)["services"].values() for port in service.get("ports", [])]
    assert {"127.0.0.1:5672:5672", "127.0.0.1:15672:15672"} <= set(ports)
    assert all(port.startswith("127.0.0.1:") for port in ports) and len(set(ports)) == len(ports)
    names = set(re.findall(r"\$\{(\w+_PORT\w*):-", (ROOT / file).read_text()))
    assert len(names) == len(ports), "each can be moved"
    elsewhere = {name: str(number) for number, name in enumerate(names, 7001)}
    moved = [port for service in load(file, **elsewhere)["services"].values() for port in service.get("ports", [])]
    assert {port.split(":")[1] for port in moved} == set(elsewhere.values())


def test_who_opens_the_port_shuts_guest_out() -> None:
    def settings(**environment: str) -> list[str]:
        lines: list[str] = load("docker-compose.yml", **environment)["configs"]["rabbitmq"]["content"].splitlines()
        return [line for line in lines if not line.startswith("#")]

    assert "loopback_users.guest = false" in settings()
    assert [line for line in settings(RABBITMQ_BIND="0.0.0.0") if "guest" in line] == []


@EACH
def test_credentials_come_from_the_environment_and_have_a_development_default(file: str) -> None:
    for given, user, password in [({}, "guest", "guest"), ({"RABBITMQ_USER": "u", "RABBITMQ_PASSWORD": "p"}, "u", "p")]:
        config = load(file, **given)
        for node in nodes(config).values():
            settings = node["environment"]
            assert (settings["RABBITMQ_DEFAULT_USER"], settings["RABBITMQ_DEFAULT_PASS"]) == (user, password)
        urls = addresses.parse(config["services"]["worker"]["environment"]["AMQP_URL"])
        assert [each.parameters.host for each in urls] == list(nodes(config))
        for each in urls:
            login = each.parameters.credentials
            assert (login.username, login.password, each.parameters.virtual_host) == (user, password, "/")


@EACH
def test_the_acknowledgement_timeout_is_above_the_longest_task(file: str) -> None:
    config = load(file)
    (timeout,) = re.findall(r"^consumer_timeout = (\d+)$", config["configs"]["rabbitmq"]["content"], re.MULTILINE)
    assert int(timeout) >= (MAX_COMPLEXITY + 3600) * 1000
    for node in nodes(config).values():
        assert node["configs"] == [{"source": "rabbitmq", "target": "/etc/rabbitmq/conf.d/90-tareas.conf"}]


@EACH
def test_workers_run_when_scaled_and_wait_until_rabbitmq_is_healthy(file: str) -> None:
    config = load(file)
    worker = config["services"]["worker"]
    assert worker["deploy"]["replicas"] == 0 and worker["pull_policy"] == "build"
    assert "container_name" not in worker and "ports" not in worker  # either would forbid a second one
    assert worker["depends_on"] == {name: {"condition": "service_healthy"} for name in nodes(config)}
    for node in nodes(config).values():
        assert node["healthcheck"]["test"][:2] == ["CMD", "rabbitmq-diagnostics"]
    for service in config["services"].values():
        assert service["restart"] == "unless-stopped"


@EACH
def test_a_stopped_container_gives_its_task_back_before_it_is_killed(file: str) -> None:
    worker = load(file)["services"]["worker"]
    (grace,) = re.findall(r"--grace (\d+)", worker["environment"]["WORKER_OPTIONS"])
    assert 0 < int(grace) < duration(worker["stop_grace_period"])
    assert worker["init"] is True


def test_the_cluster_finds_its_nodes() -> None:
    config = load("compose.cluster.yml")
    found = re.findall(r"^cluster_formation\.classic_config\.nodes\.\d = rabbit@(\S+)$",
                       config["configs"]["rabbitmq"]["content"], re.MULTILINE)  # fmt: skip
    assert found == list(nodes(config))
    assert len({node["environment"]["RABBITMQ_ERLANG_COOKIE"] for node in nodes(config).values()}) == 1


@EACH
def test_compose_itself_reads_it(file: str) -> None:
    """Where Docker Compose is installed: no engine is needed."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        return  # the tests above have read it as well as YAML can
    done = subprocess.run([docker, "compose", "-f", file, "config", "-q"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_image_builds_from_files_that_reach_it_on_any_base() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    assert re.search(r"^ARG BASE=\S+\nFROM \$\{BASE\}$", text, re.MULTILINE)
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert {".*", "tests", "*.md"} <= set(ignored)
    for name in ("worker.py", "tareas", "requirements.txt", "examples"):
        assert (ROOT / name).exists() and name not in ignored
    assert re.search(r"^USER \d+:\d+$", text, re.MULTILINE), "not root"
    for file in FILES:
        build = load(file, WORKER_BASE="stand-in")["services"]["worker"]["build"]
        assert (ROOT / build["dockerfile"]).exists() and build["args"] == {"BASE": "stand-in"}


def test_the_command_of_the_image_starts_a_worker_with_its_options(tmp_path: Path) -> None:
    (command,) = re.findall(r"^CMD (\[.*\])$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        yaml.safe_load(command), cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOSTNAME": "4f1e",
             "WORKER_OPTIONS": "--grace 50 --handler no.such:function"},
    )  # fmt: skip
    assert (done.returncode, "no module 'no.such'" in done.stderr) == (2, True), done.stderr


def unit() -> dict[str, str]:
    lines = [line for line in UNIT.read_text().splitlines() if re.match(r"\w+=", line)]
    return dict(line.split("=", 1) for line in lines)


def test_systemd_kills_a_worker_only_after_its_grace_and_starts_it_again_unless_the_call_is_wrong() -> None:
    settings = unit()
    (grace,) = re.findall(r"--grace (\d+)", settings["ExecStart"])
    assert int(grace) < int(settings["TimeoutStopSec"])
    assert (settings["Type"], settings["KillSignal"], settings["Restart"]) == ("exec", "SIGTERM", "always")
    assert settings["RestartPreventExitStatus"] == "2"
    assert settings["DynamicUser"] == settings["NoNewPrivileges"] == "yes"
    assert "User" not in settings  # then all instances are one user, and share the StateDirectory


def test_the_call_in_the_unit_parses() -> None:
    _, script, *arguments = unit()["ExecStart"].split()
    given = [argument.replace("%H-%i", "host-1") for argument in arguments if argument != "$WORKER_OPTIONS"]
    call = [sys.executable, script, *given, "--no-such-option"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "no option '--no-such-option'" in done.stderr, done.stderr


def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    """Where systemd is installed: it verifies the unit, with a program that is there."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return  # macOS, containers; the tests above have read the settings that matter
    copy = tmp_path / "tareas-worker@1.service"
    copy.write_text(UNIT.read_text().replace("/opt/tareas/.venv/bin/python", sys.executable))
    done = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if "tareas-worker" in line]
    assert not complaints and done.returncode == 0, done.stderr
