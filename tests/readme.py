"""What the READMEs say, for the tests that hold them to it: their commands, and the output that they show."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support import ROOT

ENGLISH, SPANISH = ROOT / "README.md", ROOT / "README.es.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROGRAM = re.compile(r"(make|docker|python3?|pip|brew) \S")


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of this language, in order."""
    return [text for found, text in _BLOCK.findall(path.read_text(encoding="utf-8")) if found == language]


def prose(path: Path) -> str:
    """All but the fenced blocks."""
    return _BLOCK.sub("", path.read_text(encoding="utf-8"))


def commands(path: Path) -> list[str]:
    """What the ``sh`` blocks and then the text tell to type, one command an entry, without comments."""
    lines = [line for block in blocks(path, "sh") for line in block.splitlines()]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(path))]
    inline = [span for span in spans if _PROGRAM.match(span)]
    return [line for line in (re.sub(r"\s+#.*", "", each).strip() for each in [*lines, *inline]) if line]


def shown(path: Path, part: str) -> list[str]:
    """The lines of the one ``text`` block that contains this part."""
    (found,) = [block for block in blocks(path, "text") if part in block]
    return found.splitlines()


def masked(line: str) -> str:
    """The line without what differs from run to run: numbers, and where RabbitMQ is."""
    line = re.sub(r"(?<= to )\S+:\d+", "ADDRESS", line)
    return re.sub(r"\d+(\.\d+)?", "0", line)
