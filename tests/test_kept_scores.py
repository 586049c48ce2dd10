"""Scores kept in a file: each is asked for once over all who share it, and its cost is charged to everyone who asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from llmpp_core.jobs.files import read_rows
from llmpp_core.search import kept_scores
from llmpp_core.search.kept_scores import KeptScores
from llmpp_core.space.search_space import TINY


class Counting:
    def __init__(self) -> None:
        self.asked: list[Any] = []

    def predict(self, archs: Any) -> np.ndarray:
        self.asked += archs
        return np.array([arch.decoder_layers / 3 for arch in archs])


@pytest.fixture
def archs() -> list[Any]:
    return TINY.sample(12, np.random.default_rng(0))


def test_each_score_is_asked_for_once_and_charged_every_time(tmp_path: Path, archs: list[Any]) -> None:
    first, second = Counting(), Counting()
    path = tmp_path / "scores.jsonl"
    kept = KeptScores(first, path)
    expected = [arch.decoder_layers / 3 for arch in archs]
    assert kept.predict(archs[:8] + archs[:2]).tolist() == expected[:8] + expected[:2]
    assert first.asked == list(dict.fromkeys(archs[:8]))
    assert kept.saved_ == 0
    again = KeptScores(second, path)
    assert again.predict(archs).tolist() == expected, "to the last digit, from the file too"
    assert second.asked == [arch for arch in dict.fromkeys(archs) if arch not in archs[:8]]
    before = again.saved_
    assert before > 0
    again.predict(archs)
    assert again.saved_ > before
    assert clone(again).saved_ == 0


def test_the_file_is_read_again_only_when_others_have_added_to_it(
    tmp_path: Path, archs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    monkeypatch.setattr(kept_scores, "read_rows", lambda path: reads.append(path) or read_rows(path))
    mine, other = (KeptScores(Counting(), tmp_path / "scores.jsonl") for _ in range(2))
    for arch in archs[:6]:
        mine.predict([arch])
    assert len(reads) == 1
    other.predict(archs[6:])
    assert len(reads) == 2
    mine.predict(archs)
    mine.predict(archs)
    assert len(reads) == 3
    assert mine.predictor.asked == list(dict.fromkeys(archs[:6]))


def test_a_line_cut_off_by_a_crash_costs_one_score(tmp_path: Path, archs: list[Any]) -> None:
    path = tmp_path / "scores.jsonl"
    KeptScores(Counting(), path).predict(archs)
    path.write_bytes(path.read_bytes()[:-5])
    other = Counting()
    assert KeptScores(other, path).predict(archs).tolist() == [arch.decoder_layers / 3 for arch in archs]
    assert len(other.asked) == 1


@pytest.mark.parametrize("row", ['{"arch": 5}', '{"arch": {}}', '{"score": 1}'])
def test_a_damaged_row_is_named(tmp_path: Path, archs: list[Any], row: str) -> None:
    path = tmp_path / "scores.jsonl"
    KeptScores(Counting(), path).predict(archs[:1])
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(ValueError, match=r"scores\.jsonl:2: not of a form that this version reads"):
        KeptScores(Counting(), path).predict(archs)
