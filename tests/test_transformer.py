"""The forward pass against its arithmetic written down again in NumPy, and what no output may depend on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import MICRO, new_network
from torch import nn

from llmpp_core.nets.transformer import MAX_LENGTH, Transformer
from llmpp_core.space.search_space import TINY, SearchSpace
from llmpp_core.text.special_tokens import PAD


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


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
        # Positions of the full width, cut: sines come first, so a narrow network has no cosine at all, as in HAT.
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
    for seed, arch in enumerate([space.smallest(), *space.sample(7, np.random.default_rng(1))]):
        model = new_network(arch, space, seed=seed).double()
        src, tgt = [5, 9, 4, 7, 2], [1, 11, 6, 8]
        # Double precision, but positions are single.
        np.testing.assert_allclose(model(torch.tensor([src]), torch.tensor([tgt]))[0], reference(model, src, tgt), atol=1e-5)


def test_widths_may_be_odd() -> None:
    space = replace(MICRO, encoder_embed_dim=(11,), decoder_embed_dim=(25, 9))
    for arch in (space.smallest(), space.largest()):
        model, tokens = new_network(arch, space), torch.tensor([[5, 9, 4]])
        assert torch.isfinite(model(tokens, tokens)).all()


def test_dropout_shrinks_with_the_width() -> None:
    model = new_network(MICRO.smallest(), dropout=0.3)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    encoder, decoder = 0.3 * 12 / 20, 0.3 * 16 / 24
    assert rates.pop("source_dropout") == rates["encoder.0.dropout"] == pytest.approx(encoder)
    assert rates.pop("target_dropout") == rates["decoder.0.dropout"] == pytest.approx(decoder)
    assert all(rate == pytest.approx(encoder if name.startswith("encoder") else decoder) for name, rate in rates.items())


def test_initialisation_fills_every_weight() -> None:
    model = Transformer(MICRO.largest(), MICRO, 5000)
    for parameter in model.parameters():
        parameter.fill_(torch.nan)
    model.initialise(torch.Generator().manual_seed(1))
    weights = dict(model.named_parameters())
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


def test_a_sequence_can_be_as_long_as_the_limit_and_no_longer() -> None:
    model = new_network(MICRO.smallest())
    assert torch.isfinite(model(torch.full((1, MAX_LENGTH), 5), torch.full((1, MAX_LENGTH), 6))).all()
    with pytest.raises(ValueError, match="a sequence of 513 tokens is too long; at most 512 are allowed"):
        model.encode(torch.full((1, MAX_LENGTH + 1), 5))
