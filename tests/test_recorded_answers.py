"""The answers that are committed: each under the key of a question, in the experiment's own words, readable in both ways."""

from __future__ import annotations

from typing import Any

import pytest

from llmpp_book.studies import answers as experiments
from llmpp_core.llm.answers import read_answer
from llmpp_core.llm.recordings import read_recording, recording_path

RECORDED = sorted((path.parent.name, path.stem) for path in experiments.RESULTS.glob("*/*.jsonl"))
CLAUDE = "anthropic-claude-2026-11"


@pytest.mark.needs_data("tfs", "multi30k")
@pytest.mark.parametrize(("name", "model"), RECORDED)
def test_every_recorded_answer_belongs_to_a_question_and_reads_the_same_in_both_ways(name: str, model: str) -> None:
    recording = read_recording(recording_path(experiments.RESULTS, name, model))
    wanted = experiments.expected(name, recording.settings)
    assert recording.rows
    for key, row in recording.rows.items():
        question, sample = wanted[key]
        assert (question.labels, sample) == (row.labels, row.sample)
        answer = read_answer(question.prompt, key, row.stored.response)
        assert answer.status == "answered", answer.reason
        assert answer.as_asked == answer.values
    # A form that was asked of a split was asked of all its questions: no answer is left out of a conversation.
    asked = {_conversation(row.labels) for row in recording.rows.values()}
    assert set(recording.rows) == {key for key, (question, _) in wanted.items() if _conversation(question.labels) in asked}


def _conversation(labels: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(labels[name] for name in ("task", "split", "form"))


def test_the_data_card_counts_what_is_there() -> None:
    rows = [read_recording(recording_path(experiments.RESULTS, name, model)).rows for name, model in RECORDED if model == CLAUDE]
    card = (experiments.RESULTS / "README.md").read_text(encoding="utf-8")
    count = {12: "twelve"}.get(len(rows), len(rows))
    assert f"({count} experiments, {len({key for part in rows for key in part})} requests" in card
