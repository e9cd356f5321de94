"""Verdicts follow the rule, and a record survives its way through a notebook."""

import json
import re
from html.parser import HTMLParser

import nbclient
import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from book.run.collect import collect, findings
from lib import claims, papers
from lib.claims import CLAIM_MIME, FINDING_MIME, claim, decide, finding, not_testable, task_not_done
from lib.papers import Rule
from lib.stats import Estimate

PAPER = """
slug: some-paper
title: T
short: T
authors: [A]
year: 2024
venue: arXiv preprint
bibtex: a2024t
area: steering
status: planned
basis: The full text.
asks: Does it work?
finds: It does.
organisms: []
models: []
presets: {}
claims:
  - {id: some-paper.1, text: "Fewer <script>alert('λ')</script> & more", paper: "10 % -> 50 %",
     statistic: difference, unit: points, null: "a <random> direction",
     rule: {direction: greater, size: 20, null: 5}}
  - {id: some-paper.2, text: It costs little, by: book, statistic: cost, no_null: nothing could cost less,
     rule: {direction: less, size: 1, null: 1}}
  - {id: some-paper.3, text: It scales., testable: false, reason: Needs a cluster.}
  - {id: some-paper.4, text: Undecided, statistic: cost, null: none}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(papers, "FOLDER", tmp_path)
    (tmp_path / "some-paper.yml").write_text(PAPER, encoding="utf-8")
    return tmp_path


GREATER = Rule(direction="greater", size=20, null=5)


@pytest.mark.parametrize(
    ("estimate", "null", "verdict", "reason"),
    [
        ((25, 15, 35), None, "holds", "above 5, and the value reaches 20"),
        ((20, 15, 35), None, "holds", "reaches 20"),
        ((25, 15, 35), (0, -9, 9), "holds", "reaches 20"),
        ((25, 15, 35), (-9, -12, -7), "holds", "reaches 20"),
        ((12, 8, 16), None, "holds, smaller", "above 5, but the value falls short of 20"),
        ((12, 8, 22), None, "holds, smaller", "above 5, but the value falls short of 20"),
        ((25, 4, 46), None, "undecided", "contains 5: this run cannot tell"),
        ((25, 5, 46), None, "undecided", "contains 5"),
        ((4, -4, 12), None, "does not hold", "excludes 20: an effect as large as claimed is ruled out"),
        ((-25, -30, -20), None, "does not hold", "the whole interval is below 5"),
        ((25, 15, 35), (7, 6, 18), "does not hold", "above 5, but so is the null run's"),
        ((45, 35, 55), (25, 22, 28), "does not hold", "above 5, but so is the null run's"),
        ((25, 15, 35), (7, 6, 8), "holds", "above 5 and beyond the null run's"),
        ((25, 4, 46), (7, 6, 8), "undecided", "contains 5"),
        ((25, 25, 25), None, "undecided", "no width because all resamples agree"),
    ],
)
def test_the_rule_decides_the_verdict(estimate, null, verdict, reason):
    found = decide(GREATER, Estimate(*estimate, n=9), null and Estimate(*null, n=9))
    assert found[0] == verdict
    assert reason in found[1]


def test_what_was_not_sampled_may_have_no_width():
    assert decide(GREATER, Estimate(25, 25, 25, 1, exact=True))[0] == "holds"
    assert decide(GREATER, Estimate(5, 5, 5, 1, exact=True))[0] == "does not hold"
    assert str(Estimate(25, 25, 25, 1, exact=True)) == "25 (exact)"
    assert str(Estimate(25, 25, 25, 9)) == "25 (all 9 alike)", "not printed as certainty"


def test_a_cost_of_at_most_m_holds_only_if_the_whole_interval_stays_below_m():
    rule = Rule(direction="less", size=1, null=1)
    assert decide(rule, Estimate(0.3, -0.2, 0.9, 9)) == ("holds", "the whole interval is below 1")
    assert decide(rule, Estimate(0.3, -0.2, 1.1, 9))[0] == "undecided"
    assert decide(rule, Estimate(2, 1.2, 3, 9))[0] == "does not hold"
    assert decide(rule, Estimate(0.3, -0.2, 0.9, 9), Estimate(4, 3, 5, 9))[0] == "holds"


numbers = st.floats(-50, 50)
triples = st.tuples(numbers, numbers, numbers).map(sorted)


@given(triples, st.none() | triples)
def test_mirroring_the_numbers_and_the_direction_keeps_the_verdict(triple, null):
    def estimate(t, sign):
        low, value, high = sorted(sign * x for x in t)
        return Estimate(value, low, high, 9)

    mirrored = Rule(direction="less", size=-20, null=-5)
    verdicts = {
        decide(rule, estimate(triple, sign), null and estimate(null, sign))[0]
        for rule, sign in ((GREATER, 1), (mirrored, -1))
    }
    assert len(verdicts) == 1


def test_outside_a_notebook_the_row_is_printed(capsys):
    record = claim("some-paper.1", Estimate(25, 15, 35, 9), null=Estimate(0, -2, 2, 9), note="Seeds 0-8.")
    printed = capsys.readouterr().out
    assert record.verdict == "holds"
    for part in ["✓ holds", "some-paper.1", "10 % -> 50 %", "25 [15, 35] points", "95% interval, n = 9"]:
        assert part in printed
    for part in ["0.0 [-2.0, 2.0] points", "a <random> direction", "the value reaches 20", "Seeds 0-8."]:
        assert part in printed


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64, np.array, torch.tensor])
def test_numbers_of_numpy_and_torch_give_the_same_record_as_pythons(number, capsys):
    measured = [
        Estimate(kind(25), kind(15), kind(35), count(9)) for kind, count in ((float, int), (number, np.int64))
    ]
    expected, found = (claim("some-paper.1", e, null=Estimate(e.value - 25, -2, 2, e.n)) for e in measured)
    assert found == expected
    assert json.dumps(found.to_json()) == json.dumps(expected.to_json())
    assert str(found) == str(expected)


def test_what_cannot_be_tested_takes_its_reason_from_the_call_or_from_the_papers_facts(capsys):
    assert not_testable("some-paper.3").reason == "Needs a cluster."
    assert not_testable("some-paper.1", "The model is too small.").reason == "The model is too small."
    assert not_testable("some-paper.1", "x").verdict == "not testable here"
    with pytest.raises(ValueError, match=r"some-paper\.1: say why"):
        not_testable("some-paper.1")


GOOD = Estimate(25, 15, 35, 9)


def test_a_task_is_not_done_unless_the_whole_interval_of_its_accuracy_is_above_chance(capsys):
    assert task_not_done(Estimate(60, 51, 69, 90), chance=50) == ""
    reason = task_not_done(Estimate(60, 50, 70, 90), chance=50)
    assert reason.startswith("Task not done on this model: ")
    row = claim("some-paper.1", GOOD, null=Estimate(0, -2, 2, 9), untestable=reason)
    assert (row.verdict, row.estimate) == ("not testable here", None)
    assert row.reason == f"{reason} It measured 25 [15, 35] points."
    nothing = Estimate(float("nan"), float("nan"), float("nan"), 0)
    assert claim("some-paper.1", nothing, null=nothing, untestable=reason).reason == reason
    assert claim("some-paper.1", GOOD, null=Estimate(0, -2, 2, 9), untestable="").verdict == "holds"


NAN = float("nan")


@pytest.mark.parametrize(
    ("id", "estimate", "null", "error", "message"),
    [
        ("some-paper.11", GOOD, None, LookupError, r"no claim 'some-paper.11'.* did you mean: some-paper\.1"),
        ("some-papr.1", GOOD, None, LookupError, "no paper 'some-papr'.*did you mean: some-paper"),
        ("nonsense", GOOD, None, LookupError, "no paper 'nonsense'"),
        ("some-paper.1", 25.0, GOOD, TypeError, r"the estimate must be an Estimate .* got 25\.0"),
        ("some-paper.1", GOOD, 0.0, TypeError, r"the null must be an Estimate .* got 0\.0"),
        ("some-paper.1", None, GOOD, TypeError, "the estimate must be an Estimate"),
        ("some-paper.1", Estimate(NAN, NAN, NAN, 0), GOOD, ValueError, r"the estimate is nan \[nan, nan\]"),
        ("some-paper.1", GOOD, Estimate(1, 0, float("inf"), 9), ValueError, "the null is .*inf"),
        ("some-paper.1", Estimate(1, 2, 0, 9), GOOD, ValueError, "low <= high"),
        ("some-paper.4", GOOD, GOOD, ValueError, r"some-paper\.4 has no rule"),
        ("some-paper.3", GOOD, None, ValueError, "call not_testable"),
        ("some-paper.1", GOOD, None, ValueError, "data/papers states null, and the chapter gives none"),
        ("some-paper.2", GOOD, GOOD, ValueError, "data/papers states no null, and the chapter gives one"),
    ],
)
def test_a_mistake_is_answered_with_what_was_given_and_what_to_do(id, estimate, null, error, message, capsys):
    with pytest.raises(error, match=message):
        claim(id, estimate, null=null)
    assert capsys.readouterr().out == ""


class Tags(HTMLParser):
    """Start tags, and whether every element is closed in order."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.balanced = [], [], True
        self.feed(html)
        self.balanced &= not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        self.balanced &= bool(self.open) and self.open.pop() == tag


