"""The status page: what ran, where its data came from, on what and from which commit, and nothing about who or where."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
from small_book import small_book, write_notebook

from llmpp_book.runner import status
from llmpp_book.runner.status import DONE, FAILED, STORED, Record
from llmpp_core.jobs import provenance


def record(**changes: object) -> Record:
    fields = {
        "seconds": 12.34,
        "slowest": {"cell": 3, "seconds": 9.0, "line": "fit(x | y)"},
        "data": {"tfs": "LLMPP_DATA_DIR"},
        "run": {"profile": "smoke", "seed": 0, "versions": {"python": "3.11.7"}},
        "machine": {"system": "Debian", "CPUs": 2, "GPU": "none"},
        "commit": "abc",
    }
    return Record(DONE, **{**fields, **changes})


def test_the_page_tells_of_every_notebook(tmp_path: Path) -> None:
    paths = small_book(tmp_path)
    (tmp_path / "book" / "_toc.yml").write_text("- file: notebooks/01_a\n")
    write_notebook(paths.pages, "01_a")
    records = {"01_a": record(), "02_b": Record(STORED, data={"latency": STORED}), "03_c": Record(FAILED), "04_d": None}
    page = status.status_page(paths, records)
    rows = [" | ".join(line.strip(" *-") for line in row.splitlines()) for row in page.split("\n* - ")]
    assert rows[2] == (
        "{doc}`chapter 1 </notebooks/01_a>` | done | 12.3\N{NO-BREAK SPACE}s | [3] 9.0 s: ``fit(x | y)`` | tfs (LLMPP_DATA_DIR) | smoke, 0"
    )
    assert rows[3] == "02_b | stored outputs | – | – | latency (stored outputs) | –"
    assert rows[4].startswith("03_c | failed | – | –")
    assert rows[5].startswith("04_d | not run | – | –")
    for line in ("- CPUs: 2", "- GPU: none", "- python: 3.11.7", "- commit: abc"):
        assert line in page.splitlines()


def test_facts_that_differ_between_runs_name_the_runs(tmp_path: Path) -> None:
    paths = small_book(tmp_path)
    page = status.status_page(paths, {"01_a": record(), "02_b": record(commit="def"), "03_c": record()})
    assert "- commit: abc (01_a, 03_c); def (02_b)" in page.splitlines()
    assert "took 37.0 s." in page
    assert "No notebook ran here yet." in status.status_page(paths, {"01_a": None})


def test_the_machine_is_described_without_its_name() -> None:
    found = provenance.machine()
    assert set(found) == {"system", "architecture", "CPUs", "GPU"}
    assert platform.node() not in found.values()


def test_the_commit_is_that_of_the_checkout_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True)

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit(tmp_path) == "unknown"
    git("init")
    (tmp_path / "inner").mkdir()
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    assert len(provenance.commit(tmp_path)) == 40
    assert provenance.commit(tmp_path / "inner") == "unknown", "a copy inside another repository is not that repository"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table").write_text("1")
    assert len(provenance.commit(tmp_path)) == 40
    (tmp_path / "file").write_text("2")
    assert provenance.commit(tmp_path).endswith(" + uncommitted changes")


def test_a_record_that_cannot_be_read_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "01_a.json"
    status.write_record(path, record())
    assert status.read_record(path) == record()
    for text in ("{", "[]", '{"state": "done", "other": 1}', "{}"):
        path.write_text(text)
        assert status.read_record(path) is None


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (119.94, "119.9 s"), (185.6, "3 min 6 s"), (3600, "60 min 0 s")])
def test_times_are_for_readers(seconds: float, text: str) -> None:
    assert status.duration(seconds) == text
