"""Batches: every pair once, never over the limit, padding never counted; tokens on disk behave as the padded tensors they stand in for."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import MICRO, new_network, reversed_pairs

from llmpp_core.nets.checkpoints import digest
from llmpp_core.nets.decoding import translate
from llmpp_core.nets.training import Recipe, train
from llmpp_core.text.batches import Pairs, StoredTokens, epochs
from llmpp_core.text.special_tokens import BOS, EOS, PAD
from llmpp_core.text.wmt import _write_shard, stored_tokens

LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=60)


def make(lengths: list[tuple[int, int]]) -> Pairs:
    """Pairs of sentences of these lengths, each of other tokens."""
    tokens = iter(range(4, 10**6))
    src, tgt = ([[next(tokens) for _ in range(pair[side])] for pair in lengths] for side in (0, 1))
    return Pairs.from_tokens(src, tgt)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    rng = np.random.default_rng(0)
    source = rng.integers(5, 30, size=2000)
    return make([(int(s), max(1, int(s + d))) for s, d in zip(source, rng.integers(-4, 5, size=2000), strict=True)])


def test_markers_are_added() -> None:
    pairs = Pairs.from_tokens([[5, 6], [7]], [[8], [9, 10, 11]])
    assert pairs.src.tolist() == [[5, 6, EOS], [7, EOS, PAD]]
    assert pairs.tgt.tolist() == [[BOS, 8, EOS, PAD, PAD], [BOS, 9, 10, 11, EOS]]
    assert (pairs.src_lengths.tolist(), pairs.tgt_lengths.tolist()) == ([3, 2], [3, 5])
    assert Pairs.from_tokens([], []).batches(100) == []


@settings(max_examples=30)
@given(lengths=LENGTHS, batch_tokens=st.integers(1, 200), shuffle=st.booleans())
def test_batches_partition_the_pairs_and_hold_their_sentences(lengths, batch_tokens: int, shuffle: bool) -> None:
    pairs = make(lengths)
    batches = pairs.batches(batch_tokens, np.random.default_rng(0) if shuffle else None)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(pairs)))
    for rows in batches:
        batch = pairs.batch(rows)
        assert len(rows) == 1 or max(batch.src.numel(), batch.tgt.numel() + len(rows)) <= batch_tokens
        assert batch.tokens == int((batch.labels != PAD).sum()) == sum(lengths[row][1] + 1 for row in rows)
        for i, row in enumerate(rows):
            source, target = lengths[row]
            assert batch.src[i, : source + 1].tolist() == pairs.src[row, : source + 1].tolist()
            # A label is the next input, the last one EOS.
            assert batch.tgt[i, 0] == BOS
            assert batch.labels[i, :target].tolist() == batch.tgt[i, 1 : target + 1].tolist()
            assert batch.labels[i, target] == EOS
        # No column of padding.
        assert (batch.src != PAD).any(dim=0).all()
        assert (batch.labels != PAD).any(dim=0).all()


def test_sentences_of_similar_length_share_a_batch(pairs: Pairs) -> None:
    batches = [pairs.batch(rows) for rows in pairs.batches(1000, np.random.default_rng(0))]
    assert sum(batch.tokens for batch in batches) / sum(batch.labels.numel() for batch in batches) > 0.85
    longer = np.maximum(pairs.src_lengths, pairs.tgt_lengths)
    assert (np.diff(longer[np.concatenate(pairs.batches(500))]) >= 0).all()


def test_epochs_depend_on_seed_and_number_alone(pairs: Pairs) -> None:
    def order(seed: int, n: int) -> list[list[int]]:
        return [rows.tolist() for rows in islice(epochs(pairs, 2000, seed), n)]

    per_epoch = len(pairs.batches(2000, np.random.default_rng([1, 0])))
    found = order(1, 2 * per_epoch)
    np.random.default_rng(99).random(1000)
    assert order(1, 2 * per_epoch) == found
    assert found[per_epoch:] == [rows.tolist() for rows in pairs.batches(2000, np.random.default_rng([1, 1]))]
    assert found[:per_epoch] != found[per_epoch:]
    assert order(2, per_epoch) != found[:per_epoch]


# --- on disk ------------------------------------------------------------------------------------------------------

SHARDS = (0, 7, 1, 0, 25, 3)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pairs, Pairs]:
    """The same pairs in memory and in shards, some of which are empty."""
    import pyarrow as pa

    folder = tmp_path_factory.mktemp("shards")
    pairs = reversed_pairs(sum(SHARDS), seed=1)
    src, tgt = (
        [row[begin : length - 1].tolist() for row, length in zip(side, lengths, strict=True)]
        for side, lengths, begin in ((pairs.src, pairs.src_lengths, 0), (pairs.tgt, pairs.tgt_lengths, 1))
    )
    ends = np.cumsum(SHARDS)
    for i, (start, end) in enumerate(zip(ends - SHARDS, ends, strict=True)):
        _write_shard(folder / f"{i}.arrow", *(pa.array(side[start:end], pa.list_(pa.uint16())) for side in (src, tgt)), {})
    return pairs, Pairs.from_stored(*stored_tokens(sorted(folder.iterdir()), "digest"))


def equal(a: Pairs, b: Pairs, rows: np.ndarray) -> bool:
    one, other = a.batch(rows), b.batch(rows)
    return one.tokens == other.tokens and all(x.dtype == y.dtype and x.equal(y) for x, y in zip(one[:3], other[:3], strict=True))


@settings(max_examples=30)
@given(st.lists(st.integers(0, sum(SHARDS) - 1), min_size=1, max_size=30))
def test_stored_batches_are_equal(both: tuple[Pairs, Pairs], rows: list[int]) -> None:
    assert equal(*both, np.array(rows))


def test_a_batch_of_more_than_two_bytes_can_count() -> None:
    """Lengths are stored in two bytes; the number of tokens of a batch is not."""
    n = 300
    offsets = np.arange(n + 1, dtype=np.int32) * 200
    tokens = StoredTokens([offsets], [np.full(200 * n, 7, np.uint16)], False, "", n)
    assert [len(rows) for rows in Pairs.from_stored(tokens, tokens).batches(201 * 250)] == [250, 50]


def test_the_first_pairs_and_their_counts(both: tuple[Pairs, Pairs]) -> None:
    for n in (0, 1, 7, 8, 20, 1000):
        memory, stored = (pairs.first(n) for pairs in both)
        assert len(memory) == len(stored)
        if len(memory):
            assert equal(memory, stored, np.arange(len(memory)))
        a, b = memory.label_counts(), stored.label_counts()
        assert np.trim_zeros(a[1:], "b").tolist() == np.trim_zeros(b[1:], "b").tolist()


def test_training_and_translating_are_equal(both: tuple[Pairs, Pairs]) -> None:
    results = []
    for pairs in both:
        model = new_network(MICRO.smallest())
        history = train(model, pairs, Recipe(updates=6, batch_tokens=60, learning_rate=0.01), seed=0)
        results.append((history.loss, history.diverged, translate(model, pairs.first(5), beam=2)))
    assert results[0] == results[1]


def test_stored_pairs_have_a_digest_and_a_device(both: tuple[Pairs, Pairs]) -> None:
    stored = both[1]
    other = Pairs.from_stored(*(StoredTokens(s.offsets, s.values, s.begin, "other", s.n) for s in (stored.src, stored.tgt)))
    assert digest(stored) == digest(stored.to("cpu"))
    assert len({digest(stored), digest(stored.first(3)), digest(other)}) == 3
    moved = stored.to("meta")
    assert moved.src.device == moved.batch(np.arange(3)).src.device == torch.device("meta")
