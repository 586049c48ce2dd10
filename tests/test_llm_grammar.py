"""Forms of reply under both readings: as asked, and tolerant.

The kind of fault: a number is plain to any reader and refused, or two numbers are there and one is taken. Forms come from replies of
chat models, and from what other formats, tags and languages put beside a number.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpp_core.llm.answers import Answer, read_answer
from llmpp_core.llm.prompts import FORMS, Prompt


def read(content: Any, form: str, n: int, low: float = 0.0, high: float = 100.0, metric: str = "", **message: Any) -> Answer:
    raw = json.dumps({"choices": [{"message": {"content": content, **message}, "finish_reason": "stop"}]})
    return read_answer(Prompt("p", "q", form, n, low, high, metric=metric), "key", raw)


BOTH_SINGLE = ["26.10", " 26.10\n", "26.1", "+26.1"]
TOLERANT_SINGLE = [
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
    *(
        "6 layers and 2.9 GFLOPS.\nBetween 25 and 27.\nFinal answer: 26.10",
        "25? 27? <answer>26.10</answer>",
        "25?\n**Final prediction:** 26.10",
    ),
    *("$\\boxed{26.10}$", "The predicted BLEU is \\boxed{26.10}."),
    [{"type": "thinking", "thinking": "25?"}, {"type": "text", "text": "26.10"}],
    [{"type": "text", "text": "BLEU: 26.10"}],
]
NEITHER_SINGLE = [
    *(
        "26,10",
        "25,3",
        "26.31 or 26.40",
        "between 25 and 26",
        "25 to 26",
        "25-26",
        "25–26",
        "26.1±0.3",
        "26.1 ± 0.3",
        "25.3 26.1",
        "25, 26",
    ),
    *(
        "BLEU: 26,10",
        "The predicted BLEU is 26,10.",
        "nan",
        "inf",
        "NaN.",
        "BLEU: nan",
        "250",
        "BLEU: 250",
        "-1",
        "The BLEU is -1.",
        "−26.1",
    ),
    *("", "<think>26.10", "<think>26.10</think>", "<think>25</think>26</think>27", "I cannot say", "twenty-six", "26.10?", "1e1", "0x19"),
    *(
        "26.10\n\nExplanation: 6 layers help.",
        "26.10 (between 25 and 27)",
        "BLEU: 26.10\nBLEU: 26.20",
        "26.10\n26.20",
        "26.10/100",
        "26.10 of 100",
    ),
    *("at most 26.10", "below 26", "more than 26.1", "> 26.1", "<26.1", "BLEU >= 26", "26.10 or higher", "26.10 at most", "not 26.10"),
    *("The BLEU is not 26.10.", "It isn't 26.10", "The highest BLEU is 26.10.", "decoder layers: 6", "GFLOPS: 2.9", "Example BLEU: 26.10"),
    *("Lower than the best of the examples, 26.10", "26.10. Wait, lower.", "26.10\nActually, lower.", "26.10\nOr lower", "26.10 million"),
    *("- 26.10", ".5", "2**6", "26.**1**0", "26`1`", "26_000", "1 234.5", "26.1.2", "25/100", "२५", "print(26.10)", "x = 26.10"),
    *(
        "Final answer: 25\nFinal answer: 26",
        "<answer>25</answer><answer>26</answer>",
        "<answer>26</answer> or 27",
        "<answer>25 or 26</answer>",
    ),
    [{"type": "text", "text": "26"}, {"type": "text", "text": "10"}],
    [{"type": "thinking", "thinking": "26.10"}],
    [],
]


@pytest.mark.parametrize("content", BOTH_SINGLE, ids=repr)
def test_a_bare_number_is_read_alike(content: str) -> None:
    answer = read(content, "single", 1)
    assert answer.status == "answered"
    assert answer.values == answer.as_asked == (26.1,)


@pytest.mark.parametrize("content", TOLERANT_SINGLE, ids=repr)
def test_one_number_in_clothes_is_read_tolerantly_alone(content: Any) -> None:
    answer = read(content, "single", 1)
    assert (answer.values, answer.status, answer.reason) == ((26.1,), "answered", "")
    assert math.isnan(answer.as_asked[0])


@pytest.mark.parametrize("content", NEITHER_SINGLE, ids=repr)
def test_what_is_ambiguous_is_invalid_either_way(content: Any) -> None:
    answer = read(content, "single", 1)
    assert (answer.status, len(answer.values)) == ("invalid", 1)
    assert math.isnan(answer.values[0])
    assert math.isnan(answer.as_asked[0])
    assert answer.reason
    assert "\n" not in answer.reason


ROWS = "1: 26.10\n2: 26.20\n3: 26.30"
BOTH_SEVERAL = [("batched", ROWS), ("batched", "3: 26.3\n\n1:26.1\n2 : 26.20\n"), ("json", '{"1": 26.1, "2": 26.2, "3": 26.3}')]


def rows(form: str) -> str:
    return "\n".join(form.format(i, f"26.{i}0") for i in (1, 2, 3))


OBJECT = '{"1": 26.10, "2": 26.20, "3": 26.30}'
TOLERANT_SEVERAL = [
    *[rows(form) for form in ("{}. {}", "{}) {}", "({}) {}", "[{}] {}", "**{}:** {}", "**{}.** {}", "{}: **{}**", "- {}: {}", "* {}: {}")],
    *[rows(form) for form in ("Test architecture {}: {}", "**Test architecture {}:** {}", "Architecture {} - {}", "Architecture {}: ~{}")],
    *[
        rows(form)
        for form in ("{}: BLEU: {}", "{}. BLEU {}", "{}: {} BLEU", "{}: {}.", "#{}: {}", "### {}: {}", "{} = {}", "{} → {}", "{} – {}")
    ],
    *[
        rows(form)
        for form in ("Test architecture {} is {}", "Test architecture {} BLEU: {}", "| {} | {} |", "{} | {}", "|{}|{}|", "{}：{}")
    ],
    "\n".join(f"{i}. Test architecture {i}: 26.{i}0" for i in (1, 2, 3)),
    *("| Test architecture | BLEU |\n|---|:--:|\n" + rows("| {} | {} |"), "```\n" + ROWS + "\n```", "<think>1: 25\n2: 25</think>\n" + ROWS),
    *("Here are the predictions for the test architectures 1 to 3:\n\n" + ROWS, "With 6 layers 25, with 5 layers 24.\n" + ROWS),
    *(ROWS + "\n\nDeeper decoders score higher.", ROWS + "\nDone.", ROWS + "<|im_end|>", "<answer>\n" + ROWS + "\n</answer>"),
    *("```json\n" + OBJECT + "\n```", "Here you go: " + OBJECT, OBJECT + "\n\nDeeper decoders score higher.", "<think>{}</think>" + OBJECT),
    *('{"1": "26.10", "2": "26.20", "3": "26.30"}', '{"Test architecture 1": 26.1, "architecture_2": 26.2, "3": 26.3}'),
    [{"type": "reasoning", "text": "1: 25"}, {"type": "text", "text": ROWS}],
]
NEITHER_SEVERAL = [
    *(
        "26.10\n26.20\n26.30",
        "26.10, 26.20, 26.30",
        "[26.1, 26.2, 26.3]",
        "26.10",
        "1: 26.10",
        "1: 26.10\n2: 26.20",
        "0: 26.1\n1: 26.2\n2: 26.3",
    ),
    *(ROWS + "\n4: 26.40", ROWS + "\n" + ROWS, ROWS + "\nIn all 3 deep.", ROWS + "\nWait, lower.", "1. 26.1\n1. 26.2\n1. 26.3"),
    *(ROWS.replace("26.20", "26,20"), ROWS.replace("26.20", "26.2 or 26.3"), ROWS.replace("26.20", "25-26"), ROWS.replace("26.20", "nan")),
    *(
        ROWS.replace("26.20", "below 26"),
        ROWS.replace("26.20", "26.2 (was 25)"),
        ROWS.replace("2:", "2: 3:"),
        ROWS.replace("\n2", "\nDeeper.\n2"),
    ),
    *(
        "1: 25 or 26\n" + ROWS,
        rows("| {} | 6 | {} |"),
        "1. Test architecture 2: 26\n2. Test architecture 1: 26\n3: 26",
        "1.26.10\n2.26.20\n3.26.30",
    ),
    *(OBJECT + OBJECT, "[" + OBJECT + "]", '{"scores": ' + OBJECT + "}", OBJECT.replace('"2"', '"1"'), OBJECT.replace("26.20", '"26,20"')),
    *(
        OBJECT.replace("26.20", "NaN"),
        OBJECT.replace("26.20", "true"),
        OBJECT.replace("26.20", '"25 or 26"'),
        OBJECT + " 25?",
        "{" * 100_000,
    ),
    *("", "{}", "{", "1:\n2:\n3:", "I cannot predict 3 architectures."),
]


@pytest.mark.parametrize(("form", "content"), BOTH_SEVERAL)
def test_several_numbers_in_the_form_asked_for_are_read_alike(form: str, content: str) -> None:
    answer = read(content, form, 3)
    assert answer.values == answer.as_asked == (26.1, 26.2, 26.3)


@pytest.mark.parametrize("form", ["batched", "json"])
@pytest.mark.parametrize("content", TOLERANT_SEVERAL, ids=repr)
def test_several_numbers_in_clothes_are_read_tolerantly(content: Any, form: str) -> None:
    answer = read(content, form, 3)
    assert (answer.values, answer.reason) == ((26.1, 26.2, 26.3), "")
    assert all(map(math.isnan, answer.as_asked))


@pytest.mark.parametrize("form", ["batched", "json"])
@pytest.mark.parametrize("content", NEITHER_SEVERAL, ids=lambda content: repr(content[:60]))
def test_numbers_that_do_not_match_the_question_are_invalid_together(content: str, form: str) -> None:
    answer = read(content, form, 3)
    assert answer.status == "invalid"
    assert all(map(math.isnan, (*answer.values, *answer.as_asked)))
    assert answer.reason
    assert "\n" not in answer.reason


def test_a_number_out_of_range_spoils_only_its_own_architecture_under_the_tolerant_reading_too() -> None:
    answer = read("1. 25\n2. 260\n3. 27", "batched", 3)
    assert (answer.values[0], answer.values[2], answer.status) == (25, 27, "invalid")
    assert math.isnan(answer.values[1])


@pytest.mark.parametrize(
    ("content", "metric", "low", "high", "value"),
    [
        ("top-1 accuracy: 0.91", "top-1 accuracy", 0, 1, 0.91),
        ("Accuracy: 0.91", "top-1 accuracy", 0, 1, 0.91),
        ("The predicted chrF2 is 55.1 chrF2.", "chrF2", 0, 100, 55.1),
        ("The loss is 3.2.", "BLEU", 0, 100, None),  # Another metric's number.
        ("0.91%", "accuracy", 0, 1, None),  # A hundredth of it, or not.
        ("BLEU - 5", "BLEU", -10, 100, None),
        ("BLEU: -5", "BLEU", -10, 100, -5),
    ],
)
def test_the_metric_and_the_range_decide_what_a_label_and_a_unit_are(
    content: str, metric: str, low: float, high: float, value: float | None
) -> None:
    answer = read(content, "single", 1, low, high, metric)
    assert answer.values == (value,) if value is not None else math.isnan(answer.values[0])


def test_a_hyphen_may_be_a_sign_where_scores_can_be_negative() -> None:
    assert read("1 - 5\n2 - 6", "batched", 2).values == (5, 6)
    assert read("1 - 5\n2 - 6", "batched", 2, low=-10).status == "invalid"


PIECES = [
    *(
        "26.10",
        "25",
        "-3",
        "1",
        "2",
        "3",
        ":",
        ": ",
        ". ",
        ") ",
        "|",
        ",",
        "or",
        "BLEU",
        "is",
        "about",
        "~",
        "**",
        "`",
        "_",
        "%",
        " ",
        "\n",
        "\n\n",
    ),
    *(
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "```",
        "{",
        "}",
        '"1": ',
        '"',
        "Final answer: ",
        "The predicted",
        "Test architecture ",
        "é",
        "٣",
    ),
    *("-", "–", "1e3", ".5", "nan", "<|im_end|>", "\\boxed{", "(", "#", "["),
]
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=14).map("".join))


@settings(max_examples=600, deadline=None)
@given(text=TEXTS, form=st.sampled_from(FORMS), n=st.integers(1, 3))
def test_the_tolerant_reading_finds_numbers_of_the_text_and_agrees_with_the_form_asked_for(text: str, form: str, n: int) -> None:
    answer = read(text, form, 1 if form == "single" else n)
    there = {float(token) for token in re.findall(r"[-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?", text)}
    there |= {float(token) for token in re.findall(r"[0-9]+(?:\.[0-9]+)?", text)}
    for value, asked in zip(answer.values, answer.as_asked, strict=True):
        assert math.isnan(value) or value in there
        assert math.isnan(asked) or value == asked
    assert (answer.status == "invalid") == any(map(math.isnan, answer.values))


def test_a_long_reply_of_one_thing_is_read_to_its_end() -> None:
    # An expression that tries every way to divide such a reply would take hours.
    for piece in (" ", "\n", "#", "a", "a ", "*", "- ", "$", "<think>", "=", "_", "\n-", "1 ", "{"):
        for form in FORMS:
            assert read(piece * 20_000 + "!", form, 1).status == "invalid"
