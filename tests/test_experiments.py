from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llmpp_book.studies import questions as experiments
from llmpp_book.studies.questions import Experiment, ask_test_sets
from llmpp_core import upstream as sources
from llmpp_core.llm.client import Client, Settings
from llmpp_core.llm.offline import MODEL, OfflineEndpoint, offline_settings
from llmpp_core.llm.prompts import LEVELS, PromptTask
from llmpp_core.llm.recordings import load, read_recording, write_recording
from llmpp_core.metrics import summarise
from llmpp_core.space.search_space import HAT_WMT
from llmpp_core.upstream import TFSSplit

TASK = PromptTask("own", "a task of our own", "score", "a number", 0.0, 100.0)


def own_splits() -> list[TFSSplit]:
    """Return two splits of a made-up task in which depth is all that matters."""
    splits = []
    for seed in (1, 2):
        archs = HAT_WMT.sample(30, np.random.default_rng(seed))
        frame = pd.DataFrame({"architecture": archs, "bleu": [20.0 + arch.decoder_layers for arch in archs]})
        splits.append(TFSSplit("own", seed, frame.iloc[:10], frame.iloc[10:].reset_index(drop=True)))
    return splits


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Experiment:
    def questions() -> list[experiments.Question]:
        return [q for form in ("single", "batched") for q in ask_test_sets(own_splits(), {"own": TASK}, form=form)]

    experiment = Experiment("own-test", "a test", questions, samples=2)
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"own-test": experiment})
    return experiment


def test_questions_cover_every_test_architecture_once_per_form(own: Experiment) -> None:
    questions = own.questions()
    assert Counter(q.labels["form"] for q in questions) == {"single": 40, "batched": 4}
    asked = Counter((q.labels["split"], q.labels["form"], arch) for q in questions for arch in q.architectures)
    assert set(asked.values()) == {1}
    assert all(true == 20 + arch.decoder_layers for q in questions for arch, true in zip(q.architectures, q.true, strict=True))


def test_asking_recording_and_reading_give_the_same_table(own: Experiment, tmp_path: Path) -> None:
    with OfflineEndpoint() as url:
        client = Client(offline_settings(url), cache=tmp_path / "c")
        asked = experiments.ask("own-test", client)
        assert client.counts.requests == 88
        path = experiments.record("own-test", client, results=tmp_path)
    assert len(asked) == 2 * 2 * 2 * 20
    assert set(asked["status"]) == {"answered"}
    pd.testing.assert_series_equal(asked["predicted_as_asked"], asked["predicted"], check_names=False)
    assert experiments.recordings("own-test", tmp_path) == [path.stem] == ["not-an-llm-incontext-ridge-v1"]
    read = experiments.answers("own-test", path.stem, tmp_path)
    pd.testing.assert_frame_equal(read, asked)
    assert set(read["model"]) == {MODEL}
    one = read[(read["form"] == "single") & (read["sample"] == 0)]
    assert summarise(one).loc["own", ("MAE", "mean")] < 0.5
    again = path.read_bytes()
    replay = Client(offline_settings(url), cache=tmp_path / "none", recordings=load(tmp_path, client.settings), mode="replay")
    pd.testing.assert_frame_equal(experiments.ask("own-test", replay), asked)
    experiments.record("own-test", replay, results=tmp_path)
    assert path.read_bytes() == again


def test_what_is_not_recorded_is_missing_not_invented(own: Experiment, tmp_path: Path) -> None:
    with OfflineEndpoint() as url:
        client = Client(offline_settings(url), cache=tmp_path / "c")
        experiments.ask("own-test", client)
        path = experiments.record("own-test", client, results=tmp_path)
    recording = read_recording(path)
    for key in list(recording.rows)[:5]:
        del recording.rows[key]
    write_recording(recording)
    table = experiments.answers("own-test", path.stem, tmp_path)
    missing = table[table["status"] == "missing"]
    assert len(missing.drop_duplicates(["split", "form", "first", "sample"])) == 5
    assert missing["predicted"].isna().all()


