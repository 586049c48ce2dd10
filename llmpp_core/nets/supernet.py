"""Supernets: one set of weights from which every architecture of a space takes its own.

A subnet's tensor is the leading block of the supernet's tensor of the same name. That one rule covers widths, depth and the
mixtures of supernets (Jawahar et al., ACL 2024), which first blend several experts' feed-forward blocks into one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from llmpp_core.nets.transformer import FeedForward, Transformer
from llmpp_core.space.architecture import SPAN_LAYERS, Architecture
from llmpp_core.space.features import HATFeatures
from llmpp_core.space.search_space import SearchSpace

#: The kinds of supernet: shared weights, or feed-forward layers mixed from experts, per layer or per neuron.
KINDS = ("shared", "layer-wise", "neuron-wise")
# How many skeletons a supernet keeps.
_SKELETONS = 512


class SuperTransformer(nn.Module):
    """The weights of a whole search space.

    Parameters
    ----------
    space : SearchSpace
        The space.
    vocab_size : int
        Size V of the joint vocabulary.
    kind : {"shared", "layer-wise", "neuron-wise"}
        How feed-forward layers are made: one matrix for all, or a mixture of experts with one weight per expert, or with one
        weight per expert and neuron. The weights come from a router that reads the architecture.
    dropout : float
        Dropout at the full width, until a recipe sets it.
    experts : int
        Number of experts of a mixture.
    """

    def __init__(self, space: SearchSpace, vocab_size: int, kind: str = "shared", *, dropout: float = 0.1, experts: int = 2):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind: {kind!r} is not allowed; allowed are {', '.join(KINDS)}")
        self.space, self.vocab_size, self.kind, self.experts = space, vocab_size, kind, experts
        self.weights = Transformer(space.largest(), space, vocab_size)
        self.mixtures = nn.ModuleDict()
        if kind != "shared":
            for stack in ("encoder", "decoder"):
                for i, layer in enumerate(getattr(self.weights, stack)):
                    self.mixtures[f"{stack}-{i}"] = Mixture(layer.ffn, experts, per_neuron=kind == "neuron-wise")
        self._skeletons: dict[Architecture, Transformer] = {}
        self.set_dropout(dropout)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the skeletons, which hold no weights; a copy makes its own."""
        return {**self.__dict__, "_skeletons": {}}

    def set_dropout(self, dropout: float) -> None:
        """Set the dropout at the full width, as a recipe has it."""
        self.dropout = dropout
        self.weights.set_dropout(dropout)
        self._skeletons.clear()

    def describe(self) -> dict[str, Any]:
        """Return what, with the space, makes this supernet again, as JSON holds it."""
        return {"arch": None, "kind": self.kind, "vocab_size": self.vocab_size, "dropout": self.dropout, "experts": self.experts}

    def initialise(self, generator: torch.Generator) -> None:
        """Draw new weights; every expert has its own."""
        self.weights.initialise(generator)
        for mixture in self.mixtures.values():
            for parameter in mixture.parameters():
                if parameter.ndim == 2:
                    nn.init.xavier_uniform_(parameter, generator=generator)
                else:
                    nn.init.zeros_(parameter)

    def forward(self, src: Tensor, tgt: Tensor, arch: Architecture) -> Tensor:
        """Return logits (batch, target, V) of `arch`, of the space, for src (batch, source) and tgt (batch, target)."""
        skeleton = self._skeleton(arch).train(self.training)
        return functional_call(skeleton, self.subnet_weights(arch, skeleton), (src, tgt))

    def subnet(self, arch: Architecture, *, copy: bool = True) -> Transformer:
        """Return `arch`, of the space, as a plain module with the weights it inherits, mixtures collapsed.

        Without `copy`, those that are no mixtures are views, which follow the supernet's weights.
        """
        module = self._build_skeleton(arch).train(self.training)
        for name, tensor in self.subnet_weights(arch, module).items():
            owner, _, attribute = name.rpartition(".")
            tensor = tensor.detach().clone(memory_format=torch.contiguous_format) if copy else tensor.detach()
            value = tensor if name == "positions" else nn.Parameter(tensor, requires_grad=copy)
            setattr(module.get_submodule(owner), attribute, value)
        return module

    def subnet_weights(self, arch: Architecture, skeleton: Transformer | None = None) -> dict[str, Tensor]:
        """Return the tensors of `arch` by their names in its plain module, as differentiable views and mixtures."""
        skeleton = skeleton or self._skeleton(arch)
        full = dict(self.weights.named_parameters())
        mixed = self._mixed(arch)
        tensors = {"positions": self.weights.positions}
        for name, parameter in skeleton.named_parameters():
            tensors[name] = mixed[name] if name in mixed else full[name][tuple(slice(size) for size in parameter.shape)]
        return tensors

    def _mixed(self, arch: Architecture) -> dict[str, Tensor]:
        """Return the feed-forward tensors of `arch` that are mixtures, by name."""
        if not self.mixtures:
            return {}
        averages = HATFeatures().transform([arch])[0] / _router_units(self.space)
        features = torch.tensor(averages, dtype=torch.float32, device=self.weights.positions.device)
        tensors: dict[str, Tensor] = {}
        for stack in ("encoder", "decoder"):
            for i, hidden in enumerate(getattr(arch, f"{stack}_ffn_dims")):
                first, dim = getattr(self.weights, stack)[i].ffn, getattr(arch, f"{stack}_embed_dim")
                mixed = self.mixtures[f"{stack}-{i}"](first, features, dim, hidden)
                tensors |= {f"{stack}.{i}.ffn.{name}": tensor for name, tensor in mixed.items()}
        return tensors

    def _skeleton(self, arch: Architecture) -> Transformer:
        """Return the plain module of `arch` without weights, made once."""
        if arch not in self._skeletons:
            if len(self._skeletons) == _SKELETONS:
                self._skeletons.clear()
            self._skeletons[arch] = self._build_skeleton(arch)
        return self._skeletons[arch]

    def _build_skeleton(self, arch: Architecture) -> Transformer:
        with torch.device("meta"):
            return Transformer(arch, self.space, self.vocab_size, self.dropout)


