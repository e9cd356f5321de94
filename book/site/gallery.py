"""The front page's gallery: each paper's question, what was found, and the figure that tells it."""

import base64
import io
import re
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup
from PIL import Image
from sphinx.application import Sphinx

from book.site import maths
from book.site.files import place
from book.site.results import WHOSE, Chapter, chapter, counts
from book.site.scoreboard import by_area
from book.site.templates import template

WIDTH = 480
"""Pixels of a thumbnail, at most."""

_MARKDOWN = MarkdownIt("commonmark", {"html": False})


def gallery(app: Sphinx, docname: str, slug: str) -> str:
    """A picture, a question, a finding and verdicts for each written paper; a question for planned ones."""
    written: list[dict[str, Any]] = []
    planned: list[dict[str, Any]] = []
    for paper in by_area():
        entry = chapter(app, docname, paper)
        shown = {
            "entry": entry,
            "found": inline(entry.findings[0]["text"]) if entry.findings else "",
            "thumbnail": thumbnail(app, docname, entry),
            "spoken": spoken(entry),
        }
        (written if entry.page else planned).append(shown)
    return template("gallery.html").render(written=written, planned=planned)


def spoken(entry: Chapter) -> str:
    """What the strip of verdicts shows, in words."""
    counted = {by: counts(entry.rows, by) for by in WHOSE}
    return "Claims " + "; ".join(
        f"by the {by}: " + ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items())
        for by, verdicts in counted.items()
        if verdicts
    )


def thumbnail(app: Sphinx, docname: str, entry: Chapter) -> dict[str, Any] | None:
    """Save a chapter's picture, small, among the site's images; its address, alt text and size in pixels."""
    if entry.picture is None:
        return None
    name = f"{app.builder.imagedir}/thumbnail-{entry.paper.slug}.webp"
    path, address = place(app, docname, name)
    width, height = shrink(base64.b64decode(entry.picture["png"]), path)
    return {"address": address, "alt": entry.picture["alt"], "width": width, "height": height}


def shrink(png: bytes, target: Path) -> tuple[int, int]:
    """Write a picture to `target`, at most `WIDTH` pixels wide, in the format of its suffix; its new size."""
    with Image.open(io.BytesIO(png)) as picture:
        small = picture.convert("RGB")
        small.thumbnail((WIDTH, 2 * WIDTH), Image.Resampling.LANCZOS)
        small.save(target, quality=80)
        return small.size


def inline(text: str) -> Markup:
    """A sentence in Markdown, with maths between dollars, as HTML."""
    parts = re.split(r"\$([^$]+)\$", text)
    return Markup(
        "".join(maths.render(part) if i % 2 else _MARKDOWN.renderInline(part) for i, part in enumerate(parts))
    )
