"""Prompts that ask a language model for the score of an architecture, composed from parts.

The texts are files of the folder `templates`. They follow the paper's four parts (role, instructions, definitions of the hyperparameters,
demonstrations) in words of our own; `LEVELS` names the paper's cumulative ablation of them. What is predicted, a `PromptTask` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from llmpp_core.space.architecture import Architecture
from llmpp_core.space.cost import count_flops
from llmpp_core.space.inputs import Described, as_list
from llmpp_core.space.search_space import as_generator

_INSTRUCTIONS = ("task", "examples", "backbone", "efficiency", "relation")
#: The paper's ablation levels and the parts each prompt holds besides its demonstrations; each level adds one part.
LEVELS: dict[str, tuple[str, ...]] = {
    "demonstrations": (),
    "role": ("role",),
    "hyperparameters": ("role", "hyperparameters"),
    **{name: ("role", *_INSTRUCTIONS[: i + 1], "hyperparameters") for i, name in enumerate(_INSTRUCTIONS)},
}
#: The level with all parts.
FULL = "relation"
#: How many architectures a request asks about, and how the answer is written: one bare number; numbered lines; a JSON
#: object enforced by a schema, for servers that support it.
FORMS = ("single", "batched", "json")


def gflops(arch: Architecture) -> float:
    """Return the GFLOPs of one forward pass over 30 source and 30 target tokens, without the output projection."""
    return count_flops(arch) / 1e9


def _check_words(part: Any, *phrases: str) -> None:
    """Raise ValueError unless `decimals` can be, and the phrases are, one line each: answers are found by the lines of the prompt."""
    decimals = part.decimals
    if not isinstance(decimals, (int, np.integer)) or isinstance(decimals, bool) or not 0 <= decimals <= 15:
        raise ValueError(f"decimals: expected an integer from 0 to 15, got {decimals!r}")
    for name in phrases:
        phrase = getattr(part, name)
        if not isinstance(phrase, str) or not phrase.strip() or len(phrase.splitlines()) > 1:
            raise ValueError(f"{name}: expected one line of text, got {phrase!r}")


@dataclass(frozen=True)
class Efficiency:
    """The cost that is told beside the hyperparameters."""

    name: str = "GFLOPS"  #: Name of its line in the prompt.
    description: str = "the billions of floating-point operations of one forward pass"  #: Completes "is given as <name>, ...".
    value: Callable[[Architecture], float] = gflops  #: The cost of an architecture.
    decimals: int = 1  #: Digits after the point.

    def __post_init__(self) -> None:
        _check_words(self, "name", "description")


@dataclass(frozen=True)
class PromptTask:
    """What the model is asked to predict; raises ValueError for a range that is not finite, or a phrase that is not one line of text."""

    name: str  #: Name for tables; not part of the prompt.
    description: str  #: Completes "The networks are trained for ...".
    metric: str  #: Name of the predicted score, also that of its line in the prompt.
    metric_description: str  #: A phrase saying what it is.
    low: float  #: Least possible score; answers below it are invalid,
    high: float  #: and those above this one.
    higher_is_better: bool = True  #: If False the prompt shows the negated score; everywhere in this package higher is better.
    decimals: int = 2  #: Digits after the point of scores.
    #: Short pairs of input and output that show the task; the files ``examples.*.txt`` hold sentences of our own, taken from no corpus.
    examples: tuple[tuple[str, str], ...] = ()
    backbone: str = "the Transformer of Vaswani et al. (2017)"  #: Completes "All networks share one backbone, ...".
    efficiency: Efficiency = field(default_factory=Efficiency)  #: The cost told beside each architecture.

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low and high: expected a finite range, got {self.low} to {self.high}")
        _check_words(self, "description", "metric", "metric_description", "backbone")

    def check_scores(self, scores: np.ndarray) -> None:
        """Raise ValueError for the first score, higher being better, that the prompt would show outside `low` to `high`."""
        shown = self.sign * scores
        for row in np.flatnonzero(~((self.low <= shown) & (shown <= self.high))):
            given = "" if self.sign > 0 else f", from the score {scores[row]:g}"
            allowed = f"{self.low:g} to {self.high:g}, the range of the task"
            raise ValueError(f"scores[{row}]: expected {self.metric} from {allowed}, got {shown[row]:g}{given}")

    @property
    def sign(self) -> int:
        """1 where the prompt shows scores as they are, -1 where it shows them negated."""
        return 1 if self.higher_is_better else -1

    def anonymous(self) -> PromptTask:
        """Return the task without the names of task, metric, data set and paper, and without examples, which would tell.

        The names of the hyperparameters stay, so that two prompts differ in what they reveal about the task alone.
        """
        return replace(
            self,
            name=f"{self.name} (anonymous)",
            description="a task that maps one sequence to another",
            metric="score",
            metric_description=f"a quality between {self.low:g} and {self.high:g}",
            examples=(),
            backbone="an encoder-decoder network with attention",
        )


@dataclass(frozen=True)
class Prompt:
    """One user message, and what its answer has to look like."""

    prefix: str  #: The beginning of the message, which many prompts share, up to the last demonstration.
    query: str  #: The rest of it: the architectures asked about.
    form: str  #: One of `FORMS`.
    n: int  #: Number of architectures asked about.
    low: float  #: Range of the numbers in the answer.
    high: float
    sign: int = 1  #: What to multiply the numbers by to make higher better.
    metric: str = ""  #: Name of the predicted score, which an answer may repeat.

    @property
    def text(self) -> str:
        """The whole message."""
        return self.prefix + self.query

    def response_format(self) -> dict[str, Any] | None:
        """Return the Chat Completions field that enforces the JSON form, or None for the other forms."""
        if self.form != "json":
            return None
        keys = [str(i + 1) for i in range(self.n)]
        numbers = {key: {"type": "number"} for key in keys}
        schema = {"type": "object", "properties": numbers, "required": keys, "additionalProperties": False}
        return {"type": "json_schema", "json_schema": {"name": "predictions", "strict": True, "schema": schema}}


@cache
def _template(name: str) -> Template:
    """The text of one part, ``$name`` standing for what is filled in."""
    return Template((Path(__file__).with_name("templates") / f"{name}.txt").read_text(encoding="utf-8").strip())


def example_pairs(name: str) -> tuple[tuple[str, str], ...]:
    """Return the sentence pairs of the file ``examples.<name>.txt``, one tab-separated pair per line."""
    lines = _template(f"examples.{name}").template.splitlines()
    return tuple((left, right) for left, _, right in (line.partition("\t") for line in lines))


def check_choices(level: str, form: str) -> None:
    """Raise ValueError unless there are such a level and such a form."""
    for name, given, allowed in (("level", level, LEVELS), ("form", form, FORMS)):
        if given not in allowed:
            raise ValueError(f"unknown {name} {given!r}; allowed are {', '.join(allowed)}")


def build_prompt(
    task: PromptTask,
    demonstrations: Sequence[tuple[Architecture, float]],
    archs: Sequence[Architecture],
    level: str = FULL,
    form: str = "single",
) -> Prompt:
    """Compose the prompt that asks for the scores of some architectures; the form "single" asks about exactly one.

    Demonstrations are trained architectures and their scores (higher is better), in the order they are shown. The sentence that fixes the
    form of the answer is part of every level. Raises ValueError for an unknown level or form, no demonstration, or no architecture.
    """
    check_choices(level, form)
    demonstrations, archs = list(demonstrations), as_list(archs, kind=Described)
    if not demonstrations:
        raise ValueError("demonstrations: expected at least one, got none")
    if not archs or (form == "single" and len(archs) > 1):
        raise ValueError(f"archs: expected {'exactly' if form == 'single' else 'at least'} one for the form {form!r}, got {len(archs)}")
    words = vars(task) | {
        "direction": "higher is better" if task.higher_is_better else "lower is better",
        "pairs": "\n".join(f"input: {left}\noutput: {right}" for left, right in task.examples),
        "efficiency": task.efficiency.name,
        "efficiency_description": task.efficiency.description,
        "n": len(archs),
    }
    parts = [part for part in LEVELS[level] if part != "examples" or task.examples]
    sections = [_template(part).substitute(words) for part in (*parts, f"answer_{form}")]
    for i, (arch, score) in enumerate(demonstrations, 1):
        sections.append(f"Example {i}\n{_describe(task, arch)}\n{task.metric}: {task.sign * score:.{task.decimals}f}")
    if form == "single":
        queries = [f"Test architecture\n{_describe(task, archs[0])}\n{task.metric}:"]
    else:
        queries = [f"Test architecture {i}\n{_describe(task, arch)}" for i, arch in enumerate(archs, 1)]
    return Prompt("\n\n".join(sections) + "\n\n", "\n\n".join(queries), form, len(archs), task.low, task.high, task.sign, task.metric)


def _describe(task: PromptTask, arch: Architecture) -> str:
    cost = f"{task.efficiency.name}: {task.efficiency.value(arch):.{task.efficiency.decimals}f}"
    return "\n".join([*arch.to_prompt_lines(), cost])


def choose_demonstrations(archs: Sequence[Architecture], n: int, how: str = "first", rng: np.random.Generator | None = None) -> list[int]:
    """Choose which trained architectures to show, and in which order; returns their `n` positions.

    Parameters
    ----------
    how : {"first", "random", "spread"}
        In the given order; at random, which needs `rng`; or spread out, each the candidate farthest from those chosen before in decoder
        depth and log FLOPs, both scaled to [0, 1], beginning with the cheapest.
    """
    archs = as_list(archs, kind=Described)
    if not len(archs):
        raise ValueError("archs: expected at least one to choose demonstrations from, got none")
    if not 1 <= n <= len(archs):
        raise ValueError(f"demonstrations: expected 1 to {len(archs)}, got {n}")
    if how == "first":
        return list(range(n))
    if how == "random":
        if rng is None:
            raise ValueError("random demonstrations need a numpy.random.Generator, got None")
        return [int(i) for i in as_generator(rng).permutation(len(archs))[:n]]
    if how != "spread":
        raise ValueError(f"unknown choice of demonstrations {how!r}; allowed are first, random, spread")
    points = np.array([[arch.decoder_layers, math.log(count_flops(arch))] for arch in archs])
    points = (points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-12)
    chosen = [int(np.argmin(points[:, 1]))]
    distance = np.full(len(archs), np.inf)
    while len(chosen) < n:
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
        distance[chosen] = -1.0
        chosen.append(int(np.argmax(distance)))
    return chosen
