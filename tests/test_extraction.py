"""A subnet taken out of a supernet computes the same; in a file of its own, since networks of HAT's size take minutes in all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_nets import VOCAB, new_supernet

from llmpp_core.nets.supernet import KINDS
from llmpp_core.space.cost import count_parameters
from llmpp_core.space.search_space import SPACES, SearchSpace


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_an_extracted_subnet_computes_what_the_supernet_does(space: SearchSpace, kind: str) -> None:
    supernet, generator = new_supernet(kind, space), torch.Generator().manual_seed(0)
    src, tgt = (torch.randint(4, VOCAB, (1, 5), generator=generator) for _ in range(2))
    with torch.no_grad():
        for arch in space.sample(200, np.random.default_rng(1)):
            subnet = supernet.subnet(arch)
            sizes = {name: parameter.numel() for name, parameter in subnet.named_parameters()}
            del sizes["embedding.weight"]
            assert sum(sizes.values()) == count_parameters(arch, space.qkv_dim)
            torch.testing.assert_close(supernet(src, tgt, arch), subnet(src, tgt), rtol=1e-6, atol=1e-6)
