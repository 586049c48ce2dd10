"""Search spaces: what each hyperparameter may be, drawn, mutated and crossed; those of HAT, and two small ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from llmpp_core.space.architecture import DECODER_LISTS, ENCODER_LISTS, SPAN_LAYERS, Architecture, as_integer, as_integers


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
            elif layer < values["encoder_layers" if name in ENCODER_LISTS else "decoder_layers"]:
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
