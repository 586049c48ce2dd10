"""LLM-PP as a scikit-learn predictor, and the distribution of a number from the log-probabilities of its tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_llm_server import Act, FakeLLM, completion
from hat_costs import prompt_task
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score

from llmpp_core.llm.client import Client, Settings
from llmpp_core.llm.logprobs import read_distribution, with_log_probabilities
from llmpp_core.llm.offline import OfflineEndpoint, offline_settings
from llmpp_core.llm.predictor import LLMPredictor
from llmpp_core.llm.prompts import Prompt, PromptTask
from llmpp_core.llm.recordings import Recording, Row, load, write_recording
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.search_space import TINY

TASK = prompt_task("t", "a task", "score", "a number", 0.0, 100.0, space=TINY)
PROMPT = Prompt("", "q", "single", 1, 0.0, 100.0)
# A token as written, its probability, and its alternatives with theirs.
Token = tuple[str, float, dict[str, float]]


def make_predictor(url: str, folder: Path, task: PromptTask = TASK, logprobs: bool = False, **parameters: Any) -> LLMPredictor:
    # One request at a time, so that the order of the calls is known.
    settings = Settings("fake", url, key_variable=None, token_cap=10**9, backoff=0.001, concurrency=1)
    return LLMPredictor(Client(with_log_probabilities(settings) if logprobs else settings, cache=folder / "c"), task, **parameters)


def scripted(*texts: str) -> Any:
    """Answer the n-th call about the same prompt with the n-th text."""
    return lambda body, number: Act(body=completion(texts[number % len(texts)], prompt=body["messages"][0]["content"]))


def test_fit_asks_nothing_and_predict_asks_once_per_architecture(tmp_path: Path, archs: list[Architecture]) -> None:
    def script(body: dict[str, Any], number: int) -> Act:
        place = server.prompts().index(body["messages"][0]["content"])
        return Act(500, b"") if place == 2 else scripted("250" if place == 1 else "25")(body, number)

    with FakeLLM(script) as server:
        predictor = make_predictor(server.url, tmp_path).fit(archs[:5], np.arange(5.0))
        assert not server.calls
        assert predictor.demonstrations_ == [(arch, float(i)) for i, arch in enumerate(archs[:5])]
        # Invalid and failed answers are nan.
        np.testing.assert_array_equal(predictor.predict(archs[5:9]), [25.0, np.nan, np.nan, 25.0])
        assert [answers[0].status for answers in predictor.answers_] == ["answered", "invalid", "failed", "answered"]
        assert len(set(server.prompts())) == 4
        assert predictor.predict([]).shape == (0,)


def test_batches_hold_as_many_as_asked_for(tmp_path: Path, archs: list[Architecture]) -> None:
    def script(body: dict[str, Any], number: int) -> Act:
        text = body["messages"][0]["content"]
        lines = [f"{i}: {20 + i}" for i in range(1, text.count("Test architecture ") + 1)]
        return Act(body=completion("\n".join(lines), prompt=text))

    with FakeLLM(script) as server:
        predictor = make_predictor(server.url, tmp_path, form="batched", batch_size=4, level="demonstrations").fit(archs[:3], [1, 2, 3])
        assert predictor.predict(archs[3:13]).tolist() == [21, 22, 23, 24, 21, 22, 23, 24, 21, 22]
        assert len(server.calls) == 3


def test_samples_give_median_and_spread_of_the_valid_answers(tmp_path: Path, archs: list[Architecture]) -> None:
    # One that is better the lower it is goes in and out negated.
    task = prompt_task("t", "a task", "loss", "a number", 0.0, 100.0, higher_is_better=False, space=TINY)
    with FakeLLM(scripted("20", "24", "oops", "22.5", "21")) as server:
        predictor = make_predictor(server.url, tmp_path, task, samples=5).fit(archs[:3], [-10, -11, -12])
        median, spread = predictor.predict(archs[3:5], return_std=True)
        assert median.tolist() == [-21.75, -21.75]
        assert spread == pytest.approx([np.std([20, 24, 22.5, 21])] * 2)
        assert len(server.calls) == 10
        assert "loss: 10.00" in server.prompts()[0]
        with pytest.raises(ValueError, match="return_std needs samples of at least 2, got 1"):
            make_predictor(server.url, tmp_path).fit(archs[:3], [1, 2, 3]).predict(archs[3:5], return_std=True)


def test_it_keeps_the_scikit_learn_contract(tmp_path: Path, archs: list[Architecture]) -> None:
    with OfflineEndpoint() as url:
        predictor = LLMPredictor(Client(offline_settings(url), cache=tmp_path / "c"), TASK, demonstrations=6, choice="spread")
        copy = clone(predictor)
        assert copy.client is predictor.client
        assert copy.get_params() == predictor.get_params()
        with pytest.raises(NotFittedError):
            copy.predict(archs)
        scores = [10.0 * arch.decoder_layers for arch in archs]
        assert cross_val_score(LLMPredictor(predictor.client, TASK), archs, scores, cv=3).mean() > 0.5

    def shown(choice: str, seed: int) -> list[float]:
        copy.set_params(choice=choice, seed=seed).fit(archs, np.arange(24.0))
        return [score for _, score in copy.demonstrations_]

    assert shown("first", 0) == [0, 1, 2, 3, 4, 5]
    assert shown("random", 0) != shown("random", 1)
    assert shown("spread", 0) == shown("spread", 1) != shown("first", 0)


@pytest.mark.parametrize(
    ("given", "scores", "message"),
    [
        ({}, [1.0, 2.0], r"scores: expected 3 numbers, one per architecture, got shape \(2,\)"),
        ({}, [1.0, 2.0, np.nan], r"scores\[2\]: expected a finite number, got nan"),
        ({}, [1.0, 2.0, 100.5], r"scores\[2\]: expected score from 0 to 100, the range of the task, got 100.5"),
        (
            {"task": prompt_task("t", "a task", "perplexity", "a number", 0.0, 200.0, higher_is_better=False, space=TINY)},
            [33.8, 30.0, 31.0],
            r"scores\[0\]: expected perplexity from 0 to 200, .*, got -33.8, from the score 33.8",
        ),
        ({"form": "json", "batch_size": 0}, [1, 2, 3], "batch_size: expected a positive integer, got 0"),
        ({"samples": 1.5}, [1, 2, 3], "samples: expected a positive integer, got 1.5"),
        ({"demonstrations": 1.5}, [1, 2, 3], "demonstrations: expected 1 to 3, got 1.5"),
        ({"form": "pairs"}, [1, 2, 3], "unknown form 'pairs'; allowed are single, batched, json"),
        ({"level": "all"}, [1, 2, 3], "unknown level 'all'; allowed are demonstrations"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_asked(archs: list[Architecture], given: Any, scores: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLMPredictor(**{"client": None, "task": TASK} | given).fit(archs[:3], scores)


def test_scores_that_the_prompt_shows_alike_are_warned_of(archs: list[Architecture]) -> None:
    task = prompt_task("t", "a task", "accuracy", "a share", 0.0, 1.0, space=TINY)
    with pytest.warns(UserWarning, match="3 different scores are shown as 1, since the task has decimals=2"):
        LLMPredictor(None, task).fit(archs[:3], [0.9112, 0.9123, 0.9141])


def body(*tokens: Token, text: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a reply with log-probabilities; the token as written is among its own alternatives, as servers have it."""
    reply = completion("".join(token for token, *_ in tokens) if text is None else text, **more)
    listed = [
        (token, p, [{"token": one, "logprob": math.log(q)} for one, q in {token: p, **others}.items()]) for token, p, others in tokens
    ]
    content = [{"token": token, "logprob": math.log(p), "top_logprobs": others} for token, p, others in listed]
    reply["choices"][0]["logprobs"] = {"content": content}
    return reply


