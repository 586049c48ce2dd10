"""The distribution of a number from the log-probabilities of its tokens, as tokenizers of several kinds cut it up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_llm_server import Act, FakeLLM, completion
from hypothesis import given, settings
from hypothesis import strategies as st
from test_llm_predictor import TASK, make_predictor

from llmpp_core.llm.client import Client, Settings
from llmpp_core.llm.logprobs import asks_log_probabilities, read_distribution, with_log_probabilities
from llmpp_core.llm.predictor import LLMPredictor
from llmpp_core.llm.prompts import Prompt, PromptTask
from llmpp_core.llm.recordings import Recording, Row, load, write_recording
from llmpp_core.space.search_space import TINY

PROMPT = Prompt("", "q", "single", 1, 0.0, 100.0)
# A token as written, its probability, and its alternatives with theirs.
Token = tuple[str, float, dict[str, float]]


def body(*tokens: Token, text: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a reply with log-probabilities; the token as written is among its own alternatives, as servers have it."""
    content = [
        {
            "token": token,
            "logprob": math.log(p),
            "bytes": list(token.encode()),
            "top_logprobs": [{"token": one, "logprob": math.log(q), "bytes": None} for one, q in {token: p, **others}.items()],
        }
        for token, p, others in tokens
    ]
    reply = completion("".join(token for token, *_ in tokens) if text is None else text, **more)
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
    prompt = Prompt("", "q", "json" if text.startswith("{") else "single", 1, 0.0, 100.0)
    found = read(*tokens, prompt=prompt, text=text)
    values, p = np.array(list(weights)), np.array(list(weights.values()))
    mean = (p @ values) / p.sum()
    assert found.mean == pytest.approx(mean)
    assert found.std == pytest.approx(math.sqrt(p @ (values - mean) ** 2 / p.sum()), abs=1e-9)
    assert found.covered == pytest.approx(p.sum())


def test_the_words_before_the_number_are_given() -> None:
    # A model that reasons: what it might have thought instead says nothing about the number.
    found = read(("<think>", 0.1, {"x": 0.9}), ("25", 0.5, {"30": 0.5}), ("</think>", 0.2, {}), ("25", 0.75, {"26": 0.25}), text="25")
    assert found == pytest.approx((25.25, math.sqrt(0.1875), 1.0))


def test_lower_is_better_is_negated_and_a_certain_number_has_no_spread() -> None:
    prompt = Prompt("", "q", "single", 1, 0.0, 100.0, sign=-1)
    assert read(("5", 0.75, {"6": 0.25}), prompt=prompt).mean == pytest.approx(-5.25)
    assert read(("5", 1.0, {})) == (5.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps(completion("25")),
        json.dumps(body(("25", 1.0, {}), text="26")),
        json.dumps(body(("hello", 1.0, {}))),
        json.dumps(body(("25", 1.0, {}), finish="length")),
        *(
            json.dumps({**completion("25"), "choices": [{**completion("25")["choices"][0], "logprobs": logprobs}]})
            for logprobs in (None, [], {"content": None}, {"content": []}, {"content": [None]}, {"content": [{"token": "25"}]})
        ),
        json.dumps(
            {
                **completion("25"),
                "choices": [{**completion("25")["choices"][0], "logprobs": {"content": [{"token": "25", "logprob": math.nan}]}}],
            }
        ),
    ],
)
def test_without_log_probabilities_that_spell_a_number_there_is_no_distribution(raw: str) -> None:
    assert read_distribution(PROMPT, raw) is None


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 9999), st.data())
def test_any_cut_of_a_number_gives_a_distribution_around_it(number: int, data: st.DataObject) -> None:
    text = f"{number / 100:.2f}"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    others = st.dictionaries(st.text("0123456789. \n<>a", max_size=3), st.floats(1e-6, 0.4), max_size=2)
    tokens = [(piece, 0.2, {k: v for k, v in data.draw(others).items() if k != piece}) for piece in pieces]
    found = read(*tokens)
    assert 0 <= found.mean <= 100
    assert 0 <= found.std <= 50
    assert 0 < found.covered <= 1
    assert read(*[(piece, 0.2, {}) for piece in pieces])[:2] == (pytest.approx(number / 100), pytest.approx(0, abs=1e-6))


