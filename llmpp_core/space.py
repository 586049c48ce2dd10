"""Encoder-decoder Transformer architectures and the search spaces they come from.

An `Architecture` holds active layers only, so two genomes that build the same network are the same object. A
`SearchSpace` lists the allowed values and knows how to sample, mutate and cross over. Both follow the space of
Hardware-Aware Transformers (HAT, ACL 2020), the one the paper searches.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import yaml

#: Cross-attention span -> number of encoder layers attended to: -1 is the last one, 1 the last two, 2 the last three.
SPAN_LAYERS = {-1: 1, 1: 2, 2: 3}

# HAT's names, in the order of the paper's prompts, and the attribute of Architecture each one stands for.
_HAT_NAMES = {
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
_ENCODER_LISTS = ("encoder_ffn_dims", "encoder_heads")
_DECODER_LISTS = ("decoder_ffn_dims", "decoder_self_heads", "decoder_cross_heads", "decoder_cross_spans")


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
                object.__setattr__(self, item.name, _integer(item.name, value))
                continue
            object.__setattr__(self, item.name, _integers(item.name, value, "one integer per layer"))
        for stack in (_ENCODER_LISTS, _DECODER_LISTS):
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
        try:
            mapping = yaml.safe_load(text)
            # PyYAML keeps the last of repeated keys in silence; its parse tree still has them all.
            tree: Any = yaml.compose(text, yaml.SafeLoader)
            keys = [key.value for key, _ in tree.value] if isinstance(mapping, dict) else []
            odd = next(_odd_integers(tree), None) if isinstance(mapping, dict) else None
        # Scalars that do not fit their tag, and deep nesting, escape PyYAML as other errors than its own.
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
            raise ValueError(f"not valid YAML: {_one_line(error)}") from None
        if not isinstance(mapping, dict):
            raise ValueError(f"expected a YAML mapping of the keys {', '.join(_HAT_NAMES)}; got {type(mapping).__name__}")
        if len(mapping) < len(keys):
            raise ValueError(f"{_one_line(next(key for key in keys if keys.count(key) > 1))} is given twice")
        if odd is not None:
            raise ValueError(f"{odd} would be read as another number; write integers in plain decimal digits")
        return cls.from_hat_dict(mapping)

    def to_hat_dict(self) -> dict[str, int | list[int]]:
        """Return the architecture under HAT's ten names, as JSON holds it."""
        values = {name: getattr(self, attribute) for name, attribute in _HAT_NAMES.items()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def to_prompt_lines(self) -> list[str]:
        """Return the ten ``name: value`` lines in which prompts and the upstream records describe an architecture."""
        return [f"{name}: {value}" for name, value in self.to_hat_dict().items()]

    @classmethod
    def from_prompt_lines(cls, lines: str | Iterable[str]) -> Architecture:
        """Read the ten ``name: value`` lines, in any order; raises ValueError naming the offending line."""
        mapping: dict[str, Any] = {}
        for line in lines.splitlines() if isinstance(lines, str) else lines:
            if not line.strip():
                continue
            name, colon, value = line.partition(":")
            if not colon:
                raise ValueError(f"expected a line 'name: value', got {line!r}")
            name = _one_line(name)
            if name in mapping:
                raise ValueError(f"{name} is given twice")
            try:
                mapping[name] = json.loads(value)
            except (ValueError, RecursionError):
                raise ValueError(f"{name}: expected an integer or a list of integers, got {value.strip()[:80]!r}") from None
        return cls.from_hat_dict(mapping)

    @classmethod
    def from_hat_dict(cls, mapping: dict[Any, Any]) -> Architecture:
        """Read what `to_hat_dict` gives; raises ValueError naming the key that is missing, unknown or of the wrong length."""
        missing = [name for name in _HAT_NAMES if name not in mapping]
        unknown = [_one_line(name) for name in mapping if name not in _HAT_NAMES]
        if missing or unknown:
            problems = [f"missing {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(unknown)}"] * bool(unknown)
            raise ValueError(f"architecture keys: {'; '.join(problems)}; allowed are exactly {', '.join(_HAT_NAMES)}")
        values = {attribute: mapping[name] for name, attribute in _HAT_NAMES.items()}
        for stack, lists in (("encoder", _ENCODER_LISTS), ("decoder", _DECODER_LISTS)):
            count = f"{stack}-layer-num-subtransformer"
            layers = _integer(count, values.pop(f"{stack}_layers"))
            for name, attribute in _HAT_NAMES.items():
                entries = values.get(attribute)
                if attribute in lists and isinstance(entries, list) and len(entries) != layers:
                    raise ValueError(f"{name} has {len(entries)} entries but {count} is {layers}: give one entry per layer")
        return cls(**values)


def _odd_integers(node: Any) -> Iterator[str]:
    """Yield what YAML 1.1 takes for other integers than people do, such as 0100 and 8:32."""
    # A node that is referred to again is one object, so few are looked at however often.
    waiting, seen = [node], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.CollectionNode):
            waiting += [item for entry in node.value for item in (entry if isinstance(entry, tuple) else (entry,))]
        elif node.tag == "tag:yaml.org,2002:int" and not re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", node.value):
            yield node.value


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())


