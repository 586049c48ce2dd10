"""Search spaces of HAT's architectures: what each hyperparameter may be, and how they are drawn; those of HAT, and two small ones."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from llmpp_core.space.architecture import (
    DECODER_LISTS,
    ENCODER_LISTS,
    HAT_NAMES,
    SPAN_LAYERS,
    Architecture,
    as_integer,
    as_integers,
)
from llmpp_core.space.choice import Choice, paragraph
from llmpp_core.space.cost import Cost, Costs, flop_counts, parameter_counts

# What prompts say of each choice, under HAT's names.
_TEXTS = {
    "encoder_embed_dim": "is the width of the encoder's embeddings and layer outputs",
    "encoder_layers": "is the number of encoder layers",
    "encoder_ffn_dims": "lists the inner width of the feed-forward block of each encoder layer, first layer first",
    "encoder_heads": "lists the number of self-attention heads of each encoder layer",
    "decoder_embed_dim": "is the width of the decoder's embeddings and layer outputs",
    "decoder_layers": "is the number of decoder layers",
    "decoder_ffn_dims": "lists the inner width of the feed-forward block of each decoder layer, first layer first",
    "decoder_self_heads": "lists the number of self-attention heads of each decoder layer",
    "decoder_cross_heads": "lists the number of heads with which each decoder layer attends to the encoder",
    "decoder_cross_spans": "lists which encoder layers each decoder layer attends to: "
    "-1 means the last one, 1 the last two, 2 the last three",
}


def as_generator(rng: object) -> np.random.Generator:
    """Return `rng`; raises ValueError if it is none, such as a seed."""
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng: expected a numpy.random.Generator, such as numpy.random.default_rng(0), got {rng!r}")
    return rng


@dataclass(frozen=True)
class SearchSpace:
    """The allowed values of every choice of encoder-decoder Transformers; `llmpp_core.space.genes.Genes` has the moves of a search.

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
    qkv_dim: int = field(kw_only=True)
    # One (choice, layer) pair per gene, layer None where the choice is made once; derived, so it is not compared.
    genes: tuple[tuple[str, int | None], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        once = ("encoder_embed_dim", "decoder_embed_dim", "encoder_layers", "decoder_layers")
        object.__setattr__(self, "qkv_dim", as_integer("qkv_dim", self.qkv_dim))
        for name in (*once, *ENCODER_LISTS, *DECODER_LISTS):
            values = as_integers(name, getattr(self, name), "a tuple of allowed values")
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: expected distinct allowed values, at least one; got {values}")
            object.__setattr__(self, name, values)
        for name in ("encoder_heads", "decoder_self_heads", "decoder_cross_heads"):
            if any(self.qkv_dim % heads for heads in getattr(self, name)):
                raise ValueError(f"{name}: every number of heads must divide qkv_dim={self.qkv_dim}; got {getattr(self, name)}")
        if max(SPAN_LAYERS[s] for s in self.decoder_cross_spans) > min(self.encoder_layers):
            raise ValueError(f"decoder_cross_spans: {self.decoder_cross_spans} reads more encoder layers than {min(self.encoder_layers)}")
        genes: list[tuple[str, int | None]] = [(name, None) for name in once]
        genes += [(name, i) for name in ENCODER_LISTS for i in range(max(self.encoder_layers))]
        genes += [(name, i) for name in DECODER_LISTS for i in range(max(self.decoder_layers))]
        object.__setattr__(self, "genes", tuple(genes))

    def __getstate__(self) -> dict[str, Any]:
        # What is computed on demand refers to the space.
        return {item.name: getattr(self, item.name) for item in fields(self)}

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
        return widths * stack(self.encoder_layers, ENCODER_LISTS) * stack(self.decoder_layers, DECODER_LISTS)

    def smallest(self) -> Architecture:
        """Return the architecture with the smallest value everywhere."""
        return self._uniform_choice(min)

    def largest(self) -> Architecture:
        """Return the architecture with the largest value everywhere."""
        return self._uniform_choice(max)

    def _uniform_choice(self, pick: Any) -> Architecture:
        return self.build(np.array([[getattr(self, name).index(pick(getattr(self, name))) for name, _ in self.genes]]))[0]

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
        rows = as_generator(rng).integers([len(getattr(self, name)) for name, _ in self.genes], size=(n, len(self.genes)))
        if decoder_layers is not None:
            if decoder_layers not in self.decoder_layers:
                raise ValueError(
                    f"decoder_layers is {decoder_layers}; allowed in {self.name} are {', '.join(map(str, self.decoder_layers))}"
                )
            rows[:, self.genes.index(("decoder_layers", None))] = self.decoder_layers.index(decoder_layers)
        return self.build(rows)

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

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The ten hyperparameters, in the order of the paper's prompts."""
        found = []
        for name in HAT_NAMES.values():
            values = getattr(self, name)
            stack = name[:7] if name in ENCODER_LISTS + DECODER_LISTS else None
            numbers = tuple(SPAN_LAYERS[v] for v in values) if name == "decoder_cross_spans" else values
            order = "none" if name.endswith("heads") else "more"
            found.append(Choice(name, values, numbers, order, stack and f"{stack}_layers", text=_TEXTS[name]))
        return tuple(found)

    #: Choices that others depend on, and the one that samples are balanced over.
    gates = ("encoder_layers", "decoder_layers")
    stratum = "decoder_layers"
    backbone = "the Transformer of Vaswani et al. (2017)"
    anonymous = ("a task that maps one sequence to another", "an encoder-decoder network with attention")

    @cached_property
    def costs(self) -> Costs:
        """FLOPs over 30 source and 30 target tokens without the output projection, and parameters without the embeddings."""
        counts = {"FLOPs": partial(flop_counts, qkv_dim=self.qkv_dim), "parameters": partial(parameter_counts, qkv_dim=self.qkv_dim)}
        return Costs(self, [Cost(name, count, self) for name, count in counts.items()])

    @cached_property
    def _active(self) -> np.ndarray:
        layer = np.array([-1 if i is None else i for _, i in self.genes])
        encoder = np.array([name.startswith("encoder") for name, _ in self.genes])
        return np.array([[layer < np.where(encoder, e, d) for d in self.decoder_layers] for e in self.encoder_layers])

    def active(self, rows: np.ndarray) -> np.ndarray:
        """Return which genes count, by the positions of the two depths, shape (n, genes)."""
        encoder, decoder = (self.genes.index((name, None)) for name in self.gates)
        return self._active[rows[:, encoder], rows[:, decoder]]

    def allowed(self, rows: np.ndarray) -> None:
        """Return None: there are no rules beyond the allowed values."""

    def build(self, rows: np.ndarray) -> list[Architecture]:
        """Return the architectures of rows."""
        places = {name: [i for i, (choice, _) in enumerate(self.genes) if choice == name] for name in dict(self.genes)}
        depths = {gate[:7]: np.take(getattr(self, gate), rows[:, places[gate][0]]).tolist() for gate in self.gates}
        listed = []
        for name in Architecture.__slots__:
            values = np.take(getattr(self, name), rows[:, places[name]]).tolist()
            once = name.endswith("embed_dim")
            listed.append([v for (v,) in values] if once else [tuple(v[:n]) for v, n in zip(values, depths[name[:7]], strict=True)])
        return [_assemble(values) for values in zip(*listed, strict=True)]

    def row(self, arch: Architecture) -> list[int]:
        """Return the position of each gene's value, -1 for layers that `arch` does not have; raises ValueError if it is not of here."""
        self.validate(arch)
        row = []
        for name, layer in self.genes:
            value = getattr(arch, name)
            if layer is not None:
                value = value[layer] if layer < len(value) else None
            row.append(-1 if value is None else getattr(self, name).index(value))
        return row

    def lines(self, arch: Architecture) -> list[str]:
        """Return the ten lines of a prompt; raises ValueError for an architecture of another space."""
        self.validate(arch)
        return arch.to_prompt_lines()

    def read(self, source: str | Iterable[str] | Mapping[str, Any]) -> Architecture:
        """Return the architecture that ten lines, or a mapping of HAT's names, describe; raises ValueError for a key that is wrong."""
        return Architecture.from_hat_dict(dict(source)) if isinstance(source, Mapping) else Architecture.from_prompt_lines(source)

    def describe(self) -> str:
        """Return the paragraph of a prompt on the ten hyperparameters."""
        return paragraph([f"{name} {_TEXTS[choice]}" for name, choice in HAT_NAMES.items()])

    def feature_set(self, name: str) -> list[Any]:
        """Return the transformers of `llmpp_core.space.features.HAT_FEATURE_SETS`; raises ValueError for another name."""
        # Loads scikit-learn, which a space alone does without.
        from llmpp_core.space.features import HAT_FEATURE_SETS

        if name not in HAT_FEATURE_SETS:
            raise ValueError(f"features: expected names out of {', '.join(HAT_FEATURE_SETS)}, got {name!r}")
        return HAT_FEATURE_SETS[name](self)

    def to_record(self) -> dict[str, Any]:
        """Return the fields, as checkpoints hold them."""
        return {item.name: getattr(self, item.name) for item in fields(SearchSpace) if item.init}

    def fingerprint(self) -> str:
        """Return the SHA-256 that files of searches hold."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


def _like_hat(
    name: str, widths: tuple[int, ...], encoder_layers: int, ffn: tuple[int, ...], heads: tuple[int, ...], qkv_dim: int
) -> SearchSpace:
    return SearchSpace(
        name,
        encoder_embed_dim=widths,
        decoder_embed_dim=widths,
        encoder_layers=(encoder_layers,),
        decoder_layers=(6, 5, 4, 3, 2, 1),
        encoder_ffn_dims=ffn,
        encoder_heads=heads,
        decoder_ffn_dims=ffn,
        decoder_self_heads=heads,
        decoder_cross_heads=heads,
        qkv_dim=qkv_dim,
    )


#: HAT's space for WMT ("space0"), the one of the paper.
HAT_WMT = _like_hat("HAT_WMT", widths=(640, 512), encoder_layers=6, ffn=(3072, 2048, 1024), heads=(8, 4), qkv_dim=512)

#: HAT's space for IWSLT ("space1"): narrower feed-forward layers and fewer heads.
HAT_IWSLT = _like_hat("HAT_IWSLT", widths=(640, 512), encoder_layers=6, ffn=(2048, 1024, 512), heads=(4, 2), qkv_dim=512)

#: HAT's space scaled to corpora of some ten thousand sentence pairs.
SMALL = _like_hat("SMALL", widths=(256, 192), encoder_layers=4, ffn=(1024, 512, 256), heads=(8, 4), qkv_dim=256)

#: HAT's space scaled to tasks that train on a CPU in a minute.
TINY = _like_hat("TINY", widths=(64, 48), encoder_layers=3, ffn=(128, 64, 32), heads=(4, 2), qkv_dim=64)

#: The ready-made spaces by name.
SPACES = {space.name: space for space in (HAT_WMT, HAT_IWSLT, SMALL, TINY)}


def _assemble(values: Iterable[Any]) -> Architecture:
    """Make an Architecture of values that need no check, since they come out of a space; five times as fast."""
    arch = object.__new__(Architecture)
    for name, value in zip(Architecture.__slots__, values, strict=True):
        object.__setattr__(arch, name, value)
    return arch
