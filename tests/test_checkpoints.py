"""Checkpoints: what is in one comes back as it was, and one that is damaged or of something else says so in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import MICRO, VOCAB, new_network, new_supernet, reversed_pairs

from llmpp_core.jobs.files import load_tensors, save_tensors
from llmpp_core.nets import checkpoints, training
from llmpp_core.nets.checkpoints import digest, load_network, read_checkpoint, space_record, write_checkpoint
from llmpp_core.nets.supernet import KINDS, SuperTransformer
from llmpp_core.nets.training import Recipe, sandwich, train, uniform
from llmpp_core.nets.transformer import Transformer
from llmpp_core.space.search_space import SPACES, TINY, SearchSpace
from llmpp_core.text.batches import Pairs

RECIPE = Recipe(updates=6, batch_tokens=100, learning_rate=0.01)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_divergence", lambda *arguments: None)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return reversed_pairs(60, seed=0)


def single(arch: Any = None, space: SearchSpace = MICRO, vocab_size: int = VOCAB, dropout: float = 0.1) -> Transformer:
    return Transformer(arch or space.smallest(), space, vocab_size, dropout)


def begun(path: Path, pairs: Pairs, model: Any = None, **settings: Any) -> Path:
    """Return the checkpoint of a training that stopped after one update."""
    train(model or single(), pairs, RECIPE, **{"seed": 0, "checkpoint": path, "seconds": 0, **settings})
    return path


# --- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", *KINDS])
def test_network_and_optimiser_come_back_as_they_were(kind: str, tmp_path: Path) -> None:
    model: Any = new_network(MICRO.largest()) if kind == "plain" else new_supernet(kind)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    arguments = () if kind == "plain" else (MICRO.smallest(),)
    model(torch.tensor([[4, 2]]), torch.tensor([[1, 5]]), *arguments).sum().backward()
    optimiser.step()
    identity, history = {"network": model.describe(), "space": space_record(MICRO)}, {"finished": False, "loss": [1.5]}
    write_checkpoint(tmp_path / "c", identity, model, optimiser, history)
    again: Any = new_network(MICRO.largest(), seed=1) if kind == "plain" else new_supernet(kind, seed=1)
    other = torch.optim.Adam(again.parameters(), lr=0.1, fused=True)
    assert read_checkpoint(tmp_path / "c", json.loads(json.dumps(identity)), again, other) == history
    for ours, theirs in ((again.state_dict(), model.state_dict()), (load_network(tmp_path / "c").state_dict(), model.state_dict())):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    before, after = optimiser.state_dict()["state"], other.state_dict()["state"]
    # Parameters that no update has reached yet have no state.
    assert before.keys() == after.keys()
    assert (len(before) < len(list(model.parameters()))) == (kind != "plain")
    for i, state in before.items():
        assert all(torch.equal(state[name], after[i][name]) and state[name].shape == after[i][name].shape for name in state)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_space_comes_back_from_json(space: SearchSpace) -> None:
    record = json.loads(json.dumps(space_record(space)))
    assert SearchSpace(**{name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}) == space


def test_a_digest_tells_corpora_apart() -> None:
    pairs = reversed_pairs(20, seed=0)
    assert digest(pairs) == digest(reversed_pairs(20, seed=0))
    changed = Pairs(pairs.src.clone(), pairs.tgt.clone(), pairs.src_lengths, pairs.tgt_lengths)
    changed.tgt[7, 1] += 1
    assert len({digest(p) for p in (pairs, changed, reversed_pairs(21, seed=0), reversed_pairs(20, seed=1))}) == 4


def test_the_optimiser_of_a_finished_training_is_not_kept(pairs: Pairs, tmp_path: Path) -> None:
    begun(tmp_path / "c", pairs)
    assert any(name.startswith("optimiser.") for name in load_tensors(tmp_path / "c", "training")[0])
    train(single(), pairs, RECIPE, seed=0, checkpoint=tmp_path / "c")
    assert not any(name.startswith("optimiser.") for name in load_tensors(tmp_path / "c", "training")[0])


def test_an_earlier_checkpoint_that_does_not_say_how_many_batches_make_an_update_goes_on(pairs: Pairs, tmp_path: Path) -> None:
    path = begun(tmp_path / "c", pairs)
    arrays, record = load_tensors(path, "training")
    del record["identity"]["recipe"]["accumulate"]
    save_tensors(path, "training", arrays, record)
    with pytest.raises(ValueError, match=r"recipe\.accumulate is 1 there and 2 here"):
        train(single(), pairs, replace(RECIPE, accumulate=2), seed=0, checkpoint=path)
    assert train(single(), pairs, RECIPE, seed=0, checkpoint=path).finished


# --- what is refused --------------------------------------------------------------------------------------------------

OTHER_SPACE = replace(MICRO, name="OTHER", decoder_ffn_dims=(36, 18, 9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"recipe": replace(RECIPE, updates=7)}, "recipe.updates is 6 there and 7 here"),
        ({"recipe": replace(RECIPE, learning_rate=0.5, clip=2.0)}, "recipe.clip is 1.0 there and 2.0 here; recipe.learning_rate is 0.01"),
        ({"model": lambda: single(dropout=0.2)}, "network.dropout is 0.1 there and 0.2 here"),
        ({"model": lambda: single(vocab_size=13)}, "network.vocab_size is 12 there and 13 here"),
        ({"model": lambda: single(MICRO.largest())}, "network.arch is encoder-embed-dim-subtransformer: 12"),
        ({"model": lambda: single(MICRO.smallest(), OTHER_SPACE)}, "is [36, 18] there and [36, 18, 9] here; space.name is MICRO"),
        ({"pairs": reversed_pairs(60, seed=1)}, "pairs is "),
        ({"model": lambda: SuperTransformer(MICRO, VOCAB), "sampling": uniform}, "network.kind is None there and shared here"),
    ],
)
def test_a_checkpoint_of_another_training_says_what_differs(change: dict[str, Any], message: str, pairs: Pairs, tmp_path: Path) -> None:
    path = begun(tmp_path / "c.safetensors", pairs)
    before = path.read_bytes()
    new: dict[str, Any] = {"model": single, "pairs": pairs, "recipe": RECIPE, "seed": 0, **change}
    with pytest.raises(ValueError, match=r"c\.safetensors is of another training: ") as caught:
        train(new.pop("model")(), new.pop("pairs"), new.pop("recipe"), **new, checkpoint=path)
    assert message in str(caught.value)
    assert str(caught.value).endswith("; choose another file or remove it")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_supernets_of_other_kinds_and_samplings_are_told_apart(pairs: Pairs, tmp_path: Path) -> None:
    path = begun(tmp_path / "c", pairs, SuperTransformer(MICRO, VOCAB, "layer-wise"), sampling=uniform)
    for model, sampling, message in (
        (SuperTransformer(MICRO, VOCAB, "layer-wise"), sandwich, "sampling is uniform there and sandwich here"),
        (SuperTransformer(MICRO, VOCAB, "neuron-wise"), uniform, "network.kind is layer-wise there and neuron-wise here"),
        (SuperTransformer(MICRO, VOCAB, "layer-wise", experts=3), uniform, "network.experts is 2 there and 3 here"),
    ):
        with pytest.raises(ValueError, match=f"is of another training: {message}"):
            train(model, pairs, RECIPE, seed=0, sampling=sampling, checkpoint=path)


def test_a_network_of_another_space_is_refused(pairs: Pairs, tmp_path: Path) -> None:
    path = begun(tmp_path / "c.safetensors", pairs, SuperTransformer(MICRO, VOCAB), sampling=uniform)
    assert load_network(path, MICRO).space == load_network(path).space == MICRO
    message = r"c\.safetensors is of another search space than TINY: name is MICRO there and TINY here; encoder_embed_dim is \[20, 12\]"
    with pytest.raises(ValueError, match=message):
        load_network(path, TINY)


READERS: dict[str, Callable[[Path, Pairs], object]] = {
    "load_network": lambda path, pairs: load_network(path),
    "train": lambda path, pairs: train(single(), pairs, RECIPE, seed=0, checkpoint=path),
}


@pytest.mark.parametrize("reader", READERS)
def test_damaged_checkpoints_are_refused_by_name(reader: str, pairs: Pairs, tmp_path: Path, rng: np.random.Generator) -> None:
    path = begun(tmp_path / "c.safetensors", pairs)
    whole = path.read_bytes()
    flipped = [bytearray(whole) for _ in range(20)]
    for content, bit in zip(flipped, rng.choice(8 * len(whole), size=20, replace=False), strict=True):
        content[bit // 8] ^= 1 << bit % 8
    for content in (b"", b"text", whole[:100], whole[: len(whole) // 2], whole[:-1], *flipped):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"c\.safetensors: damaged") as caught:
            READERS[reader](path, pairs)
        assert "\n" not in str(caught.value)
    save_tensors(path, "distill", {"a": np.zeros(2)}, {})
    with pytest.raises(ValueError, match=r"c\.safetensors: not a checkpoint of kind 'training'"):
        READERS[reader](path, pairs)


def test_a_failed_write_leaves_the_old_checkpoint(pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = begun(tmp_path / "c", pairs)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        train(single(), pairs, RECIPE, seed=0, checkpoint=path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_long_values_are_shortened() -> None:
    assert checkpoints._differences("", {"a": {"b": "x" * 90}}, {"a": {"b": 1}}) == [f"a.b is {'x' * 37}... there and 1 here"]
