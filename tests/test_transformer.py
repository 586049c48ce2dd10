"""The forward pass against PyTorch's layers and against arithmetic written down again, and what no output may depend on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import MICRO, VOCAB, new_network, reversed_pairs
from torch import nn

from llmpp_core.nets.transformer import MAX_LENGTH, DecoderLayer, EncoderLayer, Memory, Transformer
from llmpp_core.space.architecture import SPAN_LAYERS, Architecture
from llmpp_core.space.cost import count_parameters
from llmpp_core.space.search_space import SPACES, TINY, SearchSpace
from llmpp_core.text.vocabulary import PAD

ARCHS = MICRO.sample(12, np.random.default_rng(0))


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return module


def copy(pairs: list[tuple[Any, Any]]) -> None:
    """Give the first of each pair of modules the second's weight and bias."""
    for to, of in pairs:
        to.weight.copy_(of.weight)
        to.bias.copy_(of.bias)


# --- layers of equal widths are PyTorch's -----------------------------------------------------------------------------


@pytest.fixture
def source() -> tuple[torch.Tensor, torch.Tensor]:
    """States of five tokens, and which of them are there."""
    states = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))
    return states, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)


def test_an_encoder_layer_is_pytorchs(source: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours: Any = randomise(EncoderLayer(32, 32, 48, 4, dropout=0.0))
    theirs = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True)
    copy([(theirs.self_attn.out_proj, ours.attention.out), (theirs.linear1, ours.ffn.up), (theirs.linear2, ours.ffn.down)])
    copy([(theirs.norm1, ours.attention_norm), (theirs.norm2, ours.ffn_norm)])
    theirs.self_attn.in_proj_weight.copy_(ours.attention.qkv.weight)
    theirs.self_attn.in_proj_bias.copy_(ours.attention.qkv.bias)
    states, mask = source
    expected = theirs(states, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours(states, mask[:, None, None, :])[mask], expected[mask], rtol=1e-5, atol=1e-5)


def test_a_decoder_layer_is_pytorchs(source: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours: Any = randomise(DecoderLayer(32, 32, 32, 48, (4, 2), span=-1, dropout=0.0))
    theirs: Any = nn.TransformerDecoderLayer(32, 4, 48, dropout=0.0, batch_first=True)
    theirs.multihead_attn = nn.MultiheadAttention(32, 2, batch_first=True)
    copy([(theirs.self_attn.out_proj, ours.attention.out), (theirs.multihead_attn.out_proj, ours.cross.out)])
    copy([(theirs.linear1, ours.ffn.up), (theirs.linear2, ours.ffn.down)])
    copy([(theirs.norm1, ours.attention_norm), (theirs.norm2, ours.cross_norm), (theirs.norm3, ours.ffn_norm)])
    theirs.self_attn.in_proj_weight.copy_(ours.attention.qkv.weight)
    theirs.self_attn.in_proj_bias.copy_(ours.attention.qkv.bias)
    theirs.multihead_attn.in_proj_weight.copy_(torch.cat([ours.cross.query.weight, ours.cross.key_value.weight]))
    theirs.multihead_attn.in_proj_bias.copy_(torch.cat([ours.cross.query.bias, ours.cross.key_value.bias]))
    states, mask = source
    x = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(2))
    future = torch.ones(4, 4, dtype=torch.bool).triu(1)
    expected = theirs(x, states, tgt_mask=future, memory_key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, Memory([states], mask)), expected, rtol=1e-5, atol=1e-5)


# --- the whole network, written down again in NumPy -------------------------------------------------------------------


