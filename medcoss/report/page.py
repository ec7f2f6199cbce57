"""The page itself: escaping, tables, pictures, style. Everything is inside the file; nothing is fetched."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from medcoss.report.style import STYLE


@dataclass(frozen=True)
class Section:
    """A part of the report: its anchor, its heading and its HTML."""

    anchor: str
    title: str
    body: str


def page(title: str, subtitle: str, cards: Sequence[tuple[str, str]], sections: Iterable[Section]) -> str:
    """The whole document. `cards` are (figure, what it is); texts are escaped, section bodies are HTML already."""
    shown = [section for section in sections if section.body]
    links = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in shown)
    figures = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in cards
    )
    parts = "".join(f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>{s.body}</section>' for s in shown)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>{escape(title)}</title><style>{STYLE}</style></head><body><div class="frame"><nav>{links}</nav>'
        f'<main><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p><div class="cards">{figures}</div>{parts}'
        "</main></div></body></html>\n"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()) -> str:
    """An HTML table of escaped cells; columns in `numbers` are aligned right."""
    right = set(numbers)

    def row(cells: Sequence[str], tag: str) -> str:
        marks = [' class="n"' if place in right else "" for place in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{m}>{escape(c)}</{tag}>" for m, c in zip(marks, cells, strict=True)) + "</tr>"

    return f'<div class="scroll"><table>{row(header, "th")}{"".join(row(cells, "td") for cells in rows)}</table></div>'


def picture(data: bytes, alt: str, *, width_px: int | None = None, kind: str = "png", pixels: bool = False) -> str:
    """An inline image; `pixels` keeps enlarged pixels sharp."""
    size = f' width="{width_px}"' if width_px else ""
    style = ' class="pixels"' if pixels else ""
    return f'<img{style}{size} alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def figure(caption: str, content: str) -> str:
    """Content under an escaped caption."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{content}</figure>"


def number(value: float | None, form: str = "{:.3g}") -> str:
    """A figure, or a dash where there is none."""
    return "–" if value is None else form.format(value)
