"""The book's Sphinx extension: theme, maths without scripts, figures, paper cards, tables made from data."""

from sphinx.application import Sphinx

from book.site import docstrings, maths, outputs, tables, theme


def setup(app: Sphinx) -> dict:
    for part in (theme, maths, outputs, tables, docstrings):
        part.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
