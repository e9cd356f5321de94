"""The schema of `data/papers`: what it accepts, and what it says about each kind of mistake."""

import subprocess
import sys

import pytest

from lib import papers

GOOD = """
slug: some-paper
title: "A title: with a colon"
short: SP
authors: [Ada Lovelace]
year: 2024
venue: arXiv preprint
arxiv: "2404.05657"
doi: null
code: {url: "https://example.org/code", licence: MIT}
bibtex: lovelace2024title
area: steering
status: written
basis: The full text.
asks: Does it work?
finds: It does.
organisms: [digits-vit]
models: [some/model]
presets:
  smoke: {n_seeds: 2, rate: 0.5, layers: [1, 2], fast: true, mask: null}
  organism: {}
  gpu: {model: some/model}
  untrained: {untrained: true}
claims:
  - id: some-paper.1
    text: It works.
    paper: "1 to 2"
    statistic: difference
    unit: points
    null: random directions
    rule: {direction: less, size: 1.0, null: 1.0}
    testable: true
  - id: some-paper.2
    text: It scales.
    testable: false
    reason: Needs a thousand GPUs.
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(papers, "FOLDER", tmp_path)
    (tmp_path / "some-paper.yml").write_text(GOOD)
    return tmp_path


def test_a_complete_file_is_read(folder):
    paper = papers.read("some-paper")
    assert paper.title == "A title: with a colon"
    assert paper.presets["smoke"] == {"n_seeds": 2, "rate": 0.5, "layers": [1, 2], "fast": True, "mask": None}
    assert type(paper.presets["smoke"]["n_seeds"]) is int
    assert type(paper.presets["smoke"]["fast"]) is bool
    assert [claim.id for claim in papers.all_papers()[0].claims] == ["some-paper.1", "some-paper.2"]


def test_null_is_a_key_of_a_rule_and_not_yamls_none(folder):
    rule = papers.read("some-paper").claims[0].rule
    assert (rule.direction, rule.size, rule.null) == ("less", 1.0, 1.0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("venue: arXiv preprint", "venue: x\nvenu: y", "venu: Extra inputs are not permitted (got 'y')"),
        ("asks: Does it work?", "", "asks: Field required"),
        ("asks: Does it work?", "asks: ' '", "asks: String should have at least 1 character"),
        ("year: 2024", "year: last", "year: Input should be a valid integer"),
        ("year: 2024", "year: 2024\nyear: 2025", "`year` is given twice"),
        ('"2404.05657"', "2404.05657", "arxiv: Input should be a valid string (got 2404.05657)"),
        ("area: steering", "area: magic", "area: Input should be 'understanding', 'failure', 'steering'"),
        (
            "direction: less",
            "direction: fewer",
            "claims.1.rule.direction: Input should be 'greater' or 'less'",
        ),
        ("size: 1.0", "size: .nan", "claims.1.rule.size: Input should be a finite number"),
        ("size: 1.0", "size: 1.5", "claims.1.rule: size 1.5 is not less than null 1"),
        ("    rule: {direction: less, size: 1.0, null: 1.0}\n", "", "need a `rule`: some-paper.1"),
        (
            "    null: random directions\n",
            "",
            "claims.1: a testable claim needs `statistic`, and `null` or the reason",
        ),
        ("    reason: Needs a thousand GPUs.", "", "claims.2: `reason` says why"),
        ("id: some-paper.2", "id: some-paper.3", "expected, in order, some-paper.1, some-paper.2"),
        ("  organism: {}\n", "", "missing: organism"),
        ("  gpu: {", "  tpu: {", "presets.tpu"),
        ("  untrained: {untrained: true}\n", "", "would say nothing on untrained networks: some-paper.1"),
        ("{untrained: true}", "{untrained: false}", "the preset `untrained` sets `untrained: true`, or"),
        ("unit: points", "no_twin: It trains.\n    twin_holds: x", "that `no_twin` leaves out"),
        ("slug: some-paper", "slug: other-paper", "other-paper"),
        ("title: ", "title: [", "while parsing"),
        ("asks: Does it work?", "asks: {{ question }}", "asks: Input should be a valid string"),
    ],
)
def test_a_broken_file_is_refused_with_its_name_the_field_and_the_reason(folder, old, new, message):
    assert old in GOOD
    (folder / "some-paper.yml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ValueError, match=r"some-paper\.yml") as caught:
        papers.read("some-paper")
    assert message in str(caught.value)


def test_the_slug_is_the_files_name(folder):
    (folder / "some-paper.yml").rename(folder / "another.yml")
    with pytest.raises(ValueError, match=r"another\.yml:\s+slug: 'some-paper' differs from the file's name"):
        papers.read("another")


def test_a_planned_paper_needs_neither_presets_nor_rules(folder):
    planned = GOOD.replace("status: written", "status: planned")
    planned = planned.replace("    rule: {direction: less, size: 1.0, null: 1.0}\n", "")
    start, end = planned.index("presets:"), planned.index("claims:")
    (folder / "some-paper.yml").write_text(planned[:start] + "presets: {}\n" + planned[end:])
    assert papers.read("some-paper").claims[0].rule is None


def test_a_chapter_whose_claims_would_say_nothing_on_untrained_networks_needs_no_such_preset(folder):
    without = GOOD.replace("  untrained: {untrained: true}\n", "")
    (folder / "some-paper.yml").write_text(without.replace("unit: points", "no_twin: It compares trainings."))
    assert papers.read("some-paper").claims[0].no_twin == "It compares trainings."


def test_all_broken_files_are_named_at_once(folder):
    (folder / "empty.yml").write_text("")
    (folder / "some-paper.yml").write_text(GOOD.replace("year: 2024", ""))
    with pytest.raises(ValueError, match=r"(?s)empty\.yml.*some-paper\.yml"):
        papers.all_papers()


def test_an_unknown_paper_is_answered_with_the_nearest_names(folder):
    with pytest.raises(LookupError, match=r"no paper 'some-papr'.*did you mean: some-paper"):
        papers.read("some-papr")


@pytest.mark.parametrize("name", ["papers", "claims", "stats", "plots", "chapters", "organisms"])
def test_facts_are_read_and_chapters_planned_without_importing_torch(name):
    code = f"import sys, lib.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_shipped_paper_follows_the_schema_and_is_in_the_bibliography():
    shipped = papers.all_papers()
    assert len(shipped) == 23
    bibliography = (papers.ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    assert [p.slug for p in shipped if f"{{{p.bibtex}," not in bibliography] == []
