"""The book's scorecard: every claim of the paper, judged by the numbers that the chapters glued into their pages.

The claims are in ``book/claims.yml``, which also says how each is judged. Nothing in it is evaluated: a check compares a
glued number with a number or another glued number, and evidence is text with glued numbers put in.
"""

from __future__ import annotations

import ast
import json
import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from llmpp_book.errors import InputError
from llmpp_book.runner.notebook import NOTICE, Paths, text
from llmpp_book.runner.status import DONE, Record, link, list_table

#: Verdicts by kind of section: all checks pass, some, none, an interval leaves it open, a number is missing.
VERDICTS = {
    "claims": ("reproduced", "partly reproduced", "not reproduced", "undecided", "not tested yet"),
    "questions": ("yes", "partly", "no", "undecided", "not answered yet"),
}
_ALL, _SOME, _NONE, _OPEN, _MISSING = range(5)
_MARKS = ("✓ ", "± ", "✗ ", "? ", "")
_COMPARISONS = ("equals", "at_most", "at_least")
_KEY = re.compile(r"ch\d\d_[a-z0-9_]+")


class Check(NamedTuple):
    """One comparison of a glued value, or of both ends of a glued interval, with a number or with another glued value."""

    ends: tuple[str, ...]
    comparison: str
    limit: float | str
    within: float

    def outcomes(self, values: Mapping[str, Any]) -> set[bool]:
        """Return whether it holds; an interval that the limit lies in gives both answers. Raises InputError if a value is no number."""
        return {self._holds(end, values) for end in self.ends}

    def _holds(self, key: str, values: Mapping[str, Any]) -> bool:
        value, limit = (values[x] if isinstance(x, str) else x for x in (key, self.limit))
        if not all(isinstance(x, (int, float)) for x in (value, limit)):
            raise InputError(f"{key} is {value!r}, compared with {limit!r}: expected two numbers")
        difference = value - limit
        # Rounding in the last digits decides nothing.
        slack = self.within + 1e-9 * max(1.0, abs(limit))
        return bool({"equals": abs(difference) <= slack, "at_most": difference <= slack, "at_least": -difference <= slack}[self.comparison])


@dataclass(frozen=True)
class Claim:
    """One entry of the claims file; see its head for the meaning of the fields."""

    id: str
    claim: str
    source: str
    chapter: str
    criterion: str
    checks: tuple[Check, ...]
    evidence: str

    @property
    def keys(self) -> set[str]:
        """Names of the glued values that it needs."""
        checked = {key for check in self.checks for key in (*check.ends, check.limit) if isinstance(key, str)}
        return checked | {name for _, name, _, _ in string.Formatter().parse(self.evidence) if name}


@dataclass(frozen=True)
class Section:
    """A titled table of claims or questions."""

    title: str
    kind: str
    intro: str
    claims: tuple[Claim, ...]