def test_only_requests_that_ask_for_them_have_other_keys() -> None:
    plain = Settings("m")
    asking = with_log_probabilities(plain, 5)
    assert asking.body(PROMPT) == {**plain.body(PROMPT), "logprobs": True, "top_logprobs": 5}
    assert asking.key(PROMPT) != plain.key(PROMPT)
    assert (asks_log_probabilities(plain), asks_log_probabilities(asking)) == (False, True)
    assert asks_log_probabilities(Settings.from_identity(json.loads(json.dumps(asking.identity()))))
    for wrong in (0, 21):
        with pytest.raises(ValueError, match=f"expected 1 to 20 alternatives per token, got {wrong}"):
            with_log_probabilities(plain, wrong)
    with pytest.raises(ValueError, match="where one architecture is asked about, not 2"):
        read_distribution(Prompt("", "q", "batched", 2, 0.0, 100.0), "{}")


def asking(url: str, folder: Path, task: PromptTask = TASK, **parameters: Any) -> LLMPredictor:
    plain = make_predictor(url, folder, task, **parameters)
    return plain.set_params(client=Client(with_log_probabilities(plain.client.settings), cache=folder / "c"))


def test_one_request_gives_prediction_and_spread_now_and_from_a_recording(tmp_path: Path, rng: np.random.Generator) -> None:
    archs = TINY.sample(6, rng)

    def script(request: dict[str, Any], number: int) -> Act:
        return Act(body=body(("2", 1.0, {}), ("5", 0.75, {"6": 0.25}), prompt=request["messages"][0]["content"]))

    with FakeLLM(script) as server:
        predictor = asking(server.url, tmp_path).fit(archs[:4], [1, 2, 3, 4])
        mean, std = predictor.predict(archs[4:], return_std=True)
        assert len(server.calls) == 2
        np.testing.assert_allclose(mean, [25.25, 25.25])
        np.testing.assert_allclose(std, math.sqrt(0.1875))
        np.testing.assert_allclose(predictor.covered_, 1.0)
        np.testing.assert_array_equal(predictor.predict(archs[4:]), mean)
        answers = predictor.answers_
        assert predictor.predict([]).shape == (0,)
    client = predictor.client
    recording = Recording(tmp_path / "e" / "m.jsonl", "e", client.settings)
    recording.rows = {answer.key: Row({}, 0, stored) for (answer,) in answers if (stored := client.lookup(answer.key))}
    write_recording(recording)
    replay = Client(client.settings, cache=tmp_path / "none", recordings=load(tmp_path, client.settings), mode="replay")
    again = LLMPredictor(replay, TASK).fit(archs[:4], [1, 2, 3, 4]).predict(archs[4:], return_std=True)
    np.testing.assert_array_equal(again, (mean, std))


def test_a_server_that_gives_none_is_taken_at_its_word(tmp_path: Path, rng: np.random.Generator) -> None:
    archs = TINY.sample(8, rng)

    def script(request: dict[str, Any], number: int) -> Act:
        text = request["messages"][0]["content"]
        place = server.prompts().index(text)
        plain = completion("twenty" if place == 2 else "25", prompt=text)
        return Act(body=body(("25", 0.5, {"27": 0.5}), prompt=text) if place == 0 else plain)

    with FakeLLM(script) as server:
        predictor = asking(server.url, tmp_path).fit(archs[:4], [1, 2, 3, 4])
        with pytest.warns(UserWarning, match="2 of 4 answers came without the log-probabilities of their number"):
            mean, std = predictor.predict(archs[4:], return_std=True)
    np.testing.assert_array_equal(mean, [26, 25, np.nan, 25])
    np.testing.assert_array_equal(std, [1, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(predictor.covered_, [1, np.nan, np.nan, np.nan])


@pytest.mark.parametrize("parameters", [{"samples": 2}, {"form": "batched"}, {"form": "json"}])
def test_other_forms_are_refused_before_anything_is_sent(tmp_path: Path, rng: np.random.Generator, parameters: dict[str, Any]) -> None:
    archs = TINY.sample(4, rng)
    with FakeLLM() as server:
        predictor = asking(server.url, tmp_path, **parameters).fit(archs[:3], [1, 2, 3])
        with pytest.raises(ValueError, match="log-probabilities are read from one answer about one architecture"):
            predictor.predict(archs[3:])
        assert not server.calls
