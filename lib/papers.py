"""The facts of each paper: `data/papers/<slug>.yml`, read and checked.

The schema is the models below. A file that breaks it is refused with its name, the field and the reason.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    ValidationError,
    model_validator,
)

from lib import ROOT

FOLDER = ROOT / "data" / "papers"

Area = Literal["understanding", "failure", "steering", "safety", "efficiency"]
AREAS: tuple[Area, ...] = get_args(Area)
PRESETS = ("smoke", "organism", "gpu")
Preset = Literal["smoke", "organism", "gpu", "colab", "real", "untrained"]

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Scalar = bool | int | float | str | None


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Code(_Facts):
    """The authors' code. `licence` is None where none is stated."""

    url: Annotated[str, StringConstraints(pattern=r"^https://\S+$")]
    licence: Text | None


class Rule(_Facts):
    """What decides a claim: its interval must lie beyond `null` in `direction`; `size` is the paper's effect.

    A claim of the form "costs at most m" has direction less and null = size = m.
    """

    direction: Literal["greater", "less"]
    size: FiniteFloat
    null: FiniteFloat = 0.0

    @model_validator(mode="after")
    def _size_is_not_short_of_null(self) -> Self:
        if self.size != self.null and (self.size > self.null) != (self.direction == "greater"):
            raise ValueError(f"size {self.size:g} is not {self.direction} than null {self.null:g}")
        return self


class Claim(_Facts):
    """One testable sentence. What is measured for it, in which unit, and what could refute it.

    Attributes:
        by: whose claim it is; the book's own are never counted as the paper's.
        paper: the paper's own figures; None where they could not be read.
        null: where the effect must be absent, though a broken pipeline would show it there too.
        contrast: something else to compare with, which could not point the claimed way.
        no_null: why there is no null, for a claim without one.
        no_twin: why the claim would say nothing on untrained networks (preset `untrained`), for one that is
            left out there; stated before that run.
        twin_holds: why the claim holds on untrained networks as well, where it did.
    """

    id: Text
    text: Text
    by: Literal["paper", "book"] = "paper"
    paper: Text | None = None
    statistic: Text | None = None
    unit: str | None = None
    null: Text | None = None
    contrast: Text | None = None
    no_null: Text | None = None
    no_twin: Text | None = None
    twin_holds: Text | None = None
    rule: Rule | None = None
    testable: bool = True
    reason: Text | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.testable and not (self.statistic and (self.null or self.no_null)):
            raise ValueError("a testable claim needs `statistic`, and `null` or the reason for `no_null`")
        if self.null and self.no_null:
            raise ValueError("`no_null` says why there is no null: give one of the two")
        if self.no_twin and self.twin_holds:
            raise ValueError("`twin_holds` explains a run on untrained networks that `no_twin` leaves out")
        if self.testable == bool(self.reason):
            raise ValueError("`reason` says why a claim is not testable: give it with `testable: false` only")
        return self


class Paper(_Facts):
    """One file of `data/papers`."""

    slug: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    title: Text
    short: Text
    authors: list[Text] = Field(min_length=1)
    year: int = Field(ge=1990, le=2100)
    venue: Text
    arxiv: Annotated[str, StringConstraints(pattern=r"^\d{4}\.\d{4,5}$")] | None = None
    doi: Annotated[str, StringConstraints(pattern=r"^10\.\d{4,}/\S+$")] | None = None
    code: Code | None = None
    bibtex: Text
    area: Area
    status: Literal["written", "planned"]
    basis: Text
    reconstruction: Text | None = None  # what the book had to rebuild, where the method could not be read
    asks: Text
    finds: Text
    organisms: list[Text]
    models: list[Text]
    presets: dict[Preset, dict[str, Scalar | list[Scalar]]]
    claims: list[Claim] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_its_status(self) -> Self:
        expected = [f"{self.slug}.{n}" for n in range(1, len(self.claims) + 1)]
        if (found := [claim.id for claim in self.claims]) != expected:
            raise ValueError(f"claim ids are {', '.join(found)}; expected, in order, {', '.join(expected)}")
        if self.status == "written":
            if missing := [name for name in PRESETS if name not in self.presets]:
                raise ValueError(f"a written chapter has all three presets; missing: {', '.join(missing)}")
            if missing := [claim.id for claim in self.claims if claim.testable and not claim.rule]:
                raise ValueError(f"a written chapter's testable claims need a `rule`: {', '.join(missing)}")
            asked = [claim.id for claim in self.claims if claim.testable and not claim.no_twin]
            if asked and not self.presets.get("untrained", {}).get("untrained"):
                raise ValueError(
                    "the preset `untrained` sets `untrained: true`, or each claim says with `no_twin` why it "
                    f"would say nothing on untrained networks: {', '.join(asked)}"
                )
        return self


class _Loader(yaml.SafeLoader):
    """YAML whose keys are the words that were written (`null:` is a name here) and are written once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = {}
        for key, value in node.value:
            if (name := str(key.value)) in mapping:
                raise yaml.MarkedYAMLError(problem=f"`{name}` is given twice", problem_mark=key.start_mark)
            mapping[name] = self.construct_object(value, deep=True)
        return mapping


def _explain(error: ValidationError) -> str:
    lines = []
    for e in error.errors():
        where = ".".join(f"{part + 1}" if isinstance(part, int) else str(part) for part in e["loc"])
        given = "" if isinstance(e["input"], dict | list | BaseModel) else f" (got {e['input']!r})"
        lines.append(f"{where}: {e['msg'].removeprefix('Value error, ')}{given}".removeprefix(": "))
    return "\n  ".join(lines)


def _parse(path: Path) -> Paper:
    try:
        facts = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
        if not isinstance(facts, dict):
            raise ValueError("is not a mapping of field: value")
        paper = Paper.model_validate(facts)
        if paper.slug != path.stem:
            raise ValueError(f"slug: {paper.slug!r} differs from the file's name")
    except ValidationError as error:
        raise ValueError(f"{path}:\n  {_explain(error)}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}:\n  {error}") from None
    return paper


def slugs(folder: Path | None = None) -> list[str]:
    """Names of all papers, written and planned, in alphabetical order."""
    return sorted(path.stem for path in (folder or FOLDER).glob("*.yml"))


def read(slug: str, folder: Path | None = None) -> Paper:
    """The facts of one paper, from `data/papers` or another folder.

    Raises:
        LookupError: no such paper.
        ValueError: the file breaks the schema; names the file, the field and the reason.
    """
    folder = folder or FOLDER
    if slug not in (known := slugs(folder)):
        close = get_close_matches(slug, known) or known
        raise LookupError(f"no paper {slug!r} in {folder}; did you mean: {', '.join(close)}?")
    return _parse(folder / f"{slug}.yml")


def all_papers() -> list[Paper]:
    """The facts of all papers, by slug.

    Raises:
        ValueError: one or more files break the schema; all of them are named.
    """
    papers, problems = [], []
    for slug in slugs():
        try:
            papers.append(read(slug))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    return papers
