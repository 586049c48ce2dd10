"""Where stderr is a file, bars leave whole lines: of every command, since all of them draw with `progress_bar`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tqdm import tqdm

import llmpp_book
import llmpp_core
from llmpp_core.jobs import progress
from llmpp_core.jobs.progress import progress_bar


def test_a_log_gets_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    with progress_bar(total=3, desc="outer", unit="request") as bar:
        for i in range(3):
            list(progress_bar(range(2), desc="inner", leave=False))
            bar.set_postfix(answered=i, refresh=False)
            bar.update()
            tqdm.write("said between")
    out, err = capsys.readouterr()
    assert out == "said between\n" * 3
    assert "\r" not in err
    assert "\x1b" not in err
    lines = err.splitlines()
    assert all(lines)
    assert [line for line in lines if line.startswith("outer")][-1].startswith("outer: 100%| 3/3 [")
    assert "answered=2" in lines[-1]
    assert sum(line.startswith("inner") for line in lines) == 9


def test_a_log_gets_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress_bar(range(10_000)):
        pass
    assert len(capsys.readouterr().err.splitlines()) == 2  # the first and the last


def test_all_work_draws_with_it() -> None:
    # `fetch` decides by itself what a log gets.
    own = {"progress.py", "__main__.py"}
    packages = [Path(package.__file__).parent for package in (llmpp_core, llmpp_book)]
    drawing = {path.name for package in packages for path in package.rglob("*.py") if re.search(r"\btqdm\(", path.read_text())}
    assert drawing == own
