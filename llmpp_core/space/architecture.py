"""Encoder-decoder Transformer architectures and the search spaces they come from.

An `Architecture` holds active layers only, so two genomes that build the same network are the same object. A
`SearchSpace` lists the allowed values and knows how to sample. Both follow the space of
Hardware-Aware Transformers (HAT, ACL 2020), the one the paper searches.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping, Sized
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields
from typing import Any

from llmpp_core.space.reading import named_values

#: Cross-attention span -> number of encoder layers attended to: -1 is the last one, 1 the last two, 2 the last three.
SPAN_LAYERS = {-1: 1, 1: 2, 2: 3}

#: HAT's names, in the order of the paper's prompts, and the attribute of Architecture each one stands for.
HAT_NAMES = {
    "encoder-embed-dim-subtransformer": "encoder_embed_dim",
    "encoder-layer-num-subtransformer": "encoder_layers",
    "encoder-ffn-embed-dim-all-subtransformer": "encoder_ffn_dims",
    "encoder-self-attention-heads-all-subtransformer": "encoder_heads",
    "decoder-embed-dim-subtransformer": "decoder_embed_dim",
    "decoder-layer-num-subtransformer": "decoder_layers",
    "decoder-ffn-embed-dim-all-subtransformer": "decoder_ffn_dims",
    "decoder-self-attention-heads-all-subtransformer": "decoder_self_heads",
    "decoder-ende-attention-heads-all-subtransformer": "decoder_cross_heads",
    "decoder-arbitrary-ende-attn-all-subtransformer": "decoder_cross_spans",
}
ENCODER_LISTS = ("encoder_ffn_dims", "encoder_heads")
DECODER_LISTS = ("decoder_ffn_dims", "decoder_self_heads", "decoder_cross_heads", "decoder_cross_spans")


@dataclass(frozen=True, slots=True)
class Architecture:
    """One encoder-decoder Transformer, described by its active layers.

    Parameters
    ----------
    encoder_embed_dim, decoder_embed_dim : int
        Width of the residual stream.
    encoder_ffn_dims, encoder_heads : tuple of int
        Feed-forward width and number of self-attention heads of each encoder layer.
    decoder_ffn_dims, decoder_self_heads, decoder_cross_heads : tuple of int
        Feed-forward width and numbers of self- and cross-attention heads of each decoder layer.
    decoder_cross_spans : tuple of int
        What each decoder layer's cross-attention reads: -1 the last encoder layer, 1 the last two, 2 the last three.

    Raises
    ------
    ValueError
        If a value is no positive integer, the lists of a stack differ in length, or a span is not -1, 1 or 2 or reads
        more encoder layers than there are.
    """

    encoder_embed_dim: int
    decoder_embed_dim: int
    encoder_ffn_dims: tuple[int, ...]
    encoder_heads: tuple[int, ...]
    decoder_ffn_dims: tuple[int, ...]
    decoder_self_heads: tuple[int, ...]
    decoder_cross_heads: tuple[int, ...]
    decoder_cross_spans: tuple[int, ...]

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.endswith("embed_dim"):
                object.__setattr__(self, item.name, as_integer(item.name, value))
                continue
            object.__setattr__(self, item.name, as_integers(item.name, value, "one integer per layer"))
        for stack in (ENCODER_LISTS, DECODER_LISTS):
            lengths = {name: len(getattr(self, name)) for name in stack}
            if min(lengths.values()) < 1 or len(set(lengths.values())) > 1:
                found = ", ".join(f"{name} {n}" for name, n in lengths.items())
                raise ValueError(f"{stack[0].split('_')[0]} lists need one entry per layer and at least one layer; entries: {found}")
        for span in self.decoder_cross_spans:
            if SPAN_LAYERS[span] > self.encoder_layers:
                raise ValueError(f"decoder_cross_spans: {span} reads {SPAN_LAYERS[span]} encoder layers, there are {self.encoder_layers}")

    @property
    def encoder_layers(self) -> int:
        """Number of encoder layers."""
        return len(self.encoder_ffn_dims)

    @property
    def decoder_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.decoder_ffn_dims)

    def to_hat_yaml(self) -> str:
        """Return the architecture in HAT's YAML form, ten keys, lists as long as their stacks."""
        return "".join(line + "\n" for line in self.to_prompt_lines())

    @classmethod
    def from_hat_yaml(cls, text: str) -> Architecture:
        """Read HAT's YAML form; raises ValueError naming the key that is missing, unknown or of the wrong length."""
        # Is made of spaces, which are made of architectures.
        from llmpp_core.space.grammar import Tree

        mapping = Tree(text, "YAML").value
        if not isinstance(mapping, dict):
            raise ValueError(f"expected a YAML mapping of the keys {', '.join(HAT_NAMES)}; got {type(mapping).__name__}")
        return cls.from_hat_dict(mapping)

    def to_hat_dict(self) -> dict[str, int | list[int]]:
        """Return the architecture under HAT's ten names, as JSON holds it."""
        values = {name: getattr(self, attribute) for name, attribute in HAT_NAMES.items()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def to_prompt_lines(self) -> list[str]:
        """Return the ten ``name: value`` lines in which prompts and the upstream records describe an architecture."""
        return [f"{name}: {value}" for name, value in self.to_hat_dict().items()]

    @classmethod
    def from_prompt_lines(cls, lines: str | Iterable[str]) -> Architecture:
        """Read the ten ``name: value`` lines, in any order; raises ValueError naming the offending line."""
        mapping: dict[str, Any] = {}
        for name, value in named_values(lines).items():
            try:
                mapping[name] = json.loads(value)
            except (ValueError, RecursionError):
                raise ValueError(f"{name}: expected an integer or a list of integers, got {value[:80]!r}") from None
        return cls.from_hat_dict(mapping)

    @classmethod
    def from_hat_dict(cls, mapping: dict[Any, Any]) -> Architecture:
        """Read what `to_hat_dict` gives; raises ValueError naming the key that is missing, unknown or of the wrong length."""
        missing = [name for name in HAT_NAMES if name not in mapping]
        unknown = [" ".join(str(name).split()) for name in mapping if name not in HAT_NAMES]
        if missing or unknown:
            problems = [f"missing {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(unknown)}"] * bool(unknown)
            raise ValueError(f"architecture keys: {'; '.join(problems)}; allowed are exactly {', '.join(HAT_NAMES)}")
        values = {attribute: mapping[name] for name, attribute in HAT_NAMES.items()}
        for stack, lists in (("encoder", ENCODER_LISTS), ("decoder", DECODER_LISTS)):
            count = f"{stack}-layer-num-subtransformer"
            layers = as_integer(count, values.pop(f"{stack}_layers"))
            for name, attribute in HAT_NAMES.items():
                entries = values.get(attribute)
                if attribute in lists and isinstance(entries, Sized) and not isinstance(entries, str) and len(entries) != layers:
                    raise ValueError(f"{name} has {len(entries)} entries but {count} is {layers}: give one entry per layer")
        return cls(**values)


def as_integers(name: str, values: Any, expected: str) -> tuple[int, ...]:
    """Return `values` as a tuple of plain ints allowed for field `name`, or raise ValueError."""
    # The layers of a set would be in any order.
    if isinstance(values, (str, bytes, Mapping, AbstractSet)) or not isinstance(values, Iterable):
        raise ValueError(f"{name}: expected {expected}, got {values!r}")
    return tuple(as_integer(name, value) for value in values)


def as_integer(name: str, value: Any) -> int:
    """Return `value` as a plain int allowed for field `name`, or raise ValueError."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: expected an integer, got {value!r}") from None
    if name == "decoder_cross_spans":
        if number not in SPAN_LAYERS:
            raise ValueError(f"{name}: {number} is not allowed; allowed are {', '.join(map(str, SPAN_LAYERS))}")
    elif number < 1:
        raise ValueError(f"{name}: expected a positive integer, got {number}")
    return number
