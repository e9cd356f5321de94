"""The page of the library shows what was measured of each architecture, with the reasons."""

import json
import re

from book.site.architectures import MEASURED, architectures


def test_each_architecture_has_a_row_with_its_class_and_why_something_is_withheld():
    html = architectures(None, "", "")
    for kind, rows in json.loads(MEASURED.read_text(encoding="utf-8"))["kinds"].items():
        assert re.search(rf"<summary>{len(rows)} {kind}: \d+ with all sites", html)
        for name, row in rows.items():
            assert f'<th scope="row">{name}<br><small>{row["class"]}</small></th>' in html
    assert "all but mlp_act" in html
    assert "has experts, each with neurons of its own" in html
    assert "is an encoder-decoder, which is not supported" in html
