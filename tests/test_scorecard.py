"""The scorecard: verdicts follow from the glued numbers alone, and a wrong claims file is named in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_book import glue, small_book, write_notebook

from llmpp_book.errors import InputError
from llmpp_book.runner.notebook import Paths
from llmpp_book.runner.scorecard import VERDICTS, read_claims, read_glued, scorecard_page
from llmpp_book.runner.status import DONE, FAILED, STORED, Record
from llmpp_book.studies.answers import recordings

CLAIM = {
    "id": "best",
    "claim": "It is the best.",
    "source": "abstract",
    "chapter": "01_a",
    "criterion": "both",
    "checks": [{"value": "ch01_mae", "equals": 0.98, "within": 0.005}, {"value": "ch01_tau", "at_least": "ch01_other_tau"}],
    "evidence": "MAE {ch01_mae:.2f}, tau {ch01_tau:.2f}",
}


def claims_file(folder: Path, *claims: Any, kind: str = "claims") -> Path:
    section = {"title": "Some", "kind": kind, "intro": "What is claimed.", "claims": list(claims)}
    path = folder / "claims.yml"
    path.write_text(yaml.safe_dump({"sections": [section]}))
    return path


def card(tmp_path: Path, values: dict[str, str], *, kind: str = "claims", state: str | None = DONE, **changes: Any) -> str:
    """Return the table row of one claim, judged by these glued values."""
    paths = small_book(tmp_path)
    write_notebook(paths.pages, "01_a", "", outputs={0: [glue(name, plain) for name, plain in values.items()]})
    claim = {key: value for key, value in (CLAIM | changes).items() if key != "checks" or "parts" not in changes}
    page = scorecard_page(paths, read_claims(claims_file(tmp_path, claim, kind=kind)), {"01_a": Record(state) if state else None})
    verdict, *cells = page.split("\n* - ")[2].split("\n:::")[0].splitlines()
    return " | ".join([*(line.strip(" -") for line in cells), re.sub(r"\[(.*)\]\{\.verdict-\d\}", r"\1", verdict)])


GOOD = {"ch01_mae": "0.9752", "ch01_tau": "0.8", "ch01_other_tau": "0.7"}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (GOOD, "✓ reproduced"),
        ({**GOOD, "ch01_mae": "np.float64(0.9849)"}, "✓ reproduced"),
        ({**GOOD, "ch01_tau": "0.7"}, "✓ reproduced"),
        ({**GOOD, "ch01_mae": "0.9851"}, "✗ not reproduced"),
        ({**GOOD, "ch01_mae": "1.2", "ch01_tau": "0.69"}, "✗ not reproduced"),
        ({**GOOD, "ch01_mae": "nan", "ch01_tau": "nan"}, "✗ not reproduced"),
        ({"ch01_mae": "0.98", "ch01_tau": "0.8"}, "not tested yet"),
        ({}, "not tested yet"),
    ],
)
def test_the_verdict_follows_from_the_checks(values: dict[str, str], verdict: str, tmp_path: Path) -> None:
    assert card(tmp_path, values).endswith(f"| {verdict}")


@pytest.mark.parametrize(
    ("low", "high", "at_least", "at_most"),
    [
        ("-0.2", "1.0", "✓ reproduced", "✗ not reproduced"),
        ("-0.3", "1.0", "✓ reproduced", "? undecided"),
        ("-2.1", "1.9", "? undecided", "? undecided"),
        ("-2.1", "-0.31", "✗ not reproduced", "✓ reproduced"),
        ("nan", "nan", "✗ not reproduced", "✗ not reproduced"),
    ],
)
def test_an_interval_decides_only_with_both_ends(low: str, high: str, at_least: str, at_most: str, tmp_path: Path) -> None:
    values = GOOD | {"ch01_low": low, "ch01_high": high}
    for comparison, verdict in (("at_least", at_least), ("at_most", at_most)):
        check = {"value": ["ch01_low", "ch01_high"], comparison: -0.3}
        assert card(tmp_path, values, checks=[check]).endswith(f"| {verdict}")
        assert card(tmp_path, GOOD, checks=[check]).endswith("| 01_a | both. *abstract* | not tested yet")


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ("open, holds", "? undecided"),
        ("open, fails", "✗ not reproduced"),
        ("open; fails", "? undecided"),
        ("open; holds", "± partly reproduced"),
        ("holds; fails", "± partly reproduced"),
        ("holds, fails; open, holds", "? undecided"),
        ("holds, holds; holds", "✓ reproduced"),
        ("fails; open, fails", "✗ not reproduced"),
    ],
)
def test_checks_hold_together_and_parts_may_hold_alone(parts: str, verdict: str, tmp_path: Path) -> None:
    values = GOOD | {"ch01_low": "-2.1", "ch01_high": "1.9"}
    kinds = {"open": {"value": ["ch01_low", "ch01_high"], "at_least": 0}}
    kinds |= {"holds": {"value": "ch01_mae", "at_most": 1}, "fails": {"value": "ch01_mae", "at_most": 0}}
    judged = [[kinds[word] for word in part.split(", ")] for part in parts.split("; ")]
    given = {"parts": judged} if len(judged) > 1 else {"checks": judged[0]}
    assert card(tmp_path, values, **given).endswith(f"| {verdict}")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [("-0.29", "1.50", "✓ reproduced"), ("-1.90", "-0.50", "✗ not reproduced"), ("-1.90", "1.70", "? undecided")],
)
def test_the_quality_of_hs_nas_is_judged_by_its_interval(low: str, high: str, verdict: str, tmp_path: Path) -> None:
    (claim,) = (c for part in yaml.safe_load(Paths().claims.read_text())["sections"] for c in part["claims"] if c["id"] == "same-bleu")
    # An interval of the loss that lies about its own margin as that of BLEU does, on the other side.
    loss = {"ch09_hs_loss_low": f"{(-float(high) - 0.3) / 60 + 0.005:.5f}", "ch09_hs_loss_high": f"{(-float(low) - 0.3) / 60 + 0.005:.5f}"}
    difference = {"ch10_bleu": "-0.12", "ch09_hs_loss": "0.001"}
    bleu = {"ch10_bleu_low": low, "ch10_bleu_high": high}
    row = card(tmp_path, difference | loss | bleu, **claim)
    assert f"difference of -0.12 BLEU, 95 % interval {float(low):+.2f} to {float(high):+.2f}; of +0.0010 nats" in row
    assert row.endswith(f"| {verdict}")
    assert "| to come: 10_searched_architectures |" in (row := card(tmp_path, difference, **claim))
    assert row.endswith("| not tested yet")


def test_evidence_is_the_glued_numbers_and_says_when_they_are_not_of_a_run_here(tmp_path: Path) -> None:
    assert "| MAE 0.98, tau 0.80; see 01_a |" in card(tmp_path, GOOD)
    assert "tau 0.80 *(from an earlier run)*; see 01_a |" in card(tmp_path, GOOD, state=FAILED)
    assert "tau 0.80 *(from an earlier run)*; see 01_a |" in card(tmp_path, GOOD, state=None)
    paths = small_book(tmp_path)
    page = write_notebook(paths.pages, "01_a", "", outputs={0: [glue(name, plain) for name, plain in GOOD.items()]})
    content = json.loads(page.read_text())
    content["cells"][1]["id"] = "stored-outputs"
    page.write_text(json.dumps(content))
    sections = read_claims(claims_file(tmp_path, CLAIM))
    assert "tau 0.80 *(from stored outputs)*" in scorecard_page(paths, sections, {"01_a": Record(STORED)})


def test_the_page_counts_verdicts_by_section(tmp_path: Path) -> None:
    page = scorecard_page(small_book(tmp_path), read_claims(claims_file(tmp_path, CLAIM, {**CLAIM, "id": "other"}, kind="questions")), {})
    assert "- Some: 2 not answered yet\n" in page
    assert "{doc}" not in page, "a chapter that the book does not show is not linked"
    assert "- to come: 01_a\n" in page


def test_headline_claims_stand_on_top_once_more(tmp_path: Path) -> None:
    file = claims_file(tmp_path, CLAIM, {**CLAIM, "id": "other", "claim": "It is cheap.", "headline": True})
    top, _, rest = scorecard_page(small_book(tmp_path), read_claims(file), {}).partition("## In numbers")
    assert ("It is cheap." in top, "It is the best." in top) == (True, False)
    assert rest.count("It is cheap.") == rest.count("It is the best.") == 1


@pytest.mark.parametrize(
    ("plain", "value"),
    [
        ("0.5", 0.5),
        ("np.float64(0.5)", 0.5),
        ("nan", pytest.approx(float("nan"), nan_ok=True)),
        ("-inf", float("-inf")),
        ("'ensemble'", "ensemble"),
        ("<Figure size 640x480>", "<Figure size 640x480>"),
        ("__import__('os').getcwd()", "__import__('os').getcwd()"),
    ],
)
def test_glued_values_are_read_never_evaluated(plain: str, value: Any, tmp_path: Path) -> None:
    assert read_glued(write_notebook(tmp_path, "01_a", "", outputs={0: [glue("ch01_x", plain)]}))[0] == {"ch01_x": value}


def test_displayed_values_are_glued_too(tmp_path: Path) -> None:
    output = {
        "output_type": "display_data",
        "data": {"text/plain": ["1", ".5"]},
        "metadata": {"scrapbook": {"name": "ch01_x", "mime_prefix": ""}},
    }
    assert read_glued(write_notebook(tmp_path, "01_a", "", outputs={0: [output]}))[0] == {"ch01_x": 1.5}


def test_a_damaged_page_is_named(tmp_path: Path) -> None:
    path = write_notebook(tmp_path, "01_a")
    path.write_text(path.read_text()[:-5])
    with pytest.raises(InputError, match=r"^01_a\.ipynb is damaged; make it again with: llmpp run 01_a$"):
        read_glued(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": None}, "claims.yml, claim best, source: Input should be a valid string"),
        ({"verdict": "reproduced"}, "claim best, verdict: Extra inputs are not permitted"),
        ({"checks": []}, "claim best, checks: List should have at least 1 item"),
        ({"checks": None}, "claim best: Value error, expected either checks, all of which must hold, or parts, some of which may"),
        ({"parts": [CLAIM["checks"]] * 2}, "expected either checks, all of which must hold, or parts, some of which may"),
        ({"parts": [CLAIM["checks"]], "checks": None}, "claim best, parts: List should have at least 2 items"),
        ({"checks": [{"value": "best mae", "equals": 1}]}, "claim best, checks, 0, value"),
        ({"checks": [{"value": ["ch01_low"], "at_most": 1}]}, "claim best, checks, 0, value"),
        ({"checks": [{"value": ["ch01_low", "ch01_high"], "equals": 1}]}, "an interval can equal nothing"),
        ({"checks": [{"value": "ch01_mae"}]}, "expected one of equals, at_most, at_least"),
        ({"checks": [{"value": "ch01_mae", "equals": 1, "at_most": 2}]}, "expected one of equals, at_most, at_least"),
        ({"checks": [{"value": "ch01_mae", "at_most": True}]}, "claim best, checks, 0, at_most"),
        ({"checks": [{"value": "ch01_mae", "equals": 1, "within": -1}]}, "claim best, checks, 0, within"),
        ({"evidence": "{ch01_mae.__class__}"}, "claim best, evidence: Value error, {ch01_mae.__class__} is not allowed"),
        ({"evidence": "{ch01_mae:{ch01_tau}}"}, "claim best, evidence: Value error, {ch01_mae} is not allowed"),
        ({"evidence": "MAE {ch01_mae"}, "claim best, evidence: Value error, expected '}'"),
        ("sections: 3", "claims.yml, sections: Input should be a valid list"),
        ("sections: [{title: A, kind: claims, intro: B, claims: [x]}]", "claim 0: Input should be a valid dictionary"),
        ("a: [", "claims.yml: while parsing"),
    ],
)
def test_a_wrong_claim_is_named_in_one_line_with_its_field(change: Any, message: str, tmp_path: Path) -> None:
    path = claims_file(tmp_path, {**CLAIM, **(change if isinstance(change, dict) else {})})
    if isinstance(change, str):
        path.write_text(change)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_claims(path)
    assert "\n" not in str(error.value)


def test_a_claim_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="claim best, id: given twice"):
        read_claims(claims_file(tmp_path, CLAIM, CLAIM))


def test_a_value_of_the_wrong_kind_names_the_claim(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"claim best: ch01_mae is 'small', compared with 0\.98: expected two numbers"):
        card(tmp_path, GOOD | {"ch01_mae": "'small'"})
    with pytest.raises(InputError, match="claim best, evidence: Unknown format code"):
        card(tmp_path, GOOD | {"ch01_shown": "'small'"}, evidence="{ch01_shown:.2f}")


# --- the claims of the paper --------------------------------------------------------------------------------------


def test_the_claims_file_can_be_read_and_judged() -> None:
    sections = read_claims(Paths().claims)
    assert {section.kind for section in sections} == set(VERDICTS)
    page = scorecard_page(Paths(), sections, {})
    claims = [claim for section in sections for claim in section.claims]
    assert page.count("[not tested yet]") + page.count("[not answered yet]") == len(claims) + sum(claim.headline for claim in claims)


def test_a_chapter_glues_every_number_that_claims_need_of_it() -> None:
    paths = Paths()
    claims = [claim for section in read_claims(paths.claims) for claim in section.claims]
    needed = {key for claim in claims if not claim.pending for key in claim.keys}
    glued = {key for notebook in paths.notebooks.glob("*.ipynb") for key in read_glued(notebook)[0]}
    assert [claim.id for claim in claims if claim.pending and claim.keys <= glued] == [], "no longer pending"
    # What is claimed of language models waits for their answers.
    waiting = () if recordings("wmt-test") else ("04_llm_pp", "05_prompt_ablations", "06_llm_distill_pp")
    for notebook in sorted(paths.notebooks.glob("*.ipynb")):
        values, _ = read_glued(notebook)
        prefix = f"ch{notebook.stem[:2]}_"
        lacking = {key for key in needed if key.startswith(prefix)} - values.keys()
        assert notebook.stem in waiting or not lacking, f"{notebook.stem} does not glue {sorted(lacking)}"
        assert not [key for key in values if not key.startswith(prefix)], f"{notebook.stem} glues under another chapter's name"
