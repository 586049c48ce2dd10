"""The encoder-decoder Transformer that an architecture describes, as a plain module.

Post-norm layers, sinusoidal positions, one table for source, target and output projection, as in HAT. `llmpp_core.nets.supernet` runs
this same module with weights sliced from larger ones, so there is one forward pass in the project.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmpp_core.space.architecture import SPAN_LAYERS, Architecture
from llmpp_core.space.search_space import SearchSpace
from llmpp_core.text.special_tokens import PAD

#: Longest sequence in tokens, source or target, markers included.
MAX_LENGTH = 512


class Memory(NamedTuple):
    """What the decoder reads of the source: outputs (batch, source, width) of the last encoder layers, at most three, the last first."""

    states: Sequence[Tensor]
    mask: Tensor  #: (batch, source), true where the source has a token.


class Cache(NamedTuple):
    """Keys and values (batch, heads, length, head width) of one decoder layer: of the target so far, and of the source it reads."""

    keys: Tensor | None
    values: Tensor | None
    source_keys: Tensor
    source_values: Tensor
    mask: Tensor  #: (batch, 1, 1, length), of the source.


class Linear(nn.Linear):
    """A matrix and a bias that hold nothing until `Transformer.initialise` or a checkpoint fills them."""

    def reset_parameters(self) -> None:
        """Draw nothing; PyTorch's draw takes most of the time of building a subnet that inherits its weights."""


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself; the inner width is `qkv_dim`, whatever `dim` is."""

    def __init__(self, dim: int, qkv_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * qkv_dim)
        self.out = Linear(qkv_dim, dim)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of x (batch, length, dim), each (batch, heads, length, head width)."""
        query, key, value = (_split(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return query, key, value

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Return (batch, length, dim) for x of that shape; attends where `mask` (batch, 1, 1, length) is true, or to the past."""
        return self.out(_merge(F.scaled_dot_product_attention(*self.queries_keys_values(x), attn_mask=mask, is_causal=causal)))


class CrossAttention(nn.Module):
    """Multi-head attention of the target to the outputs of one, two or three encoder layers, set one after the other in time."""

    def __init__(self, dim: int, source_dim: int, qkv_dim: int, heads: int, span: int):
        super().__init__()
        self.heads = heads
        self.layers = SPAN_LAYERS[span]
        self.query = Linear(dim, qkv_dim)
        self.key_value = Linear(source_dim, 2 * qkv_dim)
        self.out = Linear(qkv_dim, dim)

    def read(self, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys and values (batch, heads, length, head width), and their mask (batch, 1, 1, length)."""
        source = torch.cat(list(memory.states[: self.layers]), dim=1) if self.layers > 1 else memory.states[0]
        key, value = (_split(part, self.heads) for part in self.key_value(source).chunk(2, dim=-1))
        return key, value, memory.mask.repeat(1, self.layers)[:, None, None, :]

    def forward(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Return (batch, length, dim) for x of that shape and what `read` gave."""
        query = _split(self.query(x), self.heads)
        return self.out(_merge(F.scaled_dot_product_attention(query, key, value, attn_mask=mask)))


class FeedForward(nn.Module):
    """Two matrices with a ReLU between them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.up = Linear(dim, hidden)
        self.down = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., dim) for x (..., dim)."""
        return self.down(F.relu(self.up(x)))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each added to its input and then normalised."""

    def __init__(self, dim: int, qkv_dim: int, ffn_dim: int, heads: int):
        super().__init__()
        self.attention = SelfAttention(dim, qkv_dim, heads)
        self.attention_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return (batch, source, dim) for x of that shape; `mask` (batch, 1, 1, source) is true where there is a token."""
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention and feed-forward, each added to its input and then normalised."""

    def __init__(self, dim: int, source_dim: int, qkv_dim: int, ffn_dim: int, heads: tuple[int, int], span: int):
        super().__init__()
        self.attention = SelfAttention(dim, qkv_dim, heads[0])
        self.attention_norm = nn.LayerNorm(dim)
        self.cross = CrossAttention(dim, source_dim, qkv_dim, heads[1], span)
        self.cross_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout()

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Return (batch, target, dim) for x of that shape."""
        x = self.attention_norm(x + self.dropout(self.attention(x, causal=True)))
        x = self.cross_norm(x + self.dropout(self.cross(x, *self.cross.read(memory))))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))

    def step(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Advance by one token x (batch, 1, dim), given the keys and values of those before it."""
        query, key, value = self.attention.queries_keys_values(x)
        if cache.keys is not None and cache.values is not None:
            key, value = torch.cat([cache.keys, key], dim=2), torch.cat([cache.values, value], dim=2)
        x = self.attention_norm(x + self.attention.out(_merge(F.scaled_dot_product_attention(query, key, value))))
        x = self.cross_norm(x + self.cross(x, cache.source_keys, cache.source_values, cache.mask))
        return self.ffn_norm(x + self.ffn(x)), cache._replace(keys=key, values=value)


class Transformer(nn.Module):
    """The network of one architecture.

    Parameters
    ----------
    arch : Architecture
        Of `space`; ValueError if it is not.
    space : SearchSpace
        Gives the inner width of attention and the full widths, which scale dropout and positions.
    vocab_size : int
        Size V of the joint vocabulary, the special tokens included.
    dropout : float
        Dropout at the full width, until a recipe sets it; a narrower stack has less, in proportion.
    """

    positions: Tensor

    def __init__(self, arch: Architecture, space: SearchSpace, vocab_size: int, dropout: float = 0.1):
        super().__init__()
        space.validate(arch)
        self.arch, self.space, self.vocab_size = arch, space, vocab_size
        encoder_dim, decoder_dim, qkv = arch.encoder_embed_dim, arch.decoder_embed_dim, space.qkv_dim
        width = max(encoder_dim, decoder_dim)
        self.embedding = nn.Embedding(vocab_size, width, padding_idx=PAD, _weight=torch.empty(vocab_size, width))
        self.encoder: Sequence[EncoderLayer] = nn.ModuleList(  # type: ignore[assignment]
            EncoderLayer(encoder_dim, qkv, ffn, heads) for ffn, heads in zip(arch.encoder_ffn_dims, arch.encoder_heads, strict=True)
        )
        decoder_heads = zip(arch.decoder_self_heads, arch.decoder_cross_heads, strict=True)
        self.decoder: Sequence[DecoderLayer] = nn.ModuleList(  # type: ignore[assignment]
            DecoderLayer(decoder_dim, encoder_dim, qkv, ffn, heads, span)
            for ffn, heads, span in zip(arch.decoder_ffn_dims, decoder_heads, arch.decoder_cross_spans, strict=True)
        )
        self.source_dropout, self.target_dropout = nn.Dropout(), nn.Dropout()
        self.set_dropout(dropout)
        full = max(*space.encoder_embed_dim, *space.decoder_embed_dim)
        self.register_buffer("positions", _sinusoids(MAX_LENGTH, full), persistent=False)

    def set_dropout(self, dropout: float) -> None:
        """Set the dropout at the full width, as a recipe has it; a narrower stack has less, in proportion."""
        self.dropout = dropout
        encoder = dropout * self.arch.encoder_embed_dim / max(self.space.encoder_embed_dim)
        decoder = dropout * self.arch.decoder_embed_dim / max(self.space.decoder_embed_dim)
        for part in (self.source_dropout, *(layer.dropout for layer in self.encoder)):
            part.p = encoder
        for part in (self.target_dropout, *(layer.dropout for layer in self.decoder)):
            part.p = decoder

    def describe(self) -> dict[str, Any]:
        """Return what, with the space, makes this network again, as JSON holds it."""
        return {"arch": self.arch.to_hat_yaml(), "vocab_size": self.vocab_size, "dropout": self.dropout}

    def initialise(self, generator: torch.Generator) -> None:
        """Draw new weights: normal embeddings, Glorot-uniform matrices, zero biases, norms that change nothing."""
        for name, parameter in self.named_parameters():
            if name == "embedding.weight":
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
                with torch.no_grad():
                    parameter[PAD] = 0
            elif parameter.ndim == 2:
                # The three matrices of a fused projection are drawn as if they stood alone.
                parts = {"qkv": 3, "key_value": 2}.get(name.split(".")[-2], 1)
                for part in parameter.detach().chunk(parts):
                    nn.init.xavier_uniform_(part, gain=1 / math.sqrt(2) if parts > 1 else 1, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.ones_(parameter)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        """Return logits (batch, target, V) of the next token, for token identifiers src (batch, source) and tgt (batch, target)."""
        return self.project(self.decode(tgt, self.encode(src)))

    def encode(self, src: Tensor) -> Memory:
        """Return what the decoder reads of source tokens (batch, source)."""
        mask = src != PAD
        x = self.source_dropout(self.embed(src, self.arch.encoder_embed_dim))
        states = [x]
        for layer in self.encoder:
            states.append(layer(states[-1], mask[:, None, None, :]))
        return Memory(states[:-4:-1], mask)

    def decode(self, tgt: Tensor, memory: Memory) -> Tensor:
        """Return the decoder's output (batch, target, decoder width) for target tokens (batch, target)."""
        x = self.target_dropout(self.embed(tgt, self.arch.decoder_embed_dim))
        for layer in self.decoder:
            x = layer(x, memory)
        return x

    def project(self, x: Tensor) -> Tensor:
        """Return logits (..., V) of the decoder's output (..., decoder width)."""
        return F.linear(x, self.embedding.weight[:, : self.arch.decoder_embed_dim])

    def embed(self, tokens: Tensor, dim: int, start: int = 0) -> Tensor:
        """Return embeddings of `dim` columns (batch, length, dim) for tokens (batch, length) that begin at position `start`."""
        if start + tokens.shape[1] > MAX_LENGTH:
            raise ValueError(f"a sequence of {start + tokens.shape[1]} tokens is too long; at most {MAX_LENGTH} are allowed")
        x = F.embedding(tokens, self.embedding.weight[:, :dim], padding_idx=PAD)
        return x * math.sqrt(dim) + self.positions[start : start + tokens.shape[1], :dim]

    def start(self, memory: Memory) -> list[Cache]:
        """Return the caches with which decoding token by token begins, one per decoder layer."""
        return [Cache(None, None, *layer.cross.read(memory)) for layer in self.decoder]

    def step(self, tokens: Tensor, position: int, caches: Sequence[Cache]) -> tuple[Tensor, list[Cache]]:
        """Return the logits (batch, V) after the tokens (batch,) at `position`, and the caches grown by them."""
        x = self.embed(tokens[:, None], self.arch.decoder_embed_dim, position)
        grown = []
        for layer, cache in zip(self.decoder, caches, strict=True):
            x, cache = layer.step(x, cache)
            grown.append(cache)
        return self.project(x[:, 0]), grown


def _split(x: Tensor, heads: int) -> Tensor:
    """(batch, length, width) -> (batch, heads, length, width / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    """(batch, heads, length, head width) -> (batch, length, width)."""
    return x.transpose(1, 2).flatten(2)


def _sinusoids(length: int, dim: int) -> Tensor:
    """Sines in the first half of the columns, cosines in the second, an odd one 0; built at the full width and sliced like a weight."""
    half = dim // 2
    rates = torch.exp(torch.arange(half) * (-math.log(10000) / max(half - 1, 1)))
    angles = torch.arange(length)[:, None] * rates
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))
