"""The book's fonts, taken from Python packages when the site is built and cut down to what it uses."""

import re
from html import unescape
from pathlib import Path

from fontTools import subset

from lib.packaged import installed_file

# Name of the file on the site -> package and file in it (all under the SIL Open Font Licence).
TEXT = {
    "serif": ("font_source_serif_pro", "files/SourceSerifPro-Regular.otf"),
    "serif-italic": ("font_source_serif_pro", "files/SourceSerifPro-It.otf"),
    "serif-bold": ("font_source_serif_pro", "files/SourceSerifPro-Semibold.otf"),
    "sans": ("font_source_sans_pro", "files/SourceSansPro-Regular.otf"),
    "sans-bold": ("font_source_sans_pro", "files/SourceSansPro-Semibold.otf"),
}
MATHS = ("ziamath", "fonts/STIXTwoMath-Regular.ttf")

LATIN = [*range(0x20, 0x180), *range(0x370, 0x400), *range(0x2010, 0x2045), *range(0x2070, 0x20A0)]
LATIN += map(ord, "€←↑→↓↗−≈≠≤≥✓✗")
# <mi>x</mi> is drawn with mathematical italics, <msqrt> with the sign of the root.
MATHS_ALWAYS = [*range(0x20, 0x7F), *range(0x391, 0x3CA), *range(0x1D434, 0x1D468), *range(0x1D6FC, 0x1D71C)]
MATHS_ALWAYS += map(ord, "ℎ×−√")


def _cut(source: tuple[str, str], target: Path, characters: list[int], features: list[str]) -> None:
    file = installed_file("/".join(source))
    if file is None:
        raise ModuleNotFoundError(f"the site's fonts need the package {source[0]}: install requirements.txt")
    options = subset.Options(
        flavor="woff", layout_features=features, desubroutinize=True, notdef_outline=True
    )
    font = subset.load_font(str(file), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=characters)
    subsetter.subset(font)
    subset.save_font(font, str(target), options)


def characters_of_maths(html: str) -> set[int]:
    """Code points inside the <math> elements of a page, the TeX annotation left out."""
    maths = re.findall(r"<math\b.*?</math>", html, flags=re.DOTALL)
    text = re.sub(r"<annotation\b.*?</annotation>|<[^>]*>", "", " ".join(maths), flags=re.DOTALL)
    return {ord(character) for character in unescape(text)}


def write(folder: Path, maths: set[int]) -> None:
    """Write the site's fonts to `folder`; the maths font has the characters `maths` and those it composes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in TEXT.items():
        _cut(source, folder / f"{name}.woff", LATIN, ["kern", "liga", "mark", "mkmk", "locl", "tnum"])
    characters = sorted(maths.union(MATHS_ALWAYS))
    _cut(MATHS, folder / "maths.woff", characters, ["ssty", "mark", "mkmk", "dtls", "flac"])
