"""The timeline as an SVG: what is in it, and that nothing from outside can change what it is."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tareas.story.picture import AGAIN, FIRST, GREEN, RED, draw, save, unwritable
from tareas.story.svg import Page, width
from tests.unit.test_timeline import KILLED_AND_REDELIVERED, done, event, started

VERDICT = "published 2, confirmed 2, done 2, redelivered 1, dead 0, lost 0"
STORY = [
    *KILLED_AND_REDELIVERED, event(2, "down", "RabbitMQ"), event(3, "up", "RabbitMQ"),
    started(6, "worker-3", "task-0003"), event(7, "failed", "worker-3", id="task-0003"),
    started(8, "worker-3", "task-0003", attempt=2), event(9, "discarded", "worker-3", id="task-0003"),
]  # fmt: skip


class Seen:
    """What an SVG shows."""

    def __init__(self, svg: str) -> None:
        self.root = ElementTree.fromstring(svg)
        self.size = (float(self.root.attrib["width"]), float(self.root.attrib["height"]))
        self.texts = ["".join(text.itertext()) for text in self._all("text")]
        self.rects = self._all("rect")
        self.titles = [(rect, rect[0].text or "") for rect in self.rects if len(rect)]
        self.bars = [(rect, title) for rect, title in self.titles if not title.startswith("RabbitMQ")]

    def _all(self, tag: str) -> list[Any]:
        return list(self.root.iter(f"{{http://www.w3.org/2000/svg}}{tag}"))

    def bar(self, title: str) -> Any:
        (found,) = [rect for rect, text in self.bars if text == title]
        return found

    def text_at(self, text: str) -> tuple[float, float]:
        (found,) = [node for node in self._all("text") if node.text == text]
        return float(found.attrib["x"]), float(found.attrib["y"])


def test_one_row_per_worker_and_one_bar_per_attempt_where_and_as_long_as_it_was() -> None:
    seen = Seen(draw(STORY, VERDICT, True))
    rows = [seen.text_at(f"worker-{n}")[1] for n in (1, 2, 3)]
    assert rows == sorted(rows)
    assert len(seen.bars) == 5
    first, again = seen.bar("task-0001: 5.00 s, done"), seen.bar("task-0002: 5.00 s, done, delivered again")
    assert first.attrib["y"] == again.attrib["y"]
    assert first.attrib["fill"] == FIRST and again.attrib["fill"] == AGAIN
    assert float(again.attrib["x"]) == pytest.approx(float(first.attrib["x"]) + float(first.attrib["width"]), abs=0.2)
    assert float(first.attrib["width"]) == pytest.approx((776 - 92) / 2, abs=0.2)


def test_the_kill_the_redelivery_and_the_outage_are_marked() -> None:
    seen = Seen(draw(STORY, VERDICT, True))
    assert seen.bar("task-0002: 4.00 s, its worker was killed")
    kill = "killed: task-0002 is delivered again, to worker-1"
    assert kill in seen.texts
    assert abs(seen.text_at(kill)[1] - seen.text_at("worker-2")[1]) < 1
    (outage,) = [rect for rect, title in seen.titles if title == "RabbitMQ was down for 1.0 s"]
    assert float(outage.attrib["width"]) == pytest.approx((776 - 92) / 10, abs=0.2)
    assert "RabbitMQ killed, then started again" in seen.texts
    arrows = [path for path in seen._all("path") if path.attrib.get("stroke-dasharray")]
    assert len(arrows) == 2, "one for each task that was delivered again"
    crosses = [line for line in seen._all("line") if line.attrib["stroke-width"] == "3"]
    assert len(crosses) == 2, "two lines are one cross"


def test_without_a_kill_or_an_outage_none_is_drawn() -> None:
    seen = Seen(draw([started(0, "w", "a-1"), done(1, "w", "a-1")], VERDICT, True))
    assert not [text for text in seen.texts if "kill" in text]
    assert seen._all("path") == []
    assert len(seen.titles) == 1


@pytest.mark.parametrize(("fine", "colour"), [(True, GREEN), (False, RED)])
def test_the_verdict_stands_below_everything_in_its_colour(fine: bool, colour: str) -> None:
    seen = Seen(draw(STORY, VERDICT, fine))
    (node,) = [node for node in seen._all("text") if node.text == VERDICT]
    assert node.attrib["fill"] == colour
    assert float(node.attrib["y"]) == max(float(text.attrib["y"]) for text in seen._all("text"))
    assert float(node.attrib["y"]) < seen.size[1]


def test_no_attempt_is_a_picture_of_the_verdict_alone() -> None:
    seen = Seen(draw([], VERDICT, False))
    assert VERDICT in seen.texts and not seen.bars


@pytest.mark.parametrize(
    "task_id",
    ['<script>alert("1")</script>', "a&b", "]]>", "' onload='x", "\x1b[31m\x00", "\u202eabc", "\ufffe", "𝒳日本"],
)
def test_an_id_cannot_become_more_than_text(task_id: str) -> None:
    story = [started(0, task_id, task_id), done(9, task_id, task_id), started(9, "w", "b"), event(10, "killed", "w")]
    svg = draw(story, VERDICT, True)
    seen = Seen(svg)
    assert {node.tag.partition("}")[2] for node in seen.root.iter()} <= {"svg", "title", "rect", "line", "path", "text"}
    assert not [name for node in seen.root.iter() for name in node.attrib if name.startswith("on")]
    assert all(c.isprintable() or c == "\n" for c in svg)
    if task_id.isprintable():
        assert f"{task_id}: 9.00 s, done" in [title for _, title in seen.bars]


def test_nothing_is_fetched_from_anywhere_and_it_has_a_ground_of_its_own() -> None:
    svg = draw(STORY, VERDICT, True)
    assert re.findall(r"https?://[^\"]+", svg) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"href|url\(|@import|<style|<script", svg)
    ground = Seen(svg).rects[0].attrib
    assert (float(ground["width"]), float(ground["height"])) == (799, Seen(svg).size[1] - 1)
    assert ground["fill"].startswith("#f"), "light"


@pytest.mark.parametrize("workers", [1, 16])
@pytest.mark.parametrize("tasks", [1, 40, 1000])
def test_all_of_it_is_inside_800_pixels(workers: int, tasks: int) -> None:
    story = [one for n in range(tasks) for one in (
        started(n / 10, f"worker-{n % workers}", f"a-long-name-of-a-task-{n}"),
        done(n / 10 + 0.09, f"worker-{n % workers}", f"a-long-name-of-a-task-{n}"),
    )]  # fmt: skip
    story += [event(tasks / 10, "killed", "worker-0"), event(tasks / 10, "down", "RabbitMQ")]
    seen = Seen(draw(story, VERDICT, True))
    assert seen.size[0] == 800
    assert len(seen.bars) == tasks
    for rect in seen.rects:
        x, y, wide, high = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        assert min(x, y) >= 0 and x + wide <= 800 and y + high <= seen.size[1]
    for node in seen._all("text"):
        size = float(node.attrib["font-size"])
        middle = 0.5 if node.attrib.get("text-anchor") else 0
        assert float(node.attrib["x"]) + width(node.text, size) * (1 - middle) <= 802, node.text
        assert size >= 9, "legible"


def test_labels_of_one_row_do_not_lie_on_each_other() -> None:
    story = [one for n in range(40) for one in (started(n / 9, "w", f"t-{n}"), done(n / 9 + 0.1, "w", f"t-{n}"))]
    seen = Seen(draw([*story, started(30, "w", "last-99"), done(40, "w", "last-99")], VERDICT, True))
    lines: dict[float, list[tuple[float, float]]] = {}
    for node in seen._all("text"):
        if node.attrib["font-size"] == "9":
            left = float(node.attrib["x"])
            lines.setdefault(float(node.attrib["y"]), []).append((left, left + width(node.text, 9)))
    assert len(lines) == 2, "above and below"
    for spans in lines.values():
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_the_key_names_the_tasks_whose_numbers_are_ours_unless_there_are_too_many() -> None:
    def texts(tasks: int) -> list[str]:
        ids = [f"{kind}-{n}" for n in range(tasks // 2) for kind in ("mail", "photo")]
        story = [one for n, i in enumerate(ids) for one in (started(n, "w", i), done(n + 0.5, "w", i))]
        return Seen(draw(story, VERDICT, True)).texts

    assert {"1 mail-0", "2 photo-0", "39 mail-19", "40 photo-19"} <= set(texts(40))
    assert not [text for text in texts(200) if "photo" in text]
    assert "1 a-1" not in Seen(draw([started(0, "w", "a-1"), done(9, "w", "a-1")], VERDICT, True)).texts


def test_wide_letters_take_more_room() -> None:
    assert width("日本") > width("ab") * 1.5


def test_a_page_escapes_what_is_written_on_it() -> None:
    page = Page(100, "#fff", "#000")
    page.text(1, 2, "<&\"'>", "#000")
    assert Seen(page.svg("<title>")).texts == ["<&\"'>"]


# -- where it is saved


def test_a_picture_is_saved_and_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "ñ.svg"
    path.write_text("old" * 10_000)
    save(str(path), STORY, VERDICT, True)
    assert path.read_text(encoding="utf-8") == draw(STORY, VERDICT, True)


def test_looking_whether_it_can_be_saved_leaves_everything_as_it_was(tmp_path: Path) -> None:
    assert unwritable(str(tmp_path / "new.svg")) == ""
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.svg").write_text("old")
    assert unwritable(str(tmp_path / "old.svg")) == ""
    assert (tmp_path / "old.svg").read_text() == "old"


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "folder.svg").mkdir()
    os.mkfifo(tmp_path / "pipe.svg")
    assert unwritable(str(tmp_path / "folder.svg")) == "is no file"
    assert unwritable(str(tmp_path / "pipe.svg")) == "is no file"
    assert "No such file" in unwritable(str(tmp_path / "nowhere" / "x.svg"))
    assert "null" in unwritable("a\x00.svg")
    assert ".svg" in unwritable(str(tmp_path / "x.png"))
