"""Supernets: a subnet is the leading blocks of the weights, gradients reach those alone, and a mixture is what its experts say."""

from __future__ import annotations

import copy
import json
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


def tokens(n: int = 1, source: int = 5, target: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(4, VOCAB, (n, length), generator=generator) for length in (source, target))  # type: ignore[return-value]


# --- extraction -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_views_are_where_the_supernet_keeps_the_leading_blocks(space: SearchSpace) -> None:
    # Shapes and places tell all, so that no weight need be read or even drawn.
    supernet = SuperTransformer(space, VOCAB)
    whole = dict(supernet.weights.named_parameters())
    for arch in space.sample(200 if space.name in ("TINY", "HAT_WMT") else 20, np.random.default_rng(2)):
        views = dict(supernet.subnet(arch, copy=False).named_parameters())
        del views["embedding.weight"]
        assert all((view.data_ptr(), view.stride()) == (whole[name].data_ptr(), whole[name].stride()) for name, view in views.items())
        assert sum(view.numel() for view in views.values()) == count_parameters(arch, space.qkv_dim)


@pytest.mark.parametrize("kind", KINDS)
def test_an_extracted_subnet_stands_alone(kind: str) -> None:
    supernet, (src, tgt) = new_supernet(kind), tokens()
    for arch in ARCHS:
        subnet = supernet.subnet(arch)
        assert type(subnet) is Transformer
        assert not subnet.training
        assert {p.device.type for p in subnet.parameters()} == {"cpu"}
        assert all(parameter.is_contiguous() and parameter.requires_grad for parameter in subnet.parameters())
        # A plain module of that architecture takes its weights as they are.
        plain = Transformer(arch, MICRO, VOCAB).eval()
        plain.load_state_dict(subnet.state_dict())
        before = supernet(src, tgt, arch)
        assert torch.equal(plain(src, tgt), subnet(src, tgt))
        storages = {parameter.untyped_storage().data_ptr() for parameter in supernet.parameters()}
        assert not storages & {parameter.untyped_storage().data_ptr() for parameter in subnet.parameters()}
        with torch.no_grad():
            for parameter in subnet.parameters():
                parameter.zero_()
        assert torch.equal(supernet(src, tgt, arch), before)


def test_views_follow_the_supernet() -> None:
    supernet, (src, tgt) = new_supernet(), tokens()
    views, copies = supernet.subnet(ARCHS[0], copy=False), supernet.subnet(ARCHS[0])
    before = copies(src, tgt)
    assert not any(parameter.requires_grad for parameter in views.parameters())
    torch.testing.assert_close(views(src, tgt), before)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter *= 0.9
    assert torch.equal(copies(src, tgt), before)
    torch.testing.assert_close(views(src, tgt), supernet(src, tgt, ARCHS[0]))
    assert not torch.allclose(views(src, tgt), before)


def test_the_largest_subnet_is_the_whole_supernet() -> None:
    supernet, (src, tgt) = new_supernet(), tokens()
    assert torch.equal(supernet(src, tgt, MICRO.largest()), supernet.weights(src, tgt))
    assert sum(p.numel() for p in supernet.parameters()) == sum(p.numel() for p in supernet.subnet(MICRO.largest()).parameters())


def test_every_tensor_is_the_leading_block_of_that_name() -> None:
    supernet = new_supernet()
    for arch in ARCHS:
        for name, tensor in supernet.subnet(arch).state_dict().items():
            whole = supernet.weights.get_parameter(name)
            assert torch.equal(tensor, whole[tuple(slice(n) for n in tensor.shape)]), name


