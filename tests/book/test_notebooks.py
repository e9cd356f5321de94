"""Every chapter has the book's anatomy, runs at its `smoke` preset, and records its paper's claims."""

import re

import pytest

from book.run import anatomy
from book.run.collect import collect, findings
from book.site import results
from lib import chapters, papers

pytestmark = pytest.mark.chapter
SLUGS = chapters.slugs()


def test_the_written_papers_are_the_chapters():
    assert sorted(SLUGS) == sorted(paper.slug for paper in papers.all_papers() if paper.status == "written")


@pytest.mark.parametrize("slug", SLUGS)
def test_chapter_has_the_anatomy(slug):
    assert anatomy.check(slug) == []
    assert vars(chapters.method(slug))


@pytest.mark.parametrize("slug", SLUGS)
def test_chapter_runs_at_smoke_decides_every_claim_and_says_what_was_found(slug, smoke_run):
    result = next(result for result in smoke_run.results if result.slug == slug)
    assert result.status in {"passed", "cached"}, result.error
    recorded = [record.id for record in collect(result.notebook)]
    assert sorted(recorded) == sorted(claim.id for claim in papers.read(slug).claims)
    found = findings(result.notebook)
    assert 2 <= len(found) <= 3, "the findings at the head of the page"
    assert len({one["text"] for one in found}) == len(found)
    pictures = results.executed(result.notebook)[2]
    assert pictures["main"], "the figure at the head of the page"


def test_figures_are_named_once_in_the_book():
    source = {slug: "\n".join(cell.source for cell in chapters.read(slug).cells) for slug in chapters.slugs()}
    named = [name for text in source.values() for name in re.findall(r'name="(fig-[a-z0-9-]+)"', text)]
    assert sorted(named) == sorted(set(named))
    for slug, text in source.items():
        assert set(re.findall(r"\(#(fig-[a-z0-9-]+)\)", text)) <= set(
            re.findall(r'name="(fig-.+?)"', text)
        ), slug
