"""The distribution that a model itself puts over the number it answers with, from the log-probabilities of one reply.

A server that is asked for them (`with_log_probabilities`) returns, for each token of the answer, the most likely tokens in its place
and the log-probability of each, given the tokens written before. They are part of the response, so a recording keeps them.

What is computed: the number written is one value. Every alternative to one of its tokens gives another: the digits before it as written,
the alternative, and then the rest *as written*, since the server does not say how the model would have gone on. Its weight is the product
of the probabilities of the tokens up to and including the alternative. Weights are normalised over the numbers that are valid answers; mean
and standard deviation are those of this distribution, given the words before the number.

What is not: how later digits depend on a changed earlier one (so each value is known to the place of its alternative only: a 26 instead of
a 25 before .30 stands for all of 26.00 to 26.99), tokens that the server did not list, and whether the number would have gone on after its
last digit. An alternative with more or fewer characters than the token is left out too where that token is followed by another digit, since
the place of the digits after it is not known then. `Distribution.covered` is the probability that is accounted for.

Most servers report the model's probabilities before temperature is applied, so the distribution is not that of repeated answers.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from llmpp_core.llm.answers import read_answer
from llmpp_core.llm.prompts import Prompt
from llmpp_core.llm.settings import Settings

#: Alternatives per token: the most that OpenAI's endpoint gives.
ALTERNATIVES = 20
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


def with_log_probabilities(settings: Settings, alternatives: int = ALTERNATIVES) -> Settings:
    """Return settings whose requests ask for the log-probabilities of so many alternatives per token; they have keys of their own."""
    if not 1 <= alternatives <= ALTERNATIVES:
        raise ValueError(f"log-probabilities: expected 1 to {ALTERNATIVES} alternatives per token, got {alternatives}")
    return replace(settings, extra={**settings.extra, "logprobs": True, "top_logprobs": alternatives})


def asks_log_probabilities(settings: Settings) -> bool:
    """Return whether the requests ask for log-probabilities."""
    return bool(settings.extra.get("logprobs"))


def read_distribution(prompt: Prompt, raw: str) -> Distribution | None:
    """Read the distribution over the number in a kept response.

    Parameters
    ----------
    prompt : Prompt
        One that asks about one architecture.
    raw : str
        The response body, as cache and recordings keep it.

    Returns
    -------
    Distribution or None
        None if the answer is invalid, or the server gave no log-probabilities whose tokens spell it.
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
    values = np.array([value for value in weights if prompt.low <= value <= prompt.high])
    probabilities = np.array([weights[value] for value in values])
    if not (covered := float(probabilities.sum())) > 0:
        return None
    mean = float(probabilities @ values) / covered
    std = math.sqrt(float(probabilities @ (values - mean) ** 2) / covered)
    return Distribution(prompt.sign * mean, std, min(covered, 1.0))


def _weights(tokens: list[_Token], start: int, end: int) -> dict[float, float]:
    """Return the probability of each value that the tokens between two characters, or alternatives to one of them, spell."""
    place, parts, before, after = 0, list[_Token](), "", ""
    for token in tokens:
        if place < end and place + len(token.text) > start:
            parts.append(token)
            before += token.text[: max(0, start - place)]
            after += token.text[max(0, end - place) :]
        place += len(token.text)
    form = re.compile(rf"\s*{re.escape(before.strip())}\s*({_NUMBER.pattern})\s*{re.escape(after.strip())}\s*")
    weights: dict[float, float] = {}

    def add(text: str, logprob: float) -> None:
        if match := form.fullmatch(text):
            weights[float(match[1])] = weights.get(float(match[1]), 0.0) + math.exp(logprob)

    path = 0.0
    for i, token in enumerate(parts):
        written, rest = "".join(part.text for part in parts[:i]), "".join(part.text for part in parts[i + 1 :])
        for text, logprob in token.alternatives.items():
            if _END.fullmatch(text):
                add(written + after, path + logprob)
            elif text != token.text and (len(text) == len(token.text) or not rest[:1].isdigit()):
                add(written + text + rest, path + logprob)
        path += token.logprob
    add("".join(part.text for part in parts), path)
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