@pytest.mark.parametrize("kind", KINDS)
def test_no_call_leaves_a_trace(kind: str) -> None:
    supernet, (src, tgt) = new_supernet(kind), tokens()
    alone = [supernet(src, tgt, arch) for arch in ARCHS]
    for arch, expected in zip(ARCHS[::-1], alone[::-1], strict=True):
        assert torch.equal(supernet(src, tgt, arch), expected)
    # In training mode, too, a call draws dropout anew; afterwards evaluation is what it was.
    supernet.train()
    assert not torch.equal(supernet(src, tgt, ARCHS[0]), supernet(src, tgt, ARCHS[0]))
    assert supernet.subnet(ARCHS[0]).training
    supernet.eval()
    assert torch.equal(supernet(src, tgt, ARCHS[0]), alone[0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_architecture_outside_the_space_is_refused(kind: str) -> None:
    supernet, (src, tgt) = new_supernet(kind), tokens()
    wide = replace(ARCHS[0], encoder_embed_dim=16)
    for call in (lambda: supernet(src, tgt, wide), lambda: supernet.subnet(wide), lambda: supernet.subnet_weights(wide)):
        with pytest.raises(ValueError, match="not in search space MICRO: encoder_embed_dim is 16; allowed are 20, 12"):
            call()
    with pytest.raises(ValueError, match=r"not in search space MICRO: encoder_embed_dim is 640"):
        supernet(src, tgt, HAT_WMT.largest())


# --- gradients --------------------------------------------------------------------------------------------------------


def loss(model: Any, *arguments: Any) -> torch.Tensor:
    batch = reversed_pairs(6, seed=3).batch(np.arange(6))
    return smoothed_loss(model(batch.src, batch.tgt, *arguments), batch.labels, 0.1)


@pytest.mark.parametrize("arch", ARCHS[:4], ids=range(4))
def test_gradients_are_those_of_the_subnet_and_reach_nothing_else(arch: Architecture) -> None:
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
        scores = u2 @ np.maximum(u1 @ features + c1, 0) + c2
        outputs = len(scores) // len(experts)
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
    supernet = SuperTransformer(MICRO, VOCAB, kind, experts=experts)
    supernet.initialise(torch.Generator().manual_seed(1))
    supernet.eval()
    for arch in ARCHS:
        weights = supernet.subnet(arch).state_dict()
        places = [f"encoder-{i}" for i in range(arch.encoder_layers)] + [f"decoder-{i}" for i in range(arch.decoder_layers)]
        for place in places:
            for name, expected in mixed_by_hand(supernet, arch, place).items():
                np.testing.assert_allclose(weights[name], expected, atol=1e-6)
        for name, tensor in weights.items():
            if "ffn." not in name:
                assert torch.equal(tensor, supernet.weights.get_parameter(name)[tuple(slice(n) for n in tensor.shape)])


@pytest.mark.parametrize("kind", MIXTURES)
def test_shares_are_positive_and_sum_to_one_over_the_experts(kind: str) -> None:
    supernet = new_supernet(kind)
    mixture: Any = supernet.mixtures["decoder-0"]
    features = torch.rand(10)
    shares = mixture.shares(features, 16, 18)
    for share in shares.values():
        assert (share > 0).all()
        torch.testing.assert_close(share.sum(dim=0), torch.ones(share.shape[1]))
    if kind == "layer-wise":
        # One share per expert, the same for both matrices.
        assert shares["up"] is shares["down"]
        assert shares["up"].shape == (2, 1)
    else:
        # One per expert and output, those of a narrow network being the first.
        assert (shares["up"].shape, shares["down"].shape) == ((2, 18), (2, 16))
        assert len(shares["up"].unique()) == 36
        whole = mixture.shares(features, 24, 36)
        assert torch.equal(whole["up"][:, :18], shares["up"])
        assert torch.equal(whole["down"][:, :16], shares["down"])


@pytest.mark.parametrize("kind", MIXTURES)
def test_equal_experts_make_the_shared_supernet(kind: str) -> None:
    supernet, (src, tgt) = new_supernet(kind), tokens()
    shared = SuperTransformer(MICRO, VOCAB)
    shared.weights.load_state_dict(supernet.weights.state_dict())
    shared.eval()
    assert not torch.allclose(supernet(src, tgt, ARCHS[0]), shared(src, tgt, ARCHS[0]))
    for place, mixture in supernet.mixtures.items():
        stack, i = place.split("-")
        first = getattr(supernet.weights, stack)[int(i)].ffn
        for other in mixture.others:  # type: ignore[union-attr]
            other.load_state_dict(first.state_dict())
    for arch in ARCHS:
        torch.testing.assert_close(supernet(src, tgt, arch), shared(src, tgt, arch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_start_apart_and_every_layer_has_a_router_of_its_own(kind: str) -> None:
    supernet = new_supernet(kind)
    assert len(supernet.mixtures) == 7
    matrices = [p for p in supernet.parameters() if p.ndim == 2]
    assert len({tuple(p.flatten()[:5].tolist()) for p in matrices}) == len(matrices)
    # Ten features, 128 hidden units.
    routers = [router for mixture in supernet.mixtures.values() for router in mixture.routers.values()]  # type: ignore[union-attr]
    assert len(routers) == (7 if kind == "layer-wise" else 14)
    assert {tuple(router[0].weight.shape) for router in routers} == {(128, 10)}
    outputs = {tuple(router[3].weight.shape) for router in routers}
    assert outputs == ({(2, 128)} if kind == "layer-wise" else {(n, 128) for n in (56, 40, 72, 48)})


def test_units_of_the_router_are_the_published_ones() -> None:
    assert _router_units(HAT_WMT) == [640, 6, 2048, 6, 640, 6, 2048, 6, 6, 2]
    assert _router_units(TINY) == [64, 3, 224 / 3, 3, 64, 6, 224 / 3, 3, 3, 2]


# --- making and describing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_draws_the_same_weights_whatever_was_there(kind: str) -> None:
    first, second, third = new_supernet(kind), new_supernet(kind, seed=5), SuperTransformer(MICRO, VOCAB, kind)
    for supernet, seed in ((first, 7), (second, 7), (third, 8)):
        supernet.initialise(torch.Generator().manual_seed(seed))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True) if a.ndim == 2)
    assert all(torch.isfinite(parameter).all() for parameter in first.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_description_makes_the_supernet_again(kind: str) -> None:
    supernet, (src, tgt) = new_supernet(kind, dropout=0.25), tokens()
    record = json.loads(json.dumps(supernet.describe()))
    assert record.pop("arch") is None
    again = SuperTransformer(MICRO, **record)
    again.load_state_dict(supernet.state_dict())
    assert again.describe() == supernet.describe()
    assert torch.equal(again.eval()(src, tgt, ARCHS[0]), supernet(src, tgt, ARCHS[0]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda supernet: pickle.loads(pickle.dumps(supernet))], ids=["copy", "process"])
def test_a_copy_stands_alone(copied: Any, kind: str) -> None:
    supernet, (src, tgt) = new_supernet(kind), tokens()
    before = supernet(src, tgt, ARCHS[0])
    again = copied(supernet)
    assert torch.equal(again(src, tgt, ARCHS[0]), before)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    assert torch.equal(supernet(src, tgt, ARCHS[0]), before)
    assert not torch.allclose(again(src, tgt, ARCHS[0]), before)


def test_dropout_of_a_subnet_is_that_of_its_plain_module() -> None:
    supernet = new_supernet(dropout=0.3)
    for arch in ARCHS:
        plain = new_network(arch, dropout=0.3)
        rates = [[m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] for model in (plain, supernet.subnet(arch))]
        assert rates[0] == rates[1]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind: 'sandwich' is not allowed; allowed are shared, layer-wise, neuron-wise"):
        SuperTransformer(MICRO, VOCAB, "sandwich")
