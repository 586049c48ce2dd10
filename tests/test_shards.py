"""Tokens on disk behave as the padded tensors they stand in for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import MICRO, new_network, reversed_pairs

from llmpp_core.nets.checkpoints import digest
from llmpp_core.nets.decoding import translate
from llmpp_core.nets.training import Recipe, train
from llmpp_core.text.batches import Pairs, epochs
from llmpp_core.text.shards import StoredTokens, read_shard, stored_tokens, write_shard

SHARDS = (0, 7, 1, 0, 25, 3)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pairs, Pairs]:
    """The same pairs in memory and in shards, some of which are empty."""
    import pyarrow as pa

    folder = tmp_path_factory.mktemp("shards")
    pairs = reversed_pairs(sum(SHARDS), seed=1)
    tokens = [
        [row[begin : length - 1].tolist() for row, length in zip(side, lengths, strict=True)]
        for side, lengths, begin in ((pairs.src, pairs.src_lengths, 0), (pairs.tgt, pairs.tgt_lengths, 1))
    ]
    paths, start = [], 0
    for i, n in enumerate(SHARDS):
        columns = {
            name: pa.array(side[start : start + n], pa.list_(pa.uint16())) for name, side in zip(("src", "tgt"), tokens, strict=True)
        }
        paths.append(folder / f"{i}.arrow")
        write_shard(paths[-1], columns, {"shard": i})
        start += n
    return pairs, Pairs.from_stored(*stored_tokens(paths, "digest"))


def equal(a: Pairs, b: Pairs, rows: np.ndarray) -> bool:
    one, other = a.batch(rows), b.batch(rows)
    return one.tokens == other.tokens and all(x.dtype == y.dtype and x.equal(y) for x, y in zip(one[:3], other[:3], strict=True))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, sum(SHARDS) - 1), min_size=1, max_size=30))
def test_batches_are_equal(both: tuple[Pairs, Pairs], rows: list[int]) -> None:
    assert equal(*both, np.array(rows))


def test_the_order_of_batches_is_equal(both: tuple[Pairs, Pairs]) -> None:
    memory, stored = both
    assert (len(memory), stored.src_lengths.dtype) == (len(stored), np.int16)
    # Lengths are stored in two bytes; the number of tokens of a batch is not.
    for limit in (12, 40, 10**6):
        for a, b in zip(memory.batches(limit), stored.batches(limit), strict=True):
            assert a.tolist() == b.tolist()
    a, b = (next(epochs(pairs, 30, seed=3)) for pairs in both)
    assert a.tolist() == b.tolist()


def test_a_batch_of_more_than_two_bytes_can_count(tmp_path: Path) -> None:
    n = 300
    offsets = np.arange(n + 1, dtype=np.int32) * 200
    tokens = StoredTokens([offsets], [np.full(200 * n, 7, np.uint16)], False, "", n)
    pairs = Pairs.from_stored(tokens, tokens)
    assert [len(rows) for rows in pairs.batches(201 * 250)] == [250, 50]


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
        history = train(model, pairs, Recipe(updates=12, batch_tokens=60, learning_rate=0.01), seed=0)
        results.append((history.loss, history.diverged, translate(model, pairs.first(5), beam=2)))
    assert results[0] == results[1]


def test_a_digest_tells_corpora_apart(both: tuple[Pairs, Pairs]) -> None:
    stored = both[1]
    assert digest(stored) == digest(stored.to("cpu"))
    other = Pairs.from_stored(*(StoredTokens(s.offsets, s.values, s.begin, "other", s.n) for s in (stored.src, stored.tgt)))
    assert len({digest(stored), digest(stored.first(3)), digest(other)}) == 3


def test_batches_go_to_the_device(both: tuple[Pairs, Pairs]) -> None:
    moved = both[1].to("meta")
    assert moved.src.device == torch.device("meta")
    assert moved.batch(np.arange(3)).src.device == torch.device("meta")


@pytest.mark.parametrize("spoil", [lambda data: data[:50], lambda data: data[:-30], lambda data: b"", lambda data: b"text" * 100])
def test_a_damaged_shard_is_named(tmp_path: Path, spoil) -> None:
    path = tmp_path / "a.arrow"
    write_shard(path, {"src": ["one", "two"]}, {})
    assert read_shard(path)[1] == {"rows": 2}
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.arrow: damaged; remove what is left of it and prepare the corpus again$"):
        read_shard(path)


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.arrow: missing"):
        read_shard(tmp_path / "a.arrow")
