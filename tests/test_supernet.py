"""Supernets: a subnet is the leading blocks of the weights, gradients reach those alone, and a mixture is what its experts say."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import MICRO, VOCAB, new_network, new_supernet, reversed_pairs

from llmpp_core.nets.supernet import KINDS, SuperTransformer, _router_units
from llmpp_core.nets.training import smoothed_loss
from llmpp_core.nets.transformer import Transformer
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.cost import count_parameters
from llmpp_core.space.features import HATFeatures
from llmpp_core.space.search_space import HAT_WMT, SPACES, TINY, SearchSpace

MIXTURES = KINDS[1:]
ARCHS = MICRO.sample(8, np.random.default_rng(0))


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randint(4, VOCAB, (1, 5), generator=generator) for _ in range(2))  # type: ignore[return-value]


# --- extraction -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [MICRO, *SPACES.values()], ids=lambda space: space.name)
def test_views_are_where_the_supernet_keeps_the_leading_blocks(space: SearchSpace) -> None:
    # Shapes and places tell all, so that no weight need be read or even drawn.
    supernet = SuperTransformer(space, VOCAB)
    whole = dict(supernet.weights.named_parameters())
    for arch in [space.smallest(), space.largest(), *space.sample(20, np.random.default_rng(2))]:
        views = dict(supernet.subnet(arch, copy=False).named_parameters())
        assert views["embedding.weight"].shape == (VOCAB, max(arch.encoder_embed_dim, arch.decoder_embed_dim))
        assert all((view.data_ptr(), view.stride()) == (whole[name].data_ptr(), whole[name].stride()) for name, view in views.items())
        assert not any(view.requires_grad for view in views.values())
        del views["embedding.weight"]
        assert sum(view.numel() for view in views.values()) == count_parameters(arch, space.qkv_dim)


@pytest.mark.parametrize("kind", KINDS)
def test_an_extracted_subnet_computes_the_same_and_stands_alone(kind: str) -> None:
    supernet, (src, tgt) = new_supernet(kind, dropout=0.3), tokens()
    for arch in ARCHS[:4]:
        subnet = supernet.subnet(arch)
        assert type(subnet) is Transformer
        assert not subnet.training
        assert all(parameter.is_contiguous() and parameter.requires_grad for parameter in subnet.parameters())
        # A plain module of that architecture takes its weights as they are, and has the same dropout.
        plain = new_network(arch, dropout=0.3)
        plain.load_state_dict(subnet.state_dict())
        rates = [[m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] for model in (plain, subnet)]
        assert rates[0] == rates[1]
        before = supernet(src, tgt, arch)
        torch.testing.assert_close(subnet(src, tgt), before, rtol=1e-6, atol=1e-6)
        assert torch.equal(plain(src, tgt), subnet(src, tgt))
        with torch.no_grad():
            for parameter in subnet.parameters():
                parameter.zero_()
        assert torch.equal(supernet(src, tgt, arch), before)


@pytest.mark.parametrize("kind", KINDS)
def test_no_call_leaves_a_trace(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmpp_core.nets.supernet._SKELETONS", 3)
    supernet, (src, tgt) = new_supernet(kind), tokens()
    alone = [supernet(src, tgt, arch) for arch in ARCHS]
    for arch, expected in zip(ARCHS[::-1], alone[::-1], strict=True):
        assert torch.equal(supernet(src, tgt, arch), expected)
    assert len(supernet._skeletons) <= 3
    # In training mode, too, a call draws dropout anew; afterwards evaluation is what it was.
    supernet.train()
    assert not torch.equal(supernet(src, tgt, ARCHS[0]), supernet(src, tgt, ARCHS[0]))
    assert supernet.subnet(ARCHS[0]).training
    supernet.eval()
    assert torch.equal(supernet(src, tgt, ARCHS[0]), alone[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_stands_alone(kind: str) -> None:
    supernet, (src, tgt) = new_supernet(kind), tokens()
    before = supernet(src, tgt, ARCHS[0])
    again = pickle.loads(pickle.dumps(supernet))
    assert not again._skeletons
    assert torch.equal(again(src, tgt, ARCHS[0]), before)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    assert torch.equal(supernet(src, tgt, ARCHS[0]), before)
    assert not torch.allclose(again(src, tgt, ARCHS[0]), before)


def test_what_is_not_in_the_space_is_refused() -> None:
    supernet, (src, tgt), wide = new_supernet(), tokens(), replace(ARCHS[0], encoder_embed_dim=16)
    calls = (supernet.subnet, supernet.subnet_weights, lambda arch: supernet(src, tgt, arch), lambda arch: Transformer(arch, MICRO, VOCAB))
    for call in calls:
        with pytest.raises(ValueError, match="not in search space MICRO: encoder_embed_dim is 16; allowed are 20, 12"):
            call(wide)
    with pytest.raises(ValueError, match="kind: 'sandwich' is not allowed; allowed are shared, layer-wise, neuron-wise"):
        SuperTransformer(MICRO, VOCAB, "sandwich")


# --- gradients --------------------------------------------------------------------------------------------------------


def loss(model: Any, *arguments: Any) -> torch.Tensor:
    batch = reversed_pairs(6, seed=3).batch(np.arange(6))
    return smoothed_loss(model(batch.src, batch.tgt, *arguments), batch.labels, 0.1)


def test_gradients_are_those_of_the_subnet_and_reach_nothing_else() -> None:
    for arch in ARCHS[:3]:
        supernet = new_supernet()
        subnet = supernet.subnet(arch)
        loss(supernet, arch).backward()
        loss(subnet).backward()
        expected = {name: parameter.grad for name, parameter in subnet.named_parameters()}
        for name, parameter in supernet.weights.named_parameters():
            if name not in expected:
                assert parameter.grad is None, name
                continue
            block = tuple(slice(n) for n in expected[name].shape)
            torch.testing.assert_close(parameter.grad[block], expected[name], rtol=1e-4, atol=1e-5)
            rest = parameter.grad.clone()
            rest[block] = 0
            assert not rest.any(), name
            assert expected[name].any(), name


@pytest.mark.parametrize("kind", MIXTURES)
def test_gradients_of_a_mixture_reach_every_expert_and_router_of_its_layers(kind: str) -> None:
    supernet, arch = new_supernet(kind), MICRO.smallest()
    loss(supernet, arch).backward()
    for place, mixture in supernet.mixtures.items():
        stack, i = place.split("-")
        used = int(i) < len(getattr(arch, f"{stack}_ffn_dims"))
        for name, parameter in mixture.named_parameters():
            assert (parameter.grad is not None and bool(parameter.grad.any())) == used, (place, name)
    # Of an expert beside the first only the block in use is reached.
    dim, hidden = arch.decoder_embed_dim, arch.decoder_ffn_dims[0]
    up = supernet.mixtures["decoder-0"].others[0].up.weight.grad
    assert up[:hidden, :dim].any()
    assert not up[hidden:].any()
    assert not up[:, dim:].any()


# --- mixtures ---------------------------------------------------------------------------------------------------------


def mixed_by_hand(supernet: SuperTransformer, arch: Architecture, place: str) -> dict[str, np.ndarray]:
    """Return the mixed feed-forward tensors of a layer, from the routers' formula written down again."""
    stack, i = place.split("-")
    mixture: Any = supernet.mixtures[place]
    dim, hidden = getattr(arch, f"{stack}_embed_dim"), getattr(arch, f"{stack}_ffn_dims")[int(i)]
    features = HATFeatures().transform([arch])[0] / np.array(_router_units(supernet.space))
    experts = [getattr(supernet.weights, stack)[int(i)].ffn, *mixture.others]
    found = {}
    for name, rows, columns in (("up", hidden, dim), ("down", dim, hidden)):
        router = mixture.routers["both" if supernet.kind == "layer-wise" else name]
        u1, c1, u2, c2 = (parameter.detach().double().numpy() for parameter in router.parameters())
        assert u1.shape == (128, 10)
        scores = u2 @ np.maximum(u1 @ features + c1, 0) + c2
        outputs = len(scores) // len(experts)
        assert outputs == (1 if supernet.kind == "layer-wise" else getattr(experts[0], name).out_features)
        shares = np.exp([scores[e * outputs : (e + 1) * outputs] for e in range(len(experts))])
        shares /= shares.sum(axis=0)
        for tensor in ("weight", "bias"):
            whole = np.array([getattr(getattr(expert, name), tensor).detach().double().numpy() for expert in experts])
            block = whole[:, :rows, :columns] if tensor == "weight" else whole[:, :rows]
            share = shares[:, :rows].reshape(len(experts), -1, *[1] * (block.ndim - 2))
            found[f"{stack}.{i}.ffn.{name}.{tensor}"] = (share * block).sum(axis=0)
    return found