def reference(model: Transformer, src: list[int], tgt: list[int]) -> np.ndarray:
    """Return the logits of one sentence pair without padding."""
    w = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    arch, full = model.arch, max(*model.space.encoder_embed_dim, *model.space.decoder_embed_dim)

    def linear(x: np.ndarray, name: str, rows: slice = slice(None)) -> np.ndarray:
        return x @ w[f"{name}.weight"][rows].T + w[f"{name}.bias"][rows]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def embed(tokens: list[int], dim: int) -> np.ndarray:
        rates = 10000 ** (-np.arange(full // 2) / (full // 2 - 1))
        angles = np.arange(len(tokens))[:, None] * rates
        positions = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        return w["embedding.weight"][tokens, :dim] * math.sqrt(dim) + positions[:, :dim]

    def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, heads: int, causal: bool = False) -> np.ndarray:
        width = query.shape[1] // heads
        found = []
        for columns in (slice(i * width, (i + 1) * width) for i in range(heads)):
            energy = query[:, columns] @ key[:, columns].T / math.sqrt(width)
            if causal:
                energy = np.where(np.arange(len(key)) > np.arange(len(query))[:, None], -np.inf, energy)
            share = np.exp(energy - energy.max(axis=1, keepdims=True))
            found.append(share / share.sum(axis=1, keepdims=True) @ value[:, columns])
        return np.concatenate(found, axis=1)

    def self_attention(x: np.ndarray, name: str, heads: int, causal: bool = False) -> np.ndarray:
        q = model.space.qkv_dim
        parts = [linear(x, f"{name}.qkv", slice(i * q, (i + 1) * q)) for i in range(3)]
        return linear(attend(*parts, heads, causal), f"{name}.out")

    def ffn(x: np.ndarray, name: str) -> np.ndarray:
        return linear(np.maximum(linear(x, f"{name}.up"), 0), f"{name}.down")

    states = [embed(src, arch.encoder_embed_dim)]
    for i, heads in enumerate(arch.encoder_heads):
        x = norm(states[-1] + self_attention(states[-1], f"encoder.{i}.attention", heads), f"encoder.{i}.attention_norm")
        states.append(norm(x + ffn(x, f"encoder.{i}.ffn"), f"encoder.{i}.ffn_norm"))
    x = embed(tgt, arch.decoder_embed_dim)
    for i, span in enumerate(arch.decoder_cross_spans):
        name, q = f"decoder.{i}", model.space.qkv_dim
        x = norm(x + self_attention(x, f"{name}.attention", arch.decoder_self_heads[i], causal=True), f"{name}.attention_norm")
        read = np.concatenate(states[-{-1: 1, 1: 2, 2: 3}[span] :])
        key, value = (linear(read, f"{name}.cross.key_value", slice(j * q, (j + 1) * q)) for j in range(2))
        seen = attend(linear(x, f"{name}.cross.query"), key, value, arch.decoder_cross_heads[i])
        x = norm(x + linear(seen, f"{name}.cross.out"), f"{name}.cross_norm")
        x = norm(x + ffn(x, f"{name}.ffn"), f"{name}.ffn_norm")
    return x @ w["embedding.weight"][:, : arch.decoder_embed_dim].T


@pytest.mark.parametrize("space", [MICRO, TINY], ids=lambda space: space.name)
def test_the_network_is_the_arithmetic_of_its_definition(space: SearchSpace) -> None:
    for seed, arch in enumerate(space.sample(12, np.random.default_rng(1))):
        model = new_network(arch, space, seed=seed).double()
        src, tgt = [5, 9, 4, 7, 2], [1, 11, 6, 8]
        # Double precision, but positions are single.
        np.testing.assert_allclose(model(torch.tensor([src]), torch.tensor([tgt]))[0], reference(model, src, tgt), atol=1e-5)


def test_cross_attention_reads_the_last_encoder_layers_of_its_span() -> None:
    largest = MICRO.largest()
    for span, layers in SPAN_LAYERS.items():
        model = new_network(replace(largest, decoder_cross_spans=(span,) * largest.decoder_layers))
        memory = model.encode(torch.tensor([[4, 5, 6, 2]]))
        before = model.decode(torch.tensor([[1, 7]]), memory)
        for i, state in enumerate(memory.states):
            changed = [*memory.states]
            changed[i] = state + 1
            assert torch.equal(model.decode(torch.tensor([[1, 7]]), memory._replace(states=changed)), before) == (i >= layers)
        # Of a longest span the memory holds all that is asked for, the last layer first.
        outputs: list[torch.Tensor] = []
        for layer in model.encoder:
            layer.register_forward_hook(lambda *call, found=outputs: found.append(call[2]))
        states = model.encode(torch.tensor([[4, 5, 6, 2]])).states
        assert len(states) == 3
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(states, outputs[:0:-1], strict=True))


# --- what no output depends on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS[:6], ids=range(6))
def test_padding_changes_nothing(arch: Architecture) -> None:
    model, pairs = new_network(arch), reversed_pairs(6, seed=0)
    batch = pairs.batch(np.arange(6))
    together = model(batch.src, batch.tgt)
    assert (batch.src == PAD).any()
    for i in range(6):
        alone = pairs.batch(np.array([i]))
        kept = alone.labels[0] != PAD
        torch.testing.assert_close(together[i, : alone.tgt.shape[1]][kept], model(alone.src, alone.tgt)[0][kept], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHS[:6], ids=range(6))