def execute(folder, *cells):
    """Run the cells in a kernel whose papers are those of the test; returns the saved notebook's path."""
    header = f"import pathlib; from lib import papers; papers.FOLDER = pathlib.Path({str(folder)!r})"
    header += "; from lib.claims import claim, finding, not_testable; from lib.stats import Estimate"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (header, *cells)])
    nbclient.NotebookClient(book, timeout=120).execute()
    nbformat.write(book, folder / "book.ipynb")
    return folder / "book.ipynb"


def test_a_record_travels_in_the_notebook_and_its_row_is_shown_once_and_escaped(folder, capsys):
    path = execute(
        folder,
        "claim('some-paper.1', Estimate(25.0, 15.0, 35.0, 9), null=Estimate(0, -2, 2, 9), note='<i>')",
        "r = not_testable('some-paper.3')\nclaim('some-paper.2', Estimate(0.5, 0.1, 0.7, 5))",
    )
    first, second, third = collect(path)
    again = claim("some-paper.1", Estimate(25.0, 15.0, 35.0, 9), null=Estimate(0, -2, 2, 9), note="<i>")
    assert first == again
    assert (second.id, second.estimate, third.verdict) == ("some-paper.3", None, "holds")

    cells = json.loads(path.read_text(encoding="utf-8"))["cells"][1:]
    assert [len(cell["outputs"]) for cell in cells] == [1, 2]
    output = cells[0]["outputs"][0]
    assert output["output_type"] == "display_data"
    assert set(output["data"]) == {"text/plain", "text/html", CLAIM_MIME}
    html = "".join(output["data"]["text/html"])
    parsed = Tags(html)
    assert parsed.balanced
    plain = {"div", "span", "strong", "small", "details", "summary"}
    assert set(parsed.tags) == plain  # nothing of the claim's text became a tag
    assert "Fewer &lt;script&gt;" in html
    assert "&lt;i&gt;" in html
    assert "&lt;random&gt;" in html
    for part in ["wp-claim", "wp-verdict wp-holds", "10 % -&gt; 50 %", "25 [15, 35] points", "reaches 20"]:
        assert part in html


