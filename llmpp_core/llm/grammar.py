"""The numbers in what a model wrote, read in two ways: as asked, and tolerantly.

*As asked* accepts what the prompt asks for and nothing else: one bare number; one line ``number: score`` per architecture; or one
JSON object. White space around them does not matter.

*Tolerant* accepts the same answers in the clothes that chat models put on them. It never chooses between two numbers and never
computes one. What is read is::

    reply     = what is left of the text without
                  reasoning     <think> … </think>, also where the prompt opened it, so that only the end is there, and the tags of
                                other models (see `_TAGS`); a block that never ends, or a second end, makes the reply invalid
                  envelope      one <answer> … </answer> pair; the lines ``` of code fences; tokens such as <|im_end|> at the end
                  emphasis      * _ ` " around words and numbers, \\boxed{ }
    single    = [prose] statement [tail]        with no other digit in the reply, except that a line which begins with
                                                "Final answer" (prediction, estimate, score, value), the only such line,
                                                drops all that stands before it
    statement = [label] [~ | ≈] NUMBER [unit]
    label     = words of `_LABEL` and of the metric's name, followed or not by ":", "=" or an arrow: "The predicted BLEU is", "about"
    unit      = up to three of: the metric's name, score, points; and "%" or "percent" where scores go from 0 to 100
    tail      = "." or "!"; or after that or on the next line prose that begins with a capital, holds no digit and takes nothing back
    several   = [any prose] row … row [tail]    each of the numbers 1 to n once, in any order, with nothing but blank lines between
    row       = [bullet] [label] n separator [label n separator, the same n] statement ["."]     or a row of a table, | n | … |
    separator = ":", ")", "=", "|", an arrow, "is", a dash or "." before a space; " - " only where no score can be negative
    several   = [any prose] JSON object [tail]  whose keys end in the numbers 1 to n, once each, and whose values are numbers or
                                                strings that hold just a number

``NUMBER`` is a decimal number with a point. Lines of numbers without the architectures' own are not read: a model that leaves one out
and adds one would shift all others unnoticed. A comma between digits (26,10), two numbers (26.31 or 26.40, 25 to 26), a bound (at most
26), a digit in an explanation and a word that takes back what was said make the reply invalid.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

from llmpp_core.llm.prompts import Prompt

#: What a reply that is all reasoning calls for.
ADVICE = "raise answer_tokens, or lower the reasoning effort"

_NUMBER = r"[-+]?[0-9]+(?:\.[0-9]+)?"
_SINGLE = re.compile(rf"\s*()({_NUMBER})\s*")
_LINE = re.compile(rf"\s*([0-9]+)\s*:\s*({_NUMBER})\s*")
# Pairs, not a dict, which would keep the last of repeated numbers in silence; NaN and Infinity, which are no JSON, become texts.
_JSON = json.JSONDecoder(object_pairs_hook=list, parse_int=float, parse_constant=str)

# Pairs of tags around reasoning: DeepSeek, Qwen and most others; Magistral; Kimi; Command A; OpenThoughts; MedGemma.
_NAMES = "think|thinking|thoughts?|reasoning|reason|reflection|analysis|scratchpad|seed:think"
_TAGS = re.compile(
    rf"(?P<open><(?:{_NAMES})>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|begin_of_thought\|>|<unused94>)"
    rf"|</(?:{_NAMES})>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<\|end_of_thought\|>|<unused95>",
    re.IGNORECASE,
)
# gpt-oss names the channel of each part instead, and the last is the answer's.
_FINAL_CHANNEL = "<|channel|>final<|message|>"
_ENVELOPE = re.compile(r"</?answer>", re.IGNORECASE)
_FENCE = re.compile(r"^[^\S\n]*(?:`{3,}|~{3,})[A-Za-z]*[^\S\n]*$", re.MULTILINE)
_END = re.compile(r"(?:<\|\w+\|>|</s>|<end_of_turn>)\Z")
_MARKS = re.compile(r'[*`"“”]+|(?<!\w)_+|_+(?!\w)')
_BOXED = re.compile(r"\${0,2}\\boxed\{([^{}]*)\}\${0,2}")

# Words that can stand before the answer without changing it. None negates, compares or bounds; other words make the reply invalid.
_LABEL_WORDS = """
a an and so thus therefore hence then here i ll d s we my our the this that it its is are be would will should to of for on in at as
answer answers result results output value values score scores metric number final overall given new test validation set
architecture architectures network model configuration transformer predict predicts predicted predicting prediction predictions
estimate estimated estimates estimation expect expected forecast about around approximately approximate approx roughly circa ca
likely probably equals point points percentage
"""
_LABEL = frozenset(_LABEL_WORDS.split())
# What a score is called where the prompt does not say.
_METRICS = ("SacreBLEU", "BLEU-4", "BLEU", "chrF++", "chrF", "perplexity", "PPL", "accuracy", "loss")
_AFTER = re.compile(r"(?P<percent> ?%| percent\b)?(?: (?:scores?|points?|pts)\b){0,3} ?(?P<tail>.*)", re.IGNORECASE | re.DOTALL)
_TAIL = re.compile(r"[.!]?\s*|(?:[.!]\s|[.!]?\n)(?P<prose>[^\W\d_]\D*)")
_TAKES_BACK = re.compile(
    r"\A(?:or|nor|no|not|hm+)\b|\b(?:scratch|disregard|ignore|wait|actually|corrected|correction|instead|rather|sorry|mistaken?|wrong|oops|revised?|alternatively|unless)\b",
    re.IGNORECASE,
)
# On the line above a bare number, these say that it is none of the answer.
_BOUND = re.compile(
    r"\b(?:at (?:most|least)|not|bound|(?:less|more|lower|higher|greater) than|below|above|under|up to|between)[\s:：]*\Z", re.IGNORECASE
)
_FINAL = re.compile(r"^[^\w\n]*(?:(?:the|my)\s+)?final\s+(?:answer|prediction|estimate|score|value)\b", re.IGNORECASE | re.MULTILINE)
_WORD = r"[^\W\d_]+"
_ROW = re.compile(
    rf"(?:[-•+]\s+)?(?:#+\s*)?(?P<label>(?:{_WORD}[\s'’]+)*)#?[(\[]?(?P<n>[0-9]+)"
    rf"(?:[)\]]?(?P<more>(?:\s+{_WORD})*?)\s*(?P<separator>[:：|=→]|[-=]>|\.(?=\s)|(?<=\s)(?:[-–—]|is)(?=\s))|[)\]])\s*(?P<rest>.*)",
    re.IGNORECASE,
)
_RULE = re.compile(r"[-=|:+\s]+")


def as_asked(prompt: Prompt, text: str) -> list[float]:
    """Return one number per architecture, or raise ValueError if the text has not exactly the form that was asked for."""
    found: list[Any] | None = None
    if prompt.form == "json":
        with contextlib.suppress(ValueError, RecursionError):
            found = _JSON.decode(text)
        if not isinstance(found, list) or not all(isinstance(pair, tuple) and isinstance(pair[1], float) for pair in found):
            raise ValueError(f"expected a JSON object of numbers, got {_shown(text)}")
        return _in_order(prompt, found)
    form, lines = (_SINGLE, [text]) if prompt.form == "single" else (_LINE, [line for line in text.splitlines() if line.strip()])
    matches = [match for match in map(form.fullmatch, lines) if match]
    if len(matches) < len(lines):
        raise ValueError(f"expected the form that was asked for, got {_shown(text)}")
    return _in_order(prompt, [(match[1] or "1", float(match[2])) for match in matches])


def tolerant(prompt: Prompt, text: str) -> list[float]:
    """Return one number per architecture by the grammar above, or raise ValueError."""
    text = _without_reasoning(text)
    if [tag.lower() for tag in _ENVELOPE.findall(text)] == ["<answer>", "</answer>"]:
        # What stands before is reasoning; what stands after has to be a tail, as after any answer.
        _, inside, after = _ENVELOPE.split(text)
        text = inside.rstrip() + "\n" + after
    text = text.strip()
    while (shorter := _END.sub("", text).rstrip()) != text:
        text = shorter
    text = _FENCE.sub("", text)
    if not text.strip():
        raise ValueError(f"nothing but reasoning: {ADVICE}")
    if prompt.form != "single" and "{" in text:
        return _in_order(prompt, _object(text))
    text = _plain(text, prompt.metric)
    if prompt.form != "single":
        return _in_order(prompt, _rows(prompt, text))
    finals = [match.start() for match in _FINAL.finditer(text)]
    return [_statement(prompt, text[finals[0] :] if len(finals) == 1 else text, alone=False)]


def _shown(text: str) -> str:
    return repr(" ".join(text.split())[:60])


def _in_order(prompt: Prompt, pairs: list[tuple[str, float]]) -> list[float]:
    if sorted(name for name, _ in pairs) != sorted(str(i + 1) for i in range(prompt.n)):
        raise ValueError(f"expected the numbers 1 to {prompt.n} once each, got {', '.join(name for name, _ in pairs)[:60] or 'none'}")
    return [value for _, value in sorted(pairs, key=lambda pair: int(pair[0]))]


def _without_reasoning(text: str) -> str:
    if text.count(_FINAL_CHANNEL) == 1:
        text = text.partition(_FINAL_CHANNEL)[2]
    kept, depth, position = [""], 0, 0
    for i, tag in enumerate(_TAGS.finditer(text)):
        if depth == 0:
            kept.append(text[position : tag.start()])
        if not (tag["open"] or depth) and i:
            raise ValueError(f"reasoning ends twice: {_shown(text)}")
        if not (tag["open"] or depth):
            kept = [""]  # The prompt opened it.
        else:
            depth += 1 if tag["open"] else -1
        position = tag.end()
    if depth:
        raise ValueError(f"the reasoning has no end: {ADVICE}")
    return "\n".join([*kept, text[position:]])


def _plain(text: str, metric: str = "") -> str:
    """Return the text without emphasis and spare white space, and the metric under a name that holds no digit."""
    text = _MARKS.sub(" ", _BOXED.sub(r" \1 ", text))
    text = re.sub(r"(?: ?\n ?)+", "\n", re.sub(r"[^\S\n]+", " ", text))
    words = re.findall(r"[^\W\d_]{3,}", metric)
    names = "|".join(re.escape(name) for name in ((metric, *words) if metric else _METRICS))
    return re.sub(rf"(?<!\w)(?:{names})(?!\w)", "score", text, flags=re.IGNORECASE)


def _statement(prompt: Prompt, text: str, alone: bool = True) -> float:
    """Return the number of a statement; `alone` says that no prose may stand around it."""
    match = re.search(_NUMBER, text)
    if not match:
        raise ValueError(f"expected one number, got {_shown(text)}")
    unit = _AFTER.fullmatch(text[match.end() :])
    assert unit is not None  # Every text has that form.
    percent = not unit["percent"] or (prompt.low, prompt.high) == (0, 100)
    ended = re.fullmatch(r"[.!]?\s*", unit["tail"]) if alone else _is_tail(unit["tail"])
    if not (percent and ended and _leads(text[: match.start()], alone)):
        several = len(re.findall(r"\d+(?:\.\d+)?", text))
        what = f"nothing says which of {several} numbers is the answer" if several > 1 else "expected one number"
        raise ValueError(f"{what}, got {_shown(text)}")
    return float(match[0])


def _is_tail(text: str) -> bool:
    tail = _TAIL.fullmatch(text)
    prose = (tail["prose"] or "") if tail else ""
    return bool(tail) and not prose[:1].islower() and not _TAKES_BACK.search(prose)


def _leads(before: str, alone: bool) -> bool:
    """Return whether what stands before a number is nothing, or prose without digits and a label."""
    if re.search(r"\d", before):
        return False
    prose, _, line = before.rpartition("\n")
    line = re.sub(r"(?:[~≈∼]|\b(?:approx|ca)\.)\s*\Z", "", line, flags=re.IGNORECASE)
    spaced = not line or line[-1].isspace()
    line = line.rstrip()
    bare = re.sub(r"(?:[:：=→]|[-=]>)\Z", "", line)
    linked = bare != line
    *earlier, label = re.split(r"(?<=[.!?:;,：])\s+", bare if linked else f"{bare} " if spaced else bare)
    words = re.findall(_WORD, label.lower())
    if alone and (prose.strip() or earlier):
        return False
    if not words:
        # After a comma a bare number may belong to anything.
        return not _BOUND.search(prose) and not label.strip() and not linked and (not earlier or earlier[-1][-1] in ".!?")
    known = bool(re.fullmatch(r"[^\W\d_]+(?:[\s'’()_-]+[^\W\d_]+)*[\s)]*", label.strip())) and _LABEL.issuperset(words)
    return known and (linked or spaced or before[-1] in "~≈∼")


def _rows(prompt: Prompt, text: str) -> list[tuple[str, float]]:
    rows: list[tuple[str, float]] = []
    after: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if _RULE.fullmatch(line):
            continue
        if row := _row(prompt, line):
            if after:
                raise ValueError(f"text between the numbered lines: {_shown(after[0])}")
            rows.append(row)
        elif rows:
            after.append(line)
    if after and not _is_tail("\n" + "\n".join(after)):
        raise ValueError(f"expected nothing more after the numbered lines, got {_shown(' '.join(after))}")
    if not rows:
        raise ValueError(f"expected one line 'number: score' per architecture, got {_shown(text)}")
    return rows


def _row(prompt: Prompt, line: str) -> tuple[str, float] | None:
    """Return number and score of a row, or None for prose; raises ValueError for what begins as a row and does not end as one."""
    match = _match_row(line.strip("|").strip())
    if not match or line.endswith((":", "：")):  # A heading may name numbers: "Scores of the architectures 1 to 10:".
        return None
    again = _match_row(match["rest"])
    if again and again["label"]:
        if again["n"] != match["n"]:
            raise ValueError(f"two numbers of architectures in one line: {_shown(line)}")
        match = again
    if match["separator"] == "-" and prompt.low < 0:
        raise ValueError(f"a hyphen or a sign in {_shown(line)}")
    return match["n"], _statement(prompt, match["rest"])


def _match_row(line: str) -> re.Match[str] | None:
    match = _ROW.fullmatch(line)
    words = re.findall(_WORD, f"{match['label']} {match['more'] or ''}".lower()) if match else []
    return match if _LABEL.issuperset(words) else None


def _object(text: str) -> list[tuple[str, float]]:
    try:
        pairs, end = _JSON.raw_decode(text, text.index("{"))
    except (ValueError, RecursionError):
        raise ValueError(f"expected a JSON object, got {_shown(text)}") from None
    if not _is_tail(_plain(text[end:])):
        raise ValueError(f"expected nothing more after the JSON object, got {_shown(text[end:])}")
    found = []
    for name, value in pairs:
        key = re.fullmatch(r"([^\W\d]*(?:\s[^\W\d]+)*\s?)([0-9]+)", name)
        number = _SINGLE.fullmatch(value) if isinstance(value, str) else None
        if not key or not _LABEL.issuperset(re.findall(_WORD, key[1].lower())) or not (number or isinstance(value, float)):
            raise ValueError(f"expected a JSON object of numbers, got {_shown(text)}")
        found.append((key[2], float(number[2]) if number else value))
    return found