def test_no_token_sees_those_after_it(arch: Architecture) -> None:
    model = new_network(arch)
    src, tgt = torch.tensor([[4, 5, 6, 2]]), torch.tensor([[1, 7, 8, 9, 10]])
    before = model(src, tgt)
    for position in range(1, 5):
        changed = tgt.clone()
        changed[0, position] = 4
        after = model(src, changed)
        torch.testing.assert_close(after[:, :position], before[:, :position], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(after[:, position], before[:, position])


# --- widths -----------------------------------------------------------------------------------------------------------


def test_embeddings_are_scaled_by_their_own_width_and_positions_cut_from_the_full_one() -> None:
    narrow = new_network(MICRO.smallest())
    tokens = torch.tensor([[5, 6, 7, 8]])
    found = narrow.embed(tokens, 12)
    table = narrow.embedding.weight[tokens, :12] * math.sqrt(12)
    full = new_network(MICRO.largest()).positions
    assert full.shape == (MAX_LENGTH, 24)
    torch.testing.assert_close(found, table + full[:4, :12])
    torch.testing.assert_close(narrow.embed(tokens, 12, start=3), table + full[3:7, :12])
    # Twelve sines come first, so a narrow network has no cosine at all, as in HAT.
    np.testing.assert_allclose(full[:, :12], np.sin(np.arange(MAX_LENGTH)[:, None] * 10000 ** (-np.arange(12) / 11)), atol=1e-4)


def test_dropout_shrinks_with_the_width() -> None:
    model = new_network(MICRO.smallest(), dropout=0.3)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    encoder, decoder = 0.3 * 12 / 20, 0.3 * 16 / 24
    assert rates.pop("source_dropout") == rates["encoder.0.dropout"] == pytest.approx(encoder)
    assert rates.pop("target_dropout") == rates["decoder.0.dropout"] == pytest.approx(decoder)
    assert all(rate == pytest.approx(encoder if name.startswith("encoder") else decoder) for name, rate in rates.items())


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_parameters_are_those_of_the_closed_form(space: SearchSpace) -> None:
    for arch in [space.smallest(), space.largest(), *space.sample(30, np.random.default_rng(0))]:
        with torch.device("meta"):
            model = Transformer(arch, space, 100)
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        assert sizes.pop("embedding.weight") == 100 * max(arch.encoder_embed_dim, arch.decoder_embed_dim)
        assert sum(sizes.values()) == count_parameters(arch, space.qkv_dim)


# --- weights, records and limits --------------------------------------------------------------------------------------


def test_initialisation_fills_every_weight_and_follows_its_generator() -> None:
    models = [Transformer(MICRO.largest(), MICRO, 5000) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
        model.initialise(torch.Generator().manual_seed(seed))
    same, other = ([torch.equal(a, b) for a, b in zip(models[0].parameters(), m.parameters(), strict=True)] for m in models[1:])
    assert all(same)
    assert not any(equal for equal, parameter in zip(other, models[0].parameters(), strict=True) if parameter.ndim == 2)
    weights = dict(models[0].named_parameters())
    assert not weights["embedding.weight"][PAD].any()
    assert weights.pop("embedding.weight").std() == pytest.approx(24**-0.5, rel=0.02)
    for name, parameter in weights.items():
        rows, *columns = parameter.shape
        if not columns:
            assert torch.all(parameter == (1 if "norm.weight" in name else 0)), name
            continue
        # A fused projection is as wide as its parts are, and less by the factor that keeps three of them in balance.
        parts = 3 if "qkv" in name else 2 if "key_value" in name else 1
        limit = math.sqrt(6 / (rows / parts + columns[0])) / (math.sqrt(2) if parts > 1 else 1)
        assert 0.9 * limit < parameter.abs().max() <= limit, name


def test_a_description_makes_the_network_again() -> None:
    model = new_network(ARCHS[0], dropout=0.2)
    record = json.loads(json.dumps(model.describe()))
    again = Transformer(Architecture.from_hat_yaml(record.pop("arch")), MICRO, **record)
    again.load_state_dict(model.state_dict())
    assert (again.arch, again.dropout, again.vocab_size) == (model.arch, 0.2, VOCAB)
    src, tgt = torch.tensor([[4, 2]]), torch.tensor([[1, 5]])
    assert torch.equal(again.eval()(src, tgt), model(src, tgt))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_embed_dim": 16}, r"not in search space MICRO: encoder_embed_dim is 16; allowed are 20, 12"),
        ({"decoder_ffn_dims": (36, 17, 36)}, r"not in search space MICRO: decoder_ffn_dims\[1\] is 17; allowed are 36, 18"),
        ({"decoder_cross_heads": (4, 4, 8)}, r"not in search space MICRO: decoder_cross_heads\[2\] is 8; allowed are 4, 2"),
    ],
)
def test_an_architecture_outside_the_space_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transformer(replace(MICRO.largest(), **change), MICRO, VOCAB)


def test_a_sequence_can_be_as_long_as_the_limit_and_no_longer() -> None:
    model = new_network(MICRO.smallest())
    assert torch.isfinite(model(torch.full((1, MAX_LENGTH), 5), torch.full((1, MAX_LENGTH), 6))).all()
    with pytest.raises(ValueError, match="a sequence of 513 tokens is too long; at most 512 are allowed"):
        model.encode(torch.full((1, MAX_LENGTH + 1), 5))
