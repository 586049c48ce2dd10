"""Checkpoints: a network, the state of its optimiser, and what both come from, in one safetensors file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from llmpp_core.jobs.files import load_tensors, save_tensors, understood
from llmpp_core.jobs.table import differences
from llmpp_core.nets.supernet import SuperTransformer
from llmpp_core.nets.transformer import Transformer
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.search_space import SearchSpace
from llmpp_core.text.batches import Pairs, StoredTokens

_KIND = "training"


def space_record(space: SearchSpace) -> dict[str, Any]:
    """Return the fields of a search space as JSON holds them."""
    values = {item.name: getattr(space, item.name) for item in fields(SearchSpace) if item.init}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def digest(pairs: Pairs) -> str:
    """Return the sha256 of all tokens."""
    found = hashlib.sha256()
    for side in (pairs.src, pairs.tgt):
        if isinstance(side, StoredTokens):
            # Known since the corpus was prepared.
            found.update(f"{side.digest} {side.n} ".encode())
            continue
        array = side.cpu().numpy()
        found.update(f"{array.shape} ".encode() + array.tobytes())
    return found.hexdigest()


def write_checkpoint(
    path: Path, identity: Mapping[str, Any], model: nn.Module, optimiser: torch.optim.Optimizer, history: Mapping[str, Any]
) -> None:
    """Write a checkpoint, all or nothing; of a finished training only the network is kept."""
    tensors = {f"network.{name}": tensor for name, tensor in model.state_dict().items()}
    if not history["finished"]:
        for i, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{name}": tensor for name, tensor in state.items()}
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    save_tensors(path, _KIND, arrays, {"identity": identity, "history": history})


def read_checkpoint(path: Path, identity: Mapping[str, Any], model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint into network and optimiser and return its history.

    Raises ValueError if the file is damaged, or was made with something else than `identity`; names what differs.
    """
    arrays, record = load_tensors(path, _KIND)
    if different := differences(record["identity"], identity):
        raise ValueError(f"{path} is of another training: {different}; choose another file or remove it")
    _fill(model, arrays)
    device = next(model.parameters()).device
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, array in arrays.items():
        part, _, rest = name.partition(".")
        if part == "optimiser":
            i, _, key = rest.partition(".")
            state.setdefault(int(i), {})[key] = torch.from_numpy(array).to(device)
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return record["history"]


def load_network(path: str | Path, space: SearchSpace | None = None, device: torch.device | str = "cpu") -> Any:
    """Return the network of a checkpoint of `train`, in evaluation mode; ValueError if the file is damaged or it is not of `space`."""
    arrays, record = load_tensors(path, _KIND)
    with understood(path):
        network, choices = dict(record["identity"]["network"]), record["identity"]["space"]
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in choices.items()}
        found = SearchSpace(**values)
    if space is not None and found != space:
        different = differences(space_record(found), space_record(space))
        raise ValueError(f"{path} is of another search space than {space.name}: {different}")
    with understood(path):
        arch = network.pop("arch")
        model: Any = SuperTransformer(found, **network) if arch is None else Transformer(Architecture.from_hat_yaml(arch), found, **network)
        _fill(model, arrays)
    return model.to(device).eval()


def _fill(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    prefix = "network."
    model.load_state_dict({name.removeprefix(prefix): torch.from_numpy(a) for name, a in arrays.items() if name.startswith(prefix)})
