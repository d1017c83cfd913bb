"""Text from outside: whatever it is, it can be shown on a terminal and sent as UTF-8."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from tareas.text import HIDDEN, LONGEST_TEXT, SHOWN, argument, cut, masked, may_hold_password, printable, quoted, shown

ANY = st.text(st.characters(exclude_categories=()))  # half surrogate pairs, too

QUOTED = [
    ("plain", "'plain'"), ("", "''"), ("it's", '"it\'s"'), ("a\nb\r\t", "'a\\nb\\r\\t'"), ("\x1b[31m", "'\\x1b[31m'"),
    ("año 任務", "'año 任務'"), ("\udcff", "'\\udcff'"), ("a\u202eb\u2028", "'a\\u202eb\\u2028'"), ("C:\\x", "'C:\\x'"),
    ("x" * 300, "'" + "x" * 200 + "…'"),
]


@pytest.mark.parametrize(("text", "shown"), QUOTED)
def test_text_from_outside_is_shown_in_one_safe_line(text: str, shown: str) -> None:
    assert quoted(text) == shown
    assert quoted(text, quotes=False) == shown[1:-1]


@given(ANY, st.integers(1, 50))
def test_quoted_text_is_printable_and_short(text: str, limit: int) -> None:
    shown = quoted(text, limit=limit)
    assert shown.isprintable() and len(shown) <= 10 * limit + 3


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("añadir 任務 «x»", "añadir 任務 «x»"), ("a\nb\x1b[2J\x9b", "a\\nb\\x1b[2J\\x9b"), ("\u202eb", "\\u202eb"),
        ("caf\udce9.txt", "caf\\udce9.txt"), ("\ud83d", "\\ud83d"), ("\U000e0001", "\\U000e0001"),
    ],
)  # fmt: skip
def test_what_could_do_harm_is_escaped_and_all_else_stays(text: str, escaped: str) -> None:
    assert printable(text) == escaped


@given(ANY)
def test_whatever_the_text_it_can_be_shown_and_sent(text: str) -> None:
    for safe in (printable(text), quoted(text), shown(text), argument(text)):
        assert safe.isprintable() and safe.encode().decode() == safe
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize(
    ("value", "text"), [(b"caf\xe9 \x00", "caf\\xe9 \\x00"), (7, "7"), (None, "None"), (["\x1b"], "['\\x1b']")]
)
def test_a_strangers_value_of_any_type_is_shown(value: Any, text: str) -> None:
    assert shown(value) == text


def test_long_text_is_cut() -> None:
    assert shown("x" * 10**6) == "x" * SHOWN + "…"
    assert cut("x" * LONGEST_TEXT) == "x" * LONGEST_TEXT
    assert cut("x" * 10**6) == "x" * (LONGEST_TEXT - 3) + "..."


@pytest.mark.parametrize("text", ["amqp://a:b@c", "x amqp://a:b@c, y", "at a:b@c", "'amqp://a:b'"])
def test_what_may_hold_a_password_is_not_shown(text: str) -> None:
    assert may_hold_password(text) and argument(text) == HIDDEN
    assert HIDDEN in masked(text) and "a:b" not in masked(text)
