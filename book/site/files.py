"""Files that the extension adds to the site."""

from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.osutil import relative_uri


def place(app: Sphinx, docname: str, name: str) -> tuple[Path, str]:
    """Where a file of the site goes, its folder made, and its address as a page sees it."""
    # Not from the builder's own `imgpath`: while a page is put together it is that of the page before.
    path = Path(app.outdir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path, relative_uri(app.builder.get_target_uri(docname), name)