def read(*tokens: Token, prompt: Prompt = PROMPT, **more: Any) -> Any:
    return read_distribution(prompt, json.dumps(body(*tokens, **more)))


@pytest.mark.parametrize(
    ("tokens", "weights"),
    [
        # Whole numbers as tokens.
        ([("25", 0.6, {"26": 0.3, "24": 0.1})], {25: 0.6, 26: 0.3, 24: 0.1}),
        # Several digits a token: the rest of an alternative is taken as written.
        ([("25", 0.5, {"26": 0.5}), (".", 1.0, {}), ("30", 0.8, {"40": 0.2})], {25.3: 0.4, 26.3: 0.5, 25.4: 0.1}),
        # One digit a token.
        ([("2", 0.9, {"3": 0.1}), ("5", 0.5, {"6": 0.5}), (".", 1.0, {}), ("3", 1.0, {})], {25.3: 0.45, 35.3: 0.1, 26.3: 0.45}),
        # A space in front, written as tokenizers write it, and one left out.
        ([("Ġ25", 0.5, {"Ġ26": 0.3, "27": 0.2})], {25: 0.5, 26: 0.3, 27: 0.2}),
        ([("▁25", 0.5, {"▁26": 0.5})], {25: 0.5, 26: 0.5}),
        # The number may end early: with a token that says so, or with white space.
        ([("25", 1.0, {}), (".", 0.7, {"<|im_end|>": 0.2, "\n": 0.1}), ("5", 1.0, {})], {25.5: 0.7, 25: 0.3}),
        ([("25", 0.6, {"24": 0.4}), ("</s>", 1.0, {})], {25: 0.6, 24: 0.4}),
        # The same number twice adds up.
        ([("25", 0.5, {" 25": 0.2, "26": 0.3})], {25: 0.7, 26: 0.3}),
        # Left out: what is no number, what is out of range, and what would move the digits that follow.
        ([("25", 0.5, {"The": 0.2, "250": 0.1, "": 0.1})], {25: 0.5}),
        ([("2", 0.5, {"25": 0.3, ".": 0.1, "3": 0.1}), ("5", 1.0, {})], {25: 0.5, 35: 0.1}),
        ([("1", 1.0, {}), (".", 1.0, {}), ("2", 0.6, {"99": 0.4}), ("5", 1.0, {})], {1.25: 0.6}),
        # A JSON object of one number; what stands around it stays.
        ([('{"1": ', 1.0, {}), ("2", 0.5, {"3": 0.5}), ("5", 1.0, {}), ("}", 1.0, {})], {25: 0.5, 35: 0.5}),
        # Nothing follows: the length may differ.
        ([("9", 0.5, {"10": 0.5}), (".", 1.0, {}), ("5", 1.0, {})], {9.5: 0.5, 10.5: 0.5}),
    ],
)
def test_the_distribution_is_over_whole_numbers(tokens: list[Token], weights: dict[float, float]) -> None:
    text = "".join(token for token, *_ in tokens).replace("Ġ", " ").replace("▁", " ").removesuffix("</s>")
    found = read(*tokens, prompt=Prompt("", "q", "json" if "{" in text else "single", 1, 0.0, 100.0), text=text)
    values, p = np.array(list(weights)), np.array(list(weights.values()))
    mean = (p @ values) / p.sum()
    assert found == pytest.approx((mean, math.sqrt(p @ (values - mean) ** 2 / p.sum()), p.sum()), abs=1e-9)


