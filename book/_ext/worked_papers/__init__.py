"""The book's Sphinx extension: its theme, maths without scripts, figures, paper cards and tables of claims."""

from sphinx.application import Sphinx

from worked_papers import maths, outputs, tables, theme


def setup(app: Sphinx) -> dict:
    for part in (theme, maths, outputs, tables):
        part.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
