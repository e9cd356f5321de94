"""The book's small shared library: model loading, hooks, attention access, probes, statistics, claims."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The repository's folder: `notebooks/`, `data/` and `book/` are below it."""