@pytest.mark.parametrize("experts", [2, 3])
@pytest.mark.parametrize("kind", MIXTURES)
def test_collapsed_weights_are_the_mixture_of_the_formula(kind: str, experts: int) -> None:
    supernet = new_supernet(kind, experts=experts)
    for arch in ARCHS[:4]:
        weights = supernet.subnet(arch).state_dict()
        places = [f"encoder-{i}" for i in range(arch.encoder_layers)] + [f"decoder-{i}" for i in range(arch.decoder_layers)]
        for place in places:
            for name, expected in mixed_by_hand(supernet, arch, place).items():
                np.testing.assert_allclose(weights[name], expected, atol=1e-6)


def test_units_of_the_router_are_the_published_ones() -> None:
    assert _router_units(HAT_WMT) == [640, 6, 2048, 6, 640, 6, 2048, 6, 6, 2]
    assert _router_units(TINY) == [64, 3, 224 / 3, 3, 64, 6, 224 / 3, 3, 3, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_draws_the_same_weights_whatever_was_there_and_experts_start_apart(kind: str) -> None:
    first, second, third = new_supernet(kind), new_supernet(kind, seed=5), SuperTransformer(MICRO, VOCAB, kind)
    for supernet, seed in ((first, 7), (second, 7), (third, 8)):
        supernet.initialise(torch.Generator().manual_seed(seed))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True) if a.ndim == 2)
    assert all(torch.isfinite(parameter).all() for parameter in first.parameters())
    matrices = [p for p in first.parameters() if p.ndim == 2]
    assert len({tuple(p.flatten()[:5].tolist()) for p in matrices}) == len(matrices)
