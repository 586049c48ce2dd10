"""Fixtures of the tests of prompts, answers and what is recorded of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from own_questions import OWN

from llmpp_book.__main__ import main
from llmpp_book.studies import answers, questions
from llmpp_core.llm.offline import MODEL, OfflineEndpoint, offline_settings
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.search_space import TINY


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of recordings; the experiment of our own is the only one, and the cache is empty."""
    monkeypatch.setattr(questions, "EXPERIMENTS", {"own-test": OWN})
    monkeypatch.setattr(answers, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "results"


@pytest.fixture(scope="session")
def _recording(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("recording")
    with pytest.MonkeyPatch.context() as patch, OfflineEndpoint() as url:
        patch.setattr(questions, "EXPERIMENTS", {"own-test": OWN})
        patch.setattr(answers, "RESULTS", folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        session = answers.Session.open("own-test", offline_settings(url))
        assert session.ask() == []
        return session.recording.path.read_bytes()


@pytest.fixture
def recording(_recording: bytes, results: Path) -> Path:
    """What the offline endpoint answered to all of it, recorded."""
    path = results / "own-test" / (MODEL.replace("/", "-") + ".jsonl")
    path.parent.mkdir(parents=True)
    path.write_bytes(_recording)
    return path


@pytest.fixture(scope="session")
def run() -> Callable[..., int]:
    """Run a command; returns its exit code."""

    def run(*words: str | Path) -> int:
        try:
            return main([str(word) for word in words])
        except SystemExit as end:
            return int(end.code or 0)

    return run


@pytest.fixture
def archs(rng: np.random.Generator) -> list[Architecture]:
    return TINY.sample(24, rng)
