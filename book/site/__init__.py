"""The book's Sphinx extension: theme, maths without scripts, figures, tables made from data, widgets."""

from sphinx.application import Sphinx

from book.site import api, docstrings, live, maths, outputs, tables, theme


def setup(app: Sphinx) -> dict:
    for part in (theme, maths, outputs, tables, live, docstrings, api):
        part.setup(app)
    # Pages are collected for the search while they are written, in this process.
    return {"parallel_read_safe": True, "parallel_write_safe": False}
