"""What prompts, distillation, features and searches ask of a space of networks, whatever the networks are.

`llmpp_core.space.search_space.SearchSpace` is HAT's implementation; `llmpp_core.space.declared.DeclaredSpace` is the general one. What
is common to both, such as mutation and the text of genomes, is written once over these members in `llmpp_core.space.genes`.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any, Protocol

import numpy as np

#: Most allowed values of a choice, since each is one character of a genome.
MOST_VALUES = 62
#: What a larger number means for the size of a network; nothing is said by "none".
ORDERS = ("more", "less", "none")
# What formulas call other things by; see `llmpp_core.space.formulas`.
_RESERVED = ("layer", "once", "unit", "scale")


@dataclass(frozen=True)
class Choice:
    """One hyperparameter of the networks of a space.

    Parameters
    ----------
    name : str
        Letters, digits, ``-`` and ``_``, first a letter; formulas see ``-`` as ``_``.
    values : sequence of int, float, str or bool
        1 to 62 different allowed values, in an order that is kept: the position of a value is its gene.
    numbers : sequence of float, optional
        What features and formulas see for each value; the values themselves by default, if they are numbers. Without, the choice is a
        category: features have one column per value, and formulas compare it with its values.
    order : {"more", "less", "none"}
        Whether a larger number means a larger network; "more" by default, and "none" for categories and for true and false.
    per : str, optional
        The choice that says in how many layers this one is made anew.
    when : str, optional
        A formula: the choice is made where it holds.
    before : float, optional
        What the layer before the first counts as, for formulas of layers.
    text : str
        One line for prompts, which completes ``<name> ...``: begins with "is", "tells" or "lists".
    bounds : (float, float), optional
        Networks that are not proposed, such as those trained already, may have any number within.

    Raises
    ------
    ValueError
        Naming what is not allowed.
    """

    name: str
    values: Sequence[Any]
    numbers: Sequence[float] | None = None
    order: str = ""
    per: str | None = None
    when: str | None = None
    before: float | None = None
    text: str = ""
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if (
            not isinstance(self.name, str)
            or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", self.name)
            or self.key in _RESERVED
            or iskeyword(self.key)
        ):
            raise ValueError(f"choice {self.name!r}: a name has letters, digits, - and _, first a letter, and is no word of formulas")
        # A set has another order each time.
        if isinstance(self.values, (str, Mapping, AbstractSet)) or not isinstance(self.values, Iterable):
            raise ValueError(f"{self.name!r}: expected a list of values, got {self.values!r}")
        values = tuple(self._plain(value) for value in self.values)
        for i, value in enumerate(values):
            # 1, 1.0 and True are equal, so one network would have several descriptions.
            if value in values[:i]:
                raise ValueError(f"{self.name!r}: {show(value)} is given twice")
        if not 1 <= len(values) <= MOST_VALUES:
            raise ValueError(f"{self.name!r}: {len(values)} values, {'at least 1' if not values else f'at most {MOST_VALUES}'}")
        numbers = self.numbers
        if numbers is None and not any(isinstance(value, str) for value in values):
            numbers = values
        if numbers is not None:
            if isinstance(numbers, (str, Mapping, AbstractSet)) or not isinstance(numbers, Iterable):
                raise ValueError(f"{self.name!r}: expected a list of numbers, got {numbers!r}")
            numbers = tuple(self._plain(number) for number in numbers)
            if len(numbers) != len(values) or not all(isinstance(number, (int, float)) for number in numbers):
                raise ValueError(f"{self.name!r}: expected {len(values)} numbers, one per value, got {list(numbers)}")
            numbers = tuple(number if isinstance(number, float) else int(number) for number in numbers)
        flag = all(isinstance(value, bool) for value in values)
        order = self.order or ("none" if numbers is None or flag else "more")
        if order not in ORDERS or (numbers is None and order != "none"):
            allowed = "none, since its values have no numbers" if numbers is None and order in ORDERS else ", ".join(ORDERS)
            raise ValueError(f"{self.name!r}: order {order!r}; allowed are {allowed}")
        if not isinstance(self.text, str) or len(self.text.splitlines()) > 1:
            raise ValueError(f"{self.name!r}: expected one line of text, got {self.text!r}")
        if self.text and not re.match(r"(is|tells|lists)\b", self.text):
            raise ValueError(f"{self.name!r}: text completes '{self.name} ...' and begins with is, tells or lists; got {self.text[:80]!r}")
        if self.before is not None and (not self.per or not is_number(self.before)):
            raise ValueError(f"{self.name!r}: before is a number, and of a choice that is made per layer; got {self.before!r}")
        bounds = self.bounds
        if bounds is not None:
            two = isinstance(bounds, Sequence) and len(bounds) == 2 and all(map(is_number, bounds))
            if not two or bounds[0] > bounds[1]:
                raise ValueError(f"{self.name!r}: bounds: expected two numbers, low and high, got {bounds!r}")
            bounds = (bounds[0], bounds[1])
        for field, value in (("bounds", bounds), ("values", values), ("numbers", numbers), ("order", order)):
            object.__setattr__(self, field, value)

    @property
    def key(self) -> str:
        """The name as formulas write it."""
        return self.name.replace("-", "_")

    def described(self, several: bool) -> str:
        """Return what prompts say of it; `several` depths are told apart."""
        text = self.text or f"is {'one of' if len(self.values) > 1 else 'always'} {', '.join(map(show, self.values))}"
        if self.per and not text.startswith("lists"):
            verb, _, rest = text.partition(" ")
            each = f"for each layer that {self.per} counts" if several else "for each layer"
            text = f"{'lists' if verb == 'is' else verb}, {each}, first layer first, {rest}"
        return f"{self.name} {text}" + (f"; only where {self.when}" if self.when else "")

    def number(self, value: Any) -> float:
        """Return what features and formulas see for a value: its number, or its position where values have none."""
        numbers = range(len(self.values)) if self.numbers is None else self.numbers
        return numbers[self.values.index(value)] if value in self.values else float(value)

    def read(self, value: Any) -> Any:
        """Return the space's own object that is meant by `value`: by 6, 6.0, "6" or NumPy's 6 the 6; ValueError if none is."""
        plain = value.item() if isinstance(value, np.generic) else value
        for own in self.values:
            if own == plain and isinstance(own, bool) == isinstance(plain, bool):
                return own
        if isinstance(plain, str):
            for own in self.values:
                # A spreadsheet writes TRUE.
                if plain.strip() in (str(own), show(own), show(own).upper() if isinstance(own, bool) else ""):
                    return own
            try:
                plain = float(plain) if self.numbers is not None else plain
            except ValueError:
                pass
            else:
                if plain in self.values and not isinstance(self.values[self.values.index(plain)], bool):
                    return self.values[self.values.index(plain)]
        if self.bounds and is_number(plain) and self.bounds[0] <= plain <= self.bounds[1]:
            return int(plain) if plain == int(plain) else float(plain)
        raise ValueError(f"is {show(plain)[:80]}; allowed are {self.allowed()}")

    def allowed(self) -> str:
        """Return the values in words."""
        within = f", and numbers from {self.bounds[0]:g} to {self.bounds[1]:g} of trained networks" if self.bounds else ""
        return ", ".join(map(show, self.values)) + within

    def _plain(self, value: Any) -> Any:
        plain = value.item() if isinstance(value, np.generic) else value
        if not isinstance(plain, (bool, int, float, str)) or (isinstance(plain, float) and not math.isfinite(plain)):
            raise ValueError(f"{self.name!r}: expected finite numbers, texts, true or false, got {plain!r}")
        if isinstance(plain, str) and (not plain.strip() or plain != plain.strip() or len(plain.splitlines()) > 1):
            raise ValueError(f"{self.name!r}: expected a line of text without spaces around it, got {plain!r}")
        return plain


class Space(Protocol):
    """A finite space of networks. Rows are genomes: for each gene the position of its value, and -1 where the network has none."""

    @property
    def name(self) -> str:
        """Shown in tables and errors."""

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The hyperparameters, in the order of the lines of a prompt."""

    @property
    def genes(self) -> tuple[tuple[str, int | None], ...]:
        """One (choice, layer) per gene, layer None where the choice is made once; the genes of a choice lie side by side."""

    @property
    def gates(self) -> tuple[str, ...]:
        """Choices on which it depends whether others are made; those that others depend on come first."""

    @property
    def stratum(self) -> str | None:
        """The choice that samples are balanced over and demonstrations are spread over."""

    @property
    def costs(self) -> Mapping[str, Callable[[Any], np.ndarray]]:
        """What networks cost, by name: from n networks, or a table of them, to an array of shape (n,)."""

    @property
    def backbone(self) -> str:
        """What all networks are: completes "All networks share one backbone, ..."."""

    @property
    def anonymous(self) -> tuple[str, str]:
        """Description of a task and backbone that tell as little as is true."""

    def active(self, rows: np.ndarray) -> np.ndarray:
        """Return which genes count, shape (n, genes); whatever stands in those that do not."""

    def allowed(self, rows: np.ndarray) -> np.ndarray | None:
        """Return which networks keep the rules of the space, shape (n,); None where there are no rules."""

    def build(self, rows: np.ndarray) -> list[Any]:
        """Return the networks of rows: immutable, hashable, equal if and only if the rows are."""

    def row(self, network: Any) -> list[int]:
        """Return the genome of a network; raises ValueError naming choice, layer and what is allowed."""

    def lines(self, network: Any) -> list[str]:
        """Return the lines ``name: value`` that describe a network in prompts."""

    def read(self, source: Any) -> Any:
        """Return the network that lines or a mapping describe; raises ValueError naming what is wrong."""

    def describe(self) -> str:
        """Return the paragraph on the hyperparameters."""

    def feature_set(self, name: str) -> list[Any]:
        """Return transformers whose columns make up a row; each has `rising`, where a larger number means a larger network."""

    def smallest(self) -> Any:
        """Return the network of the least value of every choice."""

    def sample(self, n: int, rng: np.random.Generator) -> Sequence[Any]:
        """Draw networks, every gene uniformly."""

    def sample_balanced(self, n: int, rng: np.random.Generator) -> Sequence[Any]:
        """Draw different networks, as many of each value of the stratum where there are so many."""

    def size(self) -> int:
        """Return how many networks there are."""

    def to_record(self) -> dict[str, Any]:
        """Return what JSON holds, from which `llmpp_core.space.declared.space_from_record` makes an equal space."""

    def fingerprint(self) -> str:
        """Return the SHA-256 of what decides genomes, which does not include texts and costs."""


_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def paragraph(lines: Sequence[str]) -> str:
    """Return the paragraph of a prompt that says what hyperparameters are, from one line ``<name> is ...`` each."""
    count = _COUNTS[len(lines)] if len(lines) < len(_COUNTS) else len(lines)
    listed = "".join(f"\n- {line}." for line in lines)
    return f"Each network is described by {count} hyperparameter{'s' * (len(lines) != 1)}:{listed}"


def is_number(value: Any) -> bool:
    """Return whether this is a finite number and neither true nor false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -sys.float_info.max <= value <= sys.float_info.max


def show(value: Any) -> str:
    """Return a value as errors and prompts write it."""
    return str(value).lower() if isinstance(value, bool) else f"'{value}'" if isinstance(value, str) else f"{value}"


def meant(name: Any, known: Iterable[str]) -> str:
    """Return ``; did you mean ...?`` if a known name is near, otherwise nothing."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