def test_a_claim_has_one_record_in_a_notebook(folder):
    record = json.loads(json.dumps(claim("some-paper.2", Estimate(0.5, 0.1, 0.7, 5)).to_json()))
    output = {"output_type": "display_data", "metadata": {}, "data": {CLAIM_MIME: record}}
    cell = {"cell_type": "code", "source": [], "metadata": {}, "execution_count": 1, "outputs": [output]}
    text = {"cell_type": "markdown", "source": [], "metadata": {}}
    path = folder / "book.ipynb"
    path.write_text(json.dumps({"cells": [text, cell]}))
    assert [r.id for r in collect(path)] == ["some-paper.2"]
    path.write_text(json.dumps({"cells": [cell, cell]}))
    with pytest.raises(ValueError, match=r"records some-paper\.2 more than once"):
        collect(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "is not a notebook"),
        ("[]", "is not a notebook"),
        ("{}", "is not a notebook"),
        (json.dumps({"cells": [{"outputs": [{"data": {CLAIM_MIME: {"id": "x"}}}]}]}), "record is damaged"),
    ],
)
def test_a_file_that_is_no_notebook_is_named(tmp_path, content, message):
    (tmp_path / "book.ipynb").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        collect(tmp_path / "book.ipynb")
    assert "book.ipynb" in str(caught.value)


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_white_on_every_badge_meets_the_contrast_that_wcag_asks_of_small_text():
    for _, _, colour in claims.BADGES.values():
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5


