"""Organisms that run in the reader's browser: the files of the site, and where a chapter's page has them.

`book/live` has engine and widgets, in JavaScript, and `widgets.yml`, which says what each chapter has.
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ConfigError

from book.site.results import slug_of
from book.site.samples import SAMPLES
from book.site.templates import template
from lib import differences
from lib.models import check_files
from lib.organisms import FOLDER

SOURCE = Path(__file__).parents[1] / "live"
PLACE = "_static/live"
"""Where the site has it."""
CLASSES = {
    "Denoiser",
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "LlavaForConditionalGeneration",
    "ViTForImageClassification",
}
"""What the engine runs."""
PARTS = {
    "config": ("config.json",),
    "tokenizer": ("tokenizer.json",),
    "processor": ("processor_config.json", "preprocessor_config.json"),
    "generation": ("generation_config.json",),
}
"""What the engine wants to know of an organism, and which files may have it."""


@dataclass(frozen=True)
class File:
    """An organism's file, as the page's script wants to know it."""

    name: str
    bytes: int
    parent: str
    """The organism whose file is needed beside it; "" if none is."""
    used: bool
    """Whether the widget asks the organism itself, or needs it as a parent only."""


@cache
def pack(name: str) -> bytes:
    """An organism as one file: its safetensors, with its configuration, tokenizer and so on as metadata.

    Raises:
        ValueError, FileNotFoundError: its files, or its parent's, are not the published ones.
    """
    folder = FOLDER / name
    check_files(folder)
    whole, difference = folder / differences.WHOLE, folder / differences.FILE
    content = (whole if whole.is_file() else difference).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = header.setdefault("__metadata__", {})
    for part, files in PARTS.items():
        for path in (folder / file for file in files):
            if path.is_file():
                facts = json.loads(path.read_text(encoding="utf-8"))
                metadata[part] = json.dumps(facts, ensure_ascii=False, separators=(",", ":"))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def parent(name: str) -> str:
    """The organism from which another one is stored as a difference; "" if it is whole."""
    folder = differences.parent(FOLDER / name, FOLDER)
    return folder.name if folder else ""


def supports(name: str) -> bool:
    """Whether the engine knows the class of a shipped organism."""
    config = json.loads((FOLDER / name / "config.json").read_text(encoding="utf-8"))
    return set(config["architectures"]) <= CLASSES


@cache
def widgets() -> dict[str, dict[str, Any]]:
    """Slug -> what a chapter's widget lets one do, and the organisms it runs.

    Raises:
        ConfigError: a widget has no script, or an organism that the engine cannot run.
    """
    listed = yaml.safe_load((SOURCE / "widgets.yml").read_text(encoding="utf-8"))
    for slug, widget in listed.items():
        if not (SOURCE / "widgets" / f"{slug}.js").is_file():
            raise ConfigError(f"book/live/widgets.yml: {slug} has no widgets/{slug}.js")
        if wrong := [name for name in widget["models"] if not supports(name)]:
            raise ConfigError(f"book/live/widgets.yml: {slug}: the engine does not run {', '.join(wrong)}")
    return listed


def files(slug: str) -> list[File]:
    """The files that a chapter's widget loads."""
    used = widgets()[slug]["models"]
    needed = dict.fromkeys(name for model in used for name in (model, parent(model)) if name)
    return [File(name, len(pack(name)), parent(name), name in used) for name in needed]


def smaller(script: str) -> str:
    """JavaScript without the comments and the indentation that only its readers need; lines stay lines."""
    # A comment at the end of a line is one if no quote follows that would make it part of a string.
    lines = (re.sub(r"\s+// [^\"'`]*$", "", line).strip() for line in script.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(("//", "/*", "*"))) + "\n"


def write_scripts(out: Path) -> None:
    """Write the engine and the widgets to a folder of the site."""
    for path in SOURCE.rglob("*.js"):
        target = out / path.relative_to(SOURCE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(smaller(path.read_text(encoding="utf-8")), encoding="utf-8")
    shutil.copy(SOURCE / "live.css", out)
    for name, make in SAMPLES.items():
        (out / f"{name}.json").write_text(json.dumps(make(), separators=(",", ":")), encoding="utf-8")


def write_models(out: Path) -> None:
    """Write the organisms that some widget loads to a folder of the site, one file each."""
    out.mkdir(parents=True, exist_ok=True)
    for name in {file.name for slug in widgets() for file in files(slug)}:
        (out / f"{name}.safetensors").write_bytes(pack(name))


def section(slug: str) -> str:
    """The place of a widget on its page: what can be done there, and what the script has to load."""
    models = [asdict(file) for file in files(slug)]
    return template("live.html").render(slug=slug, does=widgets()[slug]["does"], models=models)


def in_head(node: nodes.Node) -> bool:
    """Whether a node behind a chapter's title is of its head: card, findings, the figure that tells them."""
    is_findings = isinstance(node, nodes.container) and "findings" in node["classes"]
    return (
        isinstance(node, nodes.raw)
        or is_findings
        or (isinstance(node, nodes.figure) and bool(node.get("main")))
    )


def insert(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put a chapter's widget behind the head of its page."""
    slug = slug_of(docname)
    title = next(doctree.findall(nodes.title), None)
    if slug not in widgets() or title is None:
        return
    siblings = title.parent.children
    place = siblings.index(title) + 1
    while place < len(siblings) and in_head(siblings[place]):
        place += 1
    title.parent.insert(place, nodes.raw("", section(slug), format="html"))


def say_so(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document) -> None:
    """Let the layout load the script on the pages that have a widget, and on no other."""
    context["live"] = slug_of(page) in widgets()


def write(app: Sphinx, error: Exception | None) -> None:
    if not error and app.builder.name == "html":
        out = Path(app.outdir, PLACE)
        write_scripts(out)
        write_models(out / "models")


def setup(app: Sphinx) -> None:
    app.connect("doctree-resolved", insert, priority=600)  # after the card
    app.connect("html-page-context", say_so)
    app.connect("build-finished", write)
