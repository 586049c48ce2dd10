"""Prompts that ask a language model for the score of an architecture, composed from parts.

The texts are files of the folder `templates`. They follow the paper's four parts (role, instructions, definitions of the hyperparameters,
demonstrations) in words of our own; `LEVELS` names the paper's cumulative ablation of them. What is predicted, a `PromptTask` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from llmpp_core.space.choice import Space
from llmpp_core.space.cost import Cost
from llmpp_core.space.inputs import as_list
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


def _check_words(part: Any, *phrases: str) -> None:
    """Raise ValueError unless `decimals` can be, and the phrases are, one line each: answers are found by the lines of the prompt."""
    decimals = part.decimals
    if not isinstance(decimals, (int, np.integer)) or isinstance(decimals, bool) or not 0 <= decimals <= 15:
        raise ValueError(f"decimals: expected an integer from 0 to 15, got {decimals!r}")
    for name in phrases:
        phrase = getattr(part, name)
        if not isinstance(phrase, str) or not phrase.strip() or len(phrase.splitlines()) > 1:
            raise ValueError(f"{name}: expected one line of text, got {phrase!r}")


def two_digits(value: float) -> int:
    """Return how many decimals two significant digits of a number need."""
    return max(0, 1 - math.floor(math.log10(abs(value)))) if value else 0


@dataclass(frozen=True)
class _OfOne:
    """The cost of one network; two of the same cost are equal, as the parts of copied estimators have to be."""

    cost: Cost

    def __call__(self, network: Any) -> float:
        return float(self.cost([network])[0])


@dataclass(frozen=True)
class Efficiency:
    """The cost that is told beside the hyperparameters."""

    name: str  #: Name of its line in the prompt.
    description: str  #: Completes "is given as <name>, ...".
    value: Callable[[Any], float]  #: The cost of a network.
    decimals: int = 1  #: Digits after the point.

    def __post_init__(self) -> None:
        _check_words(self, "name", "description")

    @classmethod
    def of(cls, cost: Cost) -> Efficiency:
        """Return a cost of a space as prompts tell it, with two significant digits of the cheapest network."""
        cheapest = float(cost([cost.space.smallest()])[0])
        unit = f"in {cost.unit}, " if cost.unit else ""
        return cls(cost.name, f"{unit}lower is cheaper", _OfOne(cost), two_digits(cheapest))


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
    backbone: str = ""  #: Completes "All networks share one backbone, ..."; what the space says by default.
    space: Space = field(kw_only=True)  #: The networks: says what hyperparameters they have, and what lines describe one.
    efficiency: Efficiency | None = field(kw_only=True)  #: The cost told beside each network; None tells none.

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbone", self.backbone or self.space.backbone)
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low and high: expected a finite range, got {self.low} to {self.high}")
        _check_words(self, "description", "metric", "metric_description", "backbone")
        names = [choice.name for choice in self.space.choices]
        told = [self.efficiency.name] if self.efficiency else []
        if self.metric in told:
            raise ValueError(f"metric: {self.metric!r} is also the cost that is told, so one line of the prompt would mean two things")
        for name in (self.metric, *told):
            if name in names:
                raise ValueError(f"{name!r} is a choice of {self.space.name}, so one line of the prompt would mean two things; rename it")

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
            description=self.space.anonymous[0],
            metric="score",
            metric_description=f"a quality between {self.low:g} and {self.high:g}",
            examples=(),
            backbone=self.space.anonymous[1],
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
    demonstrations: Sequence[tuple[Any, float]],
    archs: Sequence[Any],
    level: str = FULL,
    form: str = "single",
) -> Prompt:
    """Compose the prompt that asks for the scores of some architectures; the form "single" asks about exactly one.

    Demonstrations are trained architectures and their scores (higher is better), in the order they are shown. The sentence that fixes the
    form of the answer is part of every level. Raises ValueError for an unknown level or form, no demonstration, or what is no architecture
    of the task's space.
    """
    check_choices(level, form)
    demonstrations, archs = list(demonstrations), networks_of(task.space, archs)
    if not demonstrations:
        raise ValueError("demonstrations: expected at least one, got none")
    if not archs or (form == "single" and len(archs) > 1):
        raise ValueError(f"archs: expected {'exactly' if form == 'single' else 'at least'} one for the form {form!r}, got {len(archs)}")
    told = [task.efficiency.name] if task.efficiency else []
    words = vars(task) | {
        "direction": "higher is better" if task.higher_is_better else "lower is better",
        "pairs": "\n".join(f"input: {left}\noutput: {right}" for left, right in task.examples),
        "efficiency": "".join(told),
        "efficiency_description": task.efficiency.description if task.efficiency else "",
        "related": f"hyperparameters, {task.metric} and {told[0]}" if told else f"hyperparameters and {task.metric}",
        "hyperparameters": task.space.describe(),
        "n": len(archs),
    }
    absent = ["examples"] * (not task.examples) + ["efficiency"] * (not told)
    parts = [part for part in LEVELS[level] if part not in absent]
    sections = [_template(part).substitute(words) for part in (*parts, f"answer_{form}")]
    for i, (arch, score) in enumerate(demonstrations, 1):
        sections.append(f"Example {i}\n{_describe(task, arch)}\n{task.metric}: {task.sign * score + 0.0:.{task.decimals}f}")
    if form == "single":
        queries = [f"Test architecture\n{_describe(task, archs[0])}\n{task.metric}:"]
    else:
        queries = [f"Test architecture {i}\n{_describe(task, arch)}" for i, arch in enumerate(archs, 1)]
    return Prompt("\n\n".join(sections) + "\n\n", "\n\n".join(queries), form, len(archs), task.low, task.high, task.sign, task.metric)


def _describe(task: PromptTask, arch: Any) -> str:
    cost = task.efficiency
    told = [f"{cost.name}: {cost.value(arch):.{cost.decimals}f}"] if cost else []
    return "\n".join([*task.space.lines(arch), *told])


def networks_of(space: Space, archs: Any) -> Sequence[Any]:
    """Return what a user gives as a sequence; raises ValueError naming the row, counted from 0, of what is no network of the space."""
    listed = as_list(archs, kind=object)
    for row, arch in enumerate(listed):
        try:
            space.lines(arch)
        except ValueError as error:
            raise ValueError(f"archs[{row}]: {error}") from None
    return listed


def choose_demonstrations(
    archs: Sequence[Any], n: int, how: str = "first", rng: np.random.Generator | None = None, *, space: Space
) -> list[int]:
    """Choose which trained architectures to show, and in which order; returns their `n` positions.

    Parameters
    ----------
    how : {"first", "random", "spread"}
        In the given order; at random, which needs `rng`; or spread out, each the candidate farthest from those chosen before in the
        stratum of the space and the logarithm of its first cost, such as decoder depth and FLOPs, both scaled to [0, 1], beginning
        with the cheapest. Without costs the mean of what grows with a network takes their place.
    space : Space
        Theirs.
    """
    archs = networks_of(space, archs)
    if not len(archs):
        raise ValueError("archs: expected at least one to choose demonstrations from, got none")
    if not isinstance(n, (int, np.integer)) or not 1 <= n <= len(archs):
        raise ValueError(f"demonstrations: expected 1 to {len(archs)}, got {n!r}")
    if how == "first":
        return list(range(n))
    if how == "random":
        if rng is None:
            raise ValueError("random demonstrations need a numpy.random.Generator, got None")
        return [int(i) for i in as_generator(rng).permutation(len(archs))[:n]]
    if how != "spread":
        raise ValueError(f"unknown choice of demonstrations {how!r}; allowed are first, random, spread")
    points = np.column_stack([_strata(space, archs), _sizes(space, archs)])
    points = (points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-12)
    chosen = [int(np.argmin(points[:, 1]))]
    distance = np.full(len(archs), np.inf)
    while len(chosen) < n:
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
        distance[chosen] = -1.0
        chosen.append(int(np.argmax(distance)))
    return chosen


def _strata(space: Space, archs: Sequence[Any]) -> np.ndarray:
    choice = next((choice for choice in space.choices if choice.name == space.stratum), None)
    if choice is None:
        return np.zeros(len(archs))
    values = [arch.get(choice.name) if isinstance(arch, Mapping) else getattr(arch, choice.name) for arch in archs]
    numbers = choice.numbers if choice.numbers is not None else range(len(choice.values))
    return np.array([0.0 if v is None else numbers[choice.values.index(v)] if v in choice.values else v for v in values], dtype=float)


def _sizes(space: Space, archs: Sequence[Any]) -> np.ndarray:
    for cost in space.costs.values():
        return np.log(cost(archs))
    rising = np.hstack([part.transform(archs)[:, part.rising] for part in space.feature_set("averages")])
    return (rising / np.maximum(np.ptp(rising, axis=0), 1e-12)).sum(axis=1)