def test_a_row_shows_what_recorded_runs_found_and_how_many_seeds_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    wide = Estimate(12, -3, 40, 3, values=(30.0, 4.0, 2.0))
    null = Estimate(0, -2, 2, 9)
    alone = claim("some-paper.1", wide, null=null)
    assert (alone.verdict, alone.decided) == ("undecided", "undecided")
    assert "1 of 3 on the claimed side: 30, 4, 2" in str(alone)
    large = claim("some-paper.1", Estimate(30, 25, 35, 99), null=null).to_json()
    run = {"parameters": {"n_steps": 500}, "date": "2026-01-02", "commit": "abcdef012345", "claims": [large]}
    (tmp_path / "some-paper--long.json").write_text(json.dumps(run))
    by_seed = [
        {"parameters": {"seed": n}, "claims": [{"id": "some-paper.1", "estimate": vars(e), "null": None}]}
        for n, e in enumerate((wide, Estimate(30, 25, 35, 99)))
    ]
    (tmp_path / "some-paper--seeds.json").write_text(json.dumps({"runs": by_seed}))
    record = claim("some-paper.1", wide, null=null)
    assert (record.verdict, record.decided) == ("undecided", "holds"), "the recorded run can tell"
    for part in ("30.0 [25.0, 35.0] points: holds", "n_steps = 500 (2026-01-02, abcdef0)", "1 of 2 agree"):
        assert part in str(record)
    assert "seed = 0: undecided; seed = 1: holds" in str(record)
    assert not claim("some-paper.2", Estimate(0.3, -0.2, 0.9, 9)).recorded


def unfolded(html):
    """What a row shows before it is opened."""
    return re.sub(r"(?s)</summary>.*</details>", "", html)


def test_a_row_shows_verdict_sentence_and_numbers_and_folds_all_else():
    estimate, null = Estimate(25, 15, 35, 9), Estimate(0, -2, 2, 9)
    row = claims._html(claim("some-paper.1", estimate, null=null, note="Seeds 0-8."))
    for shown in ("holds", "more", "10 % -&gt; 50 %", "25 [15, 35] points", "0.0 [-2.0, 2.0] points"):
        assert shown in unfolded(row)
    for folded in ("difference; 95% interval", "a &lt;random&gt; direction", "reaches 20", "Seeds 0-8."):
        assert folded in row
        assert folded not in unfolded(row)
    assert "Needs a cluster." in unfolded(claims._html(not_testable("some-paper.3")))


