"""What a chapter's cells put out for the site: figures with alt text and caption."""

from docutils import nodes
from myst_nb.core import render
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform

from lib.claims import CLAIM_MIME
from lib.plots import FIGURE_MIME


class BookOutput:
    """Renders what `lib.plots.show` and `lib.claims.claim` display."""

    mime_priority_overrides = (("*", FIGURE_MIME, 1),)

    @staticmethod
    def handle_mime(
        renderer: render.NbElementRenderer, data: render.MimeData, inline: bool
    ) -> list[nodes.Element] | None:
        if data.output_metadata.get("worked_papers", {}).get("role") == "caption":
            return []  # printed for Jupyter; here it is part of the figure
        if data.mime_type == CLAIM_MIME:
            return []  # for the scoreboard; the page shows the row's HTML
        if data.mime_type != FIGURE_MIME:
            return None
        facts = data.content
        caption = nodes.caption(facts["caption"], "")
        with renderer.renderer.current_node_context(caption):
            renderer.renderer.nested_render_text(facts["caption"], data.line or 0, inline=True)
        return [nodes.figure("", caption, names=[facts["name"]], alt=facts["alt"])]


class FillFigures(SphinxTransform):
    """Move an output's picture into the figure that describes it, and make the figure a target of links."""

    default_priority = 200

    def apply(self, **kwargs: object) -> None:
        for figure in list(self.document.findall(nodes.figure)):
            container = figure.parent
            if container.get("mime_type") != FIGURE_MIME:
                continue
            alt = figure.attributes.pop("alt")
            for picture in container.parent.findall(nodes.image):
                picture.parent.remove(picture)
                picture["alt"] = alt
                figure.insert(0, picture)
                break
            container.parent.children = [container]
            self.document.note_explicit_target(figure)


def number_by_page(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Let every page begin with Figure 1; Sphinx has just counted through the whole book."""
    for kinds in env.toc_fignumbers.values():
        for figures in kinds.values():
            figures.update({name: (i,) for i, name in enumerate(figures, 1)})
    return []


def setup(app: Sphinx) -> None:
    # MyST-NB looks for such renderers among the entry points of installed packages; this one is the book's.
    installed = render.load_mime_renders()
    render.load_mime_renders = lambda: [BookOutput, *installed]
    app.add_transform(FillFigures)
    app.connect("env-get-updated", number_by_page, priority=900)