def test_answers_to_another_version_of_a_prompt_do_not_count(own: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OfflineEndpoint() as url:
        client = Client(offline_settings(url), cache=tmp_path / "c")
        experiments.ask("own-test", client)
        path = experiments.record("own-test", client, results=tmp_path)
    changed = dataclasses.replace(TASK, description="another task")
    other = dataclasses.replace(own, questions=lambda: ask_test_sets(own_splits(), {"own": changed}))
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"own-test": other})
    with pytest.warns(UserWarning, match=r"88 of 88 recorded answers fit no question of own-test, the first: [0-9a-f]{64}; they are kept"):
        assert set(experiments.answers("own-test", path.stem, tmp_path)["status"]) == {"missing"}
    assert len(read_recording(path).rows) == 88


@pytest.mark.parametrize("form", ["single", "batched"])
def test_a_form_that_was_not_asked_is_not_missing(own: Experiment, tmp_path: Path, form: str) -> None:
    with OfflineEndpoint() as url:
        client = Client(offline_settings(url), cache=tmp_path / "c")
        experiments.ask("own-test", client)
        path = experiments.record("own-test", client, results=tmp_path)
    recording = read_recording(path)
    asked = {key: row for key, row in recording.rows.items() if row.labels["form"] == form}
    recording.rows = dict(list(asked.items())[1:])
    write_recording(recording)
    table = experiments.answers("own-test", path.stem, tmp_path)
    assert set(table["form"]) == {form}
    # Within a form that was asked, what is missing stays missing.
    assert len(table[table["status"] == "missing"].drop_duplicates(["split", "first", "sample"])) == 1


def test_nothing_recorded_is_an_empty_list(own: Experiment, tmp_path: Path) -> None:
    assert experiments.recordings("own-test", tmp_path) == []
    with pytest.raises(ValueError, match="unknown experiment 'x'; allowed are own-test"):
        experiments.recordings("x", tmp_path)


SIZES = {
    "wmt-test": (198, 360),
    "wmt-ablation": (8 * 180, 8 * 180),
    "wmt-anonymous": (180, 180),
    "wmt-samples": (180, 180),
    "wmt-demos": (10 * 180, 10 * 180),
    "wmt-distill": (150, 1500),
    "wmt-distill-3000": (900, 9000),
}


@pytest.mark.needs_data("tfs")
@pytest.mark.parametrize("name", SIZES)
def test_experiments_are_what_they_say(name: str) -> None:
    questions = experiments.experiment(name).questions()
    assert (len(questions), sum(len(q.architectures) for q in questions)) == SIZES[name]
    keys = experiments.expected(name, Settings("m"))
    # Splits that begin with the same demonstration ask the same question now and then.
    assert len(keys) == len({q.prompt for q in questions}) * experiments.experiment(name).samples
    assert len(keys) > 0.99 * len(questions)
    assert keys.keys() == experiments.expected(name, Settings("m")).keys()


@pytest.mark.needs_data("tfs")
def test_experiments_share_the_questions_they_have_in_common() -> None:
    keys = {name: set(experiments.expected(name, Settings("m"))) for name in SIZES}
    test = {key for key, (question, _) in experiments.expected("wmt-test", Settings("m")).items() if question.labels["form"] == "single"}
    assert test < keys["wmt-ablation"]
    assert test < keys["wmt-samples"]
    assert test < keys["wmt-demos"]
    assert keys["wmt-distill"] < keys["wmt-distill-3000"]
    assert not keys["wmt-anonymous"] & keys["wmt-test"]


@pytest.mark.needs_data("tfs")
def test_prompts_tell_the_gflops_of_the_upstream_records() -> None:
    for task in sources.TFS_TASKS:
        records = sources.tfs_records(task)
        cost = experiments.WMT_TASKS[task].efficiency.value
        assert [f"{cost(arch):.1f}" for arch in records["architecture"]] == [f"{flops / 1e9:.1f}" for flops in records["flops_total"]]


@pytest.mark.needs_data("tfs")
def test_the_ablation_has_every_level_and_the_demonstrations_grow() -> None:
    assert {q.labels["level"] for q in experiments.experiment("wmt-ablation").questions()} == set(LEVELS)
    counts = Counter(q.labels["demonstrations"] for q in experiments.experiment("wmt-demos").questions())
    assert counts == dict.fromkeys(range(1, 11), 180)
    for question in experiments.experiment("wmt-demos").questions():
        assert question.prompt.text.count("\nBLEU: ") == question.labels["demonstrations"]
