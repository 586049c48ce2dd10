from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_llm_server import Act, FakeLLM, completion
from test_experiments import own  # noqa: F401  (a fixture)

from llmpp_book.studies import answers as llm_tables
from llmpp_book.studies import questions as experiments
from llmpp_book.studies.questions import Experiment
from llmpp_core.llm.client import Client, LLMStopped, Settings
from llmpp_core.llm.offline import MODEL, OfflineEndpoint, answer_prompt, offline_settings
from llmpp_core.llm.recordings import read_recording, write_recording

SINGLE = {"form": "single"}


def stand_in(body: dict[str, Any], number: int) -> Act:
    """Answer as the offline endpoint does, 0.5 too high; for prompts of one length in seven with prose, for another in prose alone."""
    text = body["messages"][0]["content"]
    pairs = [line.rpartition(": ") for line in answer_prompt(text).splitlines()]
    answer = "\n".join(f"{number}{colon}{float(value) + 0.5:.2f}" for number, colon, value in pairs)
    answer = f"Here you go:\n{answer}" if len(text) % 7 == 4 else answer
    return Act(body=completion("I cannot say" if len(text) % 7 == 3 else answer, prompt=text))


def record(results: Path, cache: Path, model: str) -> Path:
    with FakeLLM(stand_in) as server:
        settings = Settings(model, base_url=server.url, endpoint="stand-in", token_cap=10**9)
        client = Client(settings, cache=cache / "cache.sqlite3")
        prompts = [question.prompt for question in experiments.experiment("own-test").questions()]
        # The first answer may be an invalid one, after which a run stops once.
        while client.pending(prompts, 2):
            with contextlib.suppress(LLMStopped):
                client.ask(prompts, 2)
        return experiments.record("own-test", client, results=results)


def test_the_offline_endpoint_is_never_shown_as_a_language_model(own: Experiment, tmp_path: Path) -> None:  # noqa: F811
    asked = llm_tables.ask_offline(["own-test"])["own-test"]
    with OfflineEndpoint() as url:
        live = llm_tables.ask_live("own-test", MODEL, url, tmp_path / "cache", tmp_path)
        client = Client(offline_settings(url), cache=tmp_path / "other")
        experiments.ask("own-test", client)
        experiments.record("own-test", client, results=tmp_path)
    frames = {MODEL: asked, "live": live, **llm_tables.recorded("own-test", tmp_path)}
    assert list(frames)[2] == f"{MODEL}, recorded"
    table = llm_tables.score_models(frames, SINGLE)
    assert set(table["kind"][:-1]) == {llm_tables.OFFLINE}
    assert table.index[-1] == llm_tables.NOT_RECORDED
    assert table.iloc[-1][["MAE", "tau"]].isna().all()
    assert llm_tables.best_llm(frames) is None
    pd.testing.assert_series_equal(asked["predicted"], live["predicted"])
    assert llm_tables.repeatability(asked)["standard deviation"] == 0


def test_a_live_model_is_asked_once_and_scored_on_valid_answers(own: Experiment, tmp_path: Path) -> None:  # noqa: F811
    offline = llm_tables.ask_offline(["own-test"])["own-test"]

    def always(body: dict[str, Any], number: int) -> Act:
        text = body["messages"][0]["content"]
        return Act(body=completion(answer_prompt(text), prompt=text))

    with FakeLLM(always) as server:
        frames = {MODEL: offline, "some model": llm_tables.ask_live("own-test", "some model", server.url, tmp_path / "cache", tmp_path)}
        calls = len(server.calls)
        again = llm_tables.ask_live("own-test", "some model", server.url, tmp_path / "cache", tmp_path)
        assert len(server.calls) == calls
    pd.testing.assert_frame_equal(frames["some model"], again)
    table = llm_tables.score_models(frames, SINGLE)
    assert table.loc["some model", "kind"] == llm_tables.LIVE
    assert llm_tables.NOT_RECORDED not in table.index
    assert llm_tables.best_llm(frames, SINGLE) == "some model"


def test_invalid_answers_are_counted_and_left_out(own: Experiment, tmp_path: Path) -> None:  # noqa: F811
    record(tmp_path, tmp_path, "wordy")
    (name, frame), *_ = llm_tables.recorded("own-test", tmp_path).items()
    single = llm_tables.select(frame, SINGLE)
    invalid = int(single["predicted"].isna().sum())
    assert name == "wordy"
    assert 0 < invalid < len(single)
    row = llm_tables.score_models({name: frame}, SINGLE).loc["wordy"]
    assert row["kind"] == llm_tables.RECORDED
    not_as_asked = int(single["predicted_as_asked"].isna().sum())
    assert invalid < not_as_asked < len(single)
    assert row["form"] == "one per request"
    assert row["invalid, tolerant"] == f"{invalid} of {len(single)}"
    assert row["invalid, as asked"] == f"{not_as_asked} of {len(single)}"
    assert llm_tables.count_invalid(single) == dict(row[list(llm_tables.INVALID)])
    valid = single.dropna(subset="predicted")
    by_split = (valid["predicted"] - valid["true"]).abs().groupby(valid["split"]).mean()
    assert row["MAE"] == pytest.approx(by_split.mean())