def _integers(name: str, values: Any, expected: str) -> tuple[int, ...]:
    """Return `values` as a tuple of plain ints allowed for field `name`, or raise ValueError."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name}: expected {expected}, got {values!r}")
    return tuple(_integer(name, value) for value in values)


def _integer(name: str, value: Any) -> int:
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


def as_generator(rng: object) -> np.random.Generator:
    """Return `rng`; raises ValueError if it is none, such as a seed."""
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng: expected a numpy.random.Generator, such as numpy.random.default_rng(0), got {rng!r}")
    return rng


@dataclass(frozen=True)
class SearchSpace:
    """The allowed values of every choice, and the moves of an evolutionary search.

    Parameters
    ----------
    name : str
        Name shown in tables and errors.
    encoder_embed_dim, decoder_embed_dim, encoder_layers, decoder_layers : tuple of int
        Allowed values of the choices made once per architecture.
    encoder_ffn_dims, encoder_heads : tuple of int
        Allowed values of the choices made in each encoder layer.
    decoder_ffn_dims, decoder_self_heads, decoder_cross_heads, decoder_cross_spans : tuple of int
        Allowed values of the choices made in each decoder layer.
    qkv_dim : int
        Inner width of every attention, shared by all its heads and never searched.
    """

    name: str
    encoder_embed_dim: tuple[int, ...]
    decoder_embed_dim: tuple[int, ...]
    encoder_layers: tuple[int, ...]
    decoder_layers: tuple[int, ...]
    encoder_ffn_dims: tuple[int, ...]
    encoder_heads: tuple[int, ...]
    decoder_ffn_dims: tuple[int, ...]
    decoder_self_heads: tuple[int, ...]
    decoder_cross_heads: tuple[int, ...]
    decoder_cross_spans: tuple[int, ...] = (-1, 1, 2)
    qkv_dim: int = 512
    # One (choice, layer) pair per gene, layer None where the choice is made once; derived, so it is not compared.
    genes: tuple[tuple[str, int | None], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        once = ("encoder_embed_dim", "decoder_embed_dim", "encoder_layers", "decoder_layers")
        object.__setattr__(self, "qkv_dim", _integer("qkv_dim", self.qkv_dim))
        for name in (*once, *_ENCODER_LISTS, *_DECODER_LISTS):
            values = _integers(name, getattr(self, name), "a tuple of allowed values")
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: expected distinct allowed values, at least one; got {values}")
            object.__setattr__(self, name, values)
        for name in ("encoder_heads", "decoder_self_heads", "decoder_cross_heads"):
            if any(self.qkv_dim % heads for heads in getattr(self, name)):
                raise ValueError(f"{name}: every number of heads must divide qkv_dim={self.qkv_dim}; got {getattr(self, name)}")
        if max(SPAN_LAYERS[s] for s in self.decoder_cross_spans) > min(self.encoder_layers):
            raise ValueError(f"decoder_cross_spans: {self.decoder_cross_spans} reads more encoder layers than {min(self.encoder_layers)}")
        genes: list[tuple[str, int | None]] = [(name, None) for name in once]
        genes += [(name, i) for name in _ENCODER_LISTS for i in range(max(self.encoder_layers))]
        genes += [(name, i) for name in _DECODER_LISTS for i in range(max(self.decoder_layers))]
        object.__setattr__(self, "genes", tuple(genes))

    def __contains__(self, arch: object) -> bool:
        return isinstance(arch, Architecture) and next(self._violations(arch), None) is None

    def validate(self, arch: Architecture) -> None:
        """Raise ValueError naming the first field of `arch` outside this space, and the allowed values."""
        if not isinstance(arch, Architecture):
            raise ValueError(f"expected an Architecture, got {type(arch).__name__}")
        problem = next(self._violations(arch), None)
        if problem:
            raise ValueError(f"not in search space {self.name}: {problem}")

    def _violations(self, arch: Architecture) -> Iterator[str]:
        for name in dict.fromkeys(choice for choice, _ in self.genes):
            value, allowed = getattr(arch, name), getattr(self, name)
            for layer, v in enumerate(value if isinstance(value, tuple) else (value,)):
                if v not in allowed:
                    where = f"{name}[{layer}]" if isinstance(value, tuple) else name
                    yield f"{where} is {v}; allowed are {', '.join(map(str, allowed))}"

    def size(self) -> int:
        """Return the exact number of distinct architectures."""

        def stack(depths: tuple[int, ...], lists: tuple[str, ...]) -> int:
            per_layer = math.prod(len(getattr(self, name)) for name in lists)
            return sum(per_layer**depth for depth in depths)

        widths = len(self.encoder_embed_dim) * len(self.decoder_embed_dim)
        return widths * stack(self.encoder_layers, _ENCODER_LISTS) * stack(self.decoder_layers, _DECODER_LISTS)

    def smallest(self) -> Architecture:
        """Return the architecture with the smallest value everywhere."""
        return self._uniform_choice(min)

    def largest(self) -> Architecture:
        """Return the architecture with the largest value everywhere."""
        return self._uniform_choice(max)

    def _uniform_choice(self, pick: Any) -> Architecture:
        return self._decode([getattr(self, name).index(pick(getattr(self, name))) for name, _ in self.genes])

    def sample(self, n: int, rng: np.random.Generator, *, decoder_layers: int | None = None) -> list[Architecture]:
        """Draw `n` architectures by drawing every gene uniformly, as HAT does.

        Decoder depth is therefore uniform, although most architectures of the space are deep.

        Parameters
        ----------
        n : int
            Number of architectures.
        rng : numpy.random.Generator
            Source of randomness.
        decoder_layers : int, optional
            Draw only architectures with this many decoder layers.

        Returns
        -------
        list of Architecture
            May hold repeats, rarely.
        """
        rows = as_generator(rng).integers(self._cardinalities(), size=(n, len(self.genes)))
        if decoder_layers is not None:
            if decoder_layers not in self.decoder_layers:
                raise ValueError(
                    f"decoder_layers is {decoder_layers}; allowed in {self.name} are {', '.join(map(str, self.decoder_layers))}"
                )
            rows[:, self.genes.index(("decoder_layers", None))] = self.decoder_layers.index(decoder_layers)
        return [self._decode(row) for row in rows.tolist()]

    def sample_balanced(self, n: int, rng: np.random.Generator) -> list[Architecture]:
        """Draw `n` different architectures, as many of each decoder depth.

        Depths take turns, so every beginning of the list is balanced too, and a longer one from the same seed begins with it.

        Raises
        ------
        ValueError
            If the space does not hold so many.
        """
        depths = sorted(self.decoder_layers)
        for depth in depths:
            held = replace(self, decoder_layers=(depth,)).size()
            if held * len(depths) < n:
                raise ValueError(
                    f"n: {self.name} holds {held:,} architectures with decoder_layers={depth}, too few for {n:,} in balance; draw fewer"
                )
        drawn: dict[Architecture, None] = {}
        while len(drawn) < n:
            drawn.setdefault(self.sample(1, rng, decoder_layers=depths[len(drawn) % len(depths)])[0])
        return list(drawn)

    def mutate(self, arch: Architecture, rng: np.random.Generator, probability: float = 0.3) -> Architecture:
        """Resample each gene of `arch` with the given probability; layers it lacked start at random values."""
        row = np.array(self._encode(arch))
        random = as_generator(rng).integers(self._cardinalities())
        resampled = (rng.random(len(row)) < probability) | (row < 0)
        return self._decode(np.where(resampled, random, row).tolist())

    def crossover(self, a: Architecture, b: Architecture, rng: np.random.Generator) -> Architecture:
        """Take each gene from `a` or `b` with equal chance; a layer only one parent has comes from that parent."""
        rows = np.array([self._encode(a), self._encode(b)])
        pick = as_generator(rng).integers(2, size=rows.shape[1])
        child = np.choose(pick, rows)
        return self._decode(np.where(child < 0, np.choose(1 - pick, rows), child).tolist())

    def _cardinalities(self) -> np.ndarray:
        return np.array([len(getattr(self, name)) for name, _ in self.genes])

    def _encode(self, arch: Architecture) -> list[int]:
        """Return the index of each gene's value, -1 for the genes of layers that `arch` does not have."""
        self.validate(arch)
        row = []
        for name, layer in self.genes:
            value = getattr(arch, name)
            if layer is not None:
                value = value[layer] if layer < len(value) else None
            row.append(-1 if value is None else getattr(self, name).index(value))
        return row

    def _decode(self, row: Sequence[int]) -> Architecture:
        values: dict[str, Any] = {}
        for (name, layer), index in zip(self.genes, row, strict=True):
            if layer is None:
                values[name] = getattr(self, name)[index]
            elif layer < values["encoder_layers" if name in _ENCODER_LISTS else "decoder_layers"]:
                values.setdefault(name, []).append(getattr(self, name)[index])
        del values["encoder_layers"], values["decoder_layers"]
        return Architecture(**values)


