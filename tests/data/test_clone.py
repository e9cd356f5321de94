"""A clone has the repository's very bytes, whatever git is told about the ends of lines."""

import subprocess
from pathlib import Path

import pytest

from lib import ROOT
from lib.models import check_files


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git repository: nothing can be cloned")
def test_organisms_pass_their_checksums_in_a_clone_with_windows_line_ends(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    options = ["-c", "core.autocrlf=true", "-c", "core.eol=crlf"]
    subprocess.run(["git", "clone", "-q", *options, ROOT, clone], check=True, capture_output=True)
    folders = [path.parent for path in clone.glob("data/models/*/sha256.json")]
    assert folders
    for folder in folders:
        check_files(folder)
    for pattern in ("*.md", "notebooks/*.ipynb", "data/**/*.py", "data/models/*/card.md"):
        for file in clone.glob(pattern):
            assert b"\r\n" not in file.read_bytes(), file