def read_claims(path: Path) -> list[Section]:
    """Read the claims file; raises InputError naming the claim and the field that is wrong."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path.name}: {' '.join(str(error).split())}") from None
    where = path.name
    if not isinstance(content, dict) or set(content) != {"sections"} or not isinstance(content["sections"], list):
        raise InputError(f"{where}: expected one key, sections, that holds a list")
    sections = []
    seen: set[str] = set()
    for number, entry in enumerate(content["sections"], 1):
        title, kind, intro, claims = _fields(f"{where}, section {number}", entry, title=str, kind=str, intro=str, claims=list)
        if kind not in VERDICTS:
            raise InputError(f"{where}, section {number}, kind: {kind!r} is not allowed; allowed are {', '.join(VERDICTS)}")
        sections.append(Section(title, kind, intro, tuple(_claim(where, f"{title!r} entry {i}", c) for i, c in enumerate(claims, 1))))
        for claim in sections[-1].claims:
            if claim.id in seen:
                raise InputError(f"{where}, claim {claim.id}, id: given twice")
            seen.add(claim.id)
    return sections


def _fields(where: str, entry: Any, **expected: type) -> list[Any]:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected the fields {', '.join(expected)}; got {entry!r}")
    for name in entry:
        if name not in expected:
            raise InputError(f"{where}, {name}: no such field; the fields are {', '.join(expected)}")
    for name, kind in expected.items():
        if not isinstance(entry.get(name), kind) or not entry[name]:
            found = f"got {entry[name]!r}" if name in entry else "it is missing"
            raise InputError(f"{where}, {name}: expected {'a list' if kind is list else 'text'}; {found}")
    return [entry[name] for name in expected]


def _claim(where: str, position: str, entry: Any) -> Claim:
    where += f", claim {entry['id'] if isinstance(entry, dict) and isinstance(entry.get('id'), str) else position}"
    texts = {"id": str, "claim": str, "source": str, "chapter": str, "criterion": str}
    *values, checks, evidence = _fields(where, entry, **texts, checks=list, evidence=str)
    try:
        for _, name, form, conversion in string.Formatter().parse(evidence):
            if name is not None and (not _KEY.fullmatch(name) or conversion or "{" in (form or "")):
                raise ValueError(f"{{{name}}} is not allowed; write {{key}} or {{key:.2f}} with a glue key such as ch03_hat_mae")
    except ValueError as error:
        raise InputError(f"{where}, evidence: {error}") from None
    parsed = tuple(_check(f"{where}, checks", check) for check in checks)
    return Claim(**dict(zip(texts, values, strict=True)), checks=parsed, evidence=evidence)


def _check(where: str, entry: Any) -> Check:
    value = entry.get("value") if isinstance(entry, dict) else None
    ends: list[Any] = value if isinstance(value, list) and len(value) == 2 else [value]
    if not all(isinstance(end, str) and _KEY.fullmatch(end) for end in ends):
        raise InputError(f"{where}: expected value: a glue key such as ch03_hat_mae, or a list of two; got {entry!r}")
    where += f", {' to '.join(ends)}"
    # An interval can equal nothing.
    allowed = [name for name in _COMPARISONS if len(ends) == 1 or name != "equals"]
    comparisons = [name for name in allowed if name in entry]
    if len(comparisons) != 1 or set(entry) - {"value", "within", *comparisons}:
        raise InputError(f"{where}: expected one of {', '.join(allowed)}, and at most within; got {entry!r}")
    limit, within = entry[comparisons[0]], entry.get("within", 0)
    if not _is_number(limit) and not (isinstance(limit, str) and _KEY.fullmatch(limit)):
        raise InputError(f"{where}, {comparisons[0]}: expected a number or a glue key; got {limit!r}")
    if not _is_number(within) or within < 0:
        raise InputError(f"{where}, within: expected a number that is not negative; got {within!r}")
    return Check(tuple(ends), comparisons[0], limit, within)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class Glued(NamedTuple):
    """The values that a page glued, numbers as numbers and everything else as text, and whether the page shows stored outputs."""

    values: dict[str, Any]
    stored: bool


def read_glued(page: Path) -> Glued:
    """Read the glued values of an executed notebook; raises InputError if it is damaged."""
    values = {}
    try:
        cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
        for output in (output for cell in cells for output in cell.get("outputs", [])):
            scrapbook = output.get("metadata", {}).get("scrapbook")
            if scrapbook:
                plain = output["data"].get(scrapbook.get("mime_prefix", "") + "text/plain", "")
                values[scrapbook["name"]] = _value(text(plain))
        return Glued(values, any(cell.get("id") == NOTICE for cell in cells))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{page.name} is damaged; make it again with: llmpp run {page.stem}") from None


def _value(plain: str) -> Any:
    inner = re.fullmatch(r"np\.\w+\((.*)\)", plain)
    plain = inner.group(1) if inner else plain
    try:
        return float(plain) if plain in ("nan", "inf", "-inf") else ast.literal_eval(plain)
    except (ValueError, SyntaxError):
        return plain


def scorecard_page(paths: Paths, sections: Sequence[Section], records: Mapping[str, Record | None]) -> str:
    """Return the scorecard page.

    Parameters
    ----------
    paths : Paths
        The repository; values are read from its executed notebooks.
    sections : sequence of Section
        What `read_claims` returned.
    records : mapping
        The latest record of every notebook, by stem.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for stem, record in records.items():
        if paths.page(stem).is_file():
            page = read_glued(paths.page(stem))
            values |= page.values
            here = record is not None and record.state == DONE
            origins |= dict.fromkeys(page.values, "stored outputs" if page.stored else "" if here else "an earlier run")
    counts, tables = [], []
    for number, section in enumerate(sections, 1):
        names = VERDICTS[section.kind]
        verdicts = [_verdict(claim, values) for claim in section.claims]
        counted = [f"{verdicts.count(v)} {name}" for v, name in enumerate(names) if v in verdicts]
        counts.append(f"- {section.title}: {', '.join(counted)}")
        heads = ["Claim", "Where in the paper"] if section.kind == "claims" else ["Question", "Why it is asked"]
        rows = [[*heads, "Criterion", "Evidence", "Verdict"]]
        for claim, verdict in zip(section.claims, verdicts, strict=True):
            sources = sorted({origins[key] for key in claim.keys if key in origins} - {""})
            note = f" *(from {' and '.join(sources)})*" if verdict != _MISSING and sources else ""
            evidence = "" if verdict == _MISSING else f"{_evidence(claim, values)}{note}; see "
            chapter = link(paths, claim.chapter)
            if not paths.page(claim.chapter).is_file():
                chapter = f"to come: {claim.chapter.partition('_')[2].replace('_', ' ')}"
            rows.append([claim.claim, claim.source, claim.criterion, evidence + chapter, _MARKS[verdict] + names[verdict]])
        table = list_table(f"{section.title}.", f"tbl-scorecard-{number}", (28, 17, 20, 20, 15), rows)
        tables += [f"## {section.title}", "", section.intro.strip(), "", table]
    return "\n".join(
        [
            "# Scorecard",
            "",
            "Every claim of the paper that this book can check, with the verdict that follows from the numbers in the chapters. The",
            "criterion is this book's reading of the claim; where it sets a limit that the paper does not give, it says so. The page is",
            "generated from the list of claims and the numbers of the latest run, so no verdict is typed by hand.",
            "",
            *counts,
            "",
            *tables,
        ]
    )


def _verdict(claim: Claim, values: Mapping[str, Any]) -> int:
    """Return the verdict's position in `VERDICTS`."""
    if not claim.keys <= values.keys():
        return _MISSING
    try:
        outcomes = [check.outcomes(values) for check in claim.checks]
    except InputError as error:
        raise InputError(f"claims.yml, claim {claim.id}, checks: {error}") from None
    # What is open stays open only where it could change the verdict.
    worst, best = (sum(extreme(outcome) for outcome in outcomes) for extreme in (min, max))
    low, high = (_ALL if passed == len(outcomes) else _SOME if passed else _NONE for passed in (worst, best))
    return low if low == high else _OPEN


def _evidence(claim: Claim, values: Mapping[str, Any]) -> str:
    try:
        return claim.evidence.format_map(values)
    except ValueError as error:
        raise InputError(f"claims.yml, claim {claim.id}, evidence: {error}") from None