def test_the_words_before_the_number_are_given_and_lower_is_better_is_negated() -> None:
    # A model that reasons: what it might have thought instead says nothing about the number.
    found = read(("<think>", 0.1, {"x": 0.9}), ("25", 0.5, {"30": 0.5}), ("</think>", 0.2, {}), ("25", 0.75, {"26": 0.25}), text="25")
    assert found == pytest.approx((25.25, math.sqrt(0.1875), 1.0))
    negated = Prompt("", "q", "single", 1, 0.0, 100.0, sign=-1)
    assert read(("5", 0.75, {"6": 0.25}), prompt=negated).mean == pytest.approx(-5.25)
    assert read(("5", 1.0, {})) == (5.0, 0.0, 1.0)


FORMLESS: list[Any] = [None, [], {"content": None}, {"content": []}, {"content": [None]}, {"content": [{"token": "25"}]}]


@pytest.mark.parametrize(
    "reply",
    [
        *(completion("25"), body(("25", 1.0, {}), text="26"), body(("hello", 1.0, {})), body(("25", 1.0, {}), finish="length")),
        *({"choices": [{**completion("25")["choices"][0], "logprobs": logprobs}]} for logprobs in FORMLESS),
        {"choices": [{**completion("25")["choices"][0], "logprobs": {"content": [{"token": "25", "logprob": math.nan}]}}]},
    ],
)
def test_without_log_probabilities_that_spell_a_number_there_is_no_distribution(reply: Any) -> None:
    assert read_distribution(PROMPT, json.dumps(reply)) is None


