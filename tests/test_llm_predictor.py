from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_llm_server import Act, FakeLLM, completion
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score

from llmpp_core.llm.client import Client, Settings
from llmpp_core.llm.offline import OfflineEndpoint, offline_settings
from llmpp_core.llm.predictor import LLMPredictor
from llmpp_core.llm.prompts import PromptTask
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.search_space import TINY

TASK = PromptTask("t", "a task", "score", "a number", 0.0, 100.0)


def make_predictor(url: str, folder: Path, task: PromptTask = TASK, **parameters: Any) -> LLMPredictor:
    # One request at a time, so that the order of the calls is known.
    settings = Settings("fake", url, key_variable=None, token_cap=10**9, backoff=0.001, concurrency=1)
    return LLMPredictor(Client(settings, cache=folder / "c"), task, **parameters)


@pytest.fixture
def archs(rng: np.random.Generator) -> list[Architecture]:
    return TINY.sample(24, rng)


def scripted(*texts: str) -> Any:
    """Answer the n-th call about the same prompt with the n-th text."""
    return lambda body, number: Act(body=completion(texts[number % len(texts)], prompt=body["messages"][0]["content"]))


def test_fit_asks_nothing_and_predict_asks_once_per_architecture(tmp_path: Path, archs: list[Architecture]) -> None:
    with FakeLLM(scripted("25")) as server:
        predictor = make_predictor(server.url, tmp_path).fit(archs[:5], np.arange(5.0))
        assert not server.calls
        assert predictor.demonstrations_ == [(arch, float(i)) for i, arch in enumerate(archs[:5])]
        assert predictor.predict(archs[5:9]).tolist() == [25.0] * 4
        assert len(server.calls) == len(set(server.prompts())) == 4
        assert predictor.predict([]).shape == (0,)


def test_batches_hold_as_many_as_asked_for(tmp_path: Path, archs: list[Architecture]) -> None:
    def script(body: dict[str, Any], number: int) -> Act:
        text = body["messages"][0]["content"]
        n = text.count("Test architecture ")
        return Act(body=completion("\n".join(f"{i}: {20 + i}" for i in range(1, n + 1)), prompt=text))

    with FakeLLM(script) as server:
        predictor = make_predictor(server.url, tmp_path, form="batched", batch_size=4, level="demonstrations").fit(archs[:3], [1, 2, 3])
        assert predictor.predict(archs[3:13]).tolist() == [21, 22, 23, 24, 21, 22, 23, 24, 21, 22]
        assert len(server.calls) == 3


def test_samples_give_median_and_spread_of_the_valid_answers(tmp_path: Path, archs: list[Architecture]) -> None:
    with FakeLLM(scripted("20", "24", "oops")) as server:
        predictor = make_predictor(server.url, tmp_path, samples=3)
        median, spread = predictor.fit(archs[:3], [1, 2, 3]).predict(archs[3:5], return_std=True)
        assert median.tolist() == [22.0, 22.0]
        assert spread.tolist() == [2.0, 2.0]
        assert len(server.calls) == 6
        with pytest.raises(ValueError, match="return_std needs samples of at least 2, got 1"):
            make_predictor(server.url, tmp_path).fit(archs[:3], [1, 2, 3]).predict(archs[3:5], return_std=True)


def test_invalid_and_failed_answers_are_nan(tmp_path: Path, archs: list[Architecture]) -> None:
    def script(body: dict[str, Any], number: int) -> Act:
        place = server.prompts().index(body["messages"][0]["content"])
        return Act(500, b"") if place == 2 else scripted("250" if place == 1 else "25")(body, number)

    with FakeLLM(script) as server:
        predictor = make_predictor(server.url, tmp_path)
        values = predictor.fit(archs[:3], [1, 2, 3]).predict(archs[3:7])
    np.testing.assert_array_equal(values, [25.0, np.nan, np.nan, 25.0])
    assert [answers[0].status for answers in predictor.answers_] == ["answered", "invalid", "failed", "answered"]


