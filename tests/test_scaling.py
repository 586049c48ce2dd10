"""Costs at full size: linear where they should be, equal to sums done by hand, and to what PyTorch counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hat_costs import count_flops, count_parameters
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmpp_book.studies.paper_costs import (
    TRANSFORMER_BASE,
    Machine,
    Plan,
    Preparation,
    implied_share,
    published,
    stages,
    training_flops,
    training_memory,
)
from llmpp_core.llm.settings import Price
from llmpp_core.nets.training import smoothed_loss
from llmpp_core.nets.transformer import Transformer
from llmpp_core.space.search_space import HAT_WMT, SMALL, TINY

Q = HAT_WMT.qkv_dim

MACHINE = Machine("a GPU", tflops=50.0, usd_per_hour=2.0)
PREPARATION = Preparation(pairs_per_s=10_000, vocabulary_s=60, memory_gib=1.0, bytes_per_pair=600)
PRICE = Price(1.0, 4.0, "2026-01-01")


def table(machine: Machine = MACHINE, **changes):
    return stages(replace(Plan(), **changes), machine, PREPARATION, PRICE, samples=50)


# Training


@pytest.mark.parametrize("space", [TINY, SMALL])
def test_a_training_update_does_three_forward_passes(space) -> None:
    """What PyTorch counts in one update is what the closed form says, to a few hundredths (it counts no element-wise work)."""
    vocab_size, n, length = 500, 4, 30
    for arch in (space.smallest(), space.largest()):
        model = Transformer(arch, space, vocab_size, 0.0)
        src, tgt, labels = (torch.randint(4, vocab_size, (n, length)) for _ in range(3))
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            smoothed_loss(model(src, tgt), labels, 0.1).backward()
        assert counter.get_total_flops() == pytest.approx(training_flops([arch], n * length, vocab_size, space.qkv_dim), rel=0.05)


def test_the_base_transformers_published_time_is_possible() -> None:
    """Its 12 hours on 8 P100 come to a plausible share of their peak, and its parameters to the 65 million of the paper."""
    assert 0.2 < implied_share() < 0.5
    parameters = count_parameters(TRANSFORMER_BASE) + 37_000 * 512
    assert parameters == pytest.approx(65e6, rel=0.05)
    assert training_flops([TRANSFORMER_BASE], 2.5e9, 37_000, Q) == pytest.approx(implied_share() * 96 * 3600 * 10.6e12)


def saved_bytes(model: Transformer, tokens: torch.Tensor) -> int:
    """Return the bytes that the backward pass of the layers needs, weights left out, counted once each."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # Held while counting: what is freed may come back at the same address.
        states = model.decode(tokens, model.encode(tokens))
    assert states.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("arch", [HAT_WMT.smallest(), HAT_WMT.largest()], ids=["smallest", "largest"])
def test_activations_are_about_what_pytorch_keeps(arch) -> None:
    vocab_size, n = 50, 60
    model = Transformer(arch, HAT_WMT, vocab_size, 0.1).train()
    fixed = training_memory(arch, vocab_size, 0, Q)
    # In 32 bit, and without the logits.
    expected = 2 * (training_memory(arch, vocab_size, n, Q) - fixed - 10 * n * vocab_size)
    assert saved_bytes(model, torch.randint(4, vocab_size, (2, n // 2))) == pytest.approx(expected, rel=0.05)


def test_memory_holds_embeddings_and_logits() -> None:
    arch = HAT_WMT.largest()
    assert training_memory(arch, 1000, 0, Q) == 16 * (count_parameters(arch) + 640_000)
    assert training_memory(arch, 2000, 100, Q) - training_memory(arch, 1000, 100, Q) == 16 * 640_000 + 100 * 10 * 1000


# Stages


def test_a_case_done_by_hand() -> None:
    archs = HAT_WMT.sample(50, np.random.default_rng(0))
    flops = np.mean([count_flops(arch, 32_768) for arch in archs])
    found, pairs = table(task="wmt14.en-fr", updates=80_000), 40_836_715
    exa = 3 * flops * 80_000 * 128 * 4096 / 30 / 1e18
    trainings = found.loc[["train the supernet", "train the winner", "train 30 from scratch"]]
    assert trainings["EFLOP"].tolist() == pytest.approx([exa, exa, 30 * exa])
    assert trainings["GPU-hours"].tolist() == pytest.approx((trainings["EFLOP"] * 1e18 / 50e12 / 3600).tolist())
    assert trainings["USD"].tolist() == pytest.approx((2 * trainings["GPU-hours"]).tolist())
    assert found.loc["label 3,000 with an LLM", "USD"] == pytest.approx(3000 * (2900 * 1.0 + 25 * 4.0) / 1e6)
    prepared = found.loc["prepare the data", ["CPU-hours", "disk"]]
    assert prepared.tolist() == pytest.approx([(60 + pairs / 10_000) / 3600, 600 * pairs / 2**30])
    assert found.loc["search, supernet alone", "EFLOP"] == pytest.approx(2200 * 3000 * flops / 1e18)
    # The sum leaves out the search that is not made.
    rows = found.drop(index=["all, with HS-NAS", "search, supernet alone"])
    for column in ("EFLOP", "GPU-hours", "CPU-hours", "USD", "disk"):
        assert found.loc["all, with HS-NAS", column] == pytest.approx(rows[column].sum())
    assert found.loc["search, HS-NAS", "GPU-hours"] == found.loc["search, supernet alone", "GPU-hours"] / 2
    assert not found.isna().any().any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Machine.of_peak("Z80", 0.5, 1.0), "unknown GPU 'Z80'; known are P100, V100"),
        (lambda: Machine.of_peak("A100", 1.5, 1.0), "share: expected a number above 0 and at most 1, got 1.5"),
        (lambda: Machine("a", 0, 1.0), "tflops: expected a positive number, got 0"),
        (lambda: Machine("a", 1.0, -1), "usd_per_hour: expected a positive number, got -1"),
    ],
)
def test_bad_machines_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_published_figures_agree_with_each_other() -> None:
    """HAT's ratio and Evolved Transformer's estimate leave HAT a few GPU-days, which is what its trainings take on a V100."""
    hours = published()["GPU-hours"]
    assert hours["HAT, whole search"] == pytest.approx(182.1, abs=0.1)
    machine = Machine.of_peak("V100", 0.3, 2.0)
    assert machine == Machine("V100 at 30% of peak", 0.3 * 125, 2.0)
    ours = table(machine).loc[["train the supernet", "search, supernet alone", "train the winner"], "GPU-hours"]
    assert 0.2 < ours.sum() / hours["HAT, whole search"] < 5
