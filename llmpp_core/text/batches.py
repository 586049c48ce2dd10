"""Sentence pairs as tensors on the device, or on disk, and batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmpp_core.text.special_tokens import BOS, EOS, PAD


class Batch(NamedTuple):
    """Sentence pairs padded to the longest."""

    #: Source tokens, of shape (batch, source), each sentence ending in EOS.
    src: Tensor
    #: Target tokens, of shape (batch, target), beginning with BOS.
    tgt: Tensor
    #: The tokens to predict after each of `tgt`, ending in EOS.
    labels: Tensor
    #: Number of labels that are not padding.
    tokens: int


@dataclass(frozen=True, eq=False)
class StoredTokens:
    """One side of a corpus on disk, in what `Pairs` asks of it a padded tensor of shape (n, longest)."""

    #: Of each shard, where its sentences begin, and the tokens of them all, without markers.
    offsets: Sequence[np.ndarray]
    values: Sequence[np.ndarray]
    #: Whether a sentence begins with BOS; all end in EOS.
    begin: bool
    #: Of all tokens.
    digest: str
    #: Number of sentences, the first ones of the shards.
    n: int
    #: Where batches go.
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    def lengths(self) -> np.ndarray:
        """Return the lengths with markers, int16 of shape (n,)."""
        return np.concatenate([np.diff(o).astype(np.int16) for o in self.offsets])[: self.n] + np.int16(1 + self.begin)

    def to(self, device: torch.device | str) -> StoredTokens:
        """Return the same with batches on another device."""
        return replace(self, device=torch.device(device))

    def __getitem__(self, key: Any) -> Any:
        """Return the first sentences, for a slice, or a padded int32 tensor, for row numbers and a slice of positions."""
        if isinstance(key, slice):
            return replace(self, n=len(range(self.n)[key]))
        rows, width = np.asarray(key[0].cpu()), key[1].stop
        found = np.full((len(rows), width), PAD, dtype=np.int32)
        found[:, : self.begin] = BOS
        ends = np.cumsum([len(o) - 1 for o in self.offsets])
        shards = np.searchsorted(ends, rows, side="right")
        position = np.arange(width - self.begin)
        for shard in np.unique(shards):
            (here,) = np.nonzero(shards == shard)
            offsets, values = self.offsets[shard], self.values[shard]
            local = rows[here] - (ends[shard] - (len(offsets) - 1))
            start, length = offsets[local].astype(np.int64)[:, None], (offsets[local + 1] - offsets[local])[:, None]
            block = np.full((len(here), len(position)), PAD, dtype=np.int32)
            inside = position < length
            block[inside] = values[(start + position)[inside]]
            block[position == length] = EOS
            found[here, int(self.begin) :] = block
        return torch.from_numpy(found).to(self.device)

    def counts(self) -> np.ndarray:
        """Return how often each token occurs, EOS included and BOS not; reads everything, a shard at a time."""
        total, left = np.zeros(EOS + 1, dtype=np.int64), self.n
        for offsets, values in zip(self.offsets, self.values, strict=True):
            rows = min(left, len(offsets) - 1)
            found = np.bincount(values[: offsets[rows]], minlength=len(total))
            found[: len(total)] += total
            total, left = found, left - rows
        total[EOS] += self.n
        return total


@dataclass(frozen=True, eq=False)
class Pairs:
    """All sentence pairs of one side of a corpus, padded once and kept on the device, or on disk."""

    #: Source tokens with EOS, of shape (n, longest); PAD after the end.
    src: Tensor
    #: Target tokens with BOS and EOS, of shape (n, longest).
    tgt: Tensor
    #: Lengths with markers, of shape (n,).
    src_lengths: np.ndarray
    tgt_lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.src_lengths)

    @classmethod
    def from_tokens(cls, src: Sequence[Sequence[int]], tgt: Sequence[Sequence[int]]) -> Pairs:
        """Add the markers to token identifiers and pad."""
        sources, targets = [[*ids, EOS] for ids in src], [[BOS, *ids, EOS] for ids in tgt]
        lengths = [np.array([len(ids) for ids in side]) for side in (sources, targets)]
        return cls(_padded(sources), _padded(targets), *lengths)

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
        # A sentence that ended keeps EOS as its last input, which no label asks about.
        return Batch(self.src[index, :source].long(), tgt[:, :-1], tgt[:, 1:], int(self.tgt_lengths[rows].sum()) - len(rows))

    def batches(self, batch_tokens: int, rng: np.random.Generator | None = None) -> list[np.ndarray]:
        """Return rows of batches with at most `batch_tokens` padded tokens on either side; a longer sentence makes one of its own.

        The generator shuffles pairs of equal length, and the batches. Without it the order is that of lengths.
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
