"""Sentence pairs as tensors on the device, and batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmpp_core.text.shards import StoredTokens
from llmpp_core.text.vocabulary import BOS, EOS, PAD


class Batch(NamedTuple):
    """Sentence pairs padded to the longest.

    Parameters
    ----------
    src : torch.Tensor of shape (batch, source)
        Source tokens, each sentence ending in EOS.
    tgt, labels : torch.Tensor of shape (batch, target)
        Target tokens beginning with BOS, and the tokens to predict after each, ending in EOS.
    tokens : int
        Number of labels that are not padding.
    """

    src: Tensor
    tgt: Tensor
    labels: Tensor
    tokens: int


@dataclass(frozen=True, eq=False)
class Pairs:
    """All sentence pairs of one side of a corpus, padded once and kept on the device, or on disk.

    Parameters
    ----------
    src, tgt : torch.Tensor or StoredTokens, of shape (n, longest)
        Source tokens with EOS, target tokens with BOS and EOS; PAD after the end.
    src_lengths, tgt_lengths : numpy.ndarray of shape (n,)
        Lengths with markers.
    """

    src: Tensor
    tgt: Tensor
    src_lengths: np.ndarray
    tgt_lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.src_lengths)

    @classmethod
    def from_tokens(cls, src: Sequence[Sequence[int]], tgt: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Pairs:
        """Add the markers to token identifiers and pad."""
        sources, targets = [[*ids, EOS] for ids in src], [[BOS, *ids, EOS] for ids in tgt]
        lengths = [np.array([len(ids) for ids in side]) for side in (sources, targets)]
        return cls(_padded(sources).to(device), _padded(targets).to(device), *lengths)

    @classmethod
    def from_stored(cls, src: StoredTokens, tgt: StoredTokens) -> Pairs:
        """Take tokens that stay on disk; only their lengths are held in memory."""
        # They do what is asked of a tensor here.
        sides: tuple[Any, Any] = (src, tgt)
        return cls(*sides, src.lengths(), tgt.lengths())

    def label_counts(self) -> np.ndarray:
        """Return how often each token is a label, shape (largest token + 1,); the number of PAD says nothing."""
        if isinstance(self.tgt, StoredTokens):
            return self.tgt.counts()
        return np.bincount(self.tgt[:, 1:].flatten().cpu().numpy())

    def to(self, device: torch.device | str) -> Pairs:
        """Return the pairs on another device."""
        return replace(self, src=self.src.to(device), tgt=self.tgt.to(device))

    def first(self, n: int) -> Pairs:
        """Return the first `n` pairs, or all if there are fewer."""
        return Pairs(self.src[:n], self.tgt[:n], self.src_lengths[:n], self.tgt_lengths[:n])

    def batch(self, rows: np.ndarray) -> Batch:
        """Return the pairs at `rows` as a batch, cut to the longest among them."""
        source, target = int(self.src_lengths[rows].max()), int(self.tgt_lengths[rows].max())
        index = torch.from_numpy(rows)
        if not isinstance(self.src, StoredTokens):
            index = index.to(self.src.device)
        tgt = self.tgt[index, :target].long()
        tokens = int(self.tgt_lengths[rows].sum()) - len(rows)
        inputs = tgt[:, :-1]
        # A sentence that ended keeps EOS as its last input, which no label asks about.
        return Batch(self.src[index, :source].long(), inputs, tgt[:, 1:], tokens)

    def batches(self, batch_tokens: int, rng: np.random.Generator | None = None) -> list[np.ndarray]:
        """Return rows of batches with at most `batch_tokens` padded tokens on either side.

        Parameters
        ----------
        batch_tokens : int
            Limit; a longer sentence makes a batch of its own.
        rng : numpy.random.Generator, optional
            Shuffles pairs of equal length, and the batches. Without it the order is that of lengths.

        Returns
        -------
        list of numpy.ndarray of int
        """
        rows = np.arange(len(self)) if rng is None else rng.permutation(len(self))
        longer = np.maximum(self.src_lengths, self.tgt_lengths)
        rows = rows[np.lexsort((self.src_lengths[rows], longer[rows]))]
        found, start = [], 0
        for end in range(1, len(rows) + 1):
            # Lengths ascend, so the newest row is the longest.
            if end == len(rows) or (end + 1 - start) * int(longer[rows[end]]) > batch_tokens:
                found.append(rows[start:end])
                start = end
        return found if rng is None else [found[i] for i in rng.permutation(len(found))]


def epochs(pairs: Pairs, batch_tokens: int, seed: int) -> Iterator[np.ndarray]:
    """Yield rows of batches for ever; each epoch has an order of its own, which depends on seed and number of the epoch alone."""
    epoch = 0
    while True:
        yield from pairs.batches(batch_tokens, np.random.default_rng([seed, epoch]))
        epoch += 1


def _padded(sentences: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, sentences), default=0)
    return torch.tensor([[*ids, *[PAD] * (width - len(ids))] for ids in sentences], dtype=torch.int32).view(len(sentences), width)