@settings(max_examples=100)
@given(st.integers(0, 9999), st.data())
def test_any_cut_of_a_number_gives_a_distribution_around_it(number: int, data: st.DataObject) -> None:
    text = f"{number / 100:.2f}"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    others = st.dictionaries(st.text("0123456789. \n<>a", max_size=3), st.floats(1e-6, 0.4), max_size=2)
    found = read(*[(piece, 0.2, {k: v for k, v in data.draw(others).items() if k != piece}) for piece in pieces])
    assert 0 <= found.mean <= 100
    assert 0 <= found.std <= 50
    assert 0 < found.covered <= 1
    assert read(*[(piece, 0.2, {}) for piece in pieces])[:2] == (pytest.approx(number / 100), pytest.approx(0, abs=1e-6))


def test_only_requests_that_ask_for_them_have_other_keys(tmp_path: Path, archs: list[Architecture]) -> None:
    plain = Settings("m")
    asking = with_log_probabilities(plain, 5)
    assert asking.body(PROMPT) == {**plain.body(PROMPT), "logprobs": True, "top_logprobs": 5}
    assert asking.key(PROMPT) != plain.key(PROMPT)
    for wrong in (0, 21):
        with pytest.raises(ValueError, match=f"expected 1 to 20 alternatives per token, got {wrong}"):
            with_log_probabilities(plain, wrong)
    with pytest.raises(ValueError, match="where one architecture is asked about, not 2"):
        read_distribution(Prompt("", "q", "batched", 2, 0.0, 100.0), "{}")
    # Other forms are refused before anything is sent.
    for parameters in ({"samples": 2}, {"form": "batched"}, {"form": "json"}):
        predictor = make_predictor("http://127.0.0.1:9/v1", tmp_path, logprobs=True, **parameters).fit(archs[:3], [1, 2, 3])
        with pytest.raises(ValueError, match="log-probabilities are read from one answer about one architecture"):
            predictor.predict(archs[3:])


def test_one_request_gives_prediction_and_spread_now_and_from_a_recording(tmp_path: Path, archs: list[Architecture]) -> None:
    def script(request: dict[str, Any], number: int) -> Act:
        text = request["messages"][0]["content"]
        place = server.prompts().index(text)
        plain = completion("twenty" if place == 2 else "25", prompt=text)
        return Act(body=body(("2", 1.0, {}), ("5", 0.75, {"6": 0.25}), prompt=text) if place == 0 else plain)

    with FakeLLM(script) as server:
        predictor = make_predictor(server.url, tmp_path, logprobs=True).fit(archs[:4], [1, 2, 3, 4])
        with pytest.warns(UserWarning, match="2 of 4 answers came without the log-probabilities of their number"):
            mean, std = predictor.predict(archs[4:8], return_std=True)
        # One that gives none is taken at its word.
        np.testing.assert_allclose(mean, [25.25, 25, np.nan, 25])
        np.testing.assert_allclose(std, [math.sqrt(0.1875), np.nan, np.nan, np.nan])
        np.testing.assert_allclose(predictor.covered_, [1, np.nan, np.nan, np.nan])
        assert len(server.calls) == 4
        assert predictor.predict([]).shape == (0,)
        np.testing.assert_array_equal(predictor.predict(archs[4:5]), mean[:1])
    client = predictor.client
    recording = Recording(tmp_path / "e" / "m.jsonl", "e", client.settings)
    recording.rows = {answer.key: Row({}, 0, stored) for (answer,) in predictor.answers_ if (stored := client.lookup(answer.key))}
    write_recording(recording)
    replay = Client(client.settings, cache=tmp_path / "none", recordings=load(tmp_path, client.settings), mode="replay")
    again = LLMPredictor(replay, TASK).fit(archs[:4], [1, 2, 3, 4]).predict(archs[4:5], return_std=True)
    np.testing.assert_array_equal(again, (mean[:1], std[:1]))
