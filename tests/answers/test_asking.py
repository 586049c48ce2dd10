"""Questions that are worth recording, and the tables of their answers: asked, recorded, and compared."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_llm_server import Act, FakeLLM, completion
from own_questions import OWN, TASK, questions

from llmpp_book.studies import answer_scores as scores
from llmpp_book.studies import answers
from llmpp_book.studies import questions as experiments
from llmpp_core import metrics, upstream
from llmpp_core.llm.client import Settings
from llmpp_core.llm.offline import MODEL, OfflineEndpoint, answer_prompt
from llmpp_core.llm.prompts import FULL, LEVELS
from llmpp_core.llm.recordings import read_recording, write_recording
from llmpp_core.llm.settings import estimate_tokens
from llmpp_core.metrics import summarise
from llmpp_core.space.search_space import HAT_WMT

ARCHS = HAT_WMT.sample_balanced(12, np.random.default_rng(0))


@pytest.mark.needs_data("tfs")
def test_experiments_are_what_they_say() -> None:
    sizes = {"wmt-test": (198, 360), "wmt-samples": (180, 180), "wmt-anonymous": (180, 180), "wmt-distill": (150, 1500)}
    sizes |= {"wmt-ablation-batched": (42, 420), "wmt-demos-batched": (24, 240), "wmt-shuffled-batched": (36, 360)}
    built = {name: experiments.experiment(name).questions() for name in sizes}
    assert {name: (len(asked), sum(len(q.architectures) for q in asked)) for name, asked in built.items()} == sizes
    prompts = {name: {q.prompt for q in asked} for name, asked in built.items()}
    # Splits that begin with the same demonstration ask the same question now and then.
    assert all(len(prompts[name]) > 0.99 * sizes[name][0] for name in sizes)
    # What experiments have in common is asked once.
    assert {q.prompt for q in built["wmt-test"] if q.labels["form"] == "single"} == prompts["wmt-samples"]
    assert not prompts["wmt-anonymous"] & prompts["wmt-test"]
    more = experiments.experiment("wmt-distill-3000").questions()
    assert [q.prompt for q in more[:50]] == [q.prompt for q in built["wmt-distill"][:50]]
    assert len(answers.expected("wmt-samples", Settings("m"))) == 5 * len(prompts["wmt-samples"])
    assert {q.labels["level"] for q in built["wmt-ablation-batched"]} == set(LEVELS) - {FULL}
    assert Counter(q.labels["demonstrations"] for q in built["wmt-demos-batched"]) == dict.fromkeys((1, 3, 5, 8), 6)
    assert all(q.prompt.text.count("\nBLEU: ") == q.labels["demonstrations"] for q in built["wmt-demos-batched"])
    # Prompts tell the GFLOPs of the upstream records.
    for task in upstream.TFS_TASKS:
        records = upstream.tfs_records(task)
        told = map(experiments.WMT_TASKS[task].efficiency.value, records["architecture"])
        assert [f"{cost:.1f}" for cost in told] == [f"{flops / 1e9:.1f}" for flops in records["flops_total"]]


def keep(path: Path, wanted: Any) -> None:
    """Leave only some rows of a recording."""
    found = read_recording(path)
    found.rows = {key: row for i, (key, row) in enumerate(found.rows.items()) if wanted(i, row)}
    write_recording(found)


def test_asking_recording_and_reading_give_the_same_table(recording: Path) -> None:
    asked = answers.ask_offline(["own-test"])["own-test"]
    # Two samples about each test architecture, in both forms.
    assert set(Counter(zip(asked["split"], asked["form"], asked["architecture"], strict=True)).values()) == {2}
    assert len(asked) == 2 * 2 * 2 * 20
    assert set(asked["status"]) == {"answered"}
    pd.testing.assert_series_equal(asked["predicted_as_asked"], asked["predicted"], check_names=False)
    assert answers.recordings("own-test") == [recording.stem] == ["not-an-llm-incontext-ridge-v1"]
    read = answers.answers("own-test", recording.stem)
    measured = ["seconds", "kind"]
    pd.testing.assert_frame_equal(read.drop(columns=measured, errors="ignore"), asked.drop(columns=measured))
    assert summarise(scores.select(read, {"form": "single", "sample": 0})).loc["own", ("MAE", "mean")] < 0.5
    [(title, again)] = answers.recorded("own-test").items()
    assert (title, set(again["kind"]), set(asked["kind"])) == (f"{MODEL}, recorded", {answers.OFFLINE}, {answers.OFFLINE})
    assert scores.best_llm({title: again}) is None


def test_what_is_not_recorded_is_missing_and_has_no_score(recording: Path) -> None:
    keep(recording, lambda i, row: i >= 5)
    table = answers.answers("own-test", recording.stem)
    missing = table[table["status"] == "missing"]
    assert len(missing.drop_duplicates(["split", "form", "first", "sample"])) == 5
    assert missing["predicted"].isna().all()
    assert math.isnan(scores.score(table)["MAE"])
    assert all(count.endswith("missing") for count in scores.count_invalid(table).values())
    assert scores.best_llm({"half": table.assign(kind=answers.RECORDED)}) is None


@pytest.mark.parametrize("form", ["single", "batched"])
def test_a_form_that_was_not_asked_is_not_missing(recording: Path, form: str) -> None:
    keep(recording, lambda i, row: row.labels["form"] == form and (row.labels["first"], row.labels["split"], row.sample) != (0, 1, 0))
    table = answers.answers("own-test", recording.stem)
    assert set(table["form"]) == {form}
    # Within a form that was asked, what is missing stays missing.
    assert len(table[table["status"] == "missing"].drop_duplicates(["split", "first", "sample"])) == 1


def test_answers_to_another_version_of_a_prompt_do_not_count(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(OWN, questions=lambda: questions(replace(TASK, description="another task")))
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"own-test": other})
    with pytest.warns(UserWarning, match=r"88 of 88 recorded answers fit no question of own-test, the first: [0-9a-f]{64}; they are kept"):
        assert set(answers.answers("own-test", recording.stem)["status"]) == {"missing"}
    assert len(read_recording(recording).rows) == 88
    with pytest.raises(ValueError, match="unknown experiment 'x'; allowed are own-test"):
        answers.recordings("x")


def test_a_live_model_is_asked_once_and_scored_on_valid_answers(results: Path) -> None:
    def stand_in(body: dict[str, Any], number: int) -> Act:
        """Answer as the offline endpoint does, 0.5 too high; for prompts of one length in seven with prose, for another in prose alone."""
        text = body["messages"][0]["content"]
        lines = [line.rpartition(": ") for line in answer_prompt(text).splitlines()]
        answer = "\n".join(f"{number}{colon}{float(value) + 0.5:.2f}" for number, colon, value in lines)
        return Act(body=completion("I cannot say" if len(text) % 7 == 3 else "Here:\n" * (len(text) % 7 == 4) + answer, prompt=text))

    with FakeLLM(stand_in) as server:
        frame = answers.ask_live("own-test", "wordy", server.url)
        calls = len(server.calls)
        pd.testing.assert_frame_equal(frame, answers.ask_live("own-test", "wordy", server.url))
        assert len(server.calls) == calls
    assert set(frame["kind"]) == {answers.LIVE}
    with OfflineEndpoint() as url:
        assert set(answers.ask_live("own-test", MODEL, url)["kind"]) == {answers.OFFLINE}
    single, batched = scores.by_form({"wordy": frame}).items()
    assert (single[0], batched[0]) == ("wordy, one per request", "wordy, ten per request")
    assert list(scores.by_form({"wordy": single[1]})) == ["wordy"]
    table, n = single[1], len(single[1])
    invalid, not_as_asked = int(table["predicted"].isna().sum()), int(table["predicted_as_asked"].isna().sum())
    assert 0 < invalid < not_as_asked < n
    assert list(scores.count_invalid(table).values()) == [f"{not_as_asked} of {n}", f"{invalid} of {n}"]
    valid = table.dropna(subset="predicted")
    by_split = (valid["predicted"] - valid["true"]).abs().groupby(valid["split"]).mean()
    assert scores.score(table)["MAE"] == pytest.approx(by_split.mean())
    # One that answers few questions validly may have been lucky with them.
    mostly = valid.assign(predicted=valid["predicted"].where(valid.groupby("split").cumcount() % 10 > 0))
    rarely = valid.assign(predicted=valid["true"].where(valid.groupby("split").cumcount() % 5 == 0))
    assert scores.best_llm({"rarely": rarely, "wordy": mostly, "worse": mostly.assign(predicted=0.0)}) == "wordy"
    # Tokens are the server's, or an estimate.
    used, asked = answers.usage("own-test", frame), frame.drop_duplicates(["split", "form", "first", "sample"])
    assert list(used["sent"]) == list(asked["prompt_tokens"])
    estimated = answers.usage("own-test", frame.assign(prompt_tokens=0))
    assert list(estimated["sent"][:2]) == [estimate_tokens(questions()[0].prompt)] * 2
    assert list(used["per_request"][::44].to_numpy()) == list(asked["per_request"][::44])


def predictions(errors: Any, archs: Any = ARCHS) -> pd.DataFrame:
    true, layers = np.arange(len(archs), dtype=float), [arch.decoder_layers for arch in archs]
    frame = {"task": "t", "split": 0, "architecture": archs, "decoder_layers": layers, "true": true, "predicted": true + errors}
    return pd.DataFrame(frame)


def twice(noise: Any) -> pd.DataFrame:
    """Return two answers to each of two requests: exact ones, and ones that are off by `noise`."""
    pair = enumerate((0 * noise, noise))
    return pd.concat([predictions(e).assign(sample=s, first=np.arange(12) // 6 * 6, per_request=6) for s, e in pair], ignore_index=True)


def test_averages_and_ratios_are_paired_and_the_best_rival_counts() -> None:
    errors = np.linspace(-1, 2, 12)
    both = scores.average(predictions(errors), predictions(-errors).iloc[::-1])
    np.testing.assert_allclose(both["predicted"], both["true"])
    with pytest.raises(ValueError, match="predictions 2: expected the 12 architectures of the first, got 11"):
        scores.average(predictions(np.zeros(12)), predictions(np.zeros(11), ARCHS[:11]))
    rng = np.random.default_rng(1)
    assert scores.error_ratio(predictions(2 * errors), predictions(errors), rng, 50) == pytest.approx((2, 2, 2))
    ours, right, wrong = predictions(np.zeros(12)), predictions(np.ones(12)), predictions(-2 * np.arange(12.0))
    assert scores.tau_behind(wrong, [wrong, right], rng, 50) == pytest.approx((2, 2, 2))
    assert scores.tau_behind(ours, [wrong, right], rng, 50) == pytest.approx((0, 0, 0))


def test_the_noise_of_an_answer_is_pooled_and_shared_within_a_request() -> None:
    # Half the pairs agree and half differ by 2: variances 0 and 2, so the mean variance is 1.
    apart = twice(np.tile([0.0, 2.0], 6))
    found = scores.answer_deviation(apart, np.random.default_rng(1))
    assert found.value == pytest.approx(1)
    assert 0.5 < found.low < 1 < found.high < math.sqrt(2)
    # Several samples count as their median.
    assert list(scores.as_predictions(apart)["predicted"]) == [i + i % 2 for i in range(12)]
    together = scores.round_deviation(twice(np.repeat([1.0, -1.0], 6)), 2)
    assert together == pytest.approx(math.sqrt(1 / 2))
    assert scores.round_deviation(twice(np.repeat([1.0, -1.0], 6)), 18) == pytest.approx(together / 3)
    with pytest.raises(ValueError, match="expected two samples of requests of one size, got 1 samples"):
        scores.round_deviation(apart.query("sample == 0"), 2)


def test_a_shuffled_split_shows_what_the_shuffled_prompts_show() -> None:
    frame = pd.DataFrame({"architecture": ARCHS, "bleu": np.linspace(20, 26, 12).round(2)})
    split = upstream.TFSSplit("wmt14ende", 123, frame.iloc[:10], frame.iloc[10:])
    shown = experiments.shuffle(split)
    assert sorted(shown.demonstrations["bleu"]) == sorted(split.demonstrations["bleu"])
    assert list(shown.demonstrations["bleu"]) != list(split.demonstrations["bleu"])
    one, two = (experiments.ask_test_sets([s], experiments.WMT_TASKS, form="batched", shuffled=s is split) for s in (split, shown))
    assert one[0].prompt == two[0].prompt


def test_training_noise_is_what_depth_and_architecture_leave() -> None:
    rng, depth = np.random.default_rng(1), np.array([arch.decoder_layers for arch in ARCHS])
    effect, noise = rng.normal(size=12), rng.normal(size=(2, 12))
    tables = {f"t{i}": pd.DataFrame({"architecture": ARCHS, "bleu": 20 + i + (2 + i) * depth + effect}) for i in range(2)}
    assert metrics.training_noise(tables) == pytest.approx(0, abs=1e-9)
    noisy = {task: frame.assign(bleu=frame["bleu"] + noise[i]) for i, (task, frame) in enumerate(tables.items())}
    gap = noise[0] - noise[1]
    gap = gap - pd.Series(gap).groupby(depth).transform("mean")
    assert metrics.training_noise(noisy) == pytest.approx(math.sqrt((gap**2).sum() / 2 / (12 - len(set(depth)))))
