"""A page of SVG: rectangles, lines, arrows and text, everything from outside escaped. Standard library only."""

from __future__ import annotations

import html
import unicodedata

from tareas.text import cut, printable

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
LETTER = 0.62  # width of a letter, in parts of its size, in the widest of the usual fonts


class Page:
    """Draw on it, then `svg()`. Coordinates are pixels from the top left; a colour is a hex triplet.

    height: may grow until the end. ground, edge: colours of the page itself, so that it can lie on any other.
    """

    def __init__(self, width: int, ground: str, edge: str) -> None:
        self.width = width
        self.height = 0.0
        self.ground, self.edge = ground, edge
        self._parts: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str, title: str = "", opacity: float = 1.0
    ) -> None:
        """title: what a browser shows when the pointer rests on it."""
        see_through = f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
        shape = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" fill="{fill}"{see_through}'
        self._parts.append(f"<rect {shape}><title>{escaped(title)}</title></rect>" if title else f"<rect {shape}/>")

    def line(self, x: float, y: float, to_x: float, to_y: float, colour: str, width: float = 1.0) -> None:
        self._parts.append(
            f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" stroke="{colour}" stroke-width="{width:g}"/>'
        )

    def arrow(self, x: float, y: float, to_x: float, to_y: float, colour: str) -> None:
        """A dashed curve that ends with a point at its right."""
        bend = max(min((to_x - x) / 2, 40.0), 6.0)
        curve = f"M{x:g},{y:g} C{x + bend:g},{y:g} {to_x - bend:g},{to_y:g} {to_x - 4:g},{to_y:g}"
        self._parts.append(f'<path d="{curve}" fill="none" stroke="{colour}" stroke-dasharray="3 2"/>')
        point = f"M{to_x:g},{to_y:g} l-6,-3.5 v7 z"
        self._parts.append(f'<path d="{point}" fill="{colour}"/>')

    def text(
        self, x: float, y: float, text: str, colour: str, size: float = 11, bold: bool = False, middle: bool = False
    ) -> None:
        """y: the baseline. middle: x is the middle of the text, else its beginning."""
        more = ' font-weight="bold"' * bold + ' text-anchor="middle"' * middle
        style = f'x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}"{more}'
        self._parts.append(f"<text {style}>{escaped(text)}</text>")

    def svg(self, title: str) -> str:
        """The picture. title: for readers who cannot see it."""
        size = f'width="{self.width:g}" height="{self.height:g}" viewBox="0 0 {self.width:g} {self.height:g}"'
        ground = (f'<rect x="0.5" y="0.5" width="{self.width - 1:g}" height="{self.height - 1:g}" rx="8" '
                  f'fill="{self.ground}" stroke="{self.edge}"/>')  # fmt: skip
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="{FONT}">'
        return "\n".join([head, f"<title>{escaped(title)}</title>", ground, *self._parts, "</svg>", ""])


def escaped(text: str) -> str:
    """Text from outside, cut, and safe in XML and on a screen."""
    return html.escape(printable(cut(text)))


def width(text: str, size: float = 11) -> float:
    """About how many pixels the text takes, rather more than less."""
    return size * LETTER * sum(1.7 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
