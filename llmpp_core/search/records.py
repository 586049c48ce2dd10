"""What a search says of each iteration, as Python objects and as lines of a JSONL file from which it goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmpp_core.jobs.files import read_rows
from llmpp_core.space.choice import Space
from llmpp_core.space.genes import Genes


@dataclass(frozen=True)
class Record:
    """One iteration of a search."""

    #: From 0.
    iteration: int
    #: Name of the predictor that gave the scores.
    predictor: str
    #: The best so far by this predictor; earlier iterations count as long as the predictor is the same.
    best: Any
    #: Its score, higher is better.
    score: float
    #: Least, quartiles and greatest of the scores: "min", "q1", "median", "q3", "max".
    spread: dict[str, float]
    #: How many architectures each predictor was asked about in this iteration; none is ever asked about one twice.
    evaluations: dict[str, int]
    #: Time for "propose", "constraints", "score" and "rule".
    seconds: dict[str, float]
    #: The candidates as `llmpp_core.space.genes.Genes.from_text` reads them, all different.
    population: list[str]
    #: Their scores; None is nan.
    scores: list[float | None]
    #: Their costs, by the names of the limits.
    costs: dict[str, list[float]]
    #: Positions of those selected, best first.
    parents: list[int]
    best_costs: dict[str, float]
    #: Whether a rule of the schedule says that the next iteration has the costly predictor, and its numbers.
    switch: bool = False
    rule: dict[str, float | None] = field(default_factory=dict)
    #: Candidates whose scores by the costly predictor the rule asked for.
    probe: dict[str, float | None] = field(default_factory=dict)
    #: What else the method needs to go on.
    state: dict[str, Any] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """Return what JSON can hold; the best network is as its lines say it."""
        lines = (line.partition(": ") for line in self.best.to_prompt_lines())
        return {**vars(self), "best": {name: json.loads(value) for name, _, value in lines}}

    @classmethod
    def from_row(cls, row: Mapping[str, Any], space: Space) -> Record:
        """Read what `to_row` wrote of a search in a space; raises ValueError if something is missing or unknown."""
        best = space.read(f"{name}: {json.dumps(value)}" for name, value in row["best"].items())
        try:
            return cls(**{**row, "best": best})
        except TypeError as error:
            raise ValueError(f"not a record of a search: {error}") from None

    def without_times(self) -> dict[str, Any]:
        """Return all fields but the seconds, which no two runs share."""
        return {name: value for name, value in asdict(self).items() if name != "seconds"}


@dataclass
class Population:
    """Candidates of an iteration: rows of genes, their costs of shape (n, limits), and what the method keeps for the next."""

    rows: np.ndarray
    costs: np.ndarray
    state: dict[str, Any] = field(default_factory=dict)


@dataclass
class Previous:
    """The iteration before: its record, and its candidates and their costs as arrays."""

    record: Record
    rows: np.ndarray
    costs: np.ndarray


@dataclass(frozen=True)
class SearchResult:
    """What a search found; one record per iteration."""

    records: list[Record]

    @property
    def best(self) -> Any:
        """The best architecture by the last predictor."""
        return self.records[-1].best

    @property
    def score(self) -> float:
        """Its score by the last predictor and in its unit, such as minus nats per token of a supernet's loss, or BLEU."""
        return self.records[-1].score

    @property
    def costs(self) -> dict[str, float]:
        """Its costs, by the names of the limits."""
        return self.records[-1].best_costs

    @property
    def evaluations(self) -> dict[str, int]:
        """How many architectures each predictor was asked about."""
        total: Counter[str] = Counter()
        for record in self.records:
            total.update(record.evaluations)
        return dict(total)

    @property
    def seconds(self) -> dict[str, float]:
        """Time for each part, summed over the iterations, those before an interruption included."""
        return {part: sum(record.seconds[part] for record in self.records) for part in self.records[0].seconds}

    @property
    def total_seconds(self) -> float:
        """Time of the whole search."""
        return sum(self.seconds.values())


def read_records(path: str | Path, genes: Genes, settings: Mapping[str, Any] | None = None) -> list[Record]:
    """Read the file of a search, which may still be under way.

    Parameters
    ----------
    path : path
        A JSONL file; none is an empty one.
    genes : Genes
        Of the space searched.
    settings : mapping, optional
        What the "search" of every line has to be; anything if left out.

    Raises
    ------
    ValueError
        If a line is damaged, out of order, or of another search; names file and line.
    """
    records = []
    for number, row in enumerate(read_rows(Path(path)), 1):
        try:
            found = row.pop("search", {})
            # Earlier records name the space only.
            found.setdefault("choices_sha256", (settings or {}).get("choices_sha256"))
            different = [name for name in settings or () if found.get(name) != (settings or {})[name]]
            if different:
                name = different[0]
                raise ValueError(f"of another search, whose {name} is {found.get(name)!r} and not {(settings or {})[name]!r}")
            record = Record.from_row(row, genes.space)
            genes.from_text([*record.population, *record.probe])
            if record.iteration != number - 1 or len(record.scores) != len(record.population):
                raise ValueError("not the next iteration, whole")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        records.append(record)
    return records