def test_scores_where_lower_is_better_go_in_and_out_negated(tmp_path: Path, archs: list[Architecture]) -> None:
    task = PromptTask("t", "a task", "loss", "a number", 0.0, 100.0, higher_is_better=False)
    with FakeLLM(scripted("12.5")) as server:
        assert make_predictor(server.url, tmp_path, task=task).fit(archs[:2], [-10.0, -11.0]).predict(archs[2:3]).tolist() == [-12.5]
        assert "loss: 10.00" in server.prompts()[0]


def test_it_keeps_the_scikit_learn_contract(tmp_path: Path, archs: list[Architecture]) -> None:
    with OfflineEndpoint() as url:
        predictor = LLMPredictor(Client(offline_settings(url), cache=tmp_path / "c"), TASK, demonstrations=5, choice="spread")
        copy = clone(predictor)
        assert copy.client is predictor.client
        assert copy.get_params() == predictor.get_params()
        with pytest.raises(NotFittedError):
            copy.predict(archs)
        scores = [10.0 * arch.decoder_layers for arch in archs]
        assert len(copy.fit(archs, scores).demonstrations_) == 5
        assert cross_val_score(LLMPredictor(predictor.client, TASK), archs, scores, cv=3).mean() > 0.5


def test_choices_of_demonstrations(tmp_path: Path, archs: list[Architecture]) -> None:
    client = Client(offline_settings("http://127.0.0.1:1/v1"), cache=tmp_path / "c")
    scores = np.arange(24.0)
    shown = {
        (choice, seed): [
            score for _, score in LLMPredictor(client, TASK, demonstrations=6, choice=choice, seed=seed).fit(archs, scores).demonstrations_
        ]
        for choice in ("first", "random", "spread")
        for seed in (0, 1)
    }
    assert shown["first", 0] == [0, 1, 2, 3, 4, 5]
    assert shown["random", 0] != shown["random", 1]
    assert shown["spread", 0] == shown["spread", 1] != shown["first", 0]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0, 2.0], r"scores: expected 3 numbers, one per architecture, got shape \(2,\)"),
        ([1.0, 2.0, np.nan], r"scores\[2\]: expected a finite number, got nan"),
        ([[1.0], [2.0], [3.0]], r"scores: expected 3 numbers, one per architecture, got shape \(3, 1\)"),
        ([1.0, "two", 3.0], r"scores\[1\]: expected a number, got 'two'"),
        ([1.0, 2.0, 100.5], r"scores\[2\]: expected score from 0 to 100, the range of the task, got 100.5"),
    ],
)
def test_bad_scores_are_named(archs: list[Architecture], scores: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLMPredictor(None, TASK).fit(archs[:3], scores)


def test_a_score_on_the_wrong_side_of_zero_is_named_as_it_would_be_shown(archs: list[Architecture]) -> None:
    task = PromptTask("t", "a task", "perplexity", "a number", 0.0, 200.0, higher_is_better=False)
    with pytest.raises(ValueError, match=r"scores\[0\]: expected perplexity from 0 to 200, .*, got -33.8, from the score 33.8"):
        LLMPredictor(None, task).fit(archs[:3], [33.8, 30.0, 31.0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"form": "json", "batch_size": -3}, "batch_size: expected a positive number, got -3"),
        ({"form": "json", "batch_size": 0}, "batch_size: expected a positive number, got 0"),
        ({"samples": 0}, "samples: expected a positive number, got 0"),
        ({"form": "pairs"}, "unknown form 'pairs'; allowed are single, batched, json"),
        ({"level": "all"}, "unknown level 'all'; allowed are demonstrations"),
        ({"demonstrations": 4}, "demonstrations: expected 1 to 3, got 4"),
        ({"choice": "best"}, "unknown choice of demonstrations 'best'"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_asked(archs: list[Architecture], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLMPredictor(None, TASK, **given).fit(archs[:3], [1.0, 2.0, 3.0])


def test_scores_that_the_prompt_shows_alike_are_warned_of(archs: list[Architecture]) -> None:
    task = PromptTask("t", "a task", "accuracy", "a share", 0.0, 1.0)
    with pytest.warns(UserWarning, match="3 different scores are shown as 1, since the task has decimals=2"):
        LLMPredictor(None, task).fit(archs[:3], [0.9112, 0.9123, 0.9141])