def test_real_models_and_untrained_twins_stand_in_the_row_and_decide_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RESULTS", tmp_path / "results")
    claims.RESULTS.mkdir()
    measured = claim("some-paper.1", Estimate(30, 25, 35, 99), null=Estimate(0, -2, 2, 9)).to_json()
    undone = not_testable("some-paper.2", "Task not done on this model.").to_json()
    for name, parameters in {"real": {"model": "smollm2"}, "untrained": {"untrained": True}}.items():
        kept = {"parameters": parameters, "claims": [measured, undone], "versions": {"torch": "9"}}
        kept["versions"] |= {"smollm2": "Q4_1 of some package"} if name == "real" else {}
        (claims.RESULTS / f"some-paper--{name}.json").write_text(json.dumps(kept))
    record = claim("some-paper.1", Estimate(12, -3, 40, 3), null=Estimate(0, -2, 2, 9))
    assert (record.verdict, record.decided, record.recorded) == ("undecided", "undecided", ())
    assert (record.real.verdict, record.untrained.verdict) == ("holds", "holds")
    assert record.real.model == "smollm2, Q4_1"
    row = claims._html(record)
    for shown in ("smollm2, Q4_1: ✓ holds", "untrained: ✓ holds"):
        assert shown in unfolded(row)
    second = claim("some-paper.2", Estimate(0.3, -0.2, 0.9, 9))
    assert "not measured: not testable here  (Task not done on this model. untrained = True" in str(second)

    explained = PAPER.replace("difference, unit:", "difference, twin_holds: Shapes alone do it., unit:")
    (folder / "some-paper.yml").write_text(explained, encoding="utf-8")
    row = str(claim("some-paper.1", Estimate(12, -3, 40, 3), null=Estimate(0, -2, 2, 9)))
    assert row.count("Shapes alone do it.") == 1
    assert "30.0 [25.0, 35.0] points: holds  (Shapes alone do it. untrained = True (torch 9))" in row
    left_out = PAPER.replace("cost, no_null:", "cost, no_twin: It compares trainings., no_null:")
    (folder / "some-paper.yml").write_text(left_out, encoding="utf-8")
    record = claim("some-paper.2", Estimate(0.3, -0.2, 0.9, 9))
    assert record.untrained is None
    assert "left out  (It compares trainings.)" in str(record)


def test_a_recorded_run_is_decided_by_the_rule_as_it_is_now(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    stored = {"value": 12.0, "low": 4.0, "high": 30.0, "n": 9, "confidence": 0.95}
    old = {"id": "some-paper.1", "verdict": "does not hold", "estimate": stored}
    (tmp_path / "some-paper--x.json").write_text(json.dumps({"parameters": {}, "claims": [old]}))
    record = claim("some-paper.1", GOOD, null=GOOD)
    assert [run.verdict for run in record.recorded] == ["undecided"]


SENTENCES = {
    "holds": "It gains {0.estimate.value:.0f} points.",
    "undecided": "Whether it gains cannot be told ({0.estimate}).",
    "fails": "It does not gain.",
}


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(25, 15, 35, 9), "It gains 25 points."),
        (Estimate(12, 8, 16, 9), "It gains 12 points."),
        (Estimate(12, 1, 33, 9), "Whether it gains cannot be told (12 [1, 33])."),
        (Estimate(-12, -20, -2, 9), "It does not gain."),
    ],
)
def test_a_finding_says_what_its_claims_verdict_is(capsys, estimate, text):
    record = claim("some-paper.1", estimate, null=Estimate(0, -2, 2, 9))
    capsys.readouterr()
    finding(record, **SENTENCES)
    assert capsys.readouterr().out.strip() == text


def test_a_finding_whose_number_was_not_measured_is_refused():
    record = claim("some-paper.2", Estimate(0.3, -0.2, 0.9, 9))
    with pytest.raises(ValueError, match=r"some-paper\.2: the finding .* cannot be filled in"):
        finding(record, **SENTENCES | {"holds": "against {0.null.value}"})


def test_findings_travel_in_the_notebook_with_their_claims(folder):
    path = execute(
        folder,
        "r = claim('some-paper.1', Estimate(25.0, 15.0, 35.0, 9), null=Estimate(0, -2, 2, 9))",
        "finding(r, holds='It gains {0.estimate.value:.0f}.', undecided='?', fails='No.')",
    )
    assert findings(path) == [{"text": "It gains 25.", "verdict": "holds", "claims": ["some-paper.1"]}]
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert set(cells[-1]["outputs"][0]["data"]) == {"text/markdown", "text/plain", FINDING_MIME}
