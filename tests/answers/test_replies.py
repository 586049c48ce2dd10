"""What replies are taken for, under both readings: as asked, and tolerant.

The kind of fault: a number is plain to any reader and refused, or two numbers are there and one is taken. Forms come from replies of chat
models, and from what other formats, tags and languages put beside a number. A server that fails inside a status 200 does so in many words:
gateways (an error in the choice), vLLM and SGLang (abort), Ollama (load, unload, or nothing at all), DeepSeek and GLM.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpp_core.llm.answers import Answer, ReplyError, read_answer, read_reply
from llmpp_core.llm.prompts import FORMS, Prompt


def choice(content: Any, finish: str | None = "stop", tokens: int | None = 4, message: Any = (), **more: Any) -> str:
    usage = {"prompt_tokens": 40, "completion_tokens": tokens} if tokens is not None else None
    return json.dumps({"choices": [{"message": {"content": content, **dict(message)}, "finish_reason": finish, **more}], "usage": usage})


def read(content: Any, form: str = "single", n: int = 1, low: float = 0.0, high: float = 100.0, sign: int = 1, metric: str = "") -> Answer:
    return read_answer(Prompt("p", "q", form, n, low, high, sign, metric), "key", choice(content))


ROWS, OBJECT = "1: 26.10\n2: 26.20\n3: 26.30", '{"1": 26.10, "2": 26.20, "3": 26.30}'


def rows(*forms: str) -> list[str]:
    return ["\n".join(form.format(i, f"26.{i}0") for i in (1, 2, 3)) for form in forms]


def instead(*texts: str) -> list[str]:
    """The rows and the object with another text for the second number."""
    return [whole.replace("26.20", text) for whole in (ROWS, OBJECT) for text in texts]


BOTH = {
    "single": ["26.10", " 26.10\n", "26.1", "+26.1"],
    "batched": [ROWS, "3: 26.3\n\n1:26.1\n2 : 26.20\n"],
    "json": [OBJECT, ' {"2": 26.2, "3": 2.63e1, "1": 26.10}\n'],
}
TOLERANT: list[Any] = [
    *("26.10.", "BLEU: 26.10", "**26.10**", "`26.10`", "26.10 BLEU", "The predicted BLEU is 26.10.", "~26.1", "≈ 26.1", "about 26.1"),
    *("<think>\nlet me see 25\n</think>\n\n26.10", "25 or 27?\n</think>\n26.10", "<think></think>26.10", "[THINK]25[/THINK]26.10"),
    *("<Thinking>a <think>25</think> b</Thinking>26.10", "◁think▷25◁/think▷26.10", "<reasoning>27</reasoning>\nBLEU: 26.10"),
    "<|channel|>analysis<|message|>25 or 27<|end|><|start|>assistant<|channel|>final<|message|>26.10<|return|>",
    *("```\n26.10\n```", "```text\nBLEU: 26.10\n```", "Here is my prediction:\n```\n26.10\n```", "26.10<|im_end|>", "26.10 <|eot_id|></s>"),
    *("**BLEU:** 26.10", "**Predicted BLEU**: `26.10`", "BLEU = 26.10", "_26.10_", "__BLEU__: __26.10__", '"26.10"', "BLEU: ~26.1"),
    *("26.10 BLEU points", "26.1%", "26.10 percent.", "BLEU score: 26.10", "I'd estimate a BLEU score of about 26.10.", "BLEU-4: 26.10"),
    *("Based on the examples, the predicted BLEU is 26.10.", "Sure! Here's the answer: 26.10", "The BLEU would be approximately 26.1!"),
    *("Deeper decoders score higher in the examples.\n\nBLEU: 26.10", "I looked at the examples. 26.10", "So, BLEU → 26.1"),
    *("26.10\n\nExplanation: deeper decoders help.", "The predicted BLEU is 26.10. This is because the decoder is deep."),
    *("6 layers and 2.9 GFLOPS.\nBetween 25 and 27.\nFinal answer: 26.10", "25?\n**Final prediction:** 26.10", "$\\boxed{26.10}$"),
    *("25? 27? <answer>26.10</answer>", "The predicted BLEU is \\boxed{26.10}."),
    [{"type": "thinking", "thinking": "25?"}, {"type": "text", "text": "26.10"}],
    [{"type": "text", "text": "BLEU: 26.10"}],
]
NEITHER: list[Any] = [
    *("26,10", "25,3", "26.31 or 26.40", "between 25 and 26", "25 to 26", "25-26", "25–26", "26.1±0.3", "26.1 ± 0.3", "25.3 26.1"),
    *("25, 26", "BLEU: 26,10", "The predicted BLEU is 26,10.", "nan", "inf", "NaN.", "BLEU: nan", "250", "BLEU: 250"),
    *("", "<think>26.10", "<think>26.10</think>", "<think>25</think>26</think>27", "I cannot say", "twenty-six", "26.10?", "1e1", "0x19"),
    *("26.10\n\nExplanation: 6 layers help.", "26.10 (between 25 and 27)", "BLEU: 26.10\nBLEU: 26.20", "26.10\n26.20", "26.10/100"),
    *("at most 26.10", "below 26", "more than 26.1", "> 26.1", "<26.1", "BLEU >= 26", "26.10 or higher", "26.10 at most", "not 26.10"),
    *("The BLEU is not 26.10.", "It isn't 26.10", "The highest BLEU is 26.10.", "decoder layers: 6", "GFLOPS: 2.9", "Example BLEU: 26.10"),
    *("Lower than the best of the examples, 26.10", "26.10. Wait, lower.", "26.10\nActually, lower.", "26.10\nOr lower", "26.10 million"),
    *("- 26.10", ".5", "2**6", "26.**1**0", "26`1`", "26_000", "1 234.5", "26.1.2", "25/100", "२५", "print(26.10)", "x = 26.10"),
    *("Final answer: 25\nFinal answer: 26", "<answer>25</answer><answer>26</answer>", "<answer>26</answer> or 27", "26.10 of 100"),
    *("<answer>25 or 26</answer>", "9" * 500, "__import__('os')", "-1", "The BLEU is -1.", "−26.1"),
    *("At most:\n26.10", "At least\n26", "Not\n26", "Lower bound:\n26.1", "26.10. No, that is too high.", "26.10\n\nScratch that."),
    [{"type": "text", "text": "26"}, {"type": "text", "text": "10"}],
    [{"type": "thinking", "thinking": "26.10"}],
    [],
]
TOLERANT_SEVERAL: list[Any] = [
    *rows("{}. {}", "{}) {}", "({}) {}", "[{}] {}", "**{}:** {}", "**{}.** {}", "{}: **{}**", "- {}: {}", "* {}: {}", "{}: BLEU: {}"),
    *rows("Test architecture {}: {}", "**Test architecture {}:** {}", "Architecture {} - {}", "Architecture {}: ~{}", "{}. BLEU {}"),
    *rows("{}: {} BLEU", "{}: {}.", "#{}: {}", "### {}: {}", "{} = {}", "{} → {}", "{} – {}", "Test architecture {} is {}"),
    *rows("Test architecture {} BLEU: {}", "| {} | {} |", "{} | {}", "|{}|{}|", "{}：{}"),
    "\n".join(f"{i}. Test architecture {i}: 26.{i}0" for i in (1, 2, 3)),
    *("| Test architecture | BLEU |\n|---|:--:|\n" + rows("| {} | {} |")[0], "```\n" + ROWS + "\n```", "<think>1: 25</think>\n" + ROWS),
    *("Here are the predictions for the test architectures 1 to 3:\n\n" + ROWS, "With 6 layers 25, with 5 layers 24.\n" + ROWS),
    *(ROWS + "\n\nDeeper decoders score higher.", ROWS + "\nDone.", ROWS + "<|im_end|>", "<answer>\n" + ROWS + "\n</answer>"),
    *("```json\n" + OBJECT + "\n```", "Here you go: " + OBJECT, OBJECT + "\n\nDeeper decoders score higher.", "<think>{}</think>" + OBJECT),
    *('{"1": "26.10", "2": "26.20", "3": "26.30"}', '{"Test architecture 1": 26.1, "architecture_2": 26.2, "3": 26.3}'),
    [{"type": "reasoning", "text": "1: 25"}, {"type": "text", "text": ROWS}],
]
NEITHER_SEVERAL = [
    *("26.10\n26.20\n26.30", "26.10, 26.20, 26.30", "[26.1, 26.2, 26.3]", "26.10", "1: 26.10", "1: 26.10\n2: 26.20"),
    *(ROWS + "\n4: 26.40", ROWS + "\n" + ROWS, ROWS + "\nIn all 3 deep.", ROWS + "\nWait, lower.", "1. 26.1\n1. 26.2\n1. 26.3"),
    *instead("26,20", "26.2 or 26.3", "25-26", "nan", "below 26", "26.2 (was 25)", "3: 26", "true", '"26,20"', '"25 or 26"', "null"),
    *(ROWS.replace("\n2", "\nDeeper.\n2"), "1: 25 or 26\n" + ROWS, *rows("| {} | 6 | {} |", "{}.{}"), OBJECT + OBJECT, "[" + OBJECT + "]"),
    *("1. Test architecture 2: 26\n2. Test architecture 1: 26\n3: 26", '{"scores": ' + OBJECT + "}", OBJECT.replace('"2"', '"1"')),
    *(OBJECT + " 25?", "{" * 100_000, "[" * 100_000, "", "{}", "{", "1:\n2:\n3:", "I cannot predict 3 architectures.", "null", "25"),
    *("0: 26.1\n1: 26.2\n2: 26.3", *instead("9" * 5000)),
]


def check(answer: Answer, values: tuple[float, ...] | None, as_asked: bool) -> None:
    for found, is_there in ((answer.values, values), (answer.as_asked, values if as_asked else None)):
        assert (found == values) if is_there else any(map(math.isnan, found))
    assert (answer.status, bool(answer.reason), "\n" in answer.reason) == ("answered" if values else "invalid", not values, False)


@pytest.mark.parametrize("content", [*BOTH["single"], *TOLERANT, *NEITHER], ids=lambda content: repr(content)[:60])
def test_one_number_is_read_if_it_is_the_only_one(content: Any) -> None:
    check(read(content), (26.1,) if content not in NEITHER else None, content in BOTH["single"])


@pytest.mark.parametrize("form", ["batched", "json"])
@pytest.mark.parametrize("content", [*BOTH["batched"], *BOTH["json"], *TOLERANT_SEVERAL, *NEITHER_SEVERAL], ids=lambda c: repr(c)[:60])
def test_several_numbers_are_read_if_each_is_one_of_the_question(content: Any, form: str) -> None:
    check(read(content, form, 3), (26.1, 26.2, 26.3) if content not in NEITHER_SEVERAL else None, content in BOTH[form])


def test_ten_numbers_are_read_by_their_numbers_and_a_range_has_its_ends() -> None:
    for form, text in {"batched": "{}: {}", "json": '"{}": {}'}.items():
        parts = [text.format(i, i + 20.5) for i in (10, 2, 1, 3, 4, 5, 6, 7, 8, 9)]
        whole = "\n".join(parts) if form == "batched" else "{" + ", ".join(parts) + "}"
        assert read(whole, form, 10).as_asked == tuple(i + 20.5 for i in range(1, 11))
    assert [read(text).values for text in ("100", "0", "-0", "+7.0")] == [(100,), (0,), (0,), (7,)]
    for dot in ":.":
        answer = read(f"1{dot} 25\n2{dot} 260\n3{dot} 27", "batched", 3)
        assert (answer.values[0], answer.values[2], answer.status, answer.reason) == (25, 27, "invalid", "260 is outside 0 to 100")
        assert math.isnan(answer.values[1])
    assert read("12.5", low=1.0, high=1000.0, sign=-1).values == (-12.5,)


@pytest.mark.parametrize(
    ("content", "metric", "low", "high", "value"),
    [
        ("top-1 accuracy: 0.91", "top-1 accuracy", 0, 1, 0.91),
        ("Accuracy: 0.91", "top-1 accuracy", 0, 1, 0.91),
        ("The predicted chrF2 is 55.1 chrF2.", "chrF2", 0, 100, 55.1),
        ("The loss is 3.2.", "BLEU", 0, 100, None),  # Another metric's number.
        *((text, "F1", 0, 1, 0.85) for text in ("F1: 0.85", "0.85 F1", "The predicted F1 is 0.85.")),
        *((f"{metric}: 0.45", metric, 0, 1, 0.45) for metric in ("AP", "R²", "mAP")),
        ("0.91%", "accuracy", 0, 1, None),  # A hundredth of it, or not.
        ("BLEU - 5", "BLEU", -10, 100, None),
        ("BLEU: -5", "BLEU", -10, 100, -5),
    ],
)
def test_the_metric_and_the_range_decide_what_labels_and_units_are(content: str, metric: str, low: float, high: float, value: Any) -> None:
    check(read(content, low=low, high=high, metric=metric), None if value is None else (value,), as_asked=False)


def test_a_hyphen_may_be_a_sign_where_scores_can_be_negative() -> None:
    assert read("1 - 5\n2 - 6", "batched", 2).values == (5, 6)
    assert read("1 - 5\n2 - 6", "batched", 2, low=-10).status == "invalid"


PIECES = [
    *("26.10", "25", "-3", "1", "2", "3", "é", "٣", "1e3", ".5", "nan", "or", "BLEU", "is", "about", " ", "\n", "\n\n"),
    *(":", ": ", ". ", ") ", "|", ",", "~", "**", "`", "_", "%", "{", "}", '"1": ', '"', "-", "–", "(", "#", "[", "```", "\\boxed{"),
    *("<think>", "</think>", "<answer>", "</answer>", "<|im_end|>", "Final answer: ", "The predicted", "Test architecture "),
]
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=14).map("".join))


@settings(max_examples=200)
@given(text=TEXTS, form=st.sampled_from(FORMS), n=st.integers(1, 3))
def test_the_tolerant_reading_finds_numbers_of_the_text_and_agrees_with_the_form_asked_for(text: str, form: str, n: int) -> None:
    answer = read(text, form, 1 if form == "single" else n)
    there = {float(token) for token in re.findall(r"[-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|[0-9]+(?:\.[0-9]+)?", text)}
    there |= {float(token) for token in re.findall(r"[0-9]+(?:\.[0-9]+)?", text)}
    for value, asked in zip(answer.values, answer.as_asked, strict=True):
        assert math.isnan(value) or value in there
        assert math.isnan(asked) or value == asked
    assert (answer.status == "invalid") == any(map(math.isnan, answer.values))


def test_a_long_reply_of_one_thing_is_read_to_its_end() -> None:
    # An expression that tries every way to divide such a reply would take hours.
    for piece in (" ", "\n", "#", "a", "a ", "*", "- ", "$", "<think>", "=", "_", "\n-", "1 ", "{"):
        for form in FORMS:
            assert read(piece * 20_000 + "!", form).status == "invalid"


EXHAUSTED = "the reply is empty, all of it went on reasoning: raise answer_tokens, or lower the reasoning effort"
FINISHES = ("error", "ERROR", "abort", "load", "unload", "cancelled", "network_error", "insufficient_system_resource")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        *[(choice(text, finish), f"the server gave up: finish_reason '{finish}'") for finish in FINISHES for text in ("", "25.3")],
        *[(choice(content, tokens=0), "an empty reply of 0 tokens: the server gave up") for content in (None, "")],
        (choice("", "stop", error={"code": 502, "message": "Upstream \ud83d gone"}), "an error inside the reply: Upstream \ufffd gone"),
        (choice("25.3", None, error="gone"), "an error inside the reply: gone"),
        *((raw, "") for raw in ("", "[]", "null", "{", "[" * 100_000, "{}", '"x"')),
        *((raw, "") for raw in ('{"choices": {}}', '{"choices": [[]]}', '{"error": "busy"}')),
    ],
)
def test_a_body_without_a_reply_or_of_a_server_that_failed_is_no_reply(raw: str, reason: str) -> None:
    with pytest.raises(ReplyError) as error:
        read_reply(raw)
    assert not reason or str(error.value) == reason
    # One that was kept before this was known is no answer of the model either.
    answer = read_answer(Prompt("p", "q", "single", 1, 0, 100), "key", raw)
    assert (answer.status, answer.reason) == ("failed", str(error.value))
    assert math.isnan(answer.values[0])


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (choice(None), "the reply is empty"),
        (choice("", tokens=None), "the reply is empty"),
        (choice(None, "content_filter", 0), "stopped by the content filter"),
        *[(choice("", "length", tokens), EXHAUSTED) for tokens in (4, 0)],
        *[(choice(" ", message={name: "25?"}), EXHAUSTED) for name in ("reasoning_content", "reasoning", "thinking")],
        (choice([{"type": "thinking", "thinking": "25?"}]), EXHAUSTED),
        (choice("<think>25", "length"), "cut off at the token limit: raise answer_tokens, or lower the reasoning effort"),
        (choice("<think>25"), "the reasoning has no end: raise answer_tokens, or lower the reasoning effort"),
        (choice("<think>25</think>"), "nothing but reasoning: raise answer_tokens, or lower the reasoning effort"),
        (choice("25.3", "length"), "cut off at the token limit: raise answer_tokens, or lower the reasoning effort"),
        (choice(None, message={"refusal": "I cannot"}), "expected one number, got 'I cannot'"),
    ],
)
def test_an_answer_without_a_number_says_what_to_change(raw: str, reason: str) -> None:
    answer = read_answer(Prompt("p", "q", "single", 1, 0, 100), "key", raw)
    assert (answer.status, answer.reason) == ("invalid", reason)


def test_half_a_character_never_leaves_a_reply_and_unusable_counts_are_missing_ones() -> None:
    answer = read("25.30 \ud83d \ud83d\ude00")
    assert (answer.text, answer.prompt_tokens, answer.answer_tokens) == ("25.30 \ufffd \U0001f600", 40, 4)
    assert (answer.text + answer.reason).encode()
    for usage in (None, [], {}, {"prompt_tokens": None}, {"prompt_tokens": "5"}, {"prompt_tokens": -5}, {"prompt_tokens": True}):
        reply = read_reply(json.dumps({"choices": [{"message": {"content": "1"}}], "usage": usage}))
        assert (reply.prompt_tokens, reply.answer_tokens) == (None, None)