def test_a_model_that_answers_few_questions_validly_is_not_the_best(own: Experiment, tmp_path: Path) -> None:  # noqa: F811
    record(tmp_path, tmp_path, "wordy")
    frame = llm_tables.recorded("own-test", tmp_path)["wordy"]
    mostly_invalid = frame.assign(predicted=frame["predicted"].where(frame.groupby("split").cumcount() % 5 == 0))
    assert llm_tables.best_llm({"wordy": mostly_invalid}) is None


def test_a_part_of_the_answers_has_no_score(own: Experiment, tmp_path: Path) -> None:  # noqa: F811
    recording = read_recording(record(tmp_path, tmp_path, "half"))
    for key in list(recording.rows)[::2]:
        del recording.rows[key]
    write_recording(recording)
    frame = llm_tables.recorded("own-test", tmp_path)["half"]
    row = llm_tables.score_models({"half": frame}, SINGLE).loc["half"]
    assert pd.isna(row["MAE"])
    assert all(row[name].endswith("missing") for name in llm_tables.INVALID)
    assert llm_tables.best_llm({"half": frame}) is None
    assert pd.isna(llm_tables.repeatability(frame)["standard deviation"])


def test_tables_say_which_form_was_asked_and_leave_out_what_was_not(own: Experiment, tmp_path: Path) -> None:  # noqa: F811
    recording = read_recording(record(tmp_path, tmp_path, "ten at once"))
    recording.rows = {key: row for key, row in recording.rows.items() if row.labels["form"] == "batched"}
    write_recording(recording)
    offline = llm_tables.ask_offline(["own-test"])["own-test"]
    frames = {MODEL: offline, **llm_tables.recorded("own-test", tmp_path)}
    assert list(llm_tables.score_models(frames, SINGLE).index) == [MODEL]
    batched = llm_tables.score_models(frames, {"form": "batched"})
    assert batched["form"].to_dict() == {MODEL: "ten per request", "ten at once": "ten per request"}
    both = llm_tables.score_models(frames)
    assert list(both.index) == [f"{MODEL}, one per request", f"{MODEL}, ten per request", "ten at once"]
    pd.testing.assert_series_equal(both.loc["ten at once"], batched.loc["ten at once"])
    assert llm_tables.is_complete(frames["ten at once"])
    assert llm_tables.best_llm(frames, SINGLE) is None


def test_tokens_are_the_servers_or_an_estimate(own: Experiment, tmp_path: Path) -> None:  # noqa: F811
    record(tmp_path, tmp_path, "wordy")
    counted = llm_tables.usage("own-test", llm_tables.recorded("own-test", tmp_path)["wordy"])
    estimated = llm_tables.usage("own-test", llm_tables.ask_offline(["own-test"])["own-test"])
    assert len(counted) == len(estimated) == 2 * 44
    assert set(counted["counted_by"]) == {"the server"}
    assert set(estimated["counted_by"]) == {"estimate"}
    assert (estimated["sent"] > 1000).all()
    assert llm_tables.sizes(["own-test"]).loc["own-test", "requests"] == 88


def test_a_model_has_one_entry_per_form_that_it_was_asked_in(own: Experiment) -> None:  # noqa: F811
    both = llm_tables.ask_offline(["own-test"])["own-test"]
    found = llm_tables.by_form({"both": both, "one": llm_tables.select(both, SINGLE)})
    assert list(found) == list(llm_tables.score_models({"both": both, "one": llm_tables.select(both, SINGLE)}).index[:-1])
    assert {part["form"].nunique() for part in found.values()} == {1}
    assert len(found) == both["form"].nunique() + 1


def test_samples_that_differ_are_pooled_by_their_variance(own: Experiment) -> None:  # noqa: F811
    one = llm_tables.select(llm_tables.ask_offline(["own-test"])["own-test"], SINGLE)
    one = one.drop_duplicates(["task", "split", "architecture"])
    apart = [2.0 * (i % 2) for i in range(len(one))]
    two = pd.concat([one.assign(sample=0), one.assign(sample=1, predicted=one["predicted"] + apart)])
    pooled = (2 * (len(one) // 2) / len(one)) ** 0.5
    assert llm_tables.repeatability(two)["standard deviation"] == pytest.approx(pooled)
    assert list(llm_tables.as_predictions(two)["predicted"]) == pytest.approx(list(one["predicted"] + [half / 2 for half in apart]))
