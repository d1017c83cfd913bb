"""--help: it fits a screen of 24 lines and 80 columns, opens with what the command does, ends with three examples."""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.support import ROOT

COMMANDS = ("producer.py", "worker.py", "admin.py", "demo.py")
EACH = pytest.mark.parametrize("command", COMMANDS)


@functools.cache
def call(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip


def examples(text: str) -> list[str]:
    """The commands of the indented lines at the end."""
    ending = re.search(r"(?:^    \S.*\n)+\Z", text, re.MULTILINE)
    assert ending, f"it does not end with examples:\n{text}"
    return [line.strip() for line in ending[0].splitlines()]


@EACH
def test_help_fits_a_screen_and_opens_with_what_the_command_does(command: str) -> None:
    done = call(command, "--help")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and not done.stderr
    assert len(lines) < 24, "one of the 24 lines is the prompt's"
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    assert re.fullmatch(r"[A-Z].+\.", lines[0]) and lines[1] == "" and lines[2].startswith(f"usage: {command} ")
    assert "Exit status: 0" in done.stdout


@pytest.mark.parametrize("subcommand", ["status", "dead", "replay", "discard", "audit"])
def test_help_of_a_subcommand_fits_too(subcommand: str) -> None:
    lines = call("admin.py", subcommand, "--help").stdout.splitlines()
    assert 4 < len(lines) < 24 and max(map(len, lines)) <= 80


@EACH
def test_help_ends_with_three_examples_that_parse(command: str) -> None:
    found = examples(call(command, "--help").stdout)
    assert len(found) == 3
    for example in found:
        words = shlex.split(example.rpartition("| ")[2], comments=True)
        assert words[:2] == ["python", command], example
        done = call(*words[1:], "--no-such-option")  # all before it is fine if it is what the complaint is about
        assert done.returncode == 2 and "no option '--no-such-option'" in done.stderr, f"{example}: {done.stderr}"
        for name in re.findall(r"examples/\S+", example):
            assert (ROOT / name).exists()