class Mixture(nn.Module):
    """Experts beside a supernet's feed-forward layer, and the router that weighs them for an architecture."""

    def __init__(self, first: FeedForward, experts: int, per_neuron: bool):
        super().__init__()
        dim, hidden = first.up.in_features, first.up.out_features
        self.others = nn.ModuleList(FeedForward(dim, hidden) for _ in range(experts - 1))
        # Layer-wise, one set of weights serves both matrices; neuron-wise each has its own router and a weight per output.
        outputs = {"up": hidden, "down": dim} if per_neuron else {"both": 1}
        self.routers = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(10, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, experts * n))
                for name, n in outputs.items()
            }
        )
        self.experts = experts

    def forward(self, first: FeedForward, features: Tensor, dim: int, hidden: int) -> dict[str, Tensor]:
        """Return weight and bias of both matrices, mixed, for `dim` inputs and `hidden` neurons."""
        # Of shape (experts, outputs), or (experts, 1) layer-wise.
        shares = {name: router(features).view(self.experts, -1).softmax(dim=0) for name, router in self.routers.items()}
        tensors = {}
        for name, rows, columns in (("up", hidden, dim), ("down", dim, hidden)):
            linears = [getattr(expert, name) for expert in (first, *self.others)]
            weights = torch.stack([linear.weight[:rows, :columns] for linear in linears])
            biases = torch.stack([linear.bias[:rows] for linear in linears])
            share = shares["both"] if "both" in shares else shares[name][:, :rows]
            tensors[f"{name}.weight"] = (share[:, :, None] * weights).sum(dim=0)
            tensors[f"{name}.bias"] = (share * biases).sum(dim=0)
        return tensors


def _router_units(space: SearchSpace) -> list[float]:
    """The units of the router's ten features: the full value of a choice made once, the mean allowed value of one per layer."""

    def stack(name: str, *lists: Sequence[int]) -> list[float]:
        once = [max(getattr(space, f"{name}_embed_dim")), max(getattr(space, f"{name}_layers"))]
        return [*once, *(sum(values) / len(values) for values in lists)]

    spans = [SPAN_LAYERS[span] for span in space.decoder_cross_spans]
    return [
        *stack("encoder", space.encoder_ffn_dims, space.encoder_heads),
        *stack("decoder", space.decoder_ffn_dims, space.decoder_self_heads, space.decoder_cross_heads, spans),
    ]
