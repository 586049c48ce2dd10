"""Scores of a costly predictor in a file, so that searches that meet the same architectures pay for each once.

A search still costs what it costs: `KeptScores` knows how long each score took when it was made, and charges that to everyone who asks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from filelock import FileLock
from numpy.typing import ArrayLike

from llmpp_core.jobs.files import append_rows, read_rows, understood
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.regressor import ArchitectureScorer


class Kept(NamedTuple):
    """A score, and the seconds that it took."""

    score: float
    seconds: float


class KeptScores(ArchitectureScorer):
    """A predictor that asks another one once for each architecture, over all processes that share a file.

    Parameters
    ----------
    predictor : fitted regressor over Architecture
        The costly one, such as a supernet; the file must be of no other.
    path : path
        A JSONL file, made where absent.
    """

    def __init__(self, predictor: Any, path: str | Path):
        self.predictor = predictor
        self.path = path

    @property
    def saved_(self) -> float:
        """Seconds that were not spent so far because the scores were there already."""
        return float(self.__dict__.get("_saved", 0.0))

    def fit(self, archs: Sequence[Architecture], scores: ArrayLike | None = None) -> Self:
        """Do nothing; the predictor is fitted elsewhere."""
        return self

    def predict(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return an array of shape (n,); raises ValueError naming file and line if the file is damaged."""
        asked, known = list(archs), self._known()
        new = [arch for arch in dict.fromkeys(asked) if arch not in known]
        self._saved = self.saved_ + sum(known[arch].seconds for arch in dict.fromkeys(asked) if arch in known)
        if new:
            began = time.perf_counter()
            found = np.asarray(self.predictor.predict(new), dtype=float)
            each = (time.perf_counter() - began) / len(new)
            made = {arch: Kept(float(score), each) for arch, score in zip(new, found, strict=True)}
            with FileLock(f"{self.path}.lock"):
                known = self._known()
                append_rows(Path(self.path), [{"arch": arch.to_hat_dict(), **kept._asdict()} for arch, kept in made.items()])
                known |= made
                self._size = os.path.getsize(self.path)
        return np.array([known[arch].score for arch in asked], dtype=float)

    def _known(self) -> dict[Architecture, Kept]:
        """Return what the file holds, which is read again only where others have added to it: that would count as time of the search."""
        size = os.path.getsize(self.path) if os.path.exists(self.path) else 0
        if size != self.__dict__.get("_size"):
            self.known_ = {}
            for number, row in enumerate(read_rows(Path(self.path)), 1):
                with understood(f"{self.path}:{number}"):
                    self.known_[Architecture.from_hat_dict(row["arch"])] = Kept(row["score"], row["seconds"])
            self._size = size
        return self.known_
