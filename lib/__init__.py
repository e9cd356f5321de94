"""The book's small shared library: model loading, hooks, attention access, probes, claims, and the runner.

The names below are what a chapter usually needs. They are looked up when first used, so that
`import lib.papers` (say) does not pay for importing torch and transformers.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lib.claims import claim, not_testable
    from lib.hooks import capture, edit
    from lib.models import Subject, load
    from lib.plots import show
    from lib.stats import Estimate, bootstrap, paired_difference, t_interval, wilson

ROOT = Path(__file__).resolve().parent.parent
"""The repository's folder: `notebooks/`, `data/` and `book/` are below it."""

# Name -> the module it lives in. The batch runner reads this table too: a chapter that imports only
# `load` from here depends on `lib/models.py`, and not on the others.
HOMES = {
    "Estimate": "stats",
    "Subject": "models",
    "bootstrap": "stats",
    "capture": "hooks",
    "claim": "claims",
    "edit": "hooks",
    "load": "models",
    "not_testable": "claims",
    "paired_difference": "stats",
    "show": "plots",
    "t_interval": "stats",
    "wilson": "stats",
}

__all__ = [
    "ROOT",
    "Estimate",
    "Subject",
    "bootstrap",
    "capture",
    "claim",
    "edit",
    "load",
    "not_testable",
    "paired_difference",
    "show",
    "t_interval",
    "wilson",
]


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(f"lib.{HOMES[name]}"), name)
    raise AttributeError(f"lib has no {name!r}; it offers {', '.join(__all__)}")