def _hat(name: str, ffn: tuple[int, ...], heads: tuple[int, ...]) -> SearchSpace:
    return SearchSpace(
        name,
        encoder_embed_dim=(640, 512),
        decoder_embed_dim=(640, 512),
        encoder_layers=(6,),
        decoder_layers=(6, 5, 4, 3, 2, 1),
        encoder_ffn_dims=ffn,
        encoder_heads=heads,
        decoder_ffn_dims=ffn,
        decoder_self_heads=heads,
        decoder_cross_heads=heads,
    )


#: HAT's space for WMT ("space0"), the one of the paper.
HAT_WMT = _hat("HAT_WMT", ffn=(3072, 2048, 1024), heads=(8, 4))
#: HAT's space for IWSLT ("space1"): narrower feed-forward layers and fewer heads.
HAT_IWSLT = _hat("HAT_IWSLT", ffn=(2048, 1024, 512), heads=(4, 2))
#: HAT's space scaled to corpora of some ten thousand sentence pairs.
SMALL = SearchSpace(
    "SMALL",
    encoder_embed_dim=(256, 192),
    decoder_embed_dim=(256, 192),
    encoder_layers=(4,),
    decoder_layers=(6, 5, 4, 3, 2, 1),
    encoder_ffn_dims=(1024, 512, 256),
    encoder_heads=(8, 4),
    decoder_ffn_dims=(1024, 512, 256),
    decoder_self_heads=(8, 4),
    decoder_cross_heads=(8, 4),
    qkv_dim=256,
)
#: HAT's space scaled to tasks that train on a CPU in a minute.
TINY = SearchSpace(
    "TINY",
    encoder_embed_dim=(64, 48),
    decoder_embed_dim=(64, 48),
    encoder_layers=(3,),
    decoder_layers=(6, 5, 4, 3, 2, 1),
    encoder_ffn_dims=(128, 64, 32),
    encoder_heads=(4, 2),
    decoder_ffn_dims=(128, 64, 32),
    decoder_self_heads=(4, 2),
    decoder_cross_heads=(4, 2),
    qkv_dim=64,
)
#: The ready-made spaces by name.
SPACES = {space.name: space for space in (HAT_WMT, HAT_IWSLT, SMALL, TINY)}
