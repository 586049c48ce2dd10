"""The distribution that a model itself puts over the number it answers with, from the log-probabilities of one reply.

A server that is asked for them (`with_log_probabilities`) returns, for each token of the answer, the most likely tokens in its place and
the log-probability of each, given the tokens written before. They are part of the response, so a recording keeps them.

The number written is one value. Every alternative to one of its tokens gives another: the digits before it as written, the alternative,
and then the rest *as written*, since the server does not say how the model would have gone on. So each value is known to the place of its
alternative only: a 26 instead of a 25 before .30 stands for all of 26.00 to 26.99. Its weight is the product of the probabilities of the
tokens up to and including the alternative. Weights are normalised over the numbers that are valid answers; mean and standard deviation are
those of this distribution, given the words before the number. `Distribution.covered` is the probability that is accounted for.

Left out are tokens that the server did not list, whether the number would have gone on after its last digit, and an alternative with more
or fewer characters than a token that another digit follows, since the place of that digit is not known then. Most servers report the
model's probabilities before temperature is applied, so the distribution is not that of repeated answers.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

from llmpp_core.llm.answers import read_answer
from llmpp_core.llm.prompts import Prompt
from llmpp_core.llm.settings import Settings

# Alternatives per token: the most that OpenAI's endpoint gives.
_MOST = 20
_NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]+)?")
# White space, nothing, or a special token such as </s> or <|im_end|>.
_END = re.compile(r"\s*|<[^<>]*>")


class Distribution(NamedTuple):
    """Mean and standard deviation of the score, higher is better, and the probability that the values cover, 0 to 1."""

    mean: float
    std: float
    covered: float


class _Token(NamedTuple):
    text: str
    logprob: float
    alternatives: dict[str, float]


def with_log_probabilities(settings: Settings, alternatives: int = _MOST) -> Settings:
    """Return settings whose requests ask for the log-probabilities of so many alternatives per token; they have keys of their own."""
    if not 1 <= alternatives <= _MOST:
        raise ValueError(f"log-probabilities: expected 1 to {_MOST} alternatives per token, got {alternatives}")
    return replace(settings, extra={**settings.extra, "logprobs": True, "top_logprobs": alternatives})


def read_distribution(prompt: Prompt, raw: str) -> Distribution | None:
    """Read the distribution over the number in a kept response to a prompt about one architecture.

    Returns None if the answer is invalid, or the server gave no log-probabilities whose tokens spell it.
    """
    if prompt.n != 1:
        raise ValueError(f"log-probabilities are read where one architecture is asked about, not {prompt.n}")
    answer = read_answer(prompt, "", raw)
    tokens = _tokens(raw)
    if answer.status != "answered" or not tokens:
        return None
    number = prompt.sign * answer.values[0]
    # The last one: a model that reasons may have written it before.
    spans = [match.span() for match in _NUMBER.finditer("".join(token.text for token in tokens)) if float(match[0]) == number]
    if not spans:
        return None
    weights = _weights(tokens, *spans[-1])
    valid = {value: weight for value, weight in weights.items() if prompt.low <= value <= prompt.high}
    if not (covered := sum(valid.values())):
        return None
    mean = sum(weight * value for value, weight in valid.items()) / covered
    std = math.sqrt(sum(weight * (value - mean) ** 2 for value, weight in valid.items()) / covered)
    return Distribution(prompt.sign * mean, std, min(covered, 1.0))


def _weights(tokens: list[_Token], start: int, end: int) -> dict[float, float]:
    """Return the probability of each value that the tokens between two characters, or alternatives to one of them, spell."""
    ends = list(accumulate(len(token.text) for token in tokens))
    parts = [token for token, stop in zip(tokens, ends, strict=True) if stop > start and stop - len(token.text) < end]
    spelled = "".join(token.text for token in parts)
    begin = next(stop - len(token.text) for token, stop in zip(tokens, ends, strict=True) if stop > start)
    before, after = spelled[: start - begin], spelled[end - begin :]
    form = re.compile(rf"\s*{re.escape(before.strip())}\s*({_NUMBER.pattern})\s*{re.escape(after.strip())}\s*")
    weights: defaultdict[float, float] = defaultdict(float)

    def add(text: str, logprob: float) -> None:
        if match := form.fullmatch(text):
            weights[float(match[1])] += math.exp(logprob)

    path, written = 0.0, ""
    for token in parts:
        rest = spelled[len(written) + len(token.text) :]
        for text, logprob in token.alternatives.items():
            if _END.fullmatch(text):
                add(written + after, path + logprob)
            elif text != token.text and (len(text) == len(token.text) or not rest[:1].isdigit()):
                add(written + text + rest, path + logprob)
        path, written = path + token.logprob, written + token.text
    add(spelled, path)
    return weights


def _tokens(raw: str) -> list[_Token]:
    """Return the tokens of a response with their alternatives; none where the server gave none, or gave them in another form."""
    try:
        listed = json.loads(raw)["choices"][0]["logprobs"]["content"]
        return [_Token(*_pair(one), dict(map(_pair, one.get("top_logprobs") or ()))) for one in listed]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return []


def _pair(one: Any) -> tuple[str, float]:
    text, logprob = one["token"], float(one["logprob"])
    if not isinstance(text, str) or math.isnan(logprob):
        raise TypeError
    # Some servers write a space as the tokenizer does; rounding may take a certain token a little over 0.
    return text.replace("Ġ", " ").replace("▁", " "), min(logprob, 0.0)
