"""Predictors and spaces small enough to know what a search must find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from llmpp_core.search.records import Record
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.genes import Genes
from llmpp_core.space.search_space import TINY, SearchSpace

#: Small enough to list: 1,152 architectures.
MINI = SearchSpace(
    "MINI",
    encoder_embed_dim=(8, 4),
    decoder_embed_dim=(8, 4),
    encoder_layers=(2,),
    decoder_layers=(1, 2),
    encoder_ffn_dims=(16, 8),
    encoder_heads=(2,),
    decoder_ffn_dims=(16, 8),
    decoder_self_heads=(2,),
    decoder_cross_heads=(4, 2),
    decoder_cross_spans=(-1, 1),
    qkv_dim=8,
)


def told(records: Iterable[Record]) -> list[dict[str, Any]]:
    return [record.without_times() for record in records]


class Additive:
    """A score that is a sum over the choices of active layers, and a count of what it was asked."""

    def __init__(self, space: SearchSpace = TINY, seed: int = 0, noise: float = 0.0):
        self.genes = Genes(space)
        rng = np.random.default_rng(seed)
        # Weights of layers are positive, so deeper is better and the best value of each gene is known.
        self.weights = rng.random((len(self.genes), int(self.genes.cardinalities.max())))
        # Depth counts through the layers alone.
        self.weights[[name.endswith("layers") for name, _ in space.genes]] = 0
        self.noise = noise * np.random.default_rng(seed + 1).normal(size=self.weights.shape)
        self.asked: Counter[Architecture] = Counter()

    def best_score(self) -> float:
        """Return the score of the best architecture, if there is no noise."""
        allowed = np.arange(self.weights.shape[1]) < self.genes.cardinalities[:, None]
        return float(np.where(allowed, self.weights, 0).max(axis=1).sum())

    def predict(self, archs: Sequence[Architecture], return_std: bool = False) -> Any:
        self.asked.update(archs)
        rows = self.genes.encode(archs)
        values = np.take_along_axis(self.weights + self.noise, np.maximum(rows, 0).T.astype(int), axis=1).T
        scores = np.where(rows >= 0, values, 0).sum(axis=1)
        return (scores, np.full(len(scores), 0.1)) if return_std else scores
