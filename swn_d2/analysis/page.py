"""Pieces of an HTML page that needs nothing but itself: tables, figures, notes.

Texts are escaped here; arguments named ``html`` are put in as they are.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from ..files import write_text
from .style import to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Page", "missing", "note", "scrolling", "table", "text"]


def text(value: object) -> str:
    """A text as HTML."""
    return escape(str(value))


def missing(sentence: str) -> str:
    """A sentence in the place of something that could not be shown."""
    return f'<p class="missing">{text(sentence)}</p>'


def note(sentence: str) -> str:
    """A sentence in the place of something that there is not, as is right."""
    return f'<p class="note">{text(sentence)}</p>'


def scrolling(html: str, label: str) -> str:
    """A box in which what is too wide for the window scrolls.

    Args:
        label: what it is, for those who hear the page.
    """
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{text(label)}">{html}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], label: str, kind: str = "") -> str:
    """A table of HTML cells, the first of each row being its heading.

    Args:
        head: a heading for each column.
        rows: cells; a row with only one is a heading of the rows below it.
        label: as in :func:`scrolling`.
        kind: "texts" for cells that are no numbers.
    """
    columns = "".join(f'<th scope="col">{html}</th>' for html in head)
    body = []
    for first, *cells in rows:
        if cells:
            row = f'<th scope="row">{first}</th>' + "".join(f"<td>{html}</td>" for html in cells)
        else:
            row = f'<th scope="rowgroup" colspan="{len(head)}">{first}</th>'
        body.append(f"<tr>{row}</tr>\n")
    html = (
        f'<table class="{kind}"><thead><tr>{columns}</tr></thead>\n'
        f"<tbody>\n{''.join(body)}</tbody></table>"
    )
    return scrolling(html, label)


class Page:
    """Sections, and above them the links to them."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._sections: list[tuple[str, str, str]] = []  # id, title, HTML

    def section(self, name: str, title: str, *html: str) -> None:
        """Add a section.

        Args:
            name: its id on the page.
            title: short, since it is the text of the link, too.
        """
        self._sections.append((name, title, "\n".join(html)))

    def svg(self, figure: "Figure", label: str) -> str:
        """A figure as HTML.

        Args:
            label: as in :func:`scrolling`.
        """
        # Every figure numbers its parts from 1, but an id must be unique on the page.
        prefix = f"f{next(self._numbers)}-"
        svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{prefix}", to_svg(figure))
        width = f"{72 * figure.get_figwidth():g}pt"
        attributes = f'role="img" aria-label="{text(label)}" style="--width: {width}"'
        return svg.replace("<svg ", f"<svg {attributes} ", 1)

    def write(self, file: Path, title: str, head_html: str, foot_html: str) -> None:
        """Write the page, whole or not at all.

        Args:
            head_html, foot_html: what stands above the links and below the sections.

        Raises:
            UserError: the file can't be written.
        """
        links = "".join(f'<li><a href="#{n}">{text(t)}</a></li>' for n, t, _ in self._sections)
        sections = "\n".join(
            f'<section id="{name}">\n<h2>{text(title)}</h2>\n{html}\n</section>'
            for name, title, html in self._sections
        )
        body = (
            f"<header>\n{head_html}\n</header>\n"
            f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n'
            f"<main>\n{sections}\n</main>\n<footer>\n{foot_html}\n</footer>"
        )
        template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
        write_text(file, template.substitute(title=text(title), body=body))
