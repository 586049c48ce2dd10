"""The book's scorecard: every claim of the paper, judged by the numbers that the chapters glued into their pages.

The claims are in ``book/claims.yml``, which also says how each is judged. Nothing in it is evaluated: a check compares a
glued number with a number or another glued number, and evidence is text with glued numbers put in.
"""

from __future__ import annotations

import ast
import json
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from llmpp_book import repository
from llmpp_book.errors import InputError
from llmpp_book.runner.notebook import NOTICE, Paths, text
from llmpp_book.runner.status import DONE, Record, link, list_table

#: Verdicts by kind of section: all parts hold, some, none, an interval leaves it open, a number is missing.
VERDICTS = {
    "claims": ("reproduced", "partly reproduced", "not reproduced", "undecided", "not tested yet"),
    "questions": ("yes", "partly", "no", "undecided", "not answered yet"),
}
_ALL, _SOME, _NONE, _OPEN, _MISSING = range(5)
_MARKS = ("✓ ", "± ", "✗ ", "? ", "")
_WIDTHS = (14, 26, 32, 28)

Text = Annotated[str, Field(min_length=1)]
_KEY = r"^ch\d\d_[a-z0-9_]+$"
Key = Annotated[str, Field(pattern=_KEY)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Check(_Strict):
    """One comparison of a glued value, or of both ends of a glued interval, with a number or with another glued value."""

    value: Key | Annotated[list[Key], Field(min_length=2, max_length=2)]
    equals: Number | Key | None = None
    at_most: Number | Key | None = None
    at_least: Number | Key | None = None
    within: Annotated[Number, Field(ge=0)] = 0

    @property
    def ends(self) -> list[str]:
        """The value, or the ends of the interval."""
        return self.value if isinstance(self.value, list) else [self.value]

    @property
    def limits(self) -> dict[str, float | str]:
        """What it is compared with, by the name of the comparison."""
        return {name: limit for name in ("equals", "at_most", "at_least") if (limit := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _one_comparison(self) -> Self:
        if len(self.limits) != 1 or (len(self.ends) == 2 and self.equals is not None):
            raise ValueError("expected one of equals, at_most, at_least, and an interval can equal nothing")
        return self

    def outcomes(self, values: Mapping[str, Any]) -> set[bool]:
        """Return whether it holds; an interval that the limit lies in gives both answers. Raises InputError if a value is no number."""
        ((comparison, limit),) = self.limits.items()
        limit = values[limit] if isinstance(limit, str) else limit
        found = set()
        for key in self.ends:
            if not all(isinstance(x, (int, float)) for x in (values[key], limit)):
                raise InputError(f"{key} is {values[key]!r}, compared with {limit!r}: expected two numbers")
            difference = values[key] - limit
            off = {"equals": abs(difference), "at_most": difference, "at_least": -difference}[comparison]
            # Rounding in the last digits decides nothing.
            found.add(bool(off <= self.within + 1e-9 * max(1.0, abs(limit))))
        return found


class Claim(_Strict):
    """One entry of the claims file; see its head for the meaning of the fields."""

    id: Text
    claim: Text
    source: Text
    chapter: Text
    criterion: Text
    checks: Annotated[list[Check], Field(min_length=1)] | None = None
    parts: Annotated[list[Annotated[list[Check], Field(min_length=1)]], Field(min_length=2)] | None = None
    evidence: Text
    headline: bool = False
    pending: bool = False

    @field_validator("evidence")
    @classmethod
    def _only_glued_numbers(cls, evidence: str) -> str:
        for _, name, form, conversion in string.Formatter().parse(evidence):
            if name is not None and (not re.match(_KEY, name) or conversion or "{" in (form or "")):
                raise ValueError(f"{{{name}}} is not allowed; write {{key}} or {{key:.2f}} with a glue key such as ch03_hat_mae")
        return evidence

    @model_validator(mode="after")
    def _checks_or_parts(self) -> Self:
        if (self.checks is None) == (self.parts is None):
            raise ValueError("expected either checks, all of which must hold, or parts, some of which may")
        return self

    @property
    def judged(self) -> list[list[Check]]:
        """The parts, each a list of checks that hold together."""
        return self.parts or [self.checks or []]

    @property
    def keys(self) -> set[str]:
        """Names of the glued values that it needs."""
        checked = {key for part in self.judged for check in part for key in (*check.ends, *check.limits.values()) if isinstance(key, str)}
        return checked | {name for _, name, _, _ in string.Formatter().parse(self.evidence) if name}


class Section(_Strict):
    """A titled table of claims or questions."""

    title: Text
    kind: Literal["claims", "questions"]
    intro: Text
    claims: Annotated[list[Claim], Field(min_length=1)]


class _File(_Strict):
    sections: list[Section]

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Self:
        ids = [claim.id for section in self.sections for claim in section.claims]
        if twice := {name for name in ids if ids.count(name) > 1}:
            raise ValueError(f"claim {', '.join(twice)}, id: given twice")
        return self


def read_claims(path: Path) -> list[Section]:
    """Read the claims file; raises InputError naming the claim and the field that is wrong."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _File.model_validate(content).sections
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path.name}: {' '.join(str(error).split())}{repository.HINT}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = list(first["loc"])
        if where[2:3] == ["claims"] and len(where) > 3:
            claim = content["sections"][where[1]]["claims"][where[3]]
            where[:4] = [f"claim {claim.get('id', where[3]) if isinstance(claim, dict) else where[3]}"]
        found = " ".join(str(first["input"]).split())[:80]
        raise InputError(f"{', '.join(map(str, [path.name, *where]))}: {first['msg']}; got {found}") from None


def read_glued(page: Path) -> tuple[dict[str, Any], bool]:
    """Return the values that a page glued, numbers as numbers and everything else as text, and whether it shows stored outputs.

    Raises InputError if it is damaged.
    """
    values = {}
    try:
        cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
        for output in (output for cell in cells for output in cell.get("outputs", [])):
            scrapbook = output.get("metadata", {}).get("scrapbook")
            if scrapbook:
                plain = output["data"].get(scrapbook.get("mime_prefix", "") + "text/plain", "")
                values[scrapbook["name"]] = _value(text(plain))
        return values, any(cell.get("id") == NOTICE for cell in cells)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{page.name} is damaged; make it again with: llmpp run {page.stem}") from None


def _value(plain: str) -> Any:
    inner = re.fullmatch(r"np\.\w+\((.*)\)", plain)
    plain = inner.group(1) if inner else plain
    try:
        return float(plain) if plain in ("nan", "inf", "-inf") else ast.literal_eval(plain)
    except (ValueError, SyntaxError):
        return plain


_SCORECARD = """# Scorecard

What became of the paper's claims, and of the questions they raise. Each verdict follows from numbers that the chapters
computed in their latest run and from a criterion that was written down beforehand; none is typed by hand. A criterion is
this book's reading of the claim, and says where it sets a limit that the paper does not give. *Undecided* means that the
interval holds both answers. *Partly* means that some parts of the claim hold for sure; the others may be open.

{headline}{counts}

{tables}"""
_HEADLINE = """## The headline claims

What the paper's abstract promises.

{table}
## In numbers

"""


def scorecard_page(paths: Paths, sections: Sequence[Section], records: Mapping[str, Record | None]) -> str:
    """Return the scorecard of the claims, from the values in the executed notebooks and the latest record of each, by stem."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for stem, record in records.items():
        if paths.page(stem).is_file():
            glued, stored = read_glued(paths.page(stem))
            values |= glued
            here = record is not None and record.state == DONE
            origins |= dict.fromkeys(glued, "stored outputs" if stored else "" if here else "an earlier run")
    counts, tables, headline = [], [], []
    for number, section in enumerate(sections, 1):
        names = VERDICTS[section.kind]
        verdicts = [_verdict(claim, values) for claim in section.claims]
        counted = [f"{verdicts.count(v)} {name}" for v, name in enumerate(names) if v in verdicts]
        counts.append(f"- {section.title}: {', '.join(counted)}")
        rows = [_heads(section.kind)]
        for claim, verdict in zip(section.claims, verdicts, strict=True):
            evidence = "" if verdict == _MISSING else f"{_evidence(claim, values, origins)}; see "
            where = link(paths, claim.chapter) if paths.page(claim.chapter).is_file() else f"to come: {claim.chapter}"
            mark = f"[{_MARKS[verdict]}{names[verdict]}]{{.verdict-{verdict}}}"
            rows.append([mark, claim.claim, evidence + where, f"{claim.criterion}. *{claim.source}*"])
            headline += [rows[-1]] if claim.headline else []
        tables.append(f"## {section.title}\n\n{list_table(section.intro, f'tbl-scorecard-{number}', _WIDTHS, rows)}")
    top = list_table("The claims of the abstract.", "tbl-scorecard", _WIDTHS, [_heads("claims"), *headline])
    first = _HEADLINE.format(table=top) if headline else ""
    return _SCORECARD.format(headline=first, counts="\n".join(counts), tables="\n".join(tables))


def _heads(kind: str) -> list[str]:
    return ["Verdict", "Claim" if kind == "claims" else "Question", "Evidence", "Criterion and source"]


def _verdict(claim: Claim, values: Mapping[str, Any]) -> int:
    """Return the verdict's position in `VERDICTS`."""
    if not claim.keys <= values.keys():
        return _MISSING
    try:
        outcomes = [[check.outcomes(values) for check in part] for part in claim.judged]
    except InputError as error:
        raise InputError(f"claims.yml, claim {claim.id}: {error}") from None
    # A check whose limit lies inside its interval may hold.
    surely, perhaps = (sum(all(map(extreme, part)) for part in outcomes) for extreme in (min, max))
    if perhaps == 0:
        return _NONE
    return _ALL if surely == len(outcomes) else _SOME if surely else _OPEN


def _evidence(claim: Claim, values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    try:
        evidence = claim.evidence.format_map(values)
    except (TypeError, ValueError) as error:
        raise InputError(f"claims.yml, claim {claim.id}, evidence: {error}") from None
    elsewhere = sorted({origins[key] for key in claim.keys} - {""})
    return evidence + (f" *(from {' and '.join(elsewhere)})*" if elsewhere else "")
