"""Organisms that run in the reader's browser: their files, and where they stand on a chapter's page."""

import json
from pathlib import Path

from lib import differences
from lib.models import check_files
from lib.organisms import FOLDER

SOURCE = Path(__file__).parents[1] / "live"
"""The engine and the widgets, as they are written."""
CLASSES = {
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


def pack(name: str) -> bytes:
    """An organism as one file: its safetensors, with its configuration, tokenizer and so on as metadata.

    Args:
        name: a shipped organism.

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


def parents(name: str) -> list[str]:
    """The organism from which another one is stored as a difference, if it is."""
    parent = differences.parent(FOLDER / name, FOLDER)
    return [parent.name] if parent else []


def code(text: str) -> str:
    """JavaScript without the comments and indentation that only its readers need; each line stays a line."""
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(("//", "/*", "*"))) + "\n"


def supports(name: str) -> bool:
    """Whether the engine knows the class of a shipped organism."""
    config = json.loads((FOLDER / name / "config.json").read_text(encoding="utf-8"))
    return set(config["architectures"]) <= CLASSES


def write_code(out: Path) -> None:
    """Write the engine and the widgets to a folder of the site."""
    for path in SOURCE.rglob("*.js"):
        target = out / path.relative_to(SOURCE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(code(path.read_text(encoding="utf-8")), encoding="utf-8")
