"""Checkpoints: what is in one comes back as it was, and one that is damaged or of something else says so in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import MICRO, VOCAB, new_network, new_supernet, reversed_pairs

from llmpp_core.jobs.files import save_tensors
from llmpp_core.nets.checkpoints import digest, load_network, read_checkpoint, space_record, write_checkpoint
from llmpp_core.nets.supernet import KINDS, SuperTransformer
from llmpp_core.nets.training import Recipe, sandwich, train, uniform
from llmpp_core.nets.transformer import Transformer
from llmpp_core.space.search_space import TINY, SearchSpace
from llmpp_core.text.batches import Pairs

RECIPE = Recipe(updates=6, batch_tokens=100, learning_rate=0.01)
PAIRS = reversed_pairs(60, seed=0)


def single(arch: Any = None, space: SearchSpace = MICRO, dropout: float = 0.1) -> Transformer:
    return Transformer(arch or space.smallest(), space, VOCAB, dropout)


def mixture(kind: str = "layer-wise") -> SuperTransformer:
    return SuperTransformer(MICRO, VOCAB, kind)


def begun(path: Path, model: Any = None, **settings: Any) -> Path:
    """Return the checkpoint of a training that stopped after one update."""
    train(model or single(), PAIRS, RECIPE, **{"seed": 0, "checkpoint": path, "seconds": 0, **settings})
    return path


@pytest.mark.parametrize("kind", ["plain", *KINDS])
def test_network_and_optimiser_come_back_as_they_were(kind: str, tmp_path: Path) -> None:
    def new(seed: int) -> Any:
        return new_network(MICRO.largest(), seed=seed, dropout=0.25) if kind == "plain" else new_supernet(kind, seed=seed, dropout=0.25)

    model, again = new(0), new(1)
    optimiser, other = (torch.optim.Adam(net.parameters(), lr=0.1, fused=True) for net in (model, again))
    arguments = () if kind == "plain" else (MICRO.smallest(),)
    model(torch.tensor([[4, 2]]), torch.tensor([[1, 5]]), *arguments).sum().backward()
    optimiser.step()
    identity, history = {"network": model.describe(), "space": space_record(MICRO)}, {"finished": False, "loss": [1.5]}
    write_checkpoint(tmp_path / "c", identity, model, optimiser, history)
    assert read_checkpoint(tmp_path / "c", json.loads(json.dumps(identity)), again, other) == history
    loaded = load_network(tmp_path / "c")
    assert (type(loaded), loaded.describe(), loaded.space) == (type(model), model.describe(), MICRO)
    for net in (again, loaded):
        assert net.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    before, after = optimiser.state_dict()["state"], other.state_dict()["state"]
    # Parameters that no update has reached yet have no state.
    assert before.keys() == after.keys()
    assert (len(before) < len(list(model.parameters()))) == (kind != "plain")
    for i, state in before.items():
        assert all(torch.equal(state[name], after[i][name]) and state[name].shape == after[i][name].shape for name in state)


def test_a_digest_tells_corpora_apart() -> None:
    pairs = reversed_pairs(20, seed=0)
    assert digest(pairs) == digest(reversed_pairs(20, seed=0))
    changed = Pairs(pairs.src.clone(), pairs.tgt.clone(), pairs.src_lengths, pairs.tgt_lengths)
    changed.tgt[7, 1] += 1
    assert len({digest(p) for p in (pairs, changed, reversed_pairs(21, seed=0), reversed_pairs(20, seed=1))}) == 4


OTHER_SPACE = replace(MICRO, name="OTHER", decoder_ffn_dims=(36, 18, 9))


@pytest.mark.parametrize(
    ("made", "change", "message"),
    [
        (single, {"seed": 1}, "seed is 0 there and 1 here"),
        (single, {"recipe": replace(RECIPE, learning_rate=0.5, clip=2.0)}, "recipe.clip is 1.0 there and 2.0 here; recipe.learning_rate"),
        (single, {"recipe": replace(RECIPE, dropout=0.2)}, "network.dropout is 0.1 there and 0.2 here; recipe.dropout"),
        (single, {"model": single(MICRO.largest())}, "network.arch is encoder-embed-dim-subtransformer: 12"),
        (single, {"model": single(MICRO.smallest(), OTHER_SPACE)}, "is [36, 18] there and [36, 18, 9] here; space.name is MICRO"),
        (single, {"pairs": reversed_pairs(60, seed=1)}, "pairs is "),
        (single, {"model": mixture(), "sampling": uniform}, "network.kind is None there and layer-wise here"),
        (mixture, {"sampling": sandwich}, "sampling is uniform there and sandwich here"),
        (mixture, {"model": mixture("neuron-wise")}, "network.kind is layer-wise there and neuron-wise here"),
    ],
)
def test_a_checkpoint_of_another_training_says_what_differs(made: Any, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    sampling = None if made is single else uniform
    path = begun(tmp_path / "c.safetensors", made(), sampling=sampling)
    before = path.read_bytes()
    new: dict[str, Any] = {"model": made(), "pairs": PAIRS, "recipe": RECIPE, "seed": 0, "sampling": sampling, **change}
    with pytest.raises(ValueError, match=r"c\.safetensors is of another training: .*; choose another file or remove it$") as caught:
        train(**new, checkpoint=path)
    assert message in str(caught.value)
    assert path.read_bytes() == before


def test_a_network_of_another_space_is_refused(tmp_path: Path) -> None:
    path = begun(tmp_path / "c.safetensors", mixture(), sampling=uniform)
    assert load_network(path, MICRO).space == MICRO
    message = r"c\.safetensors is of another search space than TINY: name is MICRO there and TINY here; encoder_embed_dim is \[20, 12\]"
    with pytest.raises(ValueError, match=message):
        load_network(path, TINY)


def test_damaged_checkpoints_are_refused_by_name(tmp_path: Path, rng: np.random.Generator) -> None:
    # Every kind of damage is in test_files.py, a training that meets it in test_distributed.py.
    path = begun(tmp_path / "c.safetensors")
    flipped = bytearray(path.read_bytes())
    flipped[int(rng.integers(len(flipped)))] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"c\.safetensors: damaged[^\n]*$"):
        load_network(path)
    save_tensors(path, "distill", {"a": np.zeros(2)}, {})
    for read in (load_network, begun):
        with pytest.raises(ValueError, match=r"c\.safetensors: not a checkpoint of kind 'training'"):
            read(path)
