"""Text from outside, made safe to show: escaped, quoted, cut, without passwords."""

from __future__ import annotations

import re
from typing import Any

LONGEST_TEXT = 500  # characters of an error or a reason: they come from outside and may be as long as they like
SHOWN = 300  # characters of what a stranger wrote that a person sees
HIDDEN = "(not shown: it may hold a password)"


def printable(text: str) -> str:
    """The text, with an escape for each character that could steer a terminal, end a line or not be written as UTF-8.

    str.isprintable is false for all of them: controls, what reverses or hides text (U+202E, say), and half a surrogate
    pair, which Python makes of a byte in a file's name that is no UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def cut(text: str) -> str:
    """At most LONGEST_TEXT characters of it."""
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."


def quoted(text: str, quotes: bool = True, limit: int = 200) -> str:
    """The text in one safe line, between quotation marks, cut after `limit` characters."""
    shown = printable(text[:limit]) + "…" * (len(text) > limit)
    if not quotes:
        return shown
    mark = '"' if "'" in shown else "'"
    return f"{mark}{shown}{mark}"


def shown(value: Any) -> str:
    """What a stranger wrote, of whatever type, in one short safe line."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return quoted(text, quotes=False, limit=SHOWN)


# -- passwords


def may_hold_password(text: str) -> bool:
    """Whether the text looks like a URL, or a part of one."""
    return "@" in text or "://" in text


def argument(text: str, limit: int = 40) -> str:
    """An argument of the command line, quoted and cut for a message, or that it is not shown."""
    return HIDDEN if may_hold_password(text) else quoted(text, limit=limit)


def masked(text: str) -> str:
    """The text without the words that may hold a password: URLs, and what looks like a part of one."""
    return re.sub(r"\S*(?:@|://)\S*", HIDDEN, text)
